import numpy as np
import pytest
import torch

from hf_vq.processors.geometry import grid_affine
from hf_vq.processors.resampling import axis_weights, resample

AIR = -1000.0


@pytest.fixture
def volume(generator):
    return (100 * torch.randn(4, 6, 8, generator=generator)).round()


def rotation_about_z(degrees: float) -> np.ndarray:
    turn = np.eye(4)
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return turn


def test_equal_grids_give_the_same_values(volume):
    affine = grid_affine((4, 6, 8), (2.5, 0.7, 0.7), center=np.array([3.3, -71.0, 250.1]))
    assert torch.equal(resample(volume, affine, affine, (4, 6, 8), AIR), volume)


def test_an_affine_rounded_to_float32_counts_as_equal(volume):
    affine = grid_affine((4, 6, 8), (2.6, 0.7001, 0.9766), center=np.array([3.3, -71.0, 250.1]))
    rounded = affine.astype(np.float32).astype(np.float64)
    assert (rounded != affine).any()
    assert torch.equal(resample(volume, rounded, affine, (4, 6, 8), AIR), volume)


def test_cropping_and_padding_by_whole_voxels_copies_values_and_fills_the_rest(volume):
    source = grid_affine((4, 6, 8), (2.0, 3.0, 4.0))
    target = grid_affine((6, 6, 4), (2.0, 3.0, 4.0))
    result = resample(volume, source, target, (6, 6, 4), AIR)
    assert torch.equal(result[1:5], volume[:, :, 2:6])
    assert (result[0] == AIR).all()
    assert (result[5] == AIR).all()


@pytest.mark.parametrize("size", [2, 3, 4, 7, 12])
def test_a_constant_stays_constant_inside_the_field_of_view(size):
    source = grid_affine((4, 4, 4), (3.0, 3.0, 3.0))
    target = grid_affine((size,) * 3, (12.0 / size,) * 3)
    result = resample(torch.full((4, 4, 4), 40.0), source, target, (size,) * 3, AIR)
    torch.testing.assert_close(result, torch.full((size,) * 3, 40.0), rtol=0, atol=1e-3)


def test_a_linear_ramp_survives_refinement_and_averaging():
    ramp = torch.arange(24.0).view(24, 1, 1).expand(24, 4, 4)
    source = grid_affine((24, 4, 4), (1.0, 1.0, 1.0))
    for size in (12, 48):
        step = 24 / size
        target = grid_affine((size, 4, 4), (step, 1.0, 1.0))
        result = resample(ramp, source, target, (size, 4, 4), AIR)
        expected = (torch.arange(size) + 0.5) * step - 0.5
        margin = int(2 / min(step, 1)) + 1
        torch.testing.assert_close(result[margin:-margin, 0, 0], expected[margin:-margin], rtol=0, atol=1e-3)


def test_averaging_leaves_no_trace_of_a_pattern_finer_than_the_target():
    stripes = torch.tensor([500.0, -500.0]).repeat(32).view(64, 1, 1).expand(64, 2, 2)
    source = grid_affine((64, 2, 2), (1.0, 1.0, 1.0))
    target = grid_affine((16, 2, 2), (4.0, 1.0, 1.0))
    result = resample(stripes, source, target, (16, 2, 2), AIR)
    assert result[1:-1].abs().max() < 1e-3


def test_a_target_voxel_half_outside_the_field_of_view_is_half_filled():
    weights = axis_weights(num_source=4, num_target=3, step=2.0, start=-0.5)
    torch.testing.assert_close(weights.sum(dim=1), torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64))


def test_an_oblique_grid_agrees_with_the_aligned_one_as_the_angle_vanishes(volume):
    source = grid_affine((4, 6, 8), (3.0, 3.0, 3.0))
    target = grid_affine((5, 5, 5), (2.0, 2.0, 2.0))
    aligned = resample(volume, source, target, (5, 5, 5), AIR)
    oblique = resample(volume, rotation_about_z(0.05) @ source, target, (5, 5, 5), AIR)
    torch.testing.assert_close(oblique, aligned, rtol=0, atol=3.0)


@pytest.mark.parametrize("degrees", [20.0, 90.0, 180.0])
def test_a_rotated_scan_is_turned_back(degrees):
    source = grid_affine((33, 33, 33), (1.0, 1.0, 1.0))
    turned = rotation_about_z(degrees) @ source
    indices = np.stack(np.meshgrid(*[np.arange(33)] * 3, indexing="ij"))
    x, y, z = np.tensordot(turned[:3, :3], indices[::-1], axes=1) + turned[:3, 3][:, None, None, None]
    blob = torch.from_numpy(np.exp(-((x - 5) ** 2 + (y + 3) ** 2 + (z - 4) ** 2) / 18)).float()
    result = resample(blob, turned, source, (33, 33, 33), 0.0)
    depth, height, width = np.unravel_index(int(result.argmax()), (33, 33, 33))
    assert (width - 16, height - 16, depth - 16) == (5, -3, 4)
    assert result.max() > 0.95
