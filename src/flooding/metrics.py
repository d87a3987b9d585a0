"""Classification and gradient metrics: tensors in, 0-d tensors out, nothing read from the device.

Logits are ``[n, classes]`` with at least two classes, labels int64 ``[n]``; a single logit ``z``
becomes ``torch.stack([0 * z, z], dim=1)``. Half precision is widened to float32. NaN logits give
NaN, except in :func:`accuracy` and :func:`balanced_accuracy`, where NaN counts as the highest
logit. Under ``torch.vmap`` the scalar metrics of logits take a leading runs axis.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "Reliability",
    "accuracy",
    "balanced_accuracy",
    "bayes_accuracy",
    "brier",
    "calibration",
    "ece",
    "filter_normalized_gradient_norm",
    "gradient_accordance",
    "gradient_norm",
    "kl_to_posterior",
    "loss_variance",
    "nll",
    "over_confidence",
    "probabilities",
    "reliability",
]


@dataclass(frozen=True, eq=False)
class Reliability:
    """The bins of a reliability diagram; confidence and accuracy are NaN in an empty bin.

    Args:
        confidence: Mean confidence in each bin, ``[bins]``.
        accuracy: Accuracy in each bin, ``[bins]``.
        count: Examples in each bin, int64 ``[bins]``.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def probabilities(logits: Tensor) -> Tensor:
    """Turn logits into probabilities: softmax over the classes.

    Args:
        logits: Logits ``[n, classes]``.

    Returns:
        Probabilities ``[n, classes]`` in float32 or wider.

    Raises:
        ValueError: If ``logits`` does not have this shape with at least two classes.

    Example:
        >>> probabilities(torch.tensor([[0.0, 0.0]]))
        tensor([[0.5000, 0.5000]])
    """
    return _logits(logits).softmax(1)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of examples whose highest logit is at the label; of equal logits the first counts.

    Args:
        logits: Logits ``[n, classes]``.
        y: Labels, int64 ``[n]``.

    Returns:
        Accuracy in [0, 1], 0-d.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> accuracy(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1]))
        tensor(0.5000)
    """
    logits = _logits(logits, y)
    return (logits.argmax(1) == y).to(logits.dtype).mean()


def balanced_accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Accuracy within each class, averaged over the classes that occur in ``y``.

    Of equal logits the first counts. A guess that ignores the inputs scores 1 / classes.

    Args:
        logits: Logits ``[n, classes]``.
        y: Labels, int64 ``[n]``.

    Returns:
        Balanced accuracy in [0, 1], 0-d.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> balanced_accuracy(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        tensor(0.5000)
    """
    logits = _logits(logits, y)
    member = _one_hot(y, logits)
    right = member * (logits.argmax(1) == y)[:, None]
    count = member.sum(0)
    # A class that does not occur has a count of 0 and is left out of the mean.
    return (right.sum(0) / count.clamp(min=1)).sum() / (count > 0).sum()


def nll(logits: Tensor, y: Tensor) -> Tensor:
    """Mean negative log-likelihood of the labels, the plain cross-entropy.

    Args:
        logits: Logits ``[n, classes]``.
        y: Labels, int64 ``[n]``.

    Returns:
        Nats per example, 0-d.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> nll(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor(0.6931)
    """
    return nn.functional.cross_entropy(_logits(logits, y), y)


