"""Augmentation of training inputs: functions ``x -> x`` for a Problem's ``augment``.

They draw from torch's global generator, which a Run seeds. Give their numbers with
``functools.partial``, so that the Problem can be hashed:
``Problem(..., augment=partial(jitter, sd=0.1))``.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["crop_and_flip", "flip", "jitter", "shift"]


def jitter(x: Tensor, sd: float = 0.1) -> Tensor:
    """Add independent Gaussian noise of mean 0 to every number.

    Args:
        x: Inputs, floats of any shape; left unchanged.
        sd: Standard deviation of the noise in units of the inputs, at least 0.

    Returns:
        Inputs of the same shape.

    Raises:
        ValueError: If ``sd`` is negative or not finite.

    Example:
        >>> jitter(torch.zeros(3, 2), sd=0.0)
        tensor([[0., 0.],
                [0., 0.],
                [0., 0.]])
    """
    if not 0 <= sd < math.inf:
        raise ValueError(
            f"sd must be finite and at least 0, got {sd}. Leave augment out for no noise."
        )
    return x + sd * torch.randn_like(x)


def shift(x: Tensor, pixels: int = 1, size: int | None = None) -> Tensor:
    """Shift each image by whole pixels, down and to the right.

    Both shifts are drawn uniformly from ``-pixels`` ... ``pixels``. What is shifted in is 0: the
    mean of standardised images, not their background; black where images are bytes. All channels of
    an image move together.

    Args:
        x: Images ``[n, channels, height, width]``; or flat ones ``[n, size * size]``. Left
            unchanged.
        pixels: Largest shift, from 0 to below the height and width.
        size: Height and width of flat images; None for images with all their axes.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: If the shape or ``pixels`` is not as above.

    Example:
        >>> shift(torch.ones(1, 1, 3, 3), pixels=0).flatten()
        tensor([1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    if size is not None:
        if x.ndim != 2 or x.shape[1] != size * size:
            raise ValueError(
                f"flat images must be [n, {size * size}], got {list(x.shape)}. "
                "Leave size out for others."
            )
        return shift(x.reshape(-1, 1, size, size), pixels).flatten(1)
    if x.ndim != 4:
        raise ValueError(
            f"images must be [n, channels, height, width], got {list(x.shape)}. "
            "Flat ones need a size."
        )
    n, _, height, width = x.shape
    if not 0 <= pixels < min(height, width):
        raise ValueError(
            f"pixels must lie in 0 ... {min(height, width) - 1}, got {pixels}. "
            "Give the largest shift."
        )
    padded = torch.nn.functional.pad(x, [pixels] * 4)
    # Where each image's window into its padded copy begins: at `pixels` it does not move.
    top, left = torch.randint(2 * pixels + 1, (2, n, 1), device=x.device)
    rows = (top + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=x.device))[:, None, None, :]
    images, channels = (torch.arange(k, device=x.device) for k in x.shape[:2])
    return padded[images[:, None, None, None], channels[None, :, None, None], rows, columns]


def flip(x: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2; all channels of an image together.

    Args:
        x: Images ``[n, channels, height, width]``; left unchanged.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: If the shape is not as above.

    Example:
        >>> flip(torch.ones(2, 1, 3, 3)).shape
        torch.Size([2, 1, 3, 3])
    """
    if x.ndim != 4:
        raise ValueError(
            f"images must be [n, channels, height, width], got {list(x.shape)}. "
            "Add the missing axes."
        )
    mirrored = torch.rand(len(x), device=x.device) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def crop_and_flip(x: Tensor, padding: int = 4) -> Tensor:
    """Pad each image, cut out a window of its size at random, and mirror it with probability 1/2.

    The usual augmentation of CIFAR. What is padded is 0: the mean of standardised images, black
    where images are bytes.

    Args:
        x: Images ``[n, channels, height, width]``; left unchanged.
        padding: Pixels on each side, from 0 to below the height and width.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: If the shape or ``padding`` is not as above.

    Example:
        >>> crop_and_flip(torch.ones(2, 3, 8, 8), padding=0).mean()
        tensor(1.)
    """
    return flip(shift(x, padding))
