"""Call the command line with random arguments: it must end with a known code and no traceback.

The codes are 0, 1, 2 and 130; an error is one line.

    nice python benchmarks/fuzz.py [--vectors 1000] [--processes 50] [--seed 0]

The options come from the commands themselves; each is given a valid, an extreme or a malformed
value. Most vectors run in this process, by ``main`` and ``sys.argv``; the last ones as programs of
their own. Trainings are kept short: tiny networks, one or two epochs, and the plans of ``demo`` and
``reproduce`` cut down. After each vector nothing temporary may be left, and nothing at all where
the exit code is not 0. Prints the vectors at fault, and counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import typer

from flooding import cli
from flooding.cli import _demo_report as demo
from flooding.data.synthetic import two_gaussians
from flooding.entries import CONTROLLERS, METHODS, STRATEGIES, entry_names
from flooding.experiments import ishida2020, synthetic_cells
from flooding.models import mlp
from flooding.testing import fake_record
from flooding.training.archive import pack
from flooding.training.problem import Problem
from flooding.training.run import Run

CODES = {0, 1, 2, 130}
SECONDS = 200  # for one vector, on a busy machine
INTEGERS = [
    "0",
    "-1",
    "1e30",
    "9" * 25,
    "-" + "9" * 25,
    "9" * 5000,
    "nan",
    "inf",
    "",
    " ",
    "x",
    "2.5",
    "0x10",
    "١٢",
    "²",
]
FLOATS = [
    "0",
    "-1",
    "1e39",
    "-1e39",
    "1e308",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "",
    "x",
    "1,2",
    "1e-320",
    "٠.٥",
    "9" * 400,
]
TEXTS = [
    "",
    " ",
    "x",
    "[red]",
    "[/]",
    "\x1b[31mred",
    "\x9b31m",
    "\u202egnp",
    "a\nb",
    "-",
    "--",
    "🦊",
    "'",
    "%s",
    "{}",
]
PATHS = [
    "",
    "plain.txt",
    "plain.txt/below",
    "loop/below",
    "dangling",
    "pipe",
    "/dev/null",
    "/proc/nowhere",
    "a" * 300,
]
LEVELS = [
    "",
    ",",
    "nan",
    "inf",
    "1e39",
    "-1e39",
    "0.1,",
    "x",
    "9" * 400,
    "0.1,nan",
    "0.1 0.2",
    "0.1,0.2,0.3",
]
# Valid values, and for short trainings small ones. What is not here is chosen by its type.
VALID = {
    "--level": ["0.1", "0", "-0.5", "0.1,0.2", "1e30"],
    "--levels": ["0,0.1", "0.1,0.2,0.3", "0"],
    "--model": ["mlp", "mlp-bn"],
    "--method": entry_names(METHODS),
    "--schedule": entry_names(CONTROLLERS),
    "--optimizer": ["sgd", "adam", "adamw"],
    # Without the policy gradient, which takes minutes.
    "--strategy": [name for name in entry_names(STRATEGIES) if name != "policy-gradient"],
    "--score": ["accuracy", "balanced-accuracy", "loss"],
    "--kind": ["classification", "regression"],
    "--target": ["y", "-1", "0", "\x1b[31mred", "[red]", "a|b"],
    "--device": ["cpu", "cuda:99", "meta", "toaster"],
    "--budget": ["1.5", "3"],
    "--from": [
        "results/ishida2020.npz",
        "results/ishida2020.npz",
        "other.npz",
        "cut.npz",
        "zeros.npz",
        "plain.txt",
        "missing.npz",
        ".",
        "pipe",
    ],
    "--mlflow": [
        "foo://bar",
        "sqlite:///plain.txt",
        "sqlite:///nowhere/m.db",
    ],  # a store that works takes 5 s
    "--tag": ["a:b", "quick", ":", "a:"],
    "--ledger": [
        "ledger.sqlite",
        "plain.txt",
        "folder/l.sqlite",
        "folder",
        "~nobody-of-this-name/l.sqlite",
    ],
    "--workers": ["0"],
    "--threads": ["1", "2"],
    "--seeds": ["1", "2"],
    "--width": ["1", "4", "1000000000", "1000000"],
    "--depth": ["1", "3"],
    "--epochs": ["1", "2"],
    "--batch-size": ["1", "10", "2147483647"],
    "--eval-batch-size": ["1000", "2147483647"],
    "--train-samples": ["20", "41", "1000000000000"],
    "--val-samples": ["20"],
    "--test-samples": ["20", "1000000000"],
    "--dimension": ["2", "5", "1000000"],
    "--trainings": ["1", "2"],
    "--folds": ["2"],
    "--seed": ["0", "9223372036854775807"],
}
TASKS = ["two-gaussians", "sinusoid", "sinusoid-nd", "spiral", "digits", "sinusoidd"]
OWN = [
    "problem",
    "make",
    "needs",
    "raises",
    "none",
    "Class",
    "model",
    "nothing",
    "coroutine",
    "leaves",
    "a.b",
    "",
]
WHATS = [
    "a.csv", "a.csv", "odd\x1b[31m[red].csv", "numbers.csv", "missing.csv", "cut.csv.gz",
    "folder", "plain.txt", "pipe", "two-gaussians", "spiral", "mine.py", "mine.py:problem",
    "missing.py:problem", "missing:problem", "ends:problem", "wrong:problem", "a:b:c", ":", "a:",
    ":b", "..:x", ".:x",
    *(f"mine:{name}" for name in OWN),
]  # fmt: skip
MINE = """
import sys
from functools import partial
from torch import nn
from flooding import Problem
from flooding.data.synthetic import two_gaussians
from flooding.entries import CONTROLLERS, METHODS, STRATEGIES, entry_names
from flooding.models import mlp
data = partial(two_gaussians, n_train=30, n_val=20, n_test=20)
problem = Problem(data, partial(mlp, 10, 2, width=4, depth=1), max_epochs=2)
model = nn.Linear(1, 1)
make = lambda: problem
def needs(width): return problem
def raises(): return {}["key"]
def none(): problem
def leaves(): sys.exit(3)
async def coroutine(): return problem
class Class: pass
"""
BASE = {  # what keeps a command short; a later option of the same name wins
    "run": "--width 4 --depth 1 --epochs 1 --train-samples 20 --val-samples 20",
    "find": "--epochs 2 --workers 0",
    "compare": "--epochs 1 --workers 0 --seeds 2",
    "demo": "--quick --workers 0",
    "reproduce": "--quick --workers 0",
    "predict": "",
}
WEIGHTS = {"run": 40, "find": 30, "predict": 12, "reproduce": 10, "compare": 3, "demo": 3, "": 2}


def shorten_plans():
    """Cut the trainings of ``demo`` and ``reproduce ishida2020`` down to tiny networks."""
    plan = demo.plan

    def tasks(*_):
        tiny = [
            replace(t.problem, max_epochs=2, model=partial(t.problem.model, width=8, depth=1))
            for t in plan(True)
        ]
        return [
            replace(t, problem=p, levels=t.levels[:2])
            for t, p in zip(plan(True), tiny, strict=True)
        ]

    demo.plan = tasks
    cells = []
    for task, (_, inputs) in synthetic_cells.TASKS.items():
        model = partial(mlp, inputs, 2, width=4, depth=1)
        for noise in synthetic_cells.NOISES:
            cell = synthetic_cells.synthetic_cell(task, noise, (0.0, 0.3), (0, 1), 2)
            cells.append(replace(cell, problem=replace(cell.problem, model=model)))
    ishida2020.cells = lambda *_: cells


def prepare(folder):
    """Make the files that the vectors name."""
    dice = random.Random(0)
    rows = [(dice.gauss(0, 1), dice.gauss(0, 1)) for _ in range(60)]
    text = "x,[red],\x1b[31mred,y,a|b\n"
    classes = "[/]", "\x1b[31m+"
    text += "".join(f"{a:.3f},{b:.3f},{'pq'[b > 0]},{classes[a + b > 0]},1\n" for a, b in rows)
    for name in ("a.csv", "odd\x1b[31m[red].csv"):
        (folder / name).write_text(text)
    (folder / "numbers.csv").write_text("x,y\n" + "".join(f"{a},{a + b}\n" for a, b in rows))
    (folder / "cut.csv.gz").write_bytes(b"\x1f\x8b\x08\x00abc")
    (folder / "plain.txt").write_text("mine")
    (folder / "mine.py").write_text(MINE)
    (folder / "ends.py").write_text("print('[/]')\nraise SystemExit(5)\n")
    (folder / "wrong.py").write_text("def (\n")
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    problem = Problem(
        partial(two_gaussians, n_train=30, n_val=20, n_test=20),
        partial(mlp, 10, 2, width=4),
        max_epochs=2,
    )
    pack(folder / "other.npz", [fake_record(Run(problem, 0.1))], ("train_loss",), "here")
    whole = (folder / "other.npz").read_bytes()
    if WEIGHTS["reproduce"]:
        code, *_ = call(["reproduce", "ishida2020", "--workers", "0", "--out", "results"])
        assert code == 0
        whole = (folder / "results" / "ishida2020.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "zeros.npz").write_bytes(whole[:200] + bytes(200) + whole[400:])
    code, *_ = call([
        "find",
        "a.csv",
        "--target",
        "y",
        "--epochs",
        "1",
        "--workers",
        "0",
        "--save",
        "model",
    ])
    assert code == 0
    shutil.copytree(folder / "model", folder / "cut-model")
    [weights] = (folder / "cut-model").glob("weights-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(folder / "model", folder / "odd-model")
    (folder / "odd-model" / "model.json").write_text('{"format": []}')


def options_of(command):
    """Give the options of a command by name: whether each takes a value, and of which type."""
    kinds = {}
    for parameter in typer.main.get_command(cli.app).commands[command].params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts:
            kind = parameter.type_descriptor.annotation.__name__
            kinds[parameter.opts[0]] = "flag" if parameter.is_flag else kind
    return kinds


def vector(dice, number):
    """Draw one list of arguments."""
    command = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    if not command:
        return dice.choice([
            [],
            ["--help"],
            ["nothing"],
            ["--nothing"],
            ["run", "--help"],
            ["run"],
            ["-h"],
            ["\x1b[31m"],
        ])
    words = [command, *_subject(dice, command), *BASE[command].split()]
    known = options_of(command)
    for name in dice.sample(list(known), min(len(known), dice.choice([0, 0, 1, 1, 2, 2, 3, 5]))):
        if known[name] == "flag":
            words += [name]
        elif name not in {"--out", "--save", "--tensorboard"}:
            words += [name, _value(dice, name, known[name])]
    for name in ("--out", "--save", "--tensorboard"):
        if name in known and (name == "--out" or dice.random() < 0.2):
            words += [
                name,
                dice.choice(PATHS) if dice.random() < 0.1 else f"out/{number}/{name[2:]}",
            ]
    if dice.random() < 0.02:
        words.insert(dice.randrange(len(words)), dice.choice(TEXTS))
    return words


def _subject(dice, command):
    """Draw what a command works on."""
    if command == "run":
        return [dice.choice(TASKS) if dice.random() < 0.95 else dice.choice(TEXTS)]
    if command == "predict":
        models = [
            "model",
            "model",
            "model",
            "cut-model",
            "odd-model",
            "missing",
            "pipe",
            dice.choice(PATHS),
        ]
        return [dice.choice(models), "a.csv" if dice.random() < 0.6 else dice.choice(WHATS[:9])]
    if command == "reproduce":
        return (
            [dice.choice(["ishida2020", "ishida2020", "nothing", "", "[red]"])]
            if dice.random() < 0.9
            else []
        )
    if command == "demo":
        return []
    if command == "compare":
        small = [
            what for what in WHATS if what not in TASKS
        ]  # twelve methods on a built-in task take minutes
        return dice.choice([["mine:problem"], ["a.csv", "--target", "y"], [dice.choice(small)]])
    good = ["a.csv", "odd\x1b[31m[red].csv", "numbers.csv", "mine:problem", "mine.py:make"]
    what = (
        dice.choice(dice.choice([good, WHATS]))
        if dice.random() < 0.95
        else dice.choice(TEXTS + PATHS)
    )
    return [what] + (["--target", "y"] if ".csv" in what and dice.random() < 0.9 else [])


def _value(dice, name, kind):
    wrong = {"int": INTEGERS, "float": FLOATS, "Path": PATHS}.get(
        kind, LEVELS if "level" in name else TEXTS
    )
    valid = VALID.get(name) or {"float": ["0", "0.01", "0.5", "1"], "int": ["1", "2"]}.get(
        kind, ["x"]
    )
    return dice.choice(valid if dice.random() < 0.7 else wrong)


class Slow(BaseException):
    """A command took too long."""


def stop(*_):
    raise Slow


def call(arguments):
    """Run a command in this process; returns exit code, output, errors and a fault of its end."""
    signal.signal(signal.SIGALRM, stop)
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)
    ]
    fault = ""
    sys.argv = ["flooding", *arguments]
    path = [*sys.path]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            signal.alarm(SECONDS)
            cli.main()
            code = None
        except SystemExit as end:
            code = end.code
        except BaseException as error:  # noqa: BLE001 -- the very thing looked for
            code, fault = None, f"{type(error).__name__} reached the user"
        finally:
            signal.alarm(0)
    sys.path[:] = path
    for name in ("mine", "ends", "wrong"):
        sys.modules.pop(name, None)
    out, err = (stream.buffer.getvalue().decode() for stream in streams)
    return code, out, err, fault


def call_program(arguments):
    """Run a command as a program of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "flooding", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr, ""


