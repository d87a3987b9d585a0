"""What flooding adds to a step of transformers' Trainer, and to the import of transformers.

    python benchmarks/transformers_overhead.py [--steps 30] [--batch 128]

A plain Trainer and a flooded one train ResNet-20 on the CPU and take turns step by step, so that a
drifting machine slows both; the figure is the ratio of the medians. Since a step takes long and
flooding almost nothing, that ratio is mostly noise: both also train a network of one layer, where
the difference of the medians is what flooding takes by itself. Target: below 1 % of a step, and
below 50 ms of an import.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from flooding.integrations.transformers import FloodTrainerMixin
from flooding.models import resnet_cifar
from flooding.report.provenance import machine

TARGET, IMPORT_TARGET = 0.01, 0.050
WARM = 3


class FloodTrainer(FloodTrainerMixin, Trainer):
    """The flooded one."""


class Classifier(nn.Module):
    """A network in the form that Trainer calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x, labels):
        """Return the loss."""
        return {"loss": nn.functional.cross_entropy(self.network(x), labels)}


class TakingTurns(TrainerCallback):
    """Time each step, and let the other Trainer make one before the next."""

    def __init__(self, number, turn):
        self.number, self.turn = number, turn
        self.times, self.tick = [], None

    def on_step_begin(self, *_, **__):
        """Stop the clock, and start it again when the other one has made a step."""
        if self.tick is not None:
            self.times.append(time.perf_counter() - self.tick)
        self.pass_on()
        self.turn.acquire(self.number)
        self.tick = time.perf_counter()

    def on_train_end(self, *_, **__):
        """Let the other one finish."""
        self.pass_on()

    def pass_on(self):
        """Let the other one go on."""
        if self.tick is not None:
            self.turn.release(self.number)


class Turn:
    """Whose turn it is: 0 or 1."""

    def __init__(self):
        self.condition, self.number = threading.Condition(), 0

    def acquire(self, number):
        """Wait for the turn of one of the two."""
        with self.condition:
            self.condition.wait_for(lambda: self.number == number)

    def release(self, number):
        """Give the turn to the other one."""
        with self.condition:
            self.number = 1 - number
            self.condition.notify_all()


def medians(make_network, x, y, steps, batch):
    """Return the median seconds of a step, plain and flooded."""
    turn, callbacks, threads = Turn(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate((Trainer, FloodTrainer)):
            torch.manual_seed(0)
            callbacks.append(TakingTurns(number, turn))
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=batch,
                max_steps=steps + WARM + 1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                logging_steps=10,
                dataloader_pin_memory=False,
            )
            data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
            options = {"flood_level": 0.05} if kind is FloodTrainer else {}
            trainer = kind(
                Classifier(make_network()),
                arguments,
                train_dataset=data,
                callbacks=[callbacks[-1]],
                **options,
            )
            threads.append(threading.Thread(target=trainer.train))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [statistics.median(callback.times[WARM:]) for callback in callbacks]


def import_times(repeats=5):
    """Return the median seconds of importing Trainer, and of the adapter after it."""
    code = (
        "import time, torch; a = time.perf_counter();"
        "from transformers import Trainer; Trainer.train; b = time.perf_counter();"
        "import flooding.integrations.transformers; print(b - a, time.perf_counter() - b)"
    )
    runs = []
    for _ in range(repeats):
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        runs.append([float(word) for word in output.stdout.split()])
    return [statistics.median(column) for column in zip(*runs, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="steps of each kind")
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    sys.stdout, stdout = open(os.devnull, "w"), sys.stdout  # noqa: SIM115
    x, y = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    small = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))  # noqa: E731
    plain, flooded = medians(resnet_cifar, x, y, options.steps, options.batch)
    small_plain, small_flooded = medians(small, x[:2], y[:2], 50 * options.steps, 2)
    sys.stdout = stdout
    print(f"ResNet-20, batch {options.batch}, n = {options.steps} steps each, in turn")
    print(f"plain {1e3 * plain:.1f} ms, flooded {1e3 * flooded:.1f} ms: {flooded / plain:.4f}")
    own = small_flooded - small_plain
    verdict = "below" if own / plain < TARGET else "NOT below"
    print(
        f"by itself {1e6 * own:.0f} us: {100 * own / plain:.3f} % of a step, {verdict} the target "
        f"of {100 * TARGET:g} %"
    )
    framework, adapter = import_times()
    verdict = "below" if adapter < IMPORT_TARGET else "NOT below"
    print(
        f"import: Trainer {framework:.2f} s, flooding's adapter after it {1e3 * adapter:.0f} ms, "
        f"{verdict} the target of {1e3 * IMPORT_TARGET:.0f} ms"
    )


if __name__ == "__main__":
    main()