def brier(logits: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance between probabilities and one-hot labels, *summed* over classes.

    It lies in [0, 2]. Some books halve it for two classes, some libraries average over the classes.

    Args:
        logits: Logits ``[n, classes]``.
        y: Labels, int64 ``[n]``.

    Returns:
        Brier score, 0-d.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> brier(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.5000)

    References:
        Brier, *Verification of forecasts expressed in terms of probability*, 1950.
    """
    p = _logits(logits, y).softmax(1)
    return (p - _one_hot(y, p)).square().sum(1).mean()


def ece(logits: Tensor, y: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error: ``sum_b (n_b / n) * |accuracy_b - confidence_b|``.

    The bins have equal width.     Confidence is the highest probability. Bin ``b`` of ``B`` holds
    confidences in ``((b - 1) / B, b / B]``: an edge belongs to the bin below it, the last bin holds
    exactly 1.0 and the first would hold 0.

    Args:
        logits: Logits ``[n, classes]``.
        y: Labels, int64 ``[n]``.
        bins: Number of bins, at least 1.

    Returns:
        Calibration error in [0, 1], 0-d.

    Raises:
        ValueError: If the shapes do not match or ``bins`` is not positive.

    Example:
        >>> ece(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        tensor(0.2500)

    References:
        Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, eq. (3).
    """
    return calibration(logits, y, bins)[0]


def reliability(logits: Tensor, y: Tensor, bins: int = 15) -> Reliability:
    """Mean confidence, accuracy and count of each bin of :func:`ece`, for a reliability diagram.

    Args:
        logits: Logits ``[n, classes]``.
        y: Labels, int64 ``[n]``.
        bins: Number of bins, at least 1.

    Returns:
        Three tensors ``[bins]``; confidence and accuracy are NaN where the count is 0.

    Raises:
        ValueError: If the shapes do not match or ``bins`` is not positive.

    Example:
        >>> reliability(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), bins=2)
        Reliability(confidence=tensor([0.5000,    nan]), accuracy=tensor([0.7500,    nan]),
            count=tensor([4, 0]))
    """
    return calibration(logits, y, bins)[1]


def calibration(logits: Tensor, y: Tensor, bins: int = 15) -> tuple[Tensor, Reliability]:
    """Both :func:`ece` and :func:`reliability`, in one pass.

    Args:
        logits: Logits ``[n, classes]``.
        y: Labels, int64 ``[n]``.
        bins: Number of bins, at least 1.

    Returns:
        The calibration error, 0-d, and the bins.

    Raises:
        ValueError: If the shapes do not match or ``bins`` is not positive.

    Example:
        >>> error, found = calibration(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), bins=2)
        >>> error, found.count
        (tensor(0.2500), tensor([4, 0]))
    """
    confidence, correct, count = _bin_sums(logits, y, bins)
    error = (correct - confidence).abs().sum() / len(y)
    return error, Reliability(confidence / count, correct / count, count)


def over_confidence(logits: Tensor, y: Tensor) -> Tensor:
    """Mean confidence minus accuracy: positive when the network believes too much of itself.

    Args:
        logits: Logits ``[n, classes]``.
        y: Labels, int64 ``[n]``.

    Returns:
        Over-confidence in [-1, 1], 0-d.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> over_confidence(torch.zeros(4, 2), torch.tensor([0, 1, 1, 1]))
        tensor(0.2500)
    """
    return probabilities(logits).amax(1).mean() - accuracy(logits, y)


def kl_to_posterior(logits: Tensor, posterior: Tensor) -> Tensor:
    """Mean of ``KL(posterior || softmax(logits))``, the divergence from the exact posterior.

    It is what the expected negative log-likelihood loses against the irreducible one. ``0 ln 0``
    counts as 0.

    Args:
        logits: Logits ``[n, classes]``.
        posterior: Exact class probabilities ``[n, classes]``.

    Returns:
        Nats per example, at least 0 up to rounding, 0-d.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> kl_to_posterior(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor(0.3466)
    """
    logits = _logits(logits)
    if posterior.shape != logits.shape:
        raise ValueError(
            f"posterior must have the shape of the logits, got {list(posterior.shape)} and "
            f"{list(logits.shape)}. It is known for the test inputs only."
        )
    exact = posterior.to(logits)
    return (torch.xlogy(exact, exact) - exact * logits.log_softmax(1)).sum(1).mean()


def bayes_accuracy(posterior: Tensor) -> Tensor:
    """Expected accuracy of the best rule at these inputs: the mean highest posterior probability.

    On drawn labels use ``accuracy(posterior.log(), y)`` and ``nll(posterior.log(), y)``.

    Args:
        posterior: Exact class probabilities ``[n, classes]``.

    Returns:
        Accuracy in [1 / classes, 1], 0-d.

    Raises:
        ValueError: If ``posterior`` does not have this shape with at least two classes.

    Example:
        >>> bayes_accuracy(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
        tensor(0.6250)
    """
    return _logits(posterior).amax(1).mean()


def loss_variance(losses: Tensor) -> Tensor:
    """Variance of the per-example losses, divided by ``n``: 0 for a single example.

    Args:
        losses: Losses ``[n]``.

    Returns:
        Variance in the squared unit of the losses, 0-d.

    Raises:
        ValueError: If ``losses`` is not one-dimensional or is empty.

    Example:
        >>> loss_variance(torch.tensor([1.0, 3.0]))
        tensor(1.)
    """
    if losses.ndim != 1 or len(losses) == 0:
        raise ValueError(
            f"losses must be [n] with n >= 1, got {list(losses.shape)}. Use reduction='none'."
        )
    return _wide(losses).var(correction=0)


def gradient_norm(model: nn.Module, loss: Tensor | None = None) -> Tensor:
    """Euclidean norm of the gradient over all parameters together.

    Parameters without a gradient count as 0. With a loss the gradients are taken afresh and
    ``.grad`` is left alone; the graph is kept, so that ``loss.backward()`` still works.

    Args:
        model: Network with at least one trainable parameter.
        loss: Scalar loss; None reads the gradients from ``.grad``.

    Returns:
        Norm, 0-d.

    Raises:
        ValueError: If the model has nothing to train or ``loss`` is not a scalar.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> gradient_norm(model, model(torch.tensor([[3.0, 4.0]])).sum())
        tensor(5.)
    """
    return _norm([gradient for _, gradient in _gradients(model, loss)])


def filter_normalized_gradient_norm(model: nn.Module, loss: Tensor | None = None) -> Tensor:
    """Norm of the gradient along filter-normalised directions: ``sqrt(sum_f |w_f|^2 * |g_f|^2)``.

    A filter ``w_f`` is what produces one output: a row of a linear weight, the kernel of one output
    channel of a convolution. A direction ``d_f`` scaled to its filter, ``|w_f| * d_f / |d_f|``, has
    a slope that does not change when a filter is scaled by ``a`` and its loss stays the same (as
    before batch norm), whereas the plain gradient changes by ``1 / a``. Parameters with fewer than
    two axes (biases, batch norm) are left out, as in the source.

    Args:
        model: Network with at least one trainable parameter.
        loss: Scalar loss; None reads the gradients from ``.grad``.

    Returns:
        Norm, 0-d, in the unit of the loss.

    Raises:
        ValueError: If the model has no filter to train or ``loss`` is not a scalar.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> filter_normalized_gradient_norm(model, model(torch.tensor([[0.0, 2.0]])).sum())
        tensor(10.)

    References:
        Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, section 4; Ishida
        et al., ICML 2020.
    """
    filters = [(w.detach(), g) for w, g in _gradients(model, loss) if w.ndim >= 2]
    if not filters:
        raise ValueError(
            "the model must have a weight of two or more axes, got none. Use gradient_norm."
        )
    return _norm([w.flatten(1).norm(dim=1) * g.flatten(1).norm(dim=1) for w, g in filters])


def gradient_accordance(model: nn.Module, losses: Iterable[Tensor]) -> Tensor:
    """Mean cosine between the gradients of different batches, ``cos(g_i, g_j)`` over ``i != j``.

    Near 1 the batches pull the same way; below 0 a step for one batch undoes, on average, what
    another learnt. A gradient of 0 has cosine 0 with every other. The gradients are taken afresh
    and ``.grad`` is left alone.

    Args:
        model: Network with at least one trainable parameter.
        losses: Scalar losses of at least two batches; a generator keeps one graph at a time.

    Returns:
        Accordance in [-1 / (batches - 1), 1], 0-d.

    Raises:
        ValueError: If the model has nothing to train, there are fewer than two losses, or one is
            not a scalar.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
        >>> gradient_accordance(model, (model(x).sum() for x in inputs))
        tensor(0.3333)

    References:
        Liu et al., *Flooding-X*, ACL 2022, section 3.
    """
    units = []
    for loss in losses:
        gradient = torch.cat([_wide(g).flatten() for _, g in _gradients(model, loss)])
        units.append(nn.functional.normalize(gradient, dim=0))
    if len(units) < 2:
        raise ValueError(
            f"accordance needs the losses of at least two batches, got {len(units)}. Use smaller "
            "batches."
        )
    # The units are normalised: their products are the cosines, and the trace is i == j.
    matrix = torch.stack(units)
    cosines = matrix @ matrix.T
    return (cosines.sum() - cosines.trace()) / (len(units) * (len(units) - 1))


def _gradients(model: nn.Module, loss: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Trainable parameters with their gradients; a missing gradient is 0."""
    weights = [w for w in model.parameters() if w.requires_grad]
    if not weights:
        raise ValueError(
            "the model must have trainable parameters, got none. Call requires_grad_() first."
        )
    if loss is not None and loss.ndim != 0:
        raise ValueError(f"loss must be a scalar, got shape {list(loss.shape)}. Take its mean.")
    if loss is None:
        gradients = [w.grad for w in weights]
    else:
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    pairs = []
    for w, g in zip(weights, gradients, strict=True):
        pairs.append((w, torch.zeros_like(w) if g is None else g))
    return pairs


def _norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all entries together."""
    return torch.stack([_wide(t).norm() for t in tensors]).norm()


def _bin_sums(logits: Tensor, y: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of confidence, number right and number of examples in each bin, ``[bins]``."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}. 15 is usual.")
    logits = _logits(logits, y)
    confidence = logits.softmax(1).amax(1)
    # Divided, not linspace: each edge is then the nearest float to b / bins.
    edges = torch.arange(1, bins, device=logits.device, dtype=logits.dtype) / bins
    # An edge lies above as many inner edges as the confidences below it: (lo, hi]. Products with a
    # mask, not scatter: the order of the sum is fixed on every device, and NaN reaches the result.
    number = (confidence[:, None] > edges).sum(1)
    inside = number[:, None] == torch.arange(bins, device=logits.device)
    right = (logits.argmax(1) == y)[:, None]
    right_sums = (inside & right).sum(0).to(logits.dtype)
    return (inside * confidence[:, None]).sum(0), right_sums, inside.sum(0)


def _logits(logits: Tensor, y: Tensor | None = None) -> Tensor:
    """Check the shapes and widen half precision."""
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must be [n, classes] with n >= 1 and classes >= 2, got {list(logits.shape)}. "
            "Stack [0, z] for a single logit z."
        )
    if y is not None and y.shape != logits.shape[:1]:
        raise ValueError(
            f"labels must be [n] with n = {len(logits)}, got {list(y.shape)}. Drop extra axes."
        )
    return _wide(logits)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in {torch.float16, torch.bfloat16} else x


def _one_hot(y: Tensor, like: Tensor) -> Tensor:
    """One-hot labels like ``like``; unlike torch's own function it never looks at the values."""
    return (y[:, None] == torch.arange(like.shape[1], device=y.device)).to(like.dtype)
