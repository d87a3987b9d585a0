"""The networks of the experiments, from ``torch.nn`` alone, and a layer for images as bytes.

Weights are drawn from torch's global generator, as everywhere in ``torch.nn``: seed it in
``torch.random.fork_rng()`` to repeat them.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["IMAGENET", "Standardise", "mlp", "resnet18", "resnet_cifar", "small_cnn"]

# Means and standard deviations of red, green and blue, of pixels from 0 to 1, that are usual for
# colour photographs.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def mlp(
    inputs: int,
    outputs: int,
    width: int = 500,
    depth: int = 5,
    *,
    batch_norm: bool = False,
    dropout: float = 0.0,
    bias: bool | None = None,
) -> nn.Sequential:
    """Build a fully connected ReLU network.

    Each hidden layer is Linear, [BatchNorm], ReLU, [Dropout]. Inputs of more than two axes are
    flattened. ``depth=0`` is a linear model.

    Args:
        inputs: Input features after flattening.
        outputs: Outputs, that is classes for logits.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        batch_norm: Normalise before each ReLU.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        bias: Whether hidden layers have a bias; None: only without ``batch_norm``, which has its
            own. The output layer always has one.

    Returns:
        A network from ``[n, inputs]`` to ``[n, outputs]``.

    Raises:
        ValueError: If a size is not positive, ``depth`` is negative, or ``dropout`` is outside [0,
            1).

    Example:
        >>> mlp(10, 2, width=4, depth=1)
        Sequential(
          (0): Flatten(start_dim=1, end_dim=-1)
          (1): Linear(in_features=10, out_features=4, bias=True)
          (2): ReLU()
          (3): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    _positive(inputs=inputs, outputs=outputs, width=width)
    if depth < 0:
        raise ValueError(f"depth must be at least 0, got {depth}. 0 is a linear model.")
    if not 0 <= dropout < 1:
        raise ValueError(
            f"dropout must lie in [0, 1), got {dropout}. It is the share of units dropped."
        )
    bias = not batch_norm if bias is None else bias
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [inputs, *[width] * depth]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
        if batch_norm:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def resnet_cifar(depth: int = 20, classes: int = 10) -> nn.Sequential:
    """Build the residual network for 32 x 32 colour images: three stages of 16, 32 and 64 channels.

    ``depth = 6 n + 2`` with ``n`` basic blocks a stage. Where a stage changes shape its shortcut
    takes every second pixel and pads with zero channels ("option A", no parameters). Convolutions
    and the last layer start from He's normal initialisation. Depth 20, 32, 44, 56, 110 have 0.27,
    0.46, 0.66, 0.85, 1.7 million parameters.

    Args:
        depth: Number of layers with weights: 8, 14, 20, ...
        classes: Number of classes.

    Returns:
        A network from images ``[n, 3, height, width]`` to logits ``[n, classes]``.

    Raises:
        ValueError: If ``depth`` is not 6 n + 2 with n at least 1, or ``classes`` is not positive.

    Example:
        >>> resnet_cifar(8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    References:
        He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2.
    """
    _positive(classes=classes)
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(
            f"depth must be 6 n + 2 with n at least 1, got {depth}. Try 20, 32, 44, 56 or 110."
        )
    return _resnet(3, (16, 32, 64), blocks, classes, _PaddedShortcut)


def resnet18(classes: int, channels: int = 3) -> nn.Sequential:
    """Build ResNet-18 for small images: its 3 x 3 stem has neither stride nor pooling.

    There are four stages of two blocks, of 64, 128, 256 and 512 channels; shortcuts that change
    shape are 1 x 1 convolutions with batch norm. Started like :func:`resnet_cifar`.

    Args:
        classes: Number of classes.
        channels: Channels of the images.

    Returns:
        A network from images ``[n, channels, height, width]`` to logits ``[n, classes]``; images of
        32 x 32 are meant.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> sum(p.numel() for p in resnet18(10).parameters())
        11173962

    References:
        He et al., CVPR 2016, table 1.
    """
    _positive(classes=classes, channels=channels)
    return _resnet(channels, (64, 128, 256, 512), 2, classes, _projection)


def small_cnn(classes: int = 10, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Build a small network: convolutions of 16 and 32 channels, each pooled by 2, and 128 units.

    Args:
        classes: Number of classes.
        channels: Channels of the images.
        size: Height and width of the images in pixels, at least 4.

    Returns:
        A network from images ``[n, channels, size, size]`` to logits ``[n, classes]``.

    Raises:
        ValueError: If a size is not positive or the images are too small.

    Example:
        >>> small_cnn()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    _positive(classes=classes, channels=channels)
    if size < 4:
        raise ValueError(
            f"size must be at least 4 pixels to pool twice, got {size}. Use an mlp for smaller "
            "images."
        )
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (size // 4) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


class Standardise(nn.Module):
    """A first layer for images as bytes: ``(pixel / 255 - mean) / sd`` in each channel.

    Args:
        mean: Mean of each channel, of pixels from 0 to 1.
        sd: Its standard deviation, above 0.

    Raises:
        ValueError: If there are not as many of both, or a deviation is not above 0; in use, if
            images are not uint8 or have other channels.

    Example:
        >>> Standardise(*IMAGENET)(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).flatten()
        tensor([-2.1179, -2.0357, -1.8044])
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, mean: Sequence[float], sd: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(sd) or not all(value > 0 for value in sd):
            raise ValueError(
                "there must be a mean and a deviation above 0 for each channel, got "
                f"{mean} and {sd}."
            )
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("sd", torch.tensor(sd)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Standardise images ``[n, channels, height, width]``, in the layer's own precision."""
        if x.ndim != 4 or x.shape[1] != len(self.mean) or x.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 [n, {len(self.mean)}, height, width], got {x.dtype} "
                f"{list(x.shape)}. Leave this layer out for others."
            )
        return (x.to(self.mean.dtype) / 255 - self.mean) / self.sd


class _PaddedShortcut(nn.Module):
    """Every second pixel, with zero channels on both sides up to the new width (option A)."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        before = (fan_out - fan_in) // 2
        self.padding = (0, 0, 0, 0, before, fan_out - fan_in - before)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], self.padding)


def _projection(fan_in: int, fan_out: int) -> nn.Sequential:
    """A 1 x 1 convolution of stride 2 with batch norm (option B)."""
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, 1, stride=2, bias=False), nn.BatchNorm2d(fan_out)
    )


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(fan_in, fan_out, stride), nn.ReLU(), *_convolution(fan_out, fan_out, 1)
        )
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class _GlobalMean(nn.Module):
    """Mean over height and width.

    Adaptive pooling would be the same, but has no deterministic gradient on CUDA.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _convolution(fan_in: int, fan_out: int, stride: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(fan_out)


def _resnet(
    channels: int,
    widths: Sequence[int],
    blocks: int,
    classes: int,
    shortcut: Callable[[int, int], nn.Module],
) -> nn.Sequential:
    """Stem, one stage of basic blocks per width, global mean, linear layer."""
    layers: list[nn.Module] = [*_convolution(channels, widths[0], 1), nn.ReLU()]
    fan_in = widths[0]
    for width in widths:
        for _ in range(blocks):
            changes = width != fan_in
            through = shortcut(fan_in, width) if changes else nn.Identity()
            layers.append(_BasicBlock(fan_in, width, 2 if changes else 1, through))
            fan_in = width
    network = nn.Sequential(*layers, _GlobalMean(), nn.Linear(fan_in, classes))
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}. Give the size of the data.")
