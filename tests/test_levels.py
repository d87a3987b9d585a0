"""Every controller against a slow twin in plain Python, and the promises of the protocol."""

import dataclasses
import io
import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from flooding.levels import (
    Auto,
    Constant,
    Controller,
    Delayed,
    Heuristic,
    Plateau,
    Range,
    StepInfo,
    Warmup,
    as_controller,
    first_flooded_step,
    simulate,
)

ALL = [
    Auto(epochs=10),
    Constant(0.3),
    Constant(-math.inf),
    Warmup(0.3, steps=7),
    Warmup(0.3, steps=7, num_steps=3),
    Range(0.6, 0.0, steps=9),
    Delayed(0.3, until_loss=0.2),
    Delayed(0.3, until_accuracy=0.9),
    Heuristic(until_loss=0.2),
    Heuristic(until_accuracy=0.9),
    Plateau(0.3, patience=2),
]
NAN = math.nan
seeded = settings(derandomize=True, deadline=None, max_examples=60)

# Around the conditions of the controllers under test, with ties and NaN.
some_losses = st.lists(st.sampled_from([1.0, 0.25, 0.2, 0.15, 0.01, NAN]), min_size=1, max_size=3)
# One example of 250 is 0.4 points, so the heuristic's threshold is met exactly again and again.
some_counts = st.one_of(st.integers(215, 235), st.integers(0, 250))
some_epochs = st.lists(
    st.tuples(
        some_losses,
        st.integers(220, 250),
        st.sampled_from([1.0, 1.1, 1.15, 1.2, 0.9, 0.5, NAN]),
        some_counts,
    ),
    max_size=25,
)


def step(loss):
    return StepInfo(torch.tensor(loss))


def make_infos(epochs):
    """Turn drawn epochs (losses, n right of 250, val loss, n right of 250) into what a controller
    is shown."""
    infos = []
    for losses, right, val_loss, val_right in epochs:
        infos += [step(loss) for loss in losses]
        # Float32 shares, as a mean over examples gives them.
        infos.append(
            StepInfo(
                None,
                torch.tensor(right / 250),
                torch.tensor(val_loss),
                torch.tensor(val_right / 250),
            )
        )
    return infos


def levels(controller, infos):
    return [state["level"].item() for state in simulate(controller, infos)]


def f32(x):
    return float(np.float32(x))


@seeded
@given(
    start=st.integers(-8, 8),
    stop=st.integers(-8, 8),
    steps=st.integers(1, 40),
    num_steps=st.integers(1, 40),
    data=st.data(),
)
def test_ramps_are_the_exact_ramp(start, stop, steps, num_steps, data):
    num_steps = min(num_steps, steps)
    start, stop = Fraction(start, 10), Fraction(stop, 10)

    def ramp(k, num_steps):
        return start + (stop - start) * Fraction(
            math.floor(Fraction(min(k, steps), steps) * num_steps), num_steps
        )

    infos = [step(1.0)] * (steps + 3)
    controllers = {
        steps: Warmup(float(stop), steps, float(start)),
        num_steps: Warmup(float(stop), steps, float(start), num_steps),
    }
    if stop < start:
        controllers[steps] = Range(float(start), float(stop), steps)
    for rises, controller in controllers.items():
        result = levels(controller, infos)
        # Three float32 roundings of numbers up to 0.8.
        assert result == pytest.approx([float(ramp(k, rises)) for k in range(steps + 4)], abs=2e-7)
        assert result[0] == f32(start)
        assert result[-4:] == [f32(stop)] * 4
        ends = [data.draw(st.sampled_from([info, StepInfo(val_loss=1.0)])) for info in infos]
        n_steps = sum(info.loss is not None for info in ends)
        assert levels(controller, ends)[-1] == result[n_steps], "ends of epochs count for nothing"


def test_step_warmup_jumps_once():
    assert levels(Warmup(0.5, steps=3, num_steps=1), [step(1.0)] * 4) == [0, 0, 0, 0.5, 0.5]


