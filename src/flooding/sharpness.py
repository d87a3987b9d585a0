"""How sharp a minimum is: eigenvalues and trace of the Hessian, and loss landscapes.

The loss is given as ``losses``, a function without arguments that yields scalars: their sum is the
loss. So a data set goes through the network in parts,
``lambda: (len(y) / n * loss(model(x), y) for x, y in batches)``, and no more memory is needed than
for one. The network is in evaluation mode meanwhile; modes, weights and gradients are as before
afterwards, also after an exception. Vectors hold all trainable parameters, in the order of
``model.parameters()``.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from flooding.extras import install_command

__all__ = [
    "Losses",
    "filter_direction",
    "hessian_eigenvalues",
    "hessian_product",
    "hessian_trace",
    "landscape",
    "principal_directions",
    "project",
    "weights",
]

# Gives the losses of the batches of a data set, anew at each call.
Losses: TypeAlias = Callable[[], Iterable[Tensor]]


def weights(model: nn.Module) -> Tensor:
    """Copy all trainable parameters into a vector.

    Args:
        model: Network with at least one trainable parameter.

    Returns:
        Parameters ``[n]``, in their precision and on their device.

    Raises:
        ValueError: If there is nothing to train.

    Example:
        >>> weights(nn.Linear(2, 1)).shape
        torch.Size([3])
    """
    return _vector(p.detach() for p in _trainable(model))


def hessian_product(model: nn.Module, losses: Losses, vector: Tensor) -> Tensor:
    """Multiply the Hessian of the loss by a vector, by differentiating the gradient along it.

    Args:
        model: The network; see this module's docstring.
        losses: The loss in parts.
        vector: ``[n]``.

    Returns:
        The product, ``[n]``.

    Raises:
        ValueError: If the model has nothing to train, there are no losses, or the vector has
            another length.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> hessian_product(model, lambda: [3 * model.weight.square().sum()], torch.ones(1))
        tensor([6.])

    References:
        Pearlmutter, *Fast Exact Multiplication by the Hessian*, Neural Computation 1994.
    """
    parameters = _trainable(model)
    if vector.shape != (size := sum(p.numel() for p in parameters),):
        raise ValueError(
            f"a vector must hold the {size} trainable parameters, got {list(vector.shape)}."
        )
    product: Tensor | None = None
    with _evaluating(model), torch.enable_grad():
        for loss in losses():
            # The gradient with a graph; its slope along the vector is then differentiated again.
            slopes = torch.autograd.grad(
                loss, parameters, create_graph=True, materialize_grads=True
            )
            along = torch.dot(_vector(slopes), vector)
            if along.requires_grad:
                rows = torch.autograd.grad(along, parameters, materialize_grads=True)
                part = _vector(rows)
            else:  # a loss that is linear in the parameters
                part = torch.zeros_like(vector)
            product = part if product is None else product + part
    if product is None:
        raise ValueError("losses must yield at least one scalar, got none. Give it data.")
    return product


def hessian_eigenvalues(
    model: nn.Module, losses: Losses, k: int = 1, *, tolerance: float = 1e-4, seed: int = 0
) -> np.ndarray:
    """Find the largest eigenvalues of the Hessian by the Lanczos method (ARPACK, through SciPy).

    Args:
        model: The network; see this module's docstring.
        losses: The loss in parts.
        k: How many, at least 1 and below the number of parameters.
        tolerance: Relative accuracy.
        seed: Seed of the first vector.

    Returns:
        Eigenvalues ``[k]``, largest first, in the unit of the loss over that of the weights
        squared.

    Raises:
        ImportError: If SciPy is not installed.
        ValueError: If ``k`` is out of range, the model has nothing to train, or there are no
            losses.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> scale = torch.tensor([1.0, 2.0, 3.0])
        >>> hessian_eigenvalues(model, lambda: [(scale * model.weight.square()).sum()]).round(3)
        array([6.])
    """
    try:
        from scipy.sparse.linalg import LinearOperator, eigsh
    except ImportError as error:
        raise ImportError(
            f"eigenvalues need SciPy. Install it: {install_command('experiments')}"
        ) from error
    center = weights(model)
    size = len(center)
    if not 1 <= k < size:
        raise ValueError(
            f"k must lie in 1 to below the {size} parameters, got {k}. 1 is the sharpness."
        )

    def multiply(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1)))
        direction = direction.to(center.device, center.dtype)
        return hessian_product(model, losses, direction).double().cpu().numpy()

    # ARPACK's own first vector would not follow from the seed.
    first = np.random.default_rng(seed).standard_normal(size)
    shape = (size, size)
    operator = LinearOperator(shape, matvec=multiply, dtype=np.float64)  # type: ignore[call-arg]
    # SciPy's types take the tolerance for an int.
    options = {"which": "LA", "v0": first, "tol": tolerance, "return_eigenvectors": False}
    eigenvalues = eigsh(operator, k=k, **options)  # pyright: ignore[reportArgumentType]
    return np.sort(eigenvalues)[::-1]


def hessian_trace(
    model: nn.Module, losses: Losses, probes: int = 20, *, seed: int = 0
) -> tuple[float, float]:
    """Estimate the trace of the Hessian by Hutchinson's method: ``v @ H @ v`` for random signs.

    Args:
        model: The network; see this module's docstring.
        losses: The loss in parts.
        probes: Random vectors, at least 2.
        seed: Seed of the signs.

    Returns:
        The trace and its standard error.

    Raises:
        ValueError: If there are fewer than 2 probes, the model has nothing to train, or there are
            no losses.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> hessian_trace(model, lambda: [model.weight.square().sum()])
        (6.0, 0.0)

    References:
        Hutchinson, *A Stochastic Estimator of the Trace of the Influence Matrix*, 1990.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}: one has no standard error.")
    center = weights(model)
    generator = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(probes):
        # The expectation of v @ H @ v over random signs is the trace.
        signs = (2 * torch.randint(2, (len(center),), generator=generator) - 1).to(center)
        estimates.append(float(torch.dot(signs, hessian_product(model, losses, signs))))
    return float(np.mean(estimates)), float(np.std(estimates, ddof=1) / np.sqrt(probes))


