"""Problems whose code forks, reads, prints, exits and raises, for test_pool.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flooding import Problem
from flooding.data import Split, Splits, loaders

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
PARTS = (TensorDataset(X[:30], Y[:30]), TensorDataset(X[30:], Y[30:]))


def splits(seed=0):
    return Splits(Split(X[:30], Y[:30]), Split(X[30:], Y[30:]))


def problem(data=splits, model=None, **changes):
    return Problem(
        data, model or partial(nn.Linear, 4, 2), batch_size=10, **{"max_epochs": 3} | changes
    )


def from_loaders(seed=0, workers=2, context=None, persistent=False):
    """Read by a DataLoader's processes; a persistent one keeps them."""
    loader = DataLoader(
        PARTS[0],
        10,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    if persistent:
        KEPT.append(loader)
    return loaders.splits(loader, PARTS[1])


KEPT = []


class Acting(nn.Linear):
    """A linear layer whose first pass in training does something else, too."""

    def __init__(self, action):
        super().__init__(4, 2)
        self.action, self.acted = action, False

    def forward(self, x):
        if self.training and not self.acted:
            self.acted = True
            self.action()
        return super().forward(x)


def acting(action):
    return problem(model=partial(Acting, action), key="acting")


def square(x):
    return x * x


def run_process(context):
    process = multiprocessing.get_context(context).Process(target=square, args=(3,))
    process.start()
    process.join()
    assert process.exitcode == 0


def run_pool(context):
    with multiprocessing.get_context(context).Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def read_input():
    try:
        input("a question nobody answers")
    except EOFError:
        return
    raise AssertionError("standard input must be empty")


def read_by_a_program():
    assert subprocess.run(["cat"], stdout=subprocess.PIPE, check=True).stdout == b""


def fork_and_exit():
    if not (child := os.fork()):
        sys.stdout.write("printed by the child\n")
        os._exit(0)
    os.waitpid(child, 0)


def fork_and_return():
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)


def fork_in_a_thread():
    thread = threading.Thread(target=fork_and_exit)
    thread.start()
    thread.join()


def leave_a_child(path):
    """Start a process that would outlive everybody, and write its number down."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]).pid)
        )


def leave_a_child_and_die(path):
    leave_a_child(path)
    os._exit(7)


def print_a_lot():
    for number in range(3000):
        print("line", number)


def print_and_die(code=9):
    print("the reason is known")
    sys.stderr.write("and told\n")
    os._exit(code)


def kill_itself(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def leave(code):
    sys.exit(code)


def interrupt():
    raise KeyboardInterrupt


class OddError(Exception):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_odd():
    raise OddError("this", "that")


def raise_local():
    class LocalError(Exception):
        pass

    raise LocalError("of a class inside a function")


def raise_with_lock():
    error = ValueError("holds a lock")
    error.lock = threading.Lock()
    raise error


class StopEverythingError(BaseException):
    """Not an Exception."""


def stop_everything():
    raise StopEverythingError("enough")


def sleep(seconds):
    time.sleep(seconds)