def test_constant_never_moves():
    assert set(levels(Constant(0.25), make_infos([([1.0, 0.0], 250, 0.1, 250)] * 3))) == {0.25}


def slow_delayed(level, begins, epochs):
    """Levels in force at each entry and afterwards; ``begins`` judges an epoch by its last loss and
    n right."""
    now, out = -math.inf, [-math.inf]
    for losses, right, _, _ in epochs:
        out += [now] * len(losses)
        if now == -math.inf and begins(losses[-1], right):
            now = f32(level)
        out.append(now)
    return out


@seeded
@given(some_epochs)
def test_delayed_begins_after_the_first_epoch_that_meets_its_condition(epochs):
    infos = make_infos(epochs)
    expected = slow_delayed(0.3, lambda last, right: last <= 0.2, epochs)
    assert levels(Delayed(0.3, until_loss=0.2), infos) == expected
    expected = slow_delayed(0.3, lambda last, right: right >= 225, epochs)  # 225 of 250 is 0.9
    assert levels(Delayed(0.3, until_accuracy=0.9), infos) == expected


def test_until_loss_looks_at_the_last_batch_of_an_epoch_only():
    infos = [
        step(1e-6),
        step(0.5),
        StepInfo(train_accuracy=1.0),
        step(0.5),
        step(1e-4),
        StepInfo(train_accuracy=0.0),
    ]
    assert levels(Delayed(0.25, until_loss=1e-4), infos) == [-math.inf] * 6 + [0.25]


def test_zero_training_error_allows_for_a_rounded_mean():
    just_below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    # One wrong example of half a million is still an error.
    for accuracy, level in ((just_below_one, 0.25), (1 - 2e-6, -math.inf)):
        assert levels(Delayed(0.25, until_accuracy=1.0), [StepInfo(train_accuracy=accuracy)]) == [
            -math.inf,
            level,
        ]


def slow_heuristic(epochs, level, change, move, low, high):
    """The rule in exact fractions: levels and references in force at each entry and afterwards."""
    level, change, move, low, high = [Fraction(str(x)) for x in (level, change, move, low, high)]
    b, reference, out = None, Fraction(0), [(None, Fraction(0))]
    for losses, _, _, val_right in epochs:
        out += [(b, reference)] * len(losses)
        if b is None:
            if losses[-1] <= 0.2:
                b = level
        else:
            v = 100 * Fraction(val_right, 250)
            if v >= reference + change:
                reference, b = v, min(max(b + move, low), high)
            elif v < reference - change:
                reference, b = v, min(max(b - move, low), high)
        out.append((b, reference))
    return out


@seeded
@given(
    some_epochs,
    st.sampled_from([
        (1e-4, 0.4, 0.015, 1e-4, 0.5),
        (0.0, 0.4, 0.2, 0.0, 0.5),
        (0.1, 0.0, 0.1, 0.0, 0.2),
    ]),
)
def test_heuristic_is_the_published_rule(epochs, constants):
    level, change, move, low, high = constants
    controller = Heuristic(
        level, until_loss=0.2, min_delta=change, step_size=move, low=low, high=high
    )
    states = simulate(controller, make_infos(epochs))
    for state, (b, reference) in zip(states, slow_heuristic(epochs, *constants), strict=True):
        assert state["started"].item() == (b is not None)
        # Up to 25 float32 sums below 0.5, each off by at most 3e-8.
        assert state["level"].item() == (
            -math.inf if b is None else pytest.approx(float(b), abs=1e-6)
        )
        assert state["reference"].item() == pytest.approx(float(reference), abs=1e-4)
        assert state["level"].item() == -math.inf or f32(low) <= state["level"].item() <= f32(high)


