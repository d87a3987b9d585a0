"""Augmentations move inputs as they say, by draws from torch's global generator."""

import math

import pytest
import torch

from flooding.data.augment import crop_and_flip, flip, jitter, shift


def moved(image, down, right):
    """The obvious shift of one image ``[channels, height, width]``."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image[:, row - down, column - right]
    return result


def test_jitter_is_independent_gaussian_noise_of_its_standard_deviation():
    torch.manual_seed(0)
    x = torch.full((200, 500), 3.0)
    noise = jitter(x, sd=0.1) - x
    n = x.numel()
    assert abs(float(noise.mean())) < 4 * 0.1 / math.sqrt(n)
    assert float(noise.std()) == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(2 * n))
    assert float((noise.abs() < 0.1).float().mean()) == pytest.approx(
        0.6827, abs=4 * math.sqrt(0.22 / n)
    )
    assert (
        len(noise.unique()) > 0.1 * n
    )  # no example or column shares its noise; float32 near 3 has a coarse grid
    assert torch.equal(x, torch.full((200, 500), 3.0))


@pytest.mark.parametrize("pixels", [1, 2])
def test_every_image_is_shifted_whole_and_all_shifts_are_equally_likely(pixels):
    torch.manual_seed(1)
    image = torch.randn(3, 5, 4)
    x = image.expand(900, 3, 5, 4).clone()
    steps = range(-pixels, pixels + 1)
    twins = torch.stack([moved(image, down, right) for down in steps for right in steps])
    found = (shift(x, pixels)[:, None] == twins).flatten(2).all(2)
    assert bool((found.sum(1) == 1).all())
    counts = found.sum(0).double()
    expected = 900 / len(twins)
    # Chi-squared with len(twins) - 1 degrees of freedom, four standard deviations.
    freedom = len(twins) - 1
    assert float(((counts - expected) ** 2 / expected).sum()) < freedom + 4 * math.sqrt(2 * freedom)
    assert torch.equal(x, image.expand(900, 3, 5, 4))


def test_images_of_one_batch_are_shifted_apart_and_keep_their_place():
    torch.manual_seed(2)
    x = torch.randn(20, 2, 6, 6)
    for image, result in zip(x, shift(x), strict=True):
        assert any(torch.equal(result, moved(image, d, r)) for d in (-1, 0, 1) for r in (-1, 0, 1))


def test_flat_images_are_shifted_as_images_are():
    x = torch.randn(30, 64)
    torch.manual_seed(3)
    flat = shift(x, pixels=2, size=8)
    torch.manual_seed(3)
    assert torch.equal(flat, shift(x.view(30, 1, 8, 8), pixels=2).flatten(1))
    assert flat.shape == x.shape
    assert not torch.equal(flat, x)


@pytest.mark.parametrize("function", [jitter, lambda x: shift(x, size=8)], ids=["jitter", "shift"])
def test_the_global_generator_decides(function):
    x = torch.randn(50, 64)
    torch.manual_seed(4)
    first, second = function(x), function(x)
    torch.manual_seed(4)
    assert torch.equal(function(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jitter(torch.zeros(2, 2), sd=-0.1), "sd must be finite and at least 0, got -0.1"),
        (
            lambda: jitter(torch.zeros(2, 2), sd=math.nan),
            "sd must be finite and at least 0, got nan",
        ),
        (
            lambda: shift(torch.zeros(2, 64)),
            r"images must be \[n, channels, height, width\], got \[2, 64\]",
        ),
        (
            lambda: shift(torch.zeros(2, 60), size=8),
            r"flat images must be \[n, 64\], got \[2, 60\]",
        ),
        (
            lambda: shift(torch.zeros(2, 1, 8, 8), size=8),
            r"flat images must be \[n, 64\], got \[2, 1, 8, 8\]",
        ),
        (lambda: shift(torch.zeros(2, 1, 8, 4), pixels=4), r"pixels must lie in 0 \.\.\. 3, got 4"),
        (
            lambda: shift(torch.zeros(2, 1, 8, 4), pixels=-1),
            r"pixels must lie in 0 \.\.\. 3, got -1",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_cropping_and_flipping_equals_its_image_by_image_twin():
    x = torch.randn(40, 3, 8, 7, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(5)
    found = crop_and_flip(x, padding=3)
    torch.manual_seed(5)
    top, left = torch.randint(7, (2, 40, 1))
    mirrored = torch.rand(40) < 0.5
    for image, result, row, column, mirror in zip(x, found, top, left, mirrored, strict=True):
        window = moved(image, 3 - int(row), 3 - int(column))
        twin = torch.stack([window[:, :, 6 - c] for c in range(7)], 2) if mirror else window
        assert torch.equal(result, twin)
    assert 10 < int(mirrored.sum()) < 30
    assert len({(int(r), int(c)) for r, c in zip(top, left, strict=True)}) > 15


def test_bytes_are_cropped_and_mirrored_like_numbers_and_padded_with_black():
    x = torch.randint(
        1, 256, (50, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    found = []
    for images in (x, x.float()):
        torch.manual_seed(1)
        found.append(crop_and_flip(images, padding=2))
    assert found[0].dtype == torch.uint8
    assert torch.equal(found[0].float(), found[1])
    assert (found[0] == 0).any()


def test_half_of_the_images_are_mirrored_and_the_input_is_kept():
    torch.manual_seed(6)
    x = torch.arange(3.0).expand(2000, 1, 2, 3).clone()
    found = flip(x)
    mirrored = (found[:, 0, 0, 0] == 2).double()
    assert float(mirrored.mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))
    assert torch.equal(x, torch.arange(3.0).expand(2000, 1, 2, 3))
    with pytest.raises(
        ValueError, match=r"images must be \[n, channels, height, width\], got \[4, 9\]"
    ):
        flip(torch.zeros(4, 9))
