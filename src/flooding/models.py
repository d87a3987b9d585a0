"""The networks of the experiments, built from ``torch.nn`` alone, and a layer for uint8 images.

The initial weights are drawn from torch's global generator, as everywhere in ``torch.nn``. To draw
the same weights again, seed that generator inside ``torch.random.fork_rng()``.
"""

# ruff does not see the ValueErrors that the functions below raise through ``_check_positive``.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["IMAGENET_MEAN_SD", "Standardise", "mlp", "resnet18", "resnet_cifar", "small_cnn"]

# Mean and standard deviation of the red, green and blue channels of ImageNet, for pixels scaled to
# [0, 1]. They are the usual constants for other colour photographs, too.
IMAGENET_MEAN_SD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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

    A hidden layer is Linear, BatchNorm (with ``batch_norm``), ReLU, Dropout (with ``dropout``).
    Inputs with more than two axes are flattened. ``depth=0`` is a linear model.

    Args:
        inputs: Number of input features, after flattening.
        outputs: Number of outputs: of a classifier, the number of classes.
        width: Number of units in each hidden layer.
        depth: Number of hidden layers.
        batch_norm: Whether to normalise before each ReLU.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        bias: Whether the hidden layers have a bias. None means: only without ``batch_norm``, since
            batch norm adds its own. The output layer always has a bias.

    Returns:
        A network from ``[n, inputs]`` to ``[n, outputs]``.

    Raises:
        ValueError: If ``inputs``, ``outputs`` or ``width`` is not positive, ``depth`` is negative,
            or ``dropout`` is outside [0, 1).

    Example:
        >>> mlp(10, 2, width=4, depth=1)
        Sequential(
          (0): Flatten(start_dim=1, end_dim=-1)
          (1): Linear(in_features=10, out_features=4, bias=True)
          (2): ReLU()
          (3): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    _check_positive(inputs=inputs, outputs=outputs, width=width)
    if depth < 0:
        raise ValueError(f"depth must be at least 0, got {depth}. 0 is a linear model.")
    if not 0 <= dropout < 1:
        raise ValueError(
            f"dropout must lie in [0, 1), got {dropout}. It is the share of units dropped."
        )
    if bias is None:
        bias = not batch_norm
    layers: list[nn.Module] = [nn.Flatten()]
    in_features = inputs
    for _ in range(depth):
        layers.append(nn.Linear(in_features, width, bias=bias))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        in_features = width
    layers.append(nn.Linear(in_features, outputs))
    return nn.Sequential(*layers)


def resnet_cifar(depth: int = 20, classes: int = 10) -> nn.Sequential:
    """Build the ResNet for CIFAR: three stages of 16, 32 and 64 channels for 32 x 32 colour images.

    Each stage has ``n`` basic blocks, so that ``depth = 6 n + 2``. Between two stages the shortcut
    has no parameters (the paper's option A): it keeps every second pixel and adds zero channels.
    Convolutions and the last layer start from He's normal initialisation.

    Depth 20 has 0.27 million parameters, depth 32 has 0.46, 44 has 0.66, 56 has 0.85 and 110 has
    1.7 million.

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
    _check_positive(classes=classes)
    blocks_per_stage, remainder = divmod(depth - 2, 6)
    if remainder != 0 or blocks_per_stage < 1:
        raise ValueError(
            f"depth must be 6 n + 2 with n at least 1, got {depth}. Try 20, 32, 44, 56 or 110."
        )
    return _resnet(
        channels=3,
        widths=(16, 32, 64),
        blocks_per_stage=blocks_per_stage,
        classes=classes,
        make_shortcut=_PaddedShortcut,
    )


def resnet18(classes: int, channels: int = 3) -> nn.Sequential:
    """Build ResNet-18 for small images, such as 32 x 32.

    The first convolution is 3 x 3 with stride 1 and no pooling, where the original is 7 x 7 with
    stride 2 and pooling. Four stages of two basic blocks follow, with 64, 128, 256 and 512
    channels. Between two stages the shortcut is a 1 x 1 convolution with batch norm (the paper's
    option B). The weights are initialised as in :func:`resnet_cifar`.

    Args:
        classes: Number of classes.
        channels: Number of channels of the images.

    Returns:
        A network from images ``[n, channels, height, width]`` to logits ``[n, classes]``.

    Raises:
        ValueError: If ``classes`` or ``channels`` is not positive.

    Example:
        >>> sum(p.numel() for p in resnet18(10).parameters())
        11173962

    References:
        He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, table 1.
    """
    _check_positive(classes=classes, channels=channels)
    return _resnet(
        channels=channels,
        widths=(64, 128, 256, 512),
        blocks_per_stage=2,
        classes=classes,
        make_shortcut=_projection_shortcut,
    )


def small_cnn(classes: int = 10, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Build a small convolutional network.

    Two 3 x 3 convolutions with 16 and 32 channels are each followed by ReLU and 2 x 2 max pooling.
    Then come a hidden layer of 128 units and the output layer.

    Args:
        classes: Number of classes.
        channels: Number of channels of the images.
        size: Height and width of the images in pixels, at least 4.

    Returns:
        A network from images ``[n, channels, size, size]`` to logits ``[n, classes]``.

    Raises:
        ValueError: If ``classes`` or ``channels`` is not positive, or ``size`` is below 4.

    Example:
        >>> small_cnn()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    _check_positive(classes=classes, channels=channels)
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
    """A first layer for uint8 images: ``(pixel / 255 - mean) / sd`` in each channel.

    The data stay uint8, a quarter of their size in float32, until the network takes a batch.

    Args:
        mean: Mean of each channel, for pixels scaled to [0, 1].
        sd: Standard deviation of each channel, above 0.

    Raises:
        ValueError: If ``mean`` and ``sd`` differ in length, or a standard deviation is not above 0.
            ``forward`` raises it for images that are not uint8 or have another number of channels.

    Example:
        >>> Standardise(*IMAGENET_MEAN_SD)(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).flatten()
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
        # [channels, 1, 1], to broadcast over height and width.
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("sd", torch.tensor(sd)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Standardise images ``[n, channels, height, width]`` in the dtype of ``mean``."""
        if x.ndim != 4 or x.shape[1] != len(self.mean) or x.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 [n, {len(self.mean)}, height, width], got {x.dtype} "
                f"{list(x.shape)}. Leave this layer out for others."
            )
        return (x.to(self.mean.dtype) / 255 - self.mean) / self.sd


class _PaddedShortcut(nn.Module):
    """Keep every second pixel, and add zero channels on both sides (option A of He et al.)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        added = out_channels - in_channels
        # ``pad`` counts axes from the last one: width, height, channels.
        self.padding = (0, 0, 0, 0, added // 2, added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], self.padding)


def _projection_shortcut(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build a 1 x 1 convolution of stride 2 with batch norm (option B of He et al.)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm2d(out_channels)
    )


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a shortcut around them."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_and_norm(in_channels, out_channels, stride),
            nn.ReLU(),
            *_conv_and_norm(out_channels, out_channels, 1),
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


def _conv_and_norm(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    """Build a 3 x 3 convolution and its batch norm, which makes a bias of its own redundant."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


def _resnet(
    *,
    channels: int,
    widths: Sequence[int],
    blocks_per_stage: int,
    classes: int,
    make_shortcut: Callable[[int, int], nn.Module],
) -> nn.Sequential:
    """Build a ResNet: first convolution, one stage per width, global mean, linear layer."""
    layers: list[nn.Module] = [*_conv_and_norm(channels, widths[0], 1), nn.ReLU()]
    in_channels = widths[0]
    for width in widths:
        for _ in range(blocks_per_stage):
            # The first block of each later stage halves the resolution.
            if width == in_channels:
                block = _BasicBlock(width, width, stride=1, shortcut=nn.Identity())
            else:
                shortcut = make_shortcut(in_channels, width)
                block = _BasicBlock(in_channels, width, stride=2, shortcut=shortcut)
            layers.append(block)
            in_channels = width
    network = nn.Sequential(*layers, _GlobalMean(), nn.Linear(in_channels, classes))
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _check_positive(**sizes: int) -> None:
    """Refuse a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}. Give the size of the data.")
