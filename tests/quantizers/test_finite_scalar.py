"""Finite scalar quantisation: its bounding function, codes and gradients. Laws shared with others: test_implicit."""

import math

import pytest
import torch

from hf_vq import FiniteScalarQuantizer

LEVELS = [[8, 5, 5, 5], [4, 3], [2, 2, 2], [7, 6, 2, 3], [2, 300, 3]]


def bound_of(value, level):
    """f(z) of one channel, written out for a float64 tensor."""
    if level % 2:
        return (level - 1) / 2 * torch.tanh(value)
    shift = math.atanh(1 / (level - 1)) if level > 2 else 0.0
    return (level - 1) / 2 * torch.tanh(value + shift) - 0.5


def grid_of(level):
    """What the levels of a channel are before they are rescaled."""
    return torch.arange(level, dtype=torch.float64) - level // 2


@pytest.mark.parametrize("levels", LEVELS)
def test_assignments_equal_a_float64_search_in_the_bounded_space(levels):
    quantizer = FiniteScalarQuantizer(levels=levels)
    features = 2 * torch.randn(1, len(levels), 500)
    decoded = quantizer.decode(quantizer.encode(features))[0]
    for channel, level in enumerate(levels):
        bounded = bound_of(features[0, channel].double(), level)
        distances = (bounded[:, None] - grid_of(level)).abs()
        chosen = (bounded - decoded[channel].double() * (level // 2)).abs()
        assert bool((chosen - distances.min(dim=1).values <= 1e-5 * level).all())


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_reached_and_is_a_number_in_mixed_radix(levels):
    quantizer = FiniteScalarQuantizer(levels=levels)
    axes = []
    for level in levels:
        half_range, offset = (level - 1) / 2, 0.5 * (level % 2 == 0)
        shift = math.atanh(offset / half_range) if level > 2 else 0.0
        axes.append((((grid_of(level) + offset) / half_range).atanh() - shift).clamp(-12, 12))
    # The last axis of a Cartesian product runs fastest and the first channel is the least significant digit.
    vectors = torch.cartesian_prod(*axes[::-1]).flip(1)
    codes = quantizer.encode(vectors.float())
    assert torch.equal(codes, torch.arange(math.prod(levels)))


@pytest.mark.parametrize("levels", LEVELS)
def test_the_effective_codebook_fills_the_unit_cube(levels):
    codebook = FiniteScalarQuantizer(levels=levels).effective_codebook
    for channel, level in enumerate(levels):
        expected = (grid_of(level) / (level // 2)).float()
        torch.testing.assert_close(torch.unique(codebook[:, channel]), expected)
        assert expected.min() == -1
        assert expected.max() <= 1


def test_zero_is_the_centre_of_a_level():
    quantizer = FiniteScalarQuantizer(levels=[3, 4, 5, 6, 8, 9])
    around = 0.02 * torch.randn(1, 6, 200)
    assert bool((quantizer(around).quantized == 0).all())


def test_two_levels_divide_at_zero():
    quantized = FiniteScalarQuantizer(levels=[2])(torch.tensor([[-1e-3], [1e-3]])).quantized
    assert quantized.flatten().tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients_equal_float64_autograd_of_the_formulas(levels):
    quantizer = FiniteScalarQuantizer(levels=levels).double()
    features = torch.randn(2, len(levels), 7, dtype=torch.float64, requires_grad=True)
    task = torch.randn_like(features)
    output = quantizer(features)
    ((output.quantized * task).sum() + output.loss).backward()

    reference = features.detach().clone().requires_grad_()
    bounded = torch.stack([bound_of(reference[:, i], level) / (level // 2) for i, level in enumerate(levels)], dim=1)
    (bounded * task).sum().backward()
    torch.testing.assert_close(features.grad, reference.grad)


def test_all_losses_are_constant_zeros():
    output = FiniteScalarQuantizer()(torch.randn(2, 4, 7, requires_grad=True))
    for loss in (output.loss, output.commitment_loss, output.codebook_loss):
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss == 0
    (output.quantized.sum() + output.loss).backward()


def test_config_gives_the_size_of_the_codebook():
    config = FiniteScalarQuantizer(levels=(8, 5, 5, 5)).config
    assert config.levels == [8, 5, 5, 5]
    assert (config.codebook_size, config.codebook_dim) == (1000, 4)
    assert config.to_dict() == {"quantizer_type": "finite_scalar", "levels": [8, 5, 5, 5], "channel_last": False}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"levels": []}, r"levels=\[\]"),
        ({"levels": [8, 1]}, r"levels=\[8, 1\]"),
        ({"levels": [8, 5.0]}, r"levels=\[8, 5.0\]"),
        ({"levels": [8, True]}, r"levels=\[8, True\]"),
        ({"levels": 8}, "levels=8"),
        ({"levels": "85"}, "levels='85'"),
        ({"levels": [4096, 4097]}, r"levels=\[4096, 4097\].*16777216"),
        ({"channel_last": 1}, "channel_last=1"),
        ({"level": [8]}, "level"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        FiniteScalarQuantizer(**fields)