def test_heuristic_trace_worked_by_hand():
    points = [99.0, 70.0, 70.3, 70.4, 69.9, 70.1, 70.5]
    infos = [StepInfo(None, float(i > 0), 1.0, v / 100) for i, v in enumerate([50.0, *points])]
    states = simulate(Heuristic(until_accuracy=1.0), infos)
    # Epoch 0 is not fitted. Epoch 1 is and gives b0, its 99 points count for nothing. 70 is above
    # reference 0: up. 70.3 is within 0.4 of 70; 70.4 is 0.4 above it: up; 69.9 is 0.5 below 70.4:
    # down; 70.1 is within 0.4 of 69.9; 70.5 is 0.6 above 69.9, the last change, though only 0.1
    # above the best: up.
    b = 1e-4 + 0.015 * np.array([0, 1, 1, 2, 1, 1, 2])
    assert [state["level"].item() for state in states] == pytest.approx(
        [-math.inf, -math.inf, *b], abs=1e-7
    )
    assert [state["reference"].item() for state in states[2:]] == pytest.approx([
        0,
        70,
        70,
        70.4,
        69.9,
        69.9,
        70.5,
    ])


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["floats", "float32"])
def test_heuristic_ties_do_not_hang_on_rounding(kind):
    # One example of 250 is exactly the 0.4 points that count: enough to rise, not enough to fall.
    for right in range(1, 250):
        first, higher, fewer = [
            StepInfo(None, 1.0, 1.0, kind(n / 250)) for n in (right, right + 1, right - 1)
        ]
        fitted = [StepInfo(None, 1.0, 1.0, 0.0), first]
        assert levels(Heuristic(until_accuracy=1.0), [*fitted, higher])[-2:] == pytest.approx([
            0.0151,
            0.0301,
        ])
        assert levels(Heuristic(until_accuracy=1.0), [*fitted, fewer])[-2:] == pytest.approx([
            0.0151,
            0.0151,
        ])


def test_heuristic_climbs_to_its_clip_and_returns():
    up = [StepInfo(None, 1.0, 1.0, i / 100) for i in range(60)]
    down = up[::-1]
    trace = levels(Heuristic(until_accuracy=1.0), up + down + down)
    assert max(trace) == f32(0.5)
    assert trace[61] == f32(0.5), "(0.5 - 1e-4) / 0.015 is 33.3, so 59 rises reach the top"
    assert f32(1e-4) in trace[80:], "and 59 falls reach the bottom"


def slow_plateau(controller, epochs):
    """The rule with ifs, in float32 as the controller computes it, so that ties fall alike."""
    b, lowest, waited = np.float32(controller.level), np.float32(math.inf), 0
    out = [float(b)]
    for losses, _, val_loss, _ in epochs:
        out += [float(b)] * len(losses)
        v = np.float32(val_loss)
        if v < lowest:
            lowest, waited = v, 0
        else:
            waited += 1
        worse = np.float32(controller.threshold)
        if v > (lowest / worse if lowest < 0 else worse * lowest):
            b = b + np.float32(controller.step_size)
        elif waited >= controller.patience:
            b, waited = b - np.float32(controller.step_size), 0
        b = min(max(b, np.float32(controller.low)), np.float32(controller.high))
        out.append(float(b))
    return out


@seeded
@given(some_epochs, st.integers(1, 4), st.sampled_from([0.0, 0.1, 0.35, 0.4]))
def test_plateau_is_its_rule(epochs, patience, level):
    controller = Plateau(level, patience=patience)
    assert levels(controller, make_infos(epochs)) == slow_plateau(controller, epochs)
    below = [(*epoch[:2], -epoch[2], epoch[3]) for epoch in epochs]
    assert levels(controller, make_infos(below)) == slow_plateau(controller, below)


