"""Saved models: whole or refused, whatever happens to their files, and never a mix of two."""

import dataclasses
import hashlib
import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import flooding
from flooding import model_files
from flooding.tabular.table import load_model, predict, save_model, table_problem

CSV = "kind,grams,colour\n" + "apple,150,red\nfig,40,green\napple,170,green\nfig,50,brown\n" * 10
REFUSED = (
    r"^folder must hold a saved model, got .*: .*\. Give the folder that flooding find --save "
    r"wrote\.$"
)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "table.csv").write_text(CSV)
    return table_problem(tmp_path / "table.csv", "kind", width=8, depth=1)


@pytest.fixture
def folder(tmp_path, table):
    save_model(tmp_path / "model", weights_of(table), table)
    return tmp_path / "model"


def weights_of(table, seed=0):
    return table.problem.build(seed).state_dict()


def weights_file(folder):
    (path,) = folder.glob("weights*.pt")
    return path


def sealed(folder, **changes):
    """Change ``model.json`` as somebody would who can compute its digest."""
    config = json.loads((folder / "model.json").read_text()) | changes
    config["sha256"] = model_files._digest(config)
    (folder / "model.json").write_text(json.dumps(config))


def with_weights(folder, content):
    """Put other weights into a model, with their right digest."""
    digest = hashlib.sha256(content).hexdigest()
    weights_file(folder).unlink()
    (folder / f"weights-{digest[:16]}.pt").write_bytes(content)
    sealed(folder, weights={"file": f"weights-{digest[:16]}.pt", "sha256": digest})


def older(folder):
    """Turn a model into one that flooding 0.1.0 saved."""
    config = json.loads((folder / "model.json").read_text())
    del config["weights"], config["sha256"]
    (folder / "model.json").write_text(
        json.dumps({**config, "format": "flooding table model 1"}, indent=1)
    )
    weights_file(folder).rename(folder / "weights.pt")


# Damage.


@pytest.mark.parametrize("is_older", [False, True], ids=["digests", "0.1.0"])
def test_flipped_bits_in_weights_are_noticed(folder, is_older):
    if is_older:
        older(folder)
    path = weights_file(folder)
    content, generator = path.read_bytes(), random.Random(0)
    # Without a digest, what lies between the members of the archive has no checksum.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        starts = {
            m.filename: content.index(archive.read(m))
            for m in archive.infolist()
            if m.file_size > 3
        }
        spans = [
            range(starts[m.filename], starts[m.filename] + m.file_size)
            for m in archive.infolist()
            if m.file_size > 3
        ]
    positions = [at for span in spans for at in span] if is_older else range(len(content))
    expected = load_model(folder).network.state_dict()
    for at in generator.sample(positions, 40):
        damaged = bytearray(content)
        damaged[at] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=REFUSED):
            load_model(folder)
    path.write_bytes(content)
    assert all(
        torch.equal(tensor, expected[name])
        for name, tensor in load_model(folder).network.state_dict().items()
    )


def test_flipped_bits_in_the_description_are_noticed(folder):
    path, generator = folder / "model.json", random.Random(0)
    content = path.read_bytes()
    expected = json.loads(content)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(7)
        path.write_bytes(damaged)
        try:
            load_model(folder)
        except ValueError:
            refused += 1
        else:
            assert json.loads(damaged) == expected  # one blank for another
    assert refused > 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content + b"x",
        lambda content: content[:512] + bytes(512) + content[1024:],
        lambda content: b"{}",
        lambda content: b"\xff\xfe" + content,
    ],
    ids=[
        "a start",
        "a byte short",
        "empty",
        "a byte more",
        "a sector of zeros",
        "something else",
        "another encoding",
    ],
)
@pytest.mark.parametrize("name", ["model.json", "weights*.pt"])
def test_files_cut_off_or_overwritten_are_refused(folder, name, damage):
    (path,) = folder.glob(name)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=REFUSED):
        load_model(folder)


