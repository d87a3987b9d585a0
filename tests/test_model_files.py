"""Saved models: whole or refused, whatever happens to their files, and never a mix of two."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import skops.io
import torch
from safetensors.torch import save
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import StandardScaler

import flooding
from flooding import model_files
from flooding.tabular import load_model, predict, save_model, table_problem

CSV = "kind,grams,colour\n" + "apple,150,red\nfig,40,green\napple,170,green\nfig,50,brown\n" * 10
REFUSED = (
    r"^folder must hold a saved model, got .*: .*\. "
    r"Give the folder that flooding find --save wrote\.$"
)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "table.csv").write_text(CSV)
    return table_problem(tmp_path / "table.csv", "kind", width=8, depth=1)


@pytest.fixture
def folder(tmp_path, table):
    save_model(tmp_path / "model", weights_of(table), table)
    return tmp_path / "model"


def npy(shape, dtype="'<f8'", data=b""):
    """Write an array's header by hand."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def weights_of(table, seed=0):
    return table.problem.build(seed).state_dict()


def weights_file(folder):
    (path,) = folder.glob("weights-*.safetensors")
    return path


def sealed(folder, **changes):
    """Change ``model.json`` as somebody would who can compute its digest."""
    config = json.loads((folder / "model.json").read_text()) | changes
    config["sha256"] = model_files._digest(config)
    (folder / "model.json").write_text(json.dumps(config))


def with_file(folder, name, content):
    """Put another file into a model, with its right digest."""
    stem, _, suffix = name.partition(".")
    files = json.loads((folder / "model.json").read_text())["files"]
    (folder / files[name]["file"]).unlink()
    digest = hashlib.sha256(content).hexdigest()
    file = f"{stem}-{digest[:16]}.{suffix}"
    (folder / file).write_bytes(content)
    sealed(folder, files=files | {name: {"file": file, "sha256": digest}})


# Damage.