def faults_of(arguments, number, code, out, err, fault):
    """List what is wrong with the end of a command."""
    if fault:
        yield fault
    if code not in CODES:
        yield f"exit code {code}"
    if "Traceback" in out + err:
        yield "a traceback"
    if "is a bug" in err:
        yield err.splitlines()[-1]
    if code in {1, 2} and "error: " not in err and arguments:
        yield "no error message"
    shown = (
        err if arguments[:1] == ["predict"] else out + err
    )  # predictions are data, printed as they are
    if raw := {c for c in shown if not c.isprintable() and c != "\n"}:
        yield f"raw characters {raw}"
    temporary = [
        str(path)
        for path in Path().rglob("*")
        if path.suffix == ".part" or path.name.startswith("tmp")
    ]
    temporary += [
        name for name in os.listdir("scratch") if not name.startswith("torchinductor")
    ]  # torch's own cache
    if temporary:
        yield f"left behind: {temporary}"
    folder = Path("out", str(number))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if files and code != 0:
        yield f"half-written: {files}"
    whole = {"found.json", "table.csv", "curves.npz", "search.png"}
    if files and arguments[0] == "find" and not {f"out/{name}" for name in whole} <= files:
        yield f"incomplete: {files}"


def fuzz(folder, vectors, processes, seed):
    """Run vectors in a folder, and print those at fault.

    Returns:
        Counts by command and exit code, seconds by command, and the faults.
    """
    counts, seconds, faults = Counter(), Counter(), []
    before = os.getcwd()
    os.chdir(folder)
    Path("scratch").mkdir()
    os.environ |= {
        "FLOODING_LEDGER": str(folder / "ledger.sqlite"),
        "TMPDIR": str(folder / "scratch"),
    }
    tempfile.tempdir = None
    try:
        prepare(folder)
        dice = random.Random(seed)
        for number in range(vectors):
            arguments = vector(dice, number)
            program = number >= vectors - processes and arguments[:1] not in (
                ["demo"],
                ["reproduce"],
            )
            began = time.monotonic()
            result = (call_program if program else call)(arguments)
            name = arguments[0] if arguments and arguments[0] in BASE else "other"
            seconds[name] += time.monotonic() - began
            counts[name, result[0]] += 1
            for fault in faults_of(arguments, number, *result):
                faults.append(fault)
                line = shlex.join(arguments)[:300]
                print(f"FAULT {fault[:300]!r}\n  flooding {line!r}", flush=True)
                print(f"  {result[2][-300:]!r}", flush=True)
    finally:
        os.chdir(before)
    return counts, seconds, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vectors", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shorten_plans()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        counts, seconds, faults = fuzz(
            Path(folder), arguments.vectors, arguments.processes, arguments.seed
        )
    for command in sorted({command for command, _ in counts}):
        each = {code: n for (name, code), n in sorted(counts.items(), key=str) if name == command}
        total = sum(each.values())
        print(f"{command:10s} {total:5d} vectors; exit codes {each}; {seconds[command]:.0f} s")
    for name in {name for name, _ in counts} - {"other"} if arguments.vectors >= 500 else ():
        if not counts[name, 0]:
            faults.append(name)
            print(f"FAULT no call of {name} succeeded, so that little of it was tried")
    codes = Counter()
    for (_, code), n in counts.items():
        codes[code] += n
    print(f"all        {codes.total():5d} vectors; exit codes {dict(codes)}; {len(faults)} faults")
    print(f"{time.monotonic() - began:.0f} s, seed {arguments.seed}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
