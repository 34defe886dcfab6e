"""Augmentation of what the discriminator sees: the same for both, differentiable, nothing when off."""

import pytest
import torch

from hf_vq.training.adversarial_augmentation import DifferentiableAugmentation

SHAPES = {"2D": (3, 2, 16, 24), "3D": (2, 1, 8, 16, 16)}


def draw(names, *tensors, seed=0, fill=-1.0):
    return DifferentiableAugmentation(names, fill)(torch.Generator().manual_seed(seed), *tensors)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("names", [["translation"], ["cutout"], ["translation", "cutout"]], ids="+".join)
def test_both_tensors_of_a_call_are_transformed_alike(names, shape, generator):
    real = torch.rand(shape, generator=generator)
    first, second = draw(names, real, 3 * real + 2)
    kept = first != -1
    torch.testing.assert_close(second[kept], 3 * first[kept] + 2)
    assert bool((second[~kept] == -1).all())
    assert first.shape == real.shape
    assert bool((~kept).any())
    other, _ = draw(names, real, real, seed=1)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_sample_is_shifted_by_at_most_an_eighth_and_nothing_else(shape, generator):
    real = torch.rand(shape, generator=generator)
    (moved,) = draw(["translation"], real)
    sides = [torch.arange(side) for side in shape[2:]]
    for before, after in zip(real, moved, strict=True):
        filled = (after[0] == -1).flatten()
        places = torch.stack([axis.flatten()[~filled] for axis in torch.meshgrid(*sides, indexing="ij")])
        origin = (before[0] == after[0].flatten()[~filled][0]).nonzero()[0]
        shift = places[:, 0] - origin
        assert bool((shift.abs() <= torch.tensor(shape[2:]) // 8).all())
        sources = places - shift[:, None]
        assert torch.equal(after[(slice(None), *places)], before[(slice(None), *sources)])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cutout_blanks_one_box_of_at_most_half_of_every_side(shape, generator):
    real = torch.rand(shape, generator=generator)
    (cut,) = draw(["cutout"], real)
    for before, after in zip(real, cut, strict=True):
        hidden = after[0] == -1
        corners = hidden.nonzero()
        low, high = corners.amin(dim=0), corners.amax(dim=0) + 1
        assert bool((high - low <= torch.tensor(shape[2:]) // 2).all())
        assert int(hidden.sum()) == int((high - low).prod())
        assert torch.equal(after[:, ~hidden], before[:, ~hidden])


def test_samples_of_a_batch_are_transformed_each_in_its_own_way(generator):
    images = torch.rand(1, 1, 16, 16, generator=generator).expand(8, -1, -1, -1)
    for name in ("translation", "cutout"):
        (augmented,) = draw([name], images)
        assert len({tuple(image.flatten().tolist()) for image in augmented}) > 1


def test_gradients_reach_exactly_what_is_still_seen(generator):
    images = torch.rand(2, 1, 16, 16, generator=generator, requires_grad=True)
    (augmented,) = draw(["translation", "cutout"], images)
    augmented.sum().backward()
    assert set(images.grad.unique().tolist()) == {0.0, 1.0}
    assert int(images.grad.sum()) == int((augmented != -1).sum())


def test_off_is_the_identity_and_draws_nothing(generator):
    images = torch.rand(2, 1, 16, 16)
    state = generator.get_state()
    (same,) = DifferentiableAugmentation([])(generator, images)
    assert same is images
    assert torch.equal(generator.get_state(), state)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'colour' is unknown; choose among \('translation', 'cutout'\)"):
        DifferentiableAugmentation(["cutout", "colour"])
