"""The networks have the layers, the numbers of parameters and the shapes that their sources
state."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]

from flooding.models import Standardise, mlp, resnet18, resnet_cifar, small_cnn


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def parameters(model):
    return sum(w.numel() for w in model.parameters())


def layers(model, kind):
    return [m for m in model.modules() if isinstance(m, kind)]


def names(model):
    return [type(m).__name__ for m in model]


def test_mlp_of_the_paper():
    model = mlp(10, 2)
    assert [(m.in_features, m.out_features) for m in layers(model, nn.Linear)] == [
        (10, 500),
        *[(500, 500)] * 4,
        (500, 2),
    ]
    # 10 * 500 + 500, four times 500 * 500 + 500, 500 * 2 + 2
    assert parameters(model) == 5500 + 4 * 250_500 + 1002


def test_mlp_of_the_demo_has_batch_norm_and_no_hidden_bias():
    model = mlp(2, 2, depth=4, batch_norm=True)
    assert names(model) == ["Flatten", *["Linear", "BatchNorm1d", "ReLU"] * 4, "Linear"]
    assert [m.bias is None for m in layers(model, nn.Linear)] == [True] * 4 + [False]
    assert parameters(model) == (2 * 500 + 1000) + 3 * (250_000 + 1000) + 1002


@pytest.mark.parametrize(("batch_norm", "bias"), [(True, True), (False, False)])
def test_mlp_bias_can_be_chosen_apart_from_batch_norm(batch_norm, bias):
    model = mlp(3, 2, width=4, depth=2, batch_norm=batch_norm, bias=bias)
    assert [m.bias is not None for m in layers(model, nn.Linear)] == [bias, bias, True]


def test_mlp_dropout_follows_each_hidden_layer_and_rests_in_evaluation():
    model = seeded(lambda: mlp(3, 2, width=50, depth=2, dropout=0.5))
    assert names(model) == ["Flatten", *["Linear", "ReLU", "Dropout"] * 2, "Linear"]
    x = torch.ones(1, 3)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    with torch.random.fork_rng():
        assert not torch.equal(model(x), model(x))


def test_mlp_flattens_images():
    assert mlp(2 * 3 * 4, 5, width=6, depth=1)(torch.zeros(7, 2, 3, 4)).shape == (7, 5)


def test_mlp_computes_what_it_says():
    model = seeded(lambda: mlp(3, 2, width=4, depth=2)).double()
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    first, second, last = layers(model, nn.Linear)
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    assert torch.allclose(model(x), hidden @ last.weight.T + last.bias, rtol=1e-12)


def test_mlp_without_hidden_layers_is_linear():
    assert names(mlp(3, 2, depth=0)) == ["Flatten", "Linear"]


def resnet_parameters(depth, classes=10):
    """By hand: convolutions of 9 weights a pair of channels, two numbers a normalised channel, a
    linear layer."""
    n = (depth - 2) // 6
    total = 9 * 3 * 16 + 2 * 16
    fan_in = 16
    for width in (16, 32, 64):
        for _ in range(n):
            total += 9 * fan_in * width + 2 * width + 9 * width * width + 2 * width
            fan_in = width
    return total + 64 * classes + classes


# Millions of parameters from table 6 of He et al.
@pytest.mark.parametrize(
    ("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85")]
)
def test_resnet_cifar_has_the_published_size(depth, millions):
    model = resnet_cifar(depth)
    assert parameters(model) == resnet_parameters(depth)
    assert f"{parameters(model) / 1e6:.2f}" == millions
    # The depth counts the layers with weights; option A has none in its shortcuts.
    assert len(layers(model, (nn.Conv2d, nn.Linear))) == depth


def block_shapes(model, x):
    shapes = []
    for module in model:
        x = module(x)
        if type(module).__name__ == "_BasicBlock":
            shapes.append(tuple(x.shape[1:]))
    return shapes, x


def test_resnet_44_has_three_stages_of_seven_blocks():
    with torch.no_grad():
        shapes, logits = block_shapes(resnet_cifar(44, classes=7), torch.zeros(2, 3, 32, 32))
    assert shapes == [(16, 32, 32)] * 7 + [(32, 16, 16)] * 7 + [(64, 8, 8)] * 7
    assert logits.shape == (2, 7)


def test_option_a_takes_every_second_pixel_and_pads_with_zeros():
    shortcut = next(m for m in resnet_cifar(8).modules() if type(m).__name__ == "_PaddedShortcut")
    x = torch.arange(2 * 16 * 4 * 4.0).reshape(2, 16, 4, 4) + 1
    out = shortcut(x)
    assert out.shape == (2, 32, 2, 2)
    for n in range(2):
        for c in range(32):
            for i in range(2):
                for j in range(2):
                    expected = x[n, c - 8, 2 * i, 2 * j] if 8 <= c < 24 else 0
                    assert out[n, c, i, j] == expected


def test_a_basic_block_computes_what_the_paper_says():
    model = seeded(lambda: resnet_cifar(8)).double().eval()
    block = layers(model, type(model[3]))[1]  # the first with stride 2
    first, _, _, second, _ = block.body
    x = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shrink = 1 / math.sqrt(
        1 + 1e-5
    )  # fresh batch norm in evaluation: mean 0, variance 1, epsilon 1e-5
    hidden = (F.conv2d(x, first.weight, stride=2, padding=1) * shrink).clamp(min=0)
    residual = F.conv2d(hidden, second.weight, padding=1) * shrink
    shortcut = torch.zeros_like(residual)
    shortcut[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.allclose(block(x), (residual + shortcut).clamp(min=0), rtol=1e-10)


def test_resnets_start_from_he_s_initialisation():
    for module in seeded(lambda: resnet_cifar(20)).modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * 9
            count = module.weight.numel()
            # The sample standard deviation of n normal draws has standard error sd / sqrt(2 n).
            expected = math.sqrt(2 / fan_in)
            assert abs(module.weight.std() - expected) < 4.5 * expected / math.sqrt(2 * count)


def test_resnet_18_for_small_images():
    # 1,728 + 128 for the stem, four stages of two blocks with projections in three, 5,130 for ten
    # classes.
    total, fan_in = 9 * 3 * 64 + 128, 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            total += 9 * fan_in * width + 9 * width * width + 4 * width
            if block == 0 and width != 64:
                total += fan_in * width + 2 * width
            fan_in = width
    model = resnet18(10)
    assert parameters(model) == total + 512 * 10 + 10
    # 17 convolutions and a linear layer, and three projections
    assert len(layers(model, (nn.Conv2d, nn.Linear))) == 18 + 3
    with torch.no_grad():
        shapes, logits = block_shapes(resnet18(5, channels=1), torch.zeros(1, 1, 16, 16))
    assert shapes == [(64, 16, 16)] * 2 + [(128, 8, 8)] * 2 + [(256, 4, 4)] * 2 + [(512, 2, 2)] * 2
    assert logits.shape == (1, 5)


def test_small_cnn_by_hand():
    # (9 * 1 + 1) * 16, (9 * 16 + 1) * 32, (32 * 7 * 7 + 1) * 128, (128 + 1) * 10
    assert parameters(small_cnn()) == 160 + 4640 + 200_832 + 1290
    assert small_cnn(4, 3, size=15)(torch.zeros(2, 3, 15, 15)).shape == (2, 4)


BUILDERS = {
    "mlp": (lambda: mlp(12, 3, width=8, depth=2, batch_norm=True), (3, 2, 2)),
    "resnet_cifar": (lambda: resnet_cifar(8, classes=3), (3, 8, 8)),
    "resnet18": (lambda: resnet18(3), (3, 8, 8)),
    "small_cnn": (lambda: small_cnn(3, 3, size=8), (3, 8, 8)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_global_seed_decides_the_weights(name):
    build, _ = BUILDERS[name]
    a, b, other = seeded(build), seeded(build), seeded(build, seed=1)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("name", BUILDERS)
def test_every_parameter_gets_a_gradient(name):
    build, shape = BUILDERS[name]
    model = seeded(build)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(x), torch.arange(6) % 3).backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.abs().sum() > 0, key


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlp(0, 2), "inputs must be at least 1, got 0"),
        (lambda: mlp(2, 0), "outputs must be at least 1, got 0"),
        (lambda: mlp(2, 2, width=0), "width must be at least 1, got 0"),
        (lambda: mlp(2, 2, depth=-1), "depth must be at least 0, got -1"),
        (lambda: mlp(2, 2, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda: resnet_cifar(18), r"6 n \+ 2 with n at least 1, got 18"),
        (lambda: resnet_cifar(2), "got 2"),
        (lambda: resnet_cifar(-4), "got -4"),
        (lambda: resnet_cifar(8, classes=0), "classes must be at least 1"),
        (lambda: resnet18(0), "classes must be at least 1"),
        (lambda: resnet18(2, channels=0), "channels must be at least 1"),
        (lambda: small_cnn(channels=0), "channels must be at least 1"),
        (lambda: small_cnn(size=3), "size must be at least 4 pixels"),
        (lambda: Standardise((0.5,), (0.0,)), "a deviation above 0 for each channel"),
        (lambda: Standardise((0.5, 0.5), (0.5,)), "a deviation above 0 for each channel"),
        (
            lambda: Standardise((0.5,), (0.5,))(torch.zeros(2, 1, 3, 3)),
            "must be uint8 .n, 1, height, width., got torch.f",
        ),
        (
            lambda: Standardise((0.5,), (0.5,))(torch.zeros(2, 3, 3, 3, dtype=torch.uint8)),
            "got torch.uint8 .2, 3, 3, 3.",
        ),
    ],
)
def test_wrong_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
