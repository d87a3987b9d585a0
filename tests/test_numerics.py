"""Torch's global state: a Run has the same bits under it, or another key, and gives it back as it
was."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from flooding import Run, run_all, train
from flooding.numerics import capture_settings, has_global_hooks, pinned
from flooding.training.runner import run_key
from small import normed, small, wide


def measured(run):
    return run_all([run], ledger=False, workers=0)[0].content_hash


@pytest.fixture(scope="module")
def plain():
    torch.set_num_threads(1)
    return run_key(Run(wide(), 0.2)), measured(Run(wide(), 0.2))


@pytest.fixture(autouse=True)
def _restored():
    with pinned({}):
        yield
        assert capture_settings() == {}


class Switched:
    """Sets something for a block and gives it back."""

    def __init__(self, put, value, back):
        self.put, self.value, self.back = put, value, back

    def __enter__(self):
        self.put(self.value)

    def __exit__(self, *_):
        self.put(self.back)


def attribute(owner, name):
    return partial(setattr, owner, name)


SETTINGS = {
    "matmul precision medium": (torch.set_float32_matmul_precision, "medium", "highest"),
    "matmul precision high": (torch.set_float32_matmul_precision, "high", "highest"),
    "fp32 precision of everything": (attribute(torch.backends, "fp32_precision"), "tf32", "none"),
    "fp32 precision of oneDNN's products": (
        attribute(torch.backends.mkldnn.matmul, "fp32_precision"),
        "bf16",
        "none",
    ),
    "deterministic": (torch.use_deterministic_algorithms, True, False),
    "deterministic, warnings": (torch.set_deterministic_debug_mode, "warn", "default"),
    "memory not filled": (
        attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
        False,
        True,
    ),
    "denormals flushed": (torch.set_flush_denormal, True, False),
    "no oneDNN": (torch._C._set_mkldnn_enabled, False, True),
    "deterministic oneDNN": (torch._C._set_mkldnn_deterministic, True, False),
    "no NNPACK": (torch._C._set_nnpack_enabled, False, True),
    "no flash attention": (torch.backends.cuda.enable_flash_sdp, False, True),
    "no efficient attention": (torch.backends.cuda.enable_mem_efficient_sdp, False, True),
    "no fast path of attention": (torch.backends.mha.set_fastpath_enabled, False, True),
    "einsum from left to right": (attribute(torch.backends.opt_einsum, "enabled"), False, True),
    "cuDNN tries kernels": (attribute(torch.backends.cudnn, "benchmark"), True, False),
    "TF32 on CUDA": (attribute(torch.backends.cuda.matmul, "allow_tf32"), True, False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_may_change_bits_changes_the_key_and_both_processes_follow_it(name, plain):
    with Switched(*SETTINGS[name]):
        assert run_key(Run(wide(), 0.2)) != plain[0]
        here = measured(Run(wide(), 0.2))
    assert (run_key(Run(wide(), 0.2)), measured(Run(wide(), 0.2))) == plain
    # The switch is what train() captured, whatever is set between its rows.
    with Switched(*SETTINGS[name]):
        rows = train(Run(wide(), 0.2))
        next(rows)
    *_, row = rows
    assert row.record.content_hash == here


def test_workers_train_under_the_callers_settings():
    both = [Run(wide(), level) for level in (0.2, 0.3)]
    for name in ("matmul precision medium", "denormals flushed"):
        with Switched(*SETTINGS[name]):
            here, away = (
                [r.content_hash for r in run_all(both, ledger=False, workers=n)] for n in (0, 1)
            )
        assert here == away, name


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
    "default device, set": lambda: Switched(torch.set_default_device, "meta", None),
    "two threads": lambda: Switched(torch.set_num_threads, 2, 1),
    "another seed": lambda: Switched(torch.manual_seed, 1234, 0),
    "gradients off": lambda: Switched(torch.set_grad_enabled, False, True),
    "anomalies sought": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", CONTEXTS)
def test_an_enclosing_context_changes_neither_bits_nor_key(name, plain):
    run = Run(wide(), 0.2)
    with CONTEXTS[name]():
        assert (run_key(run), measured(run)) == plain


@pytest.mark.parametrize("name", ["autocast", "inference", "default device"])
def test_data_and_models_that_are_made_on_demand_do_not_see_a_context(name):
    run = Run(normed(max_epochs=2), 0.2)
    expected = run_key(run), measured(run)
    from flooding.training import problem

    problem._SPLITS.clear()
    with CONTEXTS[name]():
        assert (run_key(run), measured(run)) == expected


def test_the_default_dtype_of_a_run_is_that_of_its_start(plain):
    rows = train(Run(wide(), 0.2))
    next(rows)
    with Switched(torch.set_default_dtype, torch.float64, torch.float32):
        next(rows)
        assert torch.get_default_dtype() == torch.float64
    *_, row = rows
    assert row.record.content_hash == plain[1]


def register_module_hook():
    return nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)


def register_optimizer_hook():
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    return register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: None)


@pytest.mark.parametrize("register", [register_module_hook, register_optimizer_hook])
def test_runs_under_global_hooks_are_neither_looked_up_nor_stored(register, tmp_path, caplog):
    from flooding.training.ledger import Ledger

    run, path = Run(small(), 0.2), tmp_path / "ledger.sqlite"
    run_all([run], ledger=path, workers=0)
    handle = register()
    try:
        assert has_global_hooks()
        trained = []
        run_all([run], ledger=path, workers=0, on_start=trained.extend)
    finally:
        handle.remove()
    assert trained == [run]
    assert "global hooks" in caplog.text
    ledger = Ledger(path)
    assert len(ledger) == 1
    ledger.close()


@pytest.mark.parametrize("name", ["ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"])
def test_a_variable_that_chooses_kernels_changes_the_key(name, plain, monkeypatch):
    monkeypatch.setenv(name, "default")
    assert run_key(Run(wide(), 0.2)) != plain[0]
    monkeypatch.setenv(name, "")
    assert run_key(Run(wide(), 0.2)) == plain[0]


def test_torchs_defaults_are_what_a_fresh_process_has():
    code = "from flooding.numerics import capture_settings; print(capture_settings())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TORCH_", "NVIDIA_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "{}"


def test_a_precision_set_and_set_back_is_the_default():
    for value in ("medium", "highest"):
        torch.set_float32_matmul_precision(value)
    assert capture_settings() == {}
