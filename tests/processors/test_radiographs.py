import math

import pytest
import torch

from hf_vq.data import line_integrals, render_views
from hf_vq.processors.radiographs import MAX_LINE_INTEGRAL, WATER_ATTENUATION

AIR = -1000.0


def test_a_box_of_water_attenuates_by_its_thickness():
    volume = torch.full((1, 1, 6, 8, 10), AIR)
    volume[0, 0, 1:5, 2:7, 3:5] = 0.0
    frontal = line_integrals(volume, (1.0, 2.0, 3.0), "frontal")
    lateral = line_integrals(volume, (1.0, 2.0, 3.0), "lateral")
    assert frontal.shape == (1, 6, 10)
    assert lateral.shape == (1, 6, 8)
    torch.testing.assert_close(frontal[0, 1:5, 5:7], torch.full((4, 2), WATER_ATTENUATION * 5 * 2.0))
    torch.testing.assert_close(lateral[0, 1:5, 1:6], torch.full((4, 5), WATER_ATTENUATION * 2 * 3.0))
    assert frontal.sum() == pytest.approx(WATER_ATTENUATION * 5 * 2.0 * 8, rel=1e-5)
    assert lateral.sum() == pytest.approx(WATER_ATTENUATION * 2 * 3.0 * 20, rel=1e-5)


def test_a_sphere_of_bone_attenuates_by_its_chords():
    n, step, radius = 64, 1.0, 20.0
    axis = (torch.arange(n) - (n - 1) / 2) * step
    squares = axis.square()
    inside = squares[:, None, None] + squares[:, None] + squares < radius**2
    volume = torch.where(inside, 1000.0, AIR)[None, None]
    for view in ("frontal", "lateral"):
        integrals = line_integrals(volume, (step,) * 3, view)[0]
        chords = 2 * (radius**2 - squares[:, None] - squares).clamp_min(0).sqrt()
        assert (integrals - 2 * WATER_ATTENUATION * chords).abs().max() <= 2 * WATER_ATTENUATION * 2 * step
        mass = 2 * WATER_ATTENUATION * 4 / 3 * math.pi * radius**3
        assert integrals.sum() == pytest.approx(mass, rel=0.01)


def test_the_water_attenuation_scales_the_integral():
    volume = torch.zeros(1, 1, 2, 3, 4)
    torch.testing.assert_close(
        line_integrals(volume, (1.0, 1.0, 1.0), "frontal", water_attenuation=0.05), torch.full((1, 2, 4), 0.15)
    )


def test_what_is_thinner_than_air_attenuates_nothing():
    assert (line_integrals(torch.full((1, 1, 2, 2, 2), -2048.0), (1.0, 1.0, 1.0), "lateral") == 0).all()


@pytest.mark.parametrize(
    ("octant", "frontal_corner", "lateral_corner"),
    [
        (("superior", "anterior", "right"), (0, 0), (0, 0)),
        (("superior", "anterior", "left"), (0, -1), (0, 0)),
        (("superior", "posterior", "right"), (0, 0), (0, -1)),
        (("inferior", "posterior", "left"), (-1, -1), (-1, -1)),
        (("inferior", "anterior", "right"), (-1, 0), (-1, 0)),
    ],
)
def test_each_octant_shows_in_its_corner(octant, frontal_corner, lateral_corner):
    growing = ("superior", "anterior", "right")
    volume = torch.full((1, 1, 4, 5, 6), AIR)
    index = tuple(-1 if direction == axis else 0 for direction, axis in zip(octant, growing, strict=True))
    volume[(0, 0, *index)] = 0.0
    for view, corner in (("frontal", frontal_corner), ("lateral", lateral_corner)):
        image = line_integrals(volume, (1.0, 1.0, 1.0), view)[0]
        assert image[corner] > 0
        assert (image > 0).sum() == 1


def test_views_are_log_attenuation_on_the_fixed_range():
    volume = torch.zeros(2, 1, 4, 4, 4)
    volume[1] = AIR
    images = render_views(volume, (10.0, 10.0, 10.0))
    assert images.shape == (2, 2, 1, 4, 4)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[0], torch.full((2, 1, 4, 4), WATER_ATTENUATION * 40 / MAX_LINE_INTEGRAL))
    assert (images[1] == 0).all()
    assert (render_views(torch.full((1, 1, 4, 4, 4), 3000.0), (100.0,) * 3) == 1).all()


def test_resizing_keeps_the_brightness_and_the_order_of_views():
    volume = torch.full((1, 1, 8, 12, 16), AIR)
    volume[..., 2:6, 3:9, 4:12] = 0.0
    images = render_views(volume, (1.0, 1.0, 1.0), views=["lateral", "frontal"], image_size=(4, 4))
    assert images.shape == (1, 2, 1, 4, 4)
    for image, view in zip(images[0], ["lateral", "frontal"], strict=True):
        expected = line_integrals(volume, (1.0, 1.0, 1.0), view).mean() / MAX_LINE_INTEGRAL
        assert image.mean() == pytest.approx(float(expected), rel=0.1)


def test_gradients_reach_every_voxel_denser_than_air():
    volume = torch.zeros(1, 1, 3, 3, 3, requires_grad=True)
    render_views(volume, (2.0, 3.0, 4.0)).sum().backward()
    per_voxel = WATER_ATTENUATION / 1000 / MAX_LINE_INTEGRAL * (3.0 + 4.0)
    torch.testing.assert_close(volume.grad, torch.full_like(volume, per_voxel))


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((4, 4, 4), {}, r"found a volume of shape \(4, 4, 4\), expected \(B, 1, D, H, W\)"),
        ((1, 2, 4, 4, 4), {}, r"found a volume of shape \(1, 2, 4, 4, 4\)"),
        ((1, 1, 4, 4, 4), {"spacing": (1.0, 0.0, 1.0)}, "found spacing .*, expected three positive sizes in mm"),
        ((1, 1, 4, 4, 4), {"views": ["frontal", "top"]}, "found view 'top', expected one of"),
        ((1, 1, 4, 4, 4), {"views": []}, "found no views, expected at least one"),
        ((1, 1, 4, 5, 6), {}, r"found views of shapes \[\(4, 5\), \(4, 6\)\], expected one shape; pass `image_size`"),
    ],
)
def test_bad_requests_are_named(shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        render_views(torch.zeros(shape), **{"spacing": (1.0, 1.0, 1.0), **arguments})