def test_plateau_has_the_published_constants():
    flat = [StepInfo(val_loss=1.0)] * 17
    # Epoch 1 is the lowest; epochs 2 to 9 are eight without improvement; 10 to 17 are eight more.
    assert levels(Plateau(0.4), flat) == pytest.approx([0.4] * 9 + [0.35] * 8 + [0.3])
    assert levels(Plateau(0.4), [StepInfo(val_loss=1.0), StepInfo(val_loss=1.16)])[-1] == f32(
        0.4
    ), "0.4 is the highest"
    at = [StepInfo(val_loss=1.0), StepInfo(val_loss=1.25)]
    assert levels(Plateau(0.1, threshold=1.25), at)[-1] == f32(0.1), (
        "more than the ratio, not as much"
    )
    assert levels(Plateau(0.1), [StepInfo(val_loss=1.0), StepInfo(val_loss=1.14)])[-1] == f32(0.1)
    assert levels(Plateau(0.1), [StepInfo(val_loss=1.0), StepInfo(val_loss=1.16)])[
        -1
    ] == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([-1.0, -1.0, -1.1, -1.2], -1.0),
        ([-2.0, -1.75], -1.0),
        ([-2.0, -1.7], -0.95),
        ([0.5, -1.0, -0.5], -0.95),
        ([-1.0, 0.2], -0.95),
        ([-1.0] * 9, -1.05),
    ],
    ids=[
        "falls or stands",
        "a little worse",
        "worse",
        "from above 0",
        "to above 0",
        "stands for 8 epochs",
    ],
)
def test_plateau_of_a_negative_loss_rises_where_it_gets_worse_alone(losses, ends):
    controller = Plateau(-1.0, low=-3.0, high=0.0)
    assert levels(controller, [StepInfo(val_loss=loss) for loss in losses])[-1] == pytest.approx(
        ends
    )


@pytest.mark.parametrize("controller", ALL, ids=str)
def test_update_compiles_once_for_steps_and_once_for_epochs(controller):
    draw = torch.Generator().manual_seed(1)
    infos = []
    for losses in torch.rand(12, 4, generator=draw).unbind():
        infos += [StepInfo(loss) for loss in losses.unbind()] + [
            StepInfo(None, *torch.rand(3, generator=draw).unbind())
        ]
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    update = torch.compile(controller.update, fullgraph=True, backend=counter)
    states = itertools.accumulate(infos, update, initial=controller.init())
    for compiled, eager in zip(states, simulate(controller, infos), strict=True):
        assert all(torch.equal(compiled[name], eager[name]) for name in eager)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("controller", ALL, ids=str)
def test_states_of_several_runs_may_be_stacked(controller):
    draw = torch.Generator().manual_seed(2)
    shape = (3, 30, 4)  # runs, entries, what is shown
    values = torch.rand(shape, generator=draw)
    kinds = [i % 3 for i in range(30)]

    def see(v, kind):
        return StepInfo(v[..., 0]) if kind < 2 else StepInfo(None, v[..., 1], v[..., 2], v[..., 3])

    alone = [
        simulate(controller, [see(values[run, i], kind) for i, kind in enumerate(kinds)])
        for run in range(3)
    ]
    first = {name: torch.stack([t, t, t]) for name, t in controller.init().items()}
    together = itertools.accumulate(
        (see(values[:, i], kind) for i, kind in enumerate(kinds)), controller.update, initial=first
    )
    for i, state in enumerate(together):
        for name, value in state.items():
            assert torch.equal(value, torch.stack([states[i][name] for states in alone]))


class Training:
    """The smallest training that floods: two batches per epoch, the level applied as a slope on the
    gradients."""

    def __init__(self, controller):
        draw = torch.Generator().manual_seed(3)
        self.x = torch.randn(2, 8, 3, generator=draw)
        self.y = self.x @ torch.tensor([1.0, -0.5, 0.5]) + 0.1 * torch.randn(2, 8, generator=draw)
        self.controller, self.steps = controller, 0
        self.state = {"w": torch.zeros(3), "controller": controller.init()}

    def step(self):
        """Take a step, after every second one close the epoch, and return what was seen."""
        w = self.state["w"].clone().requires_grad_()
        loss = (self.x[self.steps % 2] @ w - self.y[self.steps % 2]).square().mean()
        (gradient,) = torch.autograd.grad(loss, w)
        slope = torch.sign(loss - self.state["controller"]["level"])
        infos = [StepInfo(loss)]
        self.steps += 1
        if self.steps % 2 == 0:
            infos.append(
                StepInfo(None, 1 - loss.detach() / 2, loss.detach() * 1.1, 1 - loss.detach() / 3)
            )
        state = self.state["controller"]
        for info in infos:
            state = self.controller.update(state, info)
        self.state = {"w": (w - 0.05 * slope * gradient).detach(), "controller": state}
        return [
            info._replace(loss=info.loss.detach()) if info.loss is not None else info
            for info in infos
        ]


