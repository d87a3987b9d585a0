"""The formulas: one arithmetic everywhere, closed-form gradients, limits, and the facts the library
leans on."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flooding.functional import SIGMA_MIN, adaflood_level, flood, is_flooded, soft_flood
from flooding.methods import Flooding, Hinge, IFlood, SoftAD, WaveBound, objective

exactly = settings(derandomize=True, database=None, deadline=None)
fractions = st.fractions(min_value=-10, max_value=10, max_denominator=1000)

ARRAYS = {
    "float": float,
    "numpy scalar": np.float64,
    "numpy": lambda v: np.array([v]),
    "numpy float32": lambda v: np.array([v], dtype=np.float32),
    "torch 0-d": torch.tensor,
    "torch": lambda v: torch.tensor([v]),
    "torch float64": lambda v: torch.tensor([v], dtype=torch.float64),
    "jax": lambda v: jnp.array([v]),
}
HALVES = {
    "numpy float16": lambda v: np.array([v], dtype=np.float16),
    "torch float16": lambda v: torch.tensor([v], dtype=torch.float16),
    "torch bfloat16": lambda v: torch.tensor([v], dtype=torch.bfloat16),
    "jax bfloat16": lambda v: jnp.array([v], dtype=jnp.bfloat16),
}


def number(x):
    return x.item() if hasattr(x, "item") else x


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize(
    ("loss", "level", "expected"),
    [(0.5, 0.125, 0.5), (0.0, 0.125, 0.25), (0.125, 0.125, 0.125), (-2.0, -1.5, -1.0)],
    ids=[
        "above: the loss",
        "below: twice the level less the loss",
        "at the level",
        "negative level",
    ],
)
def test_one_arithmetic_for_floats_numpy_torch_and_jax(array, loss, level, expected):
    # All numbers are dyadic, so every width of float must give them exactly.
    for given_level in (level, array(level)):
        flooded = flood(array(loss), given_level)
        assert type(flooded) is type(array(loss))
        assert number(flooded) == expected
        assert number(is_flooded(array(loss), given_level)) == (loss < level)


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_one_soft_arithmetic(array):
    # x = 3/4 makes the square root rational: sqrt(1 + 9/16) = 5/4, so the value is 2 * 0.5 + 4 *
    # 1/4 = 2.
    soft = soft_flood(array(2.0), 0.5, sigma=2.0, eta=2.0)
    assert type(soft) is type(array(2.0))
    assert number(soft) == 2.0


@pytest.mark.parametrize("array", HALVES.values(), ids=HALVES)
def test_half_precision_is_widened_to_float32(array):
    for result in (
        flood(array(0.5), 0.1),
        soft_flood(array(0.5), 0.1),
        adaflood_level(array(0.5), 0.1),
    ):
        assert "float32" in str(result.dtype)
    # 0.1 in float32 lies above 0.0999756 = 0.1 in float16, and below 0.10009766 = 0.1 in bfloat16.
    assert number(is_flooded(array(0.1), 0.1)) == (float(array(0.1)[0]) < 0.1)


@pytest.mark.parametrize("array", (ARRAYS | HALVES).values(), ids=ARRAYS | HALVES)
@pytest.mark.parametrize(
    ("p", "gamma", "expected"),
    [
        (0.5, 0.0, math.log(2)),
        (0.25, 0.5, -math.log(0.625)),
        (0.5, 1.0, 0.0),
        (1.0, 0.0, 0.0),
        (1.0, 0.25, 0.0),
    ],
    ids=[
        "gamma 0: the held-out loss",
        "between",
        "gamma 1: plain",
        "sure and right",
        "sure and right, mixed",
    ],
)
def test_adaflood_level_everywhere(array, p, gamma, expected):
    level = number(adaflood_level(array(p), gamma))
    assert level == pytest.approx(expected, rel=1e-6)  # 1e-6: ten spacings of float32
    assert math.copysign(1.0, level) == 1.0, "never -0.0"


def test_adaflood_level_at_the_edges():
    assert adaflood_level(0.0, 0.0) == math.inf
    assert adaflood_level(torch.tensor(0.0), 0.0) == math.inf
    assert math.isnan(adaflood_level(math.nan, 0.5))
    assert math.isnan(adaflood_level(-1.0, 0.0)), "as for arrays, not an infinite level"
    assert math.isnan(adaflood_level(torch.tensor(-1.0), 0.0))
    # A probability above 1 must show as a negative level, not pass for a plausible one.
    assert adaflood_level(1.5, 0.0) == -math.log(1.5)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got 1.5"):
        adaflood_level(0.5, 1.5)


@pytest.mark.parametrize(
    ("loss", "slope_torch", "slope_jax"),
    [(0.5, 1.0, 1.0), (0.0625, -1.0, -1.0), (0.125, 0.0, 1.0)],
    ids=["above keeps the gradient", "below negates it", "at the level 0 in torch, +1 in JAX"],
)
def test_slope_of_flood(loss, slope_torch, slope_jax):
    x = torch.tensor(loss, requires_grad=True)
    flood(x, 0.125).backward()
    assert x.grad == slope_torch
    assert jax.grad(flood)(loss, 0.125) == slope_jax


def test_level_none_is_the_loss_itself():
    for array in ARRAYS.values():
        loss = array(0.3)
        assert flood(loss, None) is loss
        assert not is_flooded(loss, None)


def test_broadcasting_is_the_choice_of_method():
    losses, levels = np.array([0.0, 1.0]), np.array([0.5, 0.25])
    assert flood(losses.mean(), 0.75) == 1.0  # flooding: |0.5 - 0.75| + 0.75
    assert flood(losses, 0.75).mean() == 1.25  # iFlood: (1.5 + 1.0) / 2
    np.testing.assert_array_equal(flood(losses, levels), [1.0, 1.0])
    np.testing.assert_array_equal(flood(losses, levels[:, None]), [[1.0, 1.0], [0.5, 1.0]])


@exactly
@given(fractions, fractions)
def test_flood_is_piecewise_linear(loss, level):
    # Fractions have no rounding, so these are identities.
    assert flood(loss, level) == (loss if loss >= level else 2 * level - loss)
    assert flood(loss, level) == max(loss, 2 * level - loss) >= level
    assert flood(abs(loss), Fraction(0)) == abs(loss)


@exactly
@given(st.lists(fractions, min_size=1, max_size=8), fractions)
def test_mini_batch_flooding_bounds_full_batch_flooding(losses, level):
    # Jensen: |R - b| + b <= mean_t(|R_t - b| + b), equal when all batches lie on one side.
    full = flood(sum(losses) / len(losses), level)
    mini = sum(flood(loss, level) for loss in losses) / len(losses)
    assert full <= mini
    assert (full == mini) == (max(losses) <= level or min(losses) >= level)


@exactly
@given(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
def test_is_flooded_agrees_with_the_sign_of_the_slope(loss, level):
    x = torch.tensor(loss, requires_grad=True)
    flood(x, level).backward()
    assert bool(is_flooded(x, level)) == (x.grad < 0)


def test_comparing_flooded_with_raw_over_counts():
    # float32 losses spread over [0.3, 2.3]: from 1.3 on, loss - 0.3 loses a bit that adding 0.3
    # does not bring back.
    spread = (
        torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
        + 0.3
    )
    above = spread.float()
    above = above[above >= 0.3]
    naive = (flood(above, 0.3) != above).double().mean()
    # 0.1740 measured beforehand with 100,000 losses, so the standard error of 10,000 is 0.0038;
    # four of them.
    assert abs(naive - 0.174) < 0.016
    assert not is_flooded(above, 0.3).any()


@pytest.mark.parametrize(
    ("loss", "level", "sigma"),
    [(0.7, 0.2, 1.0), (-3.0, 0.2, 0.5), (0.3, 0.3, 1.0), (9.0, 1.0, 2.0)],
)
def test_soft_flood_in_float64_equals_the_textbook_form(loss, level, sigma):
    x = (loss - level) / sigma
    assert soft_flood(loss, level, sigma, eta=0.5) == pytest.approx(
        0.5 * level + sigma**2 * (math.sqrt(1 + x * x) - 1)
    )


def test_soft_flood_keeps_small_residuals_where_the_textbook_form_loses_them():
    x = torch.tensor(1e-4)
    assert torch.sqrt(1 + x * x) - 1 == 0.0  # the textbook form in float32
    # Taylor: rho(x) = x^2/2 - x^4/8; the second term is 1e-17, far below float32.
    assert float(soft_flood(x, 0.0)) == pytest.approx(5e-9, rel=1e-6)


def test_soft_flood_in_float16_does_not_overflow_where_the_textbook_form_does():
    x = torch.tensor(300.0, dtype=torch.float16)
    assert torch.sqrt(1 + x * x) - 1 == math.inf  # 300^2 > 65504
    assert float(soft_flood(x, 0.0)) == pytest.approx(math.sqrt(90_001) - 1, rel=1e-6)
    # The same for the slope, sigma * x / sqrt(1 + x^2).
    x.requires_grad_()
    soft_flood(x, 0.0).backward()
    assert float(x.grad) == pytest.approx(1.0, abs=1e-3)  # 1e-3: the spacing of float16 at 1


@pytest.mark.parametrize("sigma", [0.0, -1.0, SIGMA_MIN / 2, math.nan, math.inf])
def test_soft_flood_refuses_a_sigma_below_the_minimum(sigma):
    with pytest.raises(ValueError, match="sigma must be finite and at least 1e-06"):
        soft_flood(1.0, 0.5, sigma=sigma)
    with pytest.raises(ValueError, match="sigma must be finite and at least 1e-06"):
        SoftAD(sigma=sigma)


# Gradients: each method weighs the gradient of each raw loss, by its paper's formula; the mean over
# n divides by n.


def phi(x):
    return x / torch.sqrt(1 + x * x)


N, OUTPUTS = 7, 3
CLOSED_FORMS = {
    "flooding": (Flooding(), lambda losses, b: torch.sign(losses.mean() - b).expand(N) / N),
    "hinge": (Hinge(), lambda losses, b: (losses.mean() > b).double().expand(N) / N),
    "iflood": (IFlood(), lambda losses, b: torch.sign(losses - b) / N),
    "softad": (SoftAD(sigma=0.3, eta=2.0), lambda losses, b: 0.3 * phi((losses - b) / 0.3) / N),
}


def gradient(method, losses, level):
    losses = losses.clone().requires_grad_()
    raw = losses.mean() if method.reduction == "mean" else losses
    return torch.autograd.grad(objective(raw, level, method), losses)[0]


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("method", "closed"), CLOSED_FORMS.values(), ids=CLOSED_FORMS)
def test_gradients_in_closed_form(method, closed, draw):
    signs = set()
    for _ in range(50):
        losses = draw(N)
        level = (
            draw(()) if method.reduction == "mean" else draw(N)
        )  # per example: AdaFlood, class-wise flooding
        expected = closed(losses, level)
        signs |= set(expected.sign().tolist())
        torch.testing.assert_close(gradient(method, losses, level), expected, rtol=1e-12, atol=0)
    assert signs == ({0.0, 1.0} if isinstance(method, Hinge) else {-1.0, 1.0}), (
        "both sides of the level were met"
    )


def test_gradient_of_wavebound_in_closed_form(draw):
    for _ in range(50):
        losses, teacher = draw(N, OUTPUTS), draw(N, OUTPUTS)
        expected = torch.sign(losses.mean(0) - (teacher.mean(0) - 0.01)).expand(N, OUTPUTS) / (
            N * OUTPUTS
        )
        losses.requires_grad_()
        value = objective(losses, teacher, WaveBound(epsilon=0.01))
        torch.testing.assert_close(
            torch.autograd.grad(value, losses)[0], expected, rtol=1e-12, atol=0
        )
        # The slow twin: one output after the other.
        slow = [flood(losses[:, j].mean(), teacher[:, j].mean() - 0.01) for j in range(OUTPUTS)]
        torch.testing.assert_close(value, sum(slow) / OUTPUTS, rtol=1e-12, atol=0)


def test_gradients_pass_gradcheck(draw):
    # Finite differences know nothing of the formulas; the losses stay 0.05 away from the kinks.
    losses = torch.tensor([0.1, 0.25, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    for method in (IFlood(), SoftAD(sigma=0.2)):
        assert torch.autograd.gradcheck(lambda x, m=method: objective(x, 0.4, m), losses)
    for method in (Flooding(), Hinge()):
        for level in (0.2, 0.8):
            assert torch.autograd.gradcheck(
                lambda x, m=method, b=level: objective(x.mean(), b, m), losses
            )


def test_limit_level_zero_and_gamma_one_are_plain_training(draw):
    losses = draw(N)
    plain = torch.full((N,), 1 / N, dtype=torch.float64)
    for method in (Flooding(), IFlood(), Hinge()):
        assert torch.equal(gradient(method, losses, 0.0), plain)
    gamma_one = adaflood_level(draw(N), 1.0)
    assert torch.equal(gradient(IFlood(), losses, gamma_one), plain)


def test_limit_gamma_zero_is_the_held_out_loss(draw):
    p = draw(N)
    torch.testing.assert_close(adaflood_level(p, 0.0), -p.log(), rtol=1e-12, atol=0)


def test_limit_sigma_to_zero_is_iflood(draw):
    losses, levels = draw(N), draw(N)
    target = gradient(IFlood(), losses, levels)
    # 1 - phi(x) ~ 1/(2 x^2): the gap falls with sigma^2, so by 1e-2 with each step of 0.1.
    gaps = [
        (gradient(SoftAD(sigma=s), losses, levels) / s - target).abs().max()
        for s in (1e-2, 1e-3, 1e-4)
    ]
    for wide, narrow in itertools.pairwise(gaps):
        assert narrow / wide == pytest.approx(1e-2, rel=0.2)


def test_limit_sigma_to_infinity_is_the_squared_distance(draw):
    # sigma^2 rho(r / sigma) -> r^2 / 2, hence the weight is r itself.
    losses, levels = draw(N), draw(N)
    torch.testing.assert_close(
        gradient(SoftAD(sigma=1e4), losses, levels), (losses - levels) / N, rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("level", [0.2, 0.7], ids=["above", "below"])
def test_one_example_and_equal_losses_make_iflood_flooding(level):
    for n in (1, 4):
        losses = torch.full((n,), 0.5, dtype=torch.float64)
        assert torch.equal(gradient(Flooding(), losses, level), gradient(IFlood(), losses, level))
        assert objective(losses.mean(), level) == objective(losses, level, IFlood())
