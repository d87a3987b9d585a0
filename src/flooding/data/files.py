"""Files of real data sets: in ``$FLOODING_DATA`` or the user's cache, else fetched once; verified at each use."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import tempfile
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

__all__ = ["FILES", "cache", "find", "read"]

log = logging.getLogger("flooding")

_PMLB = "https://github.com/EpistasisLab/pmlb/raw/master/datasets"
_LIGHTGBM = "https://github.com/microsoft/LightGBM/raw/v4.5.0/examples/binary_classification"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_GZIP = b"\x1f\x8b"

# Address and sha256 of each file. The hash is that of the content: a file may be compressed anew, or not at all.
FILES: dict[str, tuple[str, str]] = {
    "tables/spambase.tsv": (
        f"{_PMLB}/spambase/spambase.tsv.gz",
        "69715f29b059c51b89c708afdcc7af1304685f5425d4614abf59cc61bcde97ae",
    ),
    "tables/letter.tsv": (
        f"{_PMLB}/letter/letter.tsv.gz",
        "1ce967cac310120042a497760cb642e21b26d813e87c87fa1bb13896da6c812c",
    ),
    "tables/twonorm.tsv": (
        f"{_PMLB}/twonorm/twonorm.tsv.gz",
        "8b6ffbf0465d6791555327dcbd82187ba5d9b8e88a01ecbeea7b56cace075041",
    ),
    "tables/higgs7k.train": (
        f"{_LIGHTGBM}/binary.train",
        "41c42dc14f86960256bf872fc8ae6286c688b44f43b4057b29428787fc1e0444",
    ),
    "tables/higgs7k.test": (
        f"{_LIGHTGBM}/binary.test",
        "d99ebec91acd99638f00c727c251c947a1d17ddfcbea27bfef6b0dc5e5fb1db3",
    ),
    "fashion-mnist/train-images-idx3-ubyte": (
        f"{_FASHION}/train-images-idx3-ubyte.gz",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "fashion-mnist/train-labels-idx1-ubyte": (
        f"{_FASHION}/train-labels-idx1-ubyte.gz",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "fashion-mnist/t10k-images-idx3-ubyte": (
        f"{_FASHION}/t10k-images-idx3-ubyte.gz",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "fashion-mnist/t10k-labels-idx1-ubyte": (
        f"{_FASHION}/t10k-labels-idx1-ubyte.gz",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "mnist/train-images-idx3-ubyte": (
        f"{_MNIST}/train-images-idx3-ubyte.gz",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "mnist/train-labels-idx1-ubyte": (
        f"{_MNIST}/train-labels-idx1-ubyte.gz",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "mnist/t10k-images-idx3-ubyte": (
        f"{_MNIST}/t10k-images-idx3-ubyte.gz",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "mnist/t10k-labels-idx1-ubyte": (
        f"{_MNIST}/t10k-labels-idx1-ubyte.gz",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


def cache() -> Path:
    """Tell where fetched files are kept: ``$XDG_CACHE_HOME/flooding``, else ``~/.cache/flooding``.

    Returns:
        The folder; nothing is created.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flooding"


def find(name: str) -> Path | None:
    """Look for a file, compressed (``.gz``) or not, in ``$FLOODING_DATA`` and then in the cache.

    Args:
        name: A name of :data:`FILES`.

    Returns:
        Its path, or None if it is in neither folder.

    Raises:
        ValueError: If ``FLOODING_DATA`` is set and not a folder.
    """
    folders = [cache()]
    if own := os.environ.get("FLOODING_DATA"):
        if not Path(own).is_dir():
            raise ValueError(f"FLOODING_DATA must be a folder of data sets, got {own!r}. Correct or unset it.")
        folders.insert(0, Path(own))
    paths = (folder / f"{name}{ending}" for folder in folders for ending in (".gz", ""))
    return next((path for path in paths if path.is_file()), None)


def read(name: str) -> bytes:
    """Read a file's content, decompressed; one that is nowhere yet is fetched into the cache.

    The content is verified each time. Line ends may be those of another system: what is returned has the official
    ones.

    Args:
        name: A name of :data:`FILES`.

    Returns:
        The official content, to the byte.

    Raises:
        ValueError: If the file cannot be fetched, has other content than the official one, or cannot be kept.
    """
    address, sha256 = FILES[name]
    path = find(name)
    if path is not None:
        return _verified(path.read_bytes(), sha256, f"{path} must be the file {address}", "Delete it")
    own = f"download {address}, put it into a folder as {name}{'.gz' * address.endswith('.gz')}, and set FLOODING_DATA"
    own = f"{own} to that folder"
    log.info("fetching %s", address)
    try:
        with urlopen(address, timeout=30) as answer:
            fetched = answer.read()
    except (OSError, HTTPException) as error:
        raise ValueError(
            f"{name} must be in the folder $FLOODING_DATA, in {cache()} or at {address}, got {error}. Try again with a "
            f"network; or {own}."
        ) from None
    content = _verified(fetched, sha256, f"{address} must serve the official file", f"Try again later; or {own}")
    _keep(fetched, cache() / f"{name}{'.gz' * fetched.startswith(_GZIP)}")
    return content


def _verified(stored: bytes, sha256: str, rule: str, fix: str) -> bytes:
    try:
        content = gzip.decompress(stored) if stored.startswith(_GZIP) else stored
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{rule}, got a broken gzip file: {error}. {fix}.") from None
    for text in (content, content.replace(b"\r\n", b"\n")):
        if hashlib.sha256(text).hexdigest() == sha256:
            return text
    found = hashlib.sha256(content).hexdigest()
    raise ValueError(f"{rule} with sha256 {sha256}, got {len(content)} bytes with {found}. {fix}.")


def _keep(content: bytes, path: Path) -> None:
    """Write a file whole or not at all, so that no other process reads half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder, path.name)
            part.write_bytes(content)
            part.replace(path)
    except OSError as error:
        raise ValueError(
            f"the cache must be a folder that can be written, got {path.parent}: {error}. Set XDG_CACHE_HOME to one."
        ) from None
