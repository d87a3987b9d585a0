"""The command that installs an extra fits how the package itself was installed."""

import re

import pytest

from flooding import extras
from flooding.extras import install_command


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "a clone [2]"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    return folder


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "pip install 'flooding[plot]'"),
        ({"url": "file:///nowhere/at-all", "dir_info": {}}, "pip install 'flooding[plot]'"),
        ({"url": 3}, "pip install 'flooding[plot]'"),
        ("text", "pip install 'flooding[plot]'"),
        (
            {"url": "https://example.org/f.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'flooding[plot] @ git+https://example.org/f.git@abc'",
        ),
        (
            {"url": "file:///tmp/flooding-0.2.0.whl", "archive_info": {}},
            "pip install 'flooding[plot] @ file:///tmp/flooding-0.2.0.whl'",
        ),
    ],
    ids=["index", "a clone that is gone", "no address", "no object", "repository", "file"],
)
def test_the_command_names_the_source(monkeypatch, source, expected):
    monkeypatch.setattr(extras, "_direct_url", lambda: source)
    assert install_command("plot") == expected


def test_a_clone_is_installed_from_its_folder(monkeypatch, clone):
    source = {"url": clone.as_uri(), "dir_info": {"editable": True}}
    assert "%20" in source["url"]
    monkeypatch.setattr(extras, "_direct_url", lambda: source)
    assert install_command("sam") == f"pip install -e '{clone}[sam]'"
    source["dir_info"] = {}
    assert install_command("sam") == f"pip install '{clone}[sam]'"


def test_without_metadata_the_index_is_named(monkeypatch):
    from importlib import metadata

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("cli") == "pip install 'flooding[cli]'"


def test_every_hint_of_the_library_is_made_here():
    from pathlib import Path

    for path in Path(extras.__file__).parent.rglob("*.py"):
        if path.name != "extras.py":
            assert not re.search(r"pip install [\"']flooding\[", path.read_text()), path
