"""Build the wheel, install it into empty environments, and run the demo from it.

    python benchmarks/wheel.py [--pythons 3.11 3.12] [--pip-args "..."]

Every Python that is named and found gets an environment of its own in a temporary folder, with the
versions of constraints.txt where they fit (3.11), else with the newest. The demo runs outside the
repository, so that nothing but the wheel is imported.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINNED = "3.11"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def run(*command, cwd=None):
    """Run a command; its output is shown if it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
        raise SystemExit(f"failed: {shlex.join(map(str, command))}")
    return done.stdout


def is_there(python):
    """Whether a Python can be started; a name alone may lead nowhere."""
    if shutil.which(f"python{python}") is None:
        return False
    return subprocess.run([f"python{python}", "--version"], capture_output=True).returncode == 0


def build(folder):
    """Build the source distribution and the wheel; returns the wheel."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    [wheel] = folder.glob("*.whl")
    return wheel


def create(python, folder):
    """Create an environment; returns its Python."""
    if python == f"{sys.version_info.major}.{sys.version_info.minor}":
        venv.create(folder, with_pip=True)
    else:
        run(f"python{python}", "-m", "venv", folder)
    return folder / "bin" / "python"


def check(wheel, python, pip_args, folder):
    """Install the wheel and run the demo; returns seconds of both, and what the demo said."""
    executable = create(python, folder / "env")
    start = time.perf_counter()
    pins = ["-c", ROOT / "constraints.txt"] if python == PINNED else []
    run(executable, "-m", "pip", "install", "-q", *pip_args, *pins, f"{wheel}[demo]")
    installed = time.perf_counter()
    work = folder / "work"
    work.mkdir()
    output = run(folder / "env" / "bin" / "flooding", "demo", "--quick", cwd=work)
    pictures = list((work / "flooding-demo").glob("*.png"))
    assert pictures, "the demo saved no picture"
    seconds = installed - start, time.perf_counter() - installed
    version = run(
        executable, "-c", "import flooding, torch; print(flooding.__version__, torch.__version__)"
    )
    return seconds, output, f"{version.strip()}, {len(pictures)} pictures"


def main():
    """Check every Python that is found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=PYTHONS)
    parser.add_argument("--pip-args", default="", help="such as an index of CPU builds of torch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
        for python in options.pythons:
            if not is_there(python):
                print(f"Python {python}: not found, not checked")
                continue
            target = Path(folder) / python
            target.mkdir()
            seconds, output, versions = check(wheel, python, shlex.split(options.pip_args), target)
            verdicts = [line for line in output.splitlines() if line.startswith("Against")]
            print(
                f"Python {python}: flooding and torch {versions}; installed in {seconds[0]:.0f} s, "
                f"flooding demo --quick in {seconds[1]:.0f} s, {len(verdicts)} comparisons"
            )


if __name__ == "__main__":
    main()
