"""Shifts and reflections of training samples."""

import pytest
import torch

from hf_vq.training.data_augmentation import ShiftAndFlip


@pytest.mark.parametrize("sides", [(6, 7), (4, 5, 6)])
def test_samples_are_shifted_copies_that_repeat_the_edge(sides):
    samples = torch.randn(50, 2, *sides)
    shifted = ShiftAndFlip(2)(samples, torch.Generator().manual_seed(0))
    assert shifted.shape == samples.shape
    seen = set()
    for sample, result in zip(samples, shifted, strict=True):
        places = [torch.arange(side) for side in sides]
        matches = [
            offsets
            for offsets in torch.cartesian_prod(*[torch.arange(-2, 3)] * len(sides)).tolist()
            if torch.equal(
                sample[
                    (
                        slice(None),
                        *torch.meshgrid(
                            *[(p + o).clamp(0, len(p) - 1) for p, o in zip(places, offsets, strict=True)], indexing="ij"
                        ),
                    )
                ],
                result,
            )
        ]
        assert len(matches) == 1
        seen.add(tuple(matches[0]))
    assert len(seen) > 10


def test_half_of_the_samples_are_reflected_along_each_axis_asked_for():
    samples = torch.arange(2 * 3 * 4.0).reshape(1, 1, 2, 3, 4).repeat(400, 1, 1, 1, 1)
    flipped = ShiftAndFlip(0, (0, 2))(samples, torch.Generator().manual_seed(0))
    counts = {dims: 0 for dims in ((), (2,), (4,), (2, 4))}
    for result in flipped:
        (dims,) = [dims for dims in counts if torch.equal(samples[:1].flip(dims)[0], result)]
        counts[dims] += 1
    assert min(counts.values()) > 70


def test_nothing_to_do_leaves_samples_and_generator_alone():
    generator, samples = torch.Generator().manual_seed(0), torch.randn(2, 1, 4, 4)
    state = generator.get_state()
    assert ShiftAndFlip()(samples, generator) is samples
    assert torch.equal(generator.get_state(), state)


def test_one_seed_gives_one_result():
    samples, augment = torch.randn(3, 1, 4, 4), ShiftAndFlip(2, (1,))
    first, again = (augment(samples, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="max_shift must be at least 0; got -1"):
        ShiftAndFlip(-1)
    with pytest.raises(ValueError, match=r"different spatial axes.*\[1, 1\]"):
        ShiftAndFlip(0, [1, 1])
    with pytest.raises(ValueError, match=r"flip_axes=\[2\] must be below 2"):
        ShiftAndFlip(0, [2])(torch.zeros(1, 1, 4, 4), torch.Generator())