# The toy's loss falls from about 1 to 0.1, so these begin, move and flood on the way.
FLOODING = [
    Constant(0.4),
    Warmup(0.5, steps=12),
    Range(0.9, 0.0, steps=20),
    Delayed(0.5, until_loss=0.45),
    Delayed(0.5, until_accuracy=0.75),
    Heuristic(0.3, until_loss=0.45, step_size=0.1),
    Plateau(0.3, patience=1),
]


@pytest.mark.parametrize("controller", FLOODING, ids=str)
def test_a_training_killed_in_mid_epoch_resumes_exactly(controller):
    whole = Training(controller)
    for _ in range(21):
        whole.step()
    for killed in (1, 7, 15):
        first, second = Training(controller), Training(controller)
        for _ in range(killed):
            first.step()
        file = io.BytesIO()
        torch.save(first.state, file)
        file.seek(0)
        second.state, second.steps = torch.load(file, weights_only=True), killed
        for _ in range(21 - killed):
            second.step()
        assert torch.equal(second.state["w"], whole.state["w"])
        assert all(
            torch.equal(t, whole.state["controller"][k])
            for k, t in second.state["controller"].items()
        )


@pytest.mark.parametrize("controller", FLOODING, ids=str)
def test_first_flooded_is_where_a_controlled_run_leaves_the_plain_one(controller):
    plain, controlled = Training(Constant(-math.inf)), Training(controller)
    infos, first = [], None
    for step_index in range(30):
        infos += plain.step()
        controlled.step()
        if first is None and not torch.equal(plain.state["w"], controlled.state["w"]):
            first = step_index
    assert first is not None, "the toy is made so that every controller floods"
    assert first_flooded_step(controller, infos) == first


def test_first_flooded_counts_the_level_itself_and_never_nan():
    infos = [step(NAN), StepInfo(val_loss=1.0), step(0.75), step(0.5)]
    assert first_flooded_step(Constant(0.5), infos) == 2
    assert first_flooded_step(Constant(0.25), infos) is None
    assert first_flooded_step(Constant(-math.inf), infos) is None


def test_fold_gives_the_state_in_force_at_each_entry():
    states = simulate(Range(0.5, 0.0, steps=2), [step(1.0), StepInfo(val_loss=1.0), step(1.0)])
    assert [state["level"].item() for state in states] == [0.5, 0.25, 0.25, 0.0]
    assert len(simulate(Constant(0.5), [])) == 1


@pytest.mark.parametrize("controller", ALL, ids=str)
def test_started_is_true_from_the_first_level_on(controller):
    draw = torch.Generator().manual_seed(4)
    infos = []
    for row in torch.rand(20, 4, generator=draw).unbind():
        infos += [StepInfo(row[0]), StepInfo(None, *row[1:].unbind())]
    for state in simulate(controller, infos):
        assert state["started"].dtype == torch.bool
        assert state["started"].item() == (state["level"].item() > -math.inf)


@pytest.mark.parametrize(
    "level", [0, 0.0, np.float64(0), np.int64(0), np.zeros(()), torch.tensor(0.0), torch.tensor(0)]
)
def test_equal_numbers_make_equal_controllers_and_keys(level):
    assert as_controller(level) == Constant(0.0)
    assert json.dumps(dataclasses.asdict(as_controller(level))) == '{"level": 0.0}'
    assert json.dumps(dataclasses.asdict(Warmup(level, steps=np.int64(3)))) == (
        '{"level": 0.0, "steps": 3, "start": 0.0, "num_steps": null}'
    )


