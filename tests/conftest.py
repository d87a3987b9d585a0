"""Every test starts with one thread: one and two give different bits."""

import os

import hypothesis
import pytest
import torch

# No deadline: the machines are shared. The same examples in CI, so that what it says depends on the
# change alone.
hypothesis.settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("shared")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
