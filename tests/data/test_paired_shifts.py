"""Pairs moved by whole voxels."""

import pytest
import torch

from hf_vq.data import render_views
from hf_vq.data.paired_shifts import draw_shifts, shift_pair

NAMES = ("frontal", "lateral")


def phantom():
    """A blob away from the edges, in air."""
    volume = torch.full((1, 8, 8, 8), -1000.0)
    volume[0, 2:5, 3:6, 2:4] = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0)) * 100
    return volume


@pytest.mark.parametrize("shift", [(1, 0, 0), (0, -1, 0), (0, 0, 2), (-2, 2, 1), (0, 0, 0)])
@pytest.mark.parametrize("scale", [1, 2])
def test_moved_views_are_the_views_of_the_moved_volume(shift, scale):
    size = (8 * scale, 8 * scale)
    render = torch.nn.Upsample(size=size, mode="nearest")

    def views_of(volume):
        return render(render_views(volume[None], (5.0, 5.0, 5.0), NAMES)[0])

    volume = phantom()
    moved, views = shift_pair(volume, views_of(volume), NAMES, shift)
    torch.testing.assert_close(moved, volume.roll(shift, (1, 2, 3)))
    torch.testing.assert_close(views, views_of(moved))
    assert torch.equal(views, views_of(volume)) == (not any(shift))


def test_the_edge_is_repeated():
    volume = torch.arange(4.0).expand(1, 4, 4, 4)
    moved, _ = shift_pair(volume, torch.zeros(2, 1, 4, 4), NAMES, (0, 0, 1))
    assert moved[0, 0, 0].tolist() == [0, 0, 1, 2]
    moved, _ = shift_pair(volume, torch.zeros(2, 1, 4, 4), NAMES, (0, 0, -1))
    assert moved[0, 0, 0].tolist() == [1, 2, 3, 3]


def test_views_that_do_not_divide_the_voxels_and_oblique_rays_are_refused():
    with pytest.raises(ValueError, match="frontal: found 6 pixels for 4 voxels towards superior"):
        shift_pair(torch.zeros(1, 4, 4, 4), torch.zeros(1, 1, 6, 4), ["frontal"], (1, 0, 0))
    with pytest.raises(ValueError, match="azimuth_30"):
        shift_pair(torch.zeros(1, 4, 4, 4), torch.zeros(1, 1, 4, 4), ["azimuth_30"], (1, 0, 0))


def test_shifts_are_different_and_none_stands_still():
    shifts = draw_shifts(26, 1, torch.Generator().manual_seed(0))
    assert len(set(shifts)) == 26
    assert (0, 0, 0) not in shifts
    assert draw_shifts(5, 2, torch.Generator().manual_seed(1)) == draw_shifts(5, 2, torch.Generator().manual_seed(1))
    assert draw_shifts(0, 0, torch.Generator()) == []
    with pytest.raises(ValueError, match="27 shifts by up to 1 voxels wanted, expected 0 to 26"):
        draw_shifts(27, 1, torch.Generator())