def filter_direction(model: nn.Module, *, seed: int) -> Tensor:
    """Draw a random direction whose filters are as long as the network's.

    A step of 1 changes each filter by its own length. A filter is what produces one output: a row
    of a linear weight, the kernel of one output channel. Parameters with fewer than two axes
    (biases, batch norm) do not move.

    Args:
        model: Network with at least one trainable parameter.
        seed: Seed.

    Returns:
        The direction, ``[n]``.

    Raises:
        ValueError: If there is nothing to train.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> bool((filter_direction(model, seed=0).norm() - model.weight.norm()).abs() < 1e-6)
        True

    References:
        Li et al., *Visualizing the Loss Landscape of Neural Nets*, NeurIPS 2018, section 4.
    """
    generator, parts = torch.Generator().manual_seed(seed), []
    for p in _trainable(model):
        drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        if p.ndim < 2:
            parts.append(torch.zeros_like(p))
            continue
        axes = tuple(range(1, p.ndim))
        # Each filter of the direction gets the length of the network's own.
        lengths = p.detach().square().sum(axes, keepdim=True).sqrt()
        parts.append(drawn / drawn.square().sum(axes, keepdim=True).sqrt() * lengths)
    return _vector(parts)


def landscape(
    model: nn.Module, losses: Losses, directions: Sequence[Tensor], steps: Sequence[Sequence[float]]
) -> np.ndarray:
    """Measure the loss on a grid around the weights: a line for one direction, a plane for two.

    Args:
        model: The network; see this module's docstring.
        losses: The loss in parts.
        directions: Vectors ``[n]``, one or more.
        steps: For each direction the steps to take along it.

    Returns:
        Losses, float64, an axis for each direction.

    Raises:
        ValueError: If there is not a list of steps for each direction, or the model has nothing to
            train.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> losses = lambda: [model.weight.square().sum()]
        >>> landscape(model, losses, [torch.ones(1)], [(-1.0, 0.0, 1.0)])
        array([0., 1., 4.])
    """
    if not directions or len(directions) != len(steps):
        raise ValueError(
            f"there must be steps for each direction, got {len(directions)} and {len(steps)} lists."
        )
    parameters, center = _trainable(model), weights(model)
    grid = np.empty([len(s) for s in steps])
    with _evaluating(model), torch.no_grad():
        try:
            for indices in np.ndindex(*grid.shape):
                point = center.clone()
                for direction, lengths, index in zip(directions, steps, indices, strict=True):
                    point += lengths[index] * direction
                nn.utils.vector_to_parameters(point, parameters)
                grid[indices] = sum(float(loss) for loss in losses())
        finally:
            nn.utils.vector_to_parameters(center, parameters)
    return grid


def principal_directions(
    iterates: Sequence[Tensor], origin: Tensor, count: int = 2
) -> list[Tensor]:
    """Find the directions in which iterates spread most, seen from an origin.

    Args:
        iterates: Vectors ``[n]``, at least as many as ``count``.
        origin: Vector ``[n]``, such as the last of them.
        count: How many directions.

    Returns:
        Orthonormal vectors ``[n]``, the one with the largest spread first.

    Raises:
        ValueError: If there are fewer iterates than directions.
    """
    if len(iterates) < count:
        raise ValueError(
            f"there must be at least {count} iterates for {count} directions, got {len(iterates)}."
        )
    offsets = torch.stack([iterate - origin for iterate in iterates]).double()
    rows = torch.linalg.svd(offsets, full_matrices=False).Vh[:count]
    return [row.to(origin.dtype) for row in rows]


def project(iterates: Sequence[Tensor], origin: Tensor, directions: Sequence[Tensor]) -> np.ndarray:
    """Project iterates onto a plane through an origin, by least squares.

    Args:
        iterates: Vectors ``[n]``.
        origin: Vector ``[n]``: the point with coordinates 0.
        directions: Vectors ``[n]``, linearly independent; they need not be orthogonal.

    Returns:
        Coordinates, float64 ``[iterates, directions]``.

    Example:
        >>> axes = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])]
        >>> project([torch.tensor([3.0, 4.0, 5.0])], torch.zeros(3), axes)
        array([[-1.,  4.]])
    """
    base = torch.stack(list(directions), 1).double()
    offsets = torch.stack([iterate - origin for iterate in iterates], 1).double()
    return torch.linalg.lstsq(base, offsets).solution.T.cpu().numpy()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "the model must have parameters that require a gradient, got none. Unfreeze some of "
            "them."
        )
    return parameters


def _vector(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None, None, None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