@pytest.mark.parametrize("controller", ALL, ids=str)
def test_controllers_are_plain_frozen_numbers(controller):
    assert isinstance(controller, Controller)
    assert as_controller(controller) is controller
    assert type(controller)(**json.loads(json.dumps(dataclasses.asdict(controller)))) == controller
    with pytest.raises(dataclasses.FrozenInstanceError):
        controller.level = 1.0


def test_none_floods_nothing():
    assert as_controller(None) == Constant(-math.inf)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(NAN), "level must not be NaN"),
        (lambda: Constant(math.inf), "level must be finite or -inf"),
        (lambda: Warmup(-math.inf, 3), "level must be finite"),
        (lambda: Warmup(0.1, 3, start=-math.inf), "start must be finite"),
        (lambda: Warmup(0.1, 0), "steps must be at least 1, got 0"),
        (lambda: Warmup(0.1, 3, num_steps=0), "num_steps must be at least 1"),
        (lambda: Warmup(0.1, 3, num_steps=4), "num_steps must not exceed steps = 3, got 4"),
        (lambda: Range(0.1, 0.1, 3), "stop must lie below start"),
        (lambda: Range(0.1, -math.inf, 3), "stop must be finite"),
        (lambda: Range(0.1, 0.0, 0), "steps must be at least 1"),
        (
            lambda: Delayed(0.1),
            "exactly one of until_loss and until_accuracy must be given, got None",
        ),
        (lambda: Delayed(0.1, 1e-4, 1.0), "got until_loss and until_accuracy"),
        (lambda: Delayed(-math.inf, 1e-4), "level must be finite"),
        (lambda: Delayed(0.1, NAN), "until_loss must not be NaN"),
        (lambda: Delayed(0.1, until_accuracy=100), r"until_accuracy must lie in \(0, 1\], got 100"),
        (lambda: Delayed(0.1, until_accuracy=0), "until_accuracy must lie in"),
        (Heuristic, "exactly one of until_loss and until_accuracy"),
        (
            lambda: Heuristic(0.0, until_loss=1e-4),
            r"level must lie in \[low, high\] = \[0.0001, 0.5\], got 0.0",
        ),
        (lambda: Heuristic(until_loss=1e-4, min_delta=-1), "min_delta must be at least 0"),
        (lambda: Heuristic(until_loss=1e-4, step_size=0), "step_size must be above 0"),
        (lambda: Heuristic(until_loss=1e-4, high=math.inf), "high must be finite"),
        (lambda: Plateau(0.5), r"level must lie in \[low, high\]"),
        (lambda: Plateau(0.1, patience=0), "patience must be at least 1"),
        (lambda: Plateau(0.1, step_size=-0.1), "step_size must be above 0"),
        (lambda: Plateau(0.1, threshold=0.9), "threshold must be at least 1"),
        (lambda: Plateau(0.1, low=-math.inf), "low must be finite"),
    ],
)
def test_impossible_numbers_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_controller("0.1"), "level must be one number, got '0.1'"),
        (lambda: as_controller(torch.zeros(2)), "A level with axes belongs in the loss"),
        (lambda: as_controller(np.zeros(1)), "level must be one number"),
        (lambda: Warmup(0.1, steps=1.5), "steps must be a whole number, got 1.5"),
        (lambda: Delayed(0.1, until_loss="1e-4"), "until_loss must be one number"),
        (
            lambda: simulate(Heuristic(until_loss=1.0), [StepInfo(val_loss=1.0)]),
            "Heuristic needs val_accuracy after every",
        ),
        (
            lambda: simulate(Delayed(0.1, until_accuracy=1), [StepInfo()]),
            "Delayed needs train_accuracy after every epoch",
        ),
        (
            lambda: simulate(Plateau(0.1), [StepInfo(val_accuracy=1.0)]),
            "Plateau needs val_loss after every epoch",
        ),
    ],
)
def test_wrong_kinds_are_refused_with_a_fix(make, message):
    with pytest.raises(TypeError, match=message):
        make()
