"""Run the examples and store their pictures: ``python docs/pictures.py [NAME ...]``.

Every script and notebook saves a picture of its own name in the current folder. Pictures are
stored at the size at which a page shows them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
WIDTH = 560
NUM_COLOURS = 64


def run(path: Path, folder: Path) -> None:
    """Run a script, or the cells of a notebook, in a folder.

    Args:
        path: The example.
        folder: The current folder of the run.
    """
    if path.suffix == ".ipynb":
        import nbformat
        from nbclient import NotebookClient

        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
        return
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": paths}
    subprocess.run([sys.executable, str(path)], cwd=folder, env=variables, check=True)


def store(picture: Path) -> None:
    """Store a picture with a palette, which takes a third of the space."""
    with Image.open(picture) as image:
        image = image.convert("RGB")
        if image.width > WIDTH:
            height = round(image.height * WIDTH / image.width)
            # Means of pixels: other filters add colours around every edge, which take space.
            image = image.resize((WIDTH, height), Image.Resampling.BOX)
        target = EXAMPLES / "images" / picture.name
        target.parent.mkdir(exist_ok=True)
        image = image.quantize(NUM_COLOURS, dither=Image.Dither.NONE)
        image.save(target, optimize=True)


def main() -> None:
    """Run the examples that are named, or all of them."""
    for path in sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]):
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            run(path, Path(folder))
            store(Path(folder) / f"{path.stem}.png")


if __name__ == "__main__":
    main()