def test_files_of_two_models_are_no_model(tmp_path, table, folder):
    save_model(tmp_path / "other", weights_of(table, seed=1), table)
    content = weights_file(folder).read_bytes()
    weights_file(folder).write_bytes(
        weights_file(tmp_path / "other").read_bytes()
    )  # other weights under the name
    with pytest.raises(ValueError, match=r"weights-.*pt is damaged or belongs to another model"):
        load_model(folder)
    weights_file(folder).write_bytes(content)
    (folder / "model.json").write_bytes((tmp_path / "other" / "model.json").read_bytes())
    with pytest.raises(ValueError, match=r"No such file.*weights-"):
        predict(folder, tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text(CSV.replace("150", "151"))
    other = table_problem(tmp_path / "table.csv", "kind", width=8, depth=1)
    save_model(folder, weights_of(table), other)  # the same weights, another preprocessing
    described = (folder / "model.json").read_text()
    save_model(folder, weights_of(table), table)
    old = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(
        json.dumps(old | {"preprocessing": json.loads(described)["preprocessing"]})
    )
    with pytest.raises(ValueError, match=r"model.json was changed after it was written"):
        load_model(folder)


def test_models_of_the_first_release_load_with_a_remark_and_are_replaced(
    tmp_path, table, folder, caplog
):
    expected = predict(folder, tmp_path / "table.csv")
    assert caplog.text == ""
    older(folder)
    assert predict(folder, tmp_path / "table.csv").equals(expected)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "was saved without digests" in caplog.text
    other = {**weights_of(table), "1.bias": torch.full((8,), torch.nan)}
    torch.save(other, folder / "weights.pt")
    with pytest.raises(ValueError, match="the weights must be finite"):
        load_model(folder)
    (tmp_path / f".model-{'0a' * 16}").mkdir()  # what a save that was killed left beside it
    (tmp_path / f".model-{'0b' * 16}").mkdir()
    (tmp_path / f".model-{'0b' * 16}" / "mine.txt").write_text("no model")
    save_model(folder, weights_of(table), table)
    assert {path.name for path in tmp_path.iterdir()} == {
        "table.csv",
        "model",
        f".model-{'0b' * 16}",
    }
    assert len(list(folder.iterdir())) == 2


# Malice.


def changed(path, value):
    """Change one entry, given as (key, ..., key), of what ``model.json`` says."""

    def change(folder):
        config = json.loads((folder / "model.json").read_text())
        part = config
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        sealed(folder, **config)

    return change


FIRST = ("preprocessing", "columns", 0)


@pytest.mark.parametrize(
    "change",
    [
        changed(("network", "width"), 10**9),
        changed(("network", "width"), 10**30),
        changed(("network", "depth"), 10**9),
        changed(("network", "inputs"), 10**9),
        changed(("network", "outputs"), 10**9),
        changed(("network", "width"), 8.0),
        changed(("network", "width"), True),
        changed(("network", "width"), -8),
        changed(("network", "dropout"), "0.1"),
        changed(("network", "dropout"), 2),
        changed(("network", "batch_norm"), 1),
        changed(("network", "batch_norm"), True),
        changed(("network", "device"), "cuda"),
        changed(("network",), []),
        changed(("network",), None),
        changed((*FIRST, "name"), 5),
        changed((*FIRST, "name"), "colour"),
        changed((*FIRST, "mean"), float("nan")),
        changed((*FIRST, "mean"), "1"),
        changed((*FIRST, "median"), 10**400),
        changed((*FIRST, "sd"), 0),
        changed((*FIRST, "sd"), -1.0),
        changed((*FIRST, "missing"), "yes"),
        changed((*FIRST, "missing"), True),
        changed((*FIRST, "categories"), ["a", "a"]),
        changed((*FIRST, "categories"), [1, 2]),
        changed((*FIRST, "categories"), {"a": 1}),
        changed((*FIRST, "categories"), [str(i) for i in range(10**5)]),
        changed(FIRST, None),
        changed(("preprocessing", "columns"), []),
        changed(("preprocessing", "dropped"), ["grams"]),
        changed(("preprocessing", "dropped"), "x"),
        changed(("target", "classes"), ["fig"]),
        changed(("target", "classes"), ["fig", "fig"]),
        changed(("target", "classes"), None),
        changed(("target", "name"), None),
        changed(("target", "sd"), float("inf")),
        changed(("header",), 1),
        changed(("header",), "no"),
        changed(("format",), "flooding table model 3"),
        changed(("format",), None),
        changed(("weights", "file"), "../table.csv"),
        changed(("weights", "file"), "/etc/passwd"),
        changed(("weights", "file"), "weights-0123456789abcdef.pt/../../table.csv"),
        changed(("weights", "file"), None),
        changed(("weights",), []),
        changed(("weights", "sha256"), None),
        lambda folder: (folder / "model.json").write_text("[" * 100_000 + "]" * 100_000),
        lambda folder: (folder / "model.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
        lambda folder: (folder / "model.json").write_text('{"format": "a", "format": "b"}'),
        lambda folder: (folder / "model.json").write_text('{"format": ' + "9" * 100_000 + "}"),
        lambda folder: (folder / "model.json").write_text(
            (folder / "model.json")
            .read_text()
            .replace('"header"', '"format": "flooding table model 2", "header"')
        ),
        lambda folder: (folder / "model.json").write_text("[]"),
        lambda folder: (folder / "model.json").write_text("null"),
    ],
)
def test_a_malicious_description_is_refused_before_anything_is_allocated(folder, change):
    change(folder)
    with pytest.raises(ValueError, match=REFUSED) as error:
        load_model(folder)
    assert len(str(error.value)) < 1500
    assert str(error.value).isprintable()


class Evil:
    """What unpickling would run."""

    def __reduce__(self):
        return Path.touch, (Path(os.environ["EVIL"]),)


def saved(thing):
    with io.BytesIO() as file:
        torch.save(thing, file)
        return file.getvalue()


def repacked(content, method=zipfile.ZIP_STORED, pickle=None):
    """Write the archive of torch.save anew, compressed or with another pickle in it."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", method) as new:
            for member in old.infolist():
                is_replaced = pickle is not None and member.filename.endswith("data.pkl")
                new.writestr(member.filename, pickle if is_replaced else old.read(member))
        return file.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: saved(Evil()), "not tensors alone"),
        (lambda w: saved({**w, "1.bias": Evil()}), "not tensors alone"),
        (lambda w: repacked(saved(w), zipfile.ZIP_DEFLATED), "is packed"),
        (
            lambda w: repacked(
                saved(w), pickle=b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."
            ),
            "bytearray",
        ),
        (
            lambda w: repacked(saved(w), pickle=b"\x80\x02ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R."),
            "torch Tensor",
        ),
        (lambda w: saved({**w, "1.bias": torch.zeros(1).expand(10**9)}), "larger than the file"),
        (lambda w: saved({**w, "1.bias": torch.zeros(9)}), "the weights must fit the network"),
        (lambda w: saved({**w, "more": torch.zeros(9)}), "the weights must fit the network"),
        (
            lambda w: saved({**w, "1.bias": torch.zeros(8, dtype=torch.int64)}),
            "the weights must fit",
        ),
        (lambda w: saved({**w, "1.bias": w["1.bias"] * torch.inf}), "the weights must be finite"),
        (lambda w: saved(list(w.values())), "something else than a state dict"),
        (lambda w: saved({0: w["1.bias"]}), "something else than a state dict"),
        (lambda w: saved({**w, "1.bias": "text"}), "something else than a state dict"),
        (
            lambda w: saved({**w, "1.bias": torch.zeros(8).to_sparse()}),
            "not tensors alone|something else",
        ),
        (lambda w: repacked(b"PK\5\6" + bytes(18)), "is no file of torch.save"),
        (lambda w: b"\x80\x02}.", "not a zip file"),
    ],
)
def test_malicious_weights_are_refused_and_nothing_is_called(
    tmp_path, table, folder, monkeypatch, make, message
):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    content = make(weights_of(table))
    with_weights(folder, content)
    with pytest.raises(ValueError, match=message):
        load_model(folder)
    older(folder)
    with pytest.raises(ValueError, match=message):
        load_model(folder)
    assert not (tmp_path / "evil").exists()


def test_what_is_no_file_of_a_model_is_not_read(tmp_path, folder, monkeypatch):
    with pytest.raises(ValueError, match=r"folder must hold a saved model, got .*nowhere"):
        load_model(tmp_path / "nowhere")
    path = weights_file(folder)
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/dev/zero")  # endless
    with pytest.raises(ValueError, match=r"weights-.*pt is no file"):
        load_model(folder)
    path.unlink()
    path.write_bytes(content)
    monkeypatch.setenv("FLOODING_MAX_BYTES", "1000")
    with pytest.raises(ValueError, match=r"bytes, more than 1,000 \(FLOODING_MAX_BYTES\)"):
        load_model(folder)


# Replacing.


def test_a_failed_save_leaves_the_old_model(tmp_path, table, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace = os.replace
    for fails_at in ("weights", "model.json"):

        def fails(path, target, fails_at=fails_at):
            if target.name.startswith(fails_at):
                raise OSError("no space left")
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fails)
            for target in (folder, tmp_path / "new"):
                with pytest.raises(OSError, match="no space left"):
                    save_model(target, weights_of(table, seed=1), table)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert not (tmp_path / "new").exists()
    save_model(folder, weights_of(table, seed=1), table)
    assert len(list(folder.iterdir())) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", "model"}


KILLED = """
import os, signal, sys
from pathlib import Path
from flooding.tabular.table import save_model, table_problem
replace, calls = os.replace, []
def killed(path, target):
    calls.append(path)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
os.replace = killed
table = table_problem(sys.argv[1], "kind", width=8, depth=1)
save_model(sys.argv[2], table.problem.build(1).state_dict(), table)
"""


@pytest.mark.parametrize("at", [1, 2], ids=["before the weights", "before model.json"])
def test_a_killed_save_leaves_the_old_model_and_the_next_one_tidies_up(tmp_path, table, folder, at):
    expected = predict(folder, tmp_path / "table.csv")
    environment = {**os.environ, "PYTHONPATH": str(Path(flooding.__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, tmp_path / "table.csv", folder, str(at)]
    assert subprocess.run(command, env=environment).returncode == -9
    assert len(list(folder.iterdir())) == 2 + at
    assert predict(folder, tmp_path / "table.csv").equals(expected)
    save_model(folder, weights_of(table, seed=1), table)
    assert len(list(folder.iterdir())) == 2
    assert not predict(folder, tmp_path / "table.csv").equals(expected)


SAVING = """
import dataclasses, json, sys
from flooding.tabular.table import save_model, table_problem
table = table_problem(sys.argv[1], "kind", width=8, depth=1)
for seed in json.loads(sys.argv[3]):
    weights = table.problem.build(seed).state_dict()
    save_model(sys.argv[2], weights, dataclasses.replace(table, header=bool(seed)))
"""


def test_a_reader_sees_the_old_model_or_the_new_one(tmp_path, table, folder):
    expected = [weights_of(table, seed) for seed in (0, 1)]
    save_model(folder, expected[0], dataclasses.replace(table, header=False))
    environment = {**os.environ, "PYTHONPATH": str(Path(flooding.__file__).parents[1])}
    command = [sys.executable, "-c", SAVING, tmp_path / "table.csv", folder]
    writers = [
        subprocess.Popen([*command, json.dumps(seeds)], env=environment)
        for seeds in ([0, 1] * 50, [1, 1, 0] * 10)
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        model = load_model(folder)
        weights = model.network.state_dict()
        assert all(
            torch.equal(tensor, expected[model.header][name]) for name, tensor in weights.items()
        )
        seen.add(model.header)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == {False, True}
    assert len(list(folder.iterdir())) == 2


def test_the_folder_of_a_model_holds_nothing_else(tmp_path, table, folder):
    (folder / "notes.txt").write_text("mine")
    assert not model_files.is_free(folder)
    (folder / "notes.txt").unlink()
    assert model_files.is_free(folder)
    assert not model_files.is_free(folder / "model.json")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert not model_files.is_free(tmp_path / "link")
    shutil.rmtree(folder)
    assert model_files.is_free(folder)


def test_weights_are_saved_as_the_network_has_them(tmp_path, table):
    parameters = {name: torch.nn.Parameter(t.double()) for name, t in weights_of(table).items()}
    save_model(tmp_path / "model", parameters, table)
    network = load_model(tmp_path / "model").network
    assert all(torch.equal(t, weights_of(table)[name]) for name, t in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
