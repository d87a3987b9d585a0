"""Keras on torch and JAX: the trainings of ``_integration_keras.py``, two processes at once."""

import re

import pytest

from framework_table import FLOAT32, cell
from subprocess_checks import added_packages, launch, results

pytest.importorskip("keras", reason="Keras is not installed: flooding[keras]")
BACKENDS = ["torch", "jax"]
ROWS = {"torch": "Keras 3 on torch", "jax": "Keras 3 on JAX"}


@pytest.fixture(scope="module")
def processes():
    # Both back ends at once: most of a process is imports and compilation.
    return {name: launch("_integration_keras.py", KERAS_BACKEND=name) for name in BACKENDS}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def measured(processes, backend):
    return results(processes[backend])


@pytest.fixture
def fill(measured, backend):
    """Write a cell of the back end's row, in the tolerance of Keras' own plain training."""

    def write(column, value, **numbers):
        cell(ROWS[backend], column, value, tolerance=FLOAT32, **numbers)

    return write


# The table


def test_one_line(fill, measured):
    fill("one line", "`class Net(FloodMixin, keras.Model)` and `compile(..., flood_level=0.1)`")
    assert measured["one line"] <= FLOAT32


def test_accumulation_is_refused(fill, measured):
    naive = measured["accumulation, naive"]
    fill("accumulation 4", "refused: Keras adds up gradients of flooded batches", naive=naive)
    for case in ("accumulation", "accumulation, later"):
        text = measured[f"refused: {case}"]
        assert text.startswith("ValueError: flooding needs the mean loss of the whole step")
        assert "gradient_accumulation_steps=4" in text
        assert "batch_size 4 times as large" in text


def test_two_devices(fill, measured, backend):
    if backend == "jax":
        fill("two ranks", measured["two devices"], control=measured["control"])
    else:
        fill("two ranks", "not applicable: `fit` trains on one device")


def test_clipping(fill, measured):
    fill("clipping", measured["clipping"], control=measured["control, clipping"])


def test_evaluation(fill, measured):
    fill("evaluation plain", measured["evaluation"], naive=measured["evaluation, naive"])


def test_resume(fill, measured):
    fill(
        "resume", max(measured["files"], measured["files, controller"]), control=measured["control"]
    )


def test_moving_level(fill, measured, backend):
    value = max(measured[name] for name in ("between fits", "by a callback", "controller"))
    numbers = {"control": measured["control"]}
    if backend == "jax":  # torch has no compiled function that could keep a level
        numbers["naive"] = measured["between fits, naive"]
    fill("moving level", value, **numbers)


# Beyond the table


@pytest.mark.parametrize(
    "case",
    [
        "control",
        "subclass",
        "wrapped",
        "sample weights",
        "regulariser",
        "delayed",
        "train_on_batch",
        "validation for a controller",
        "files, plain",
        "many steps",
    ],
)
def test_equal_to_the_loop_written_by_hand(measured, case):
    assert measured[case] <= FLOAT32


@pytest.mark.parametrize("case", ["level None", "slope at the level", "edge losses"])
def test_equal_to_the_bit(measured, case):
    assert measured[case] == 0


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("text", "TypeError: the level must be a number, a controller or None, got str"),
        ("nan", "ValueError: the level must be finite, got nan"),
        ("axes", "ValueError: the level must have no axes, got shape (3,)"),
        ("no loss", "ValueError: flooding needs the loss of the data"),
        ("no level", "ValueError: the model has no level to change"),
        ("order", "TypeError: FloodMixin must come before the model class, got Net"),
        ("controller, executions", "ValueError: a controller sees every step"),
        ("controller, no validation", "TypeError: Plateau needs val_loss after every epoch"),
        ("controller, no metrics", "TypeError: Heuristic needs val_accuracy after every epoch"),
        ("controller, backup", "ValueError: BackupAndRestore saves no state of a controller"),
        ("own train_step", "RuntimeError: nothing was flooded"),
        ("not functional", "TypeError: flood_model() takes a functional model"),
        ("monitor", "UserWarning: EarlyStopping monitors 'loss'"),
        ("monitor, raw", "UserWarning: ReduceLROnPlateau monitors 'raw_loss'"),
        ("controller of one's own", "UserWarning: the file holds the level in force"),
    ],
)
def test_refused_with_rule_value_and_fix(measured, case, words):
    assert measured[f"refused: {case}"].startswith(words)


def test_the_page_and_the_examples_run(measured, backend):
    assert measured["examples"] >= 15
    if backend == "jax":  # test_docs.py runs it on torch
        shares = re.findall(r"(\d+)% of the steps flooded", measured["page"])
        assert len(shares) == 2
        assert shares[0] == "0"
        assert int(shares[1]) > 0


def test_the_import_loads_nothing_besides_keras(backend):
    variables = {"KERAS_BACKEND": backend}
    assert added_packages("keras", "flooding.integrations.keras", variables) == {"flooding"}