@pytest.mark.parametrize("name", ["weights", "preprocessing"])
def test_flipped_bits_are_noticed(folder, name):
    (path,) = folder.glob(f"{name}-*")
    content, generator = path.read_bytes(), random.Random(0)
    for at in generator.sample(range(len(content)), 40):
        damaged = bytearray(content)
        damaged[at] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=REFUSED):
            load_model(folder)
    path.write_bytes(content)
    load_model(folder)


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
@pytest.mark.parametrize("name", ["model.json", "weights-*", "preprocessing-*"])
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
    with pytest.raises(
        ValueError, match=r"weights-.*safetensors is damaged or belongs to another model"
    ):
        load_model(folder)
    weights_file(folder).write_bytes(content)
    (folder / "model.json").write_bytes((tmp_path / "other" / "model.json").read_bytes())
    with pytest.raises(ValueError, match=r"weights-.*is missing"):
        predict(folder, tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text(CSV.replace("150", "151"))
    other = table_problem(tmp_path / "table.csv", "kind", width=8, depth=1)
    save_model(folder, weights_of(table), other)  # the same weights, another preprocessing
    described = json.loads((folder / "model.json").read_text())
    save_model(folder, weights_of(table), table)
    config = json.loads((folder / "model.json").read_text())
    assert config["files"] != described["files"]
    (folder / "model.json").write_text(json.dumps(config | {"files": described["files"]}))
    with pytest.raises(ValueError, match=r"model.json was changed after it was written"):
        load_model(folder)


@pytest.mark.parametrize("number", [1, 2])
def test_models_of_the_first_release_are_refused_in_a_sentence_and_replaced(
    tmp_path, table, folder, number
):
    files = {"model.json": json.dumps({"format": f"flooding table model {number}"})}
    files["weights.pt" if number == 1 else f"weights-{'0a' * 8}.pt"] = "weights"
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_text(content)
    expected = (
        f"its format is 'flooding table model {number}', not 'flooding table model 3', so another "
        "version of flooding wrote it: train and save it again with this one, or predict with that"
    )
    with pytest.raises(ValueError, match=expected):
        predict(folder, tmp_path / "table.csv")
    save_model(folder, weights_of(table), table)
    assert len(predict(folder, tmp_path / "table.csv")) == 40
    assert not {path.name for path in folder.iterdir()} & set(files) - {"model.json"}


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


WEIGHTS = ("files", "weights.safetensors")


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
        changed(("columns", "numeric"), [5]),
        changed(("columns", "numeric"), ["colour"]),
        changed(("columns", "numeric"), []),
        changed(("columns", "numeric"), ["grams", "more"]),
        changed(("columns", "numeric"), "grams"),
        changed(("columns", "categorical"), ["colour", "colour"]),
        changed(("columns", "categorical"), {"colour": 1}),
        changed(("columns", "categorical"), [str(i) for i in range(10**5)]),
        changed(("columns", "dropped"), ["grams"]),
        changed(("columns", "dropped"), None),
        changed(("columns",), []),
        changed(("columns",), None),
        changed(("target",), None),
        changed(("target", "mean"), "1"),
        changed(("target", "mean"), 10**400),
        changed(("target", "mean"), True),
        changed(("target", "sd"), 0),
        changed(("target", "sd"), -1.0),
        changed(("target", "classes"), ["fig"]),
        changed(("target", "classes"), ["fig", "fig"]),
        changed(("target", "classes"), None),
        changed(("target", "name"), None),
        changed(("target", "sd"), float("inf")),
        changed(("header",), 1),
        changed(("header",), "no"),
        changed(("format",), "flooding table model 4"),
        changed(("format",), None),
        changed((*WEIGHTS, "file"), "../table.csv"),
        changed((*WEIGHTS, "file"), "/etc/passwd"),
        changed((*WEIGHTS, "file"), "weights-0123456789abcdef.safetensors/../../table.csv"),
        changed((*WEIGHTS, "file"), None),
        changed((*WEIGHTS, "sha256"), None),
        changed(WEIGHTS, []),
        changed(("files",), None),
        changed(("files",), {}),
        lambda folder: (folder / "model.json").write_text("[" * 100_000 + "]" * 100_000),
        lambda folder: (folder / "model.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
        lambda folder: (folder / "model.json").write_text('{"format": "a", "format": "b"}'),
        lambda folder: (folder / "model.json").write_text('{"format": ' + "9" * 100_000 + "}"),
        lambda folder: (folder / "model.json").write_text(
            (folder / "model.json")
            .read_text()
            .replace('"header"', '"format": "flooding table model 3", "header"')
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


def claims(header):
    """Write the start of a file of safetensors by hand."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: pickle.dumps(Evil()), "while deserializing"),
        (lambda w: b"", "while deserializing"),
        (lambda w: struct.pack("<Q", 1 << 60), "while deserializing"),
        (
            lambda w: claims({
                "1.bias": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
            }),
            "while deserializing",
        ),
        (
            lambda w: claims({
                "1.bias": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 0]}
            }),
            "while deserializing",
        ),
        (lambda w: save({**w, "1.bias": torch.zeros(9)}), "the weights must fit the network"),
        (lambda w: save({**w, "more": torch.zeros(9)}), "the weights must fit the network"),
        (lambda w: save({**w, "1.bias": torch.zeros(8, dtype=torch.int64)}), "weights must fit"),
        (lambda w: save({**w, "1.bias": w["1.bias"] * torch.inf}), "the weights must be finite"),
    ],
)
def test_malicious_weights_are_refused_and_nothing_is_called(
    tmp_path, table, folder, monkeypatch, make, message
):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    with_file(folder, "weights.safetensors", make(weights_of(table)))
    with pytest.raises(ValueError, match=message) as error:
        load_model(folder)
    assert re.fullmatch(REFUSED, str(error.value))
    assert not (tmp_path / "evil").exists()


def repacked(folder, change):
    """Give the preprocessing of a model with other members of its archive."""
    (path,) = folder.glob("preprocessing-*")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members |= change(members)
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return file.getvalue()


def with_schema(old, new):
    """Replace text of the schema, which says what to make of the arrays."""

    def change(members):
        schema = members["schema.json"].decode()
        assert old in schema
        return {"schema.json": schema.replace(old, new).encode()}

    return change


def with_arrays(content):
    return lambda members: {name: content for name in members if name.endswith(".npy")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: pickle.dumps(Evil()), "not a zip file"),
        (lambda folder: b"", "not a zip file"),
        (lambda folder: skops.io.dumps(Evil()), r"Untrusted types found.*Evil"),
        (lambda folder: skops.io.dumps([1, 2]), "it holds a list"),
        (lambda folder: skops.io.dumps(StandardScaler()), "it holds a StandardScaler"),
        (lambda folder: skops.io.dumps(ColumnTransformer([])), "the preprocessing cannot be used"),
        (
            lambda folder: repacked(folder, with_schema('"StandardScaler"', '"Popen"')),
            "the preprocessing cannot be used|Untrusted",
        ),
        (
            lambda folder: repacked(
                folder, with_schema("sklearn.preprocessing._data", "flooding.model_files")
            ),
            "Untrusted types found",
        ),
        (
            lambda folder: repacked(folder, with_schema('"scale_"', '"other"')),
            "the preprocessing cannot be used",
        ),
        (
            lambda folder: repacked(folder, lambda _: {"schema.json": b"[" * 100_000}),
            "the preprocessing cannot be used",
        ),
        (
            lambda folder: repacked(folder, lambda _: {"schema.json": b"{}"}),
            "the preprocessing cannot be used",
        ),
        (
            lambda folder: repacked(folder, lambda _: {"more": bytes(3 << 20)}),
            r"unpacks to 3,\d+,\d+ bytes \(FLOODING_MAX_BYTES\)",
        ),
        (lambda folder: repacked(folder, with_arrays(npy((10**12,)))), "cannot have 0 bytes"),
        (lambda folder: repacked(folder, with_arrays(npy((1,), "'|O'", b"x"))), "holds objects"),
        (lambda folder: repacked(folder, with_arrays(b"")), "magic|EOF|cannot"),
    ],
)
def test_a_malicious_preprocessing_is_refused_and_nothing_is_called(
    tmp_path, folder, monkeypatch, make, message
):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    monkeypatch.setenv("FLOODING_MAX_BYTES", str(3 << 20))
    with_file(folder, "preprocessing.skops", make(folder))
    with pytest.raises(ValueError, match=message) as error:
        load_model(folder)
    assert re.fullmatch(REFUSED, str(error.value))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("library", ["safetensors", "skops"])
def test_without_a_library_the_extra_is_named(tmp_path, table, folder, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    for name in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=rf"{library}.*pip install .*\[tables\]'"):
        save_model(tmp_path / "new", weights_of(table), table)
    with pytest.raises(ImportError, match=rf"{library}.*pip install .*\[tables\]'"):
        load_model(folder)
    assert not (tmp_path / "new").exists()


def test_what_is_no_file_of_a_model_is_not_read(tmp_path, folder, monkeypatch):
    with pytest.raises(ValueError, match=r"folder must hold a saved model, got .*nowhere"):
        load_model(tmp_path / "nowhere")
    path = weights_file(folder)
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/dev/zero")  # endless
    with pytest.raises(ValueError, match=r"weights-.*safetensors is no file"):
        load_model(folder)
    path.unlink()
    path.write_bytes(content)
    monkeypatch.setenv("FLOODING_MAX_BYTES", "700")
    with pytest.raises(ValueError, match=r"bytes, more than 700 \(FLOODING_MAX_BYTES\)"):
        load_model(folder)


# Replacing.


def test_a_failed_save_leaves_the_old_model(tmp_path, table, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace = os.replace
    for fails_at in ("weights", "preprocessing", "model.json"):

        def fails(path, target, fails_at=fails_at):
            if target.name.startswith(fails_at):
                raise OSError("no space left")
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fails)
            for place in (folder, tmp_path / "new"):
                with pytest.raises(OSError, match="no space left"):
                    save_model(place, weights_of(table, seed=1), table)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert not (tmp_path / "new").exists()
    save_model(folder, weights_of(table, seed=1), table)
    assert len(list(folder.iterdir())) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", "model"}


KILLED = """
import os, signal, sys
from pathlib import Path
from flooding.tabular import save_model, table_problem
replace, calls = os.replace, []
def killed(path, target):
    calls.append(path)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)
os.replace = killed
table = table_problem(sys.argv[1], "kind", width=8, depth=1)
# A child for each folder: the imports of a new process take seconds.
for at, folder in enumerate(sys.argv[2:], 1):
    if not (child := os.fork()):
        save_model(folder, table.problem.build(1).state_dict(), table)
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def test_a_killed_save_leaves_the_old_model_and_the_next_one_tidies_up(tmp_path, table, folder):
    expected = predict(folder, tmp_path / "table.csv", probabilities=True)
    moments = ("before the weights", "before the preprocessing", "before model.json")
    folders = [shutil.copytree(folder, tmp_path / moment) for moment in moments]
    environment = {**os.environ, "PYTHONPATH": str(Path(flooding.__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, tmp_path / "table.csv", *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * 3, done.stderr
    for at, model in enumerate(folders, 1):
        assert len(list(model.iterdir())) == 3 + at
        assert predict(model, tmp_path / "table.csv", probabilities=True).equals(expected)
        save_model(model, weights_of(table, seed=1), table)
        assert len(list(model.iterdir())) == 3
        assert not predict(model, tmp_path / "table.csv", probabilities=True).equals(expected)


SAVING = """
import dataclasses, os, sys
from flooding.tabular import save_model, table_problem
table = table_problem(sys.argv[1], "kind", width=8, depth=1)
print("ready", flush=True)
seeds = [1, 1, 0] * 10
if child := os.fork():
    seeds = [0, 1] * 20
for seed in seeds:
    weights = table.problem.build(seed).state_dict()
    save_model(sys.argv[2], weights, dataclasses.replace(table, header=bool(seed)))
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_reader_sees_the_old_model_or_the_new_one(tmp_path, table, folder):
    expected = [weights_of(table, seed) for seed in (0, 1)]
    save_model(folder, expected[0], dataclasses.replace(table, header=False))
    environment = {**os.environ, "PYTHONPATH": str(Path(flooding.__file__).parents[1])}
    command = [sys.executable, "-c", SAVING, tmp_path / "table.csv", folder]
    writers = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert writers.stdout.readline() == "ready\n"  # its imports take longer than it writes
    seen = set()
    while writers.poll() is None:
        model = load_model(folder)
        weights = model.network.state_dict()
        assert all(
            torch.equal(tensor, expected[model.header][name]) for name, tensor in weights.items()
        )
        seen.add(model.header)
    writers.stdout.close()
    assert writers.returncode == 0
    assert seen == {False, True}
    assert len(list(folder.iterdir())) == 3


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
