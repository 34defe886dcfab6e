"""Pictures of volumes: windows, sides, scale, colours."""

import numpy as np
import pytest
from PIL import Image

from hf_vq.app.viewer import (
    DEVIATION_LIMIT_HU,
    PICTURE_SIZE,
    WINDOWS,
    code_colours,
    code_picture,
    error_picture,
    save_turntable,
    slice_counts,
    slice_direction,
    slice_picture,
    through_axis,
    view_picture,
)
from hf_vq.evaluation.sheets import PLANES
from hf_vq.evaluation.volumes import GridVolume
from hf_vq.processors.geometry import grid_affine

SIZE = 120
SHAPE = (10, 12, 14)


def volume_of(hu, spacing=(1.0, 1.0, 1.0)):
    hu = np.asarray(hu, dtype=np.float32)
    return GridVolume(hu, grid_affine(hu.shape, spacing))


def block(superior=None, anterior=None, right=None):
    """A volume that is bright in the half towards a direction (True) or away from it (False), air elsewhere."""
    hu = np.full(SHAPE, -1000.0)
    where = tuple(
        slice(None) if side is None else slice(n // 2, None) if side else slice(0, n // 2)
        for side, n in zip((superior, anterior, right), SHAPE, strict=True)
    )
    hu[where] = 1000
    return volume_of(hu)


def grey(picture):
    assert picture.dtype == np.uint8
    return picture.astype(int).mean(axis=2)


def middle(picture, rows=slice(40, 80), columns=slice(40, 80)):
    """Mean grey of a part of a picture that has no letters."""
    return grey(picture)[rows, columns].mean()


UP, DOWN = slice(30, 50), slice(70, 90)
HALVES = {
    "axial": ({"anterior": True}, {"right": True}),
    "coronal": ({"superior": True}, {"right": True}),
    "sagittal": ({"superior": True}, {"anterior": True}),
}


@pytest.mark.parametrize("plane", list(PLANES))
def test_slices_lie_as_radiologists_hang_them(plane):
    upper, left = HALVES[plane]
    top = slice_picture(block(**upper), plane, 6, WINDOWS["full"], size=SIZE)
    assert middle(top, rows=UP) > 240
    assert middle(top, rows=DOWN) < 15
    side = slice_picture(block(**left), plane, 6, WINDOWS["full"], size=SIZE)
    assert middle(side, columns=UP) > 240
    assert middle(side, columns=DOWN) < 15


@pytest.mark.parametrize("plane", list(PLANES))
def test_slices_are_counted_in_the_direction_that_is_written(plane):
    towards = slice_direction(plane).split(" to ")[1]
    volume = block(**{towards: True})
    count = slice_counts(volume)[plane]
    assert count == SHAPE[through_axis(plane)]
    brightness = [
        middle(slice_picture(volume, plane, number, WINDOWS["full"], size=SIZE)) for number in range(1, count + 1)
    ]
    assert max(brightness[: count // 2]) < 15
    assert min(brightness[count // 2 :]) > 240


def test_slices_outside_are_the_nearest_ones():
    volume = block(superior=True)
    for outside, inside in ((0, 1), (-5, 1), (11, 10), (999, 10)):
        one, other = (
            slice_picture(volume, "axial", number, WINDOWS["lung"], size=SIZE) for number in (outside, inside)
        )
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("window", list(WINDOWS.values()))
def test_a_window_maps_its_ends_to_black_and_white_and_its_middle_to_grey(window):
    low, high = window
    levels = {low - 100: 0, low: 0, (low + high) / 2: 127.5, high: 255, high + 100: 255}
    for hu, level in levels.items():
        picture = slice_picture(volume_of(np.full(SHAPE, hu)), "axial", 5, window, size=SIZE)
        assert abs(middle(picture) - level) <= 1


def test_a_letter_stands_at_each_side_in_every_plane():
    for plane in PLANES:
        picture = grey(slice_picture(volume_of(np.full(SHAPE, -1000)), plane, 5, WINDOWS["full"], size=SIZE))
        for rows, columns in (
            (slice(0, 16), slice(50, 70)),
            (slice(104, 120), slice(50, 70)),
            (slice(50, 70), slice(0, 14)),
            (slice(50, 70), slice(106, 120)),
        ):
            assert picture[rows, columns].max() > 150


def test_a_slice_is_true_to_scale_in_a_square():
    volume = volume_of(np.full((10, 10, 10), 1000), spacing=(2.0, 1.0, 4.0))
    for plane, (height, width) in {"axial": (30, 120), "coronal": (60, 120), "sagittal": (60, 30)}.items():
        picture = slice_picture(volume, plane, 5, WINDOWS["full"], size=SIZE)
        assert picture.shape == (SIZE, SIZE, 3)
        bright = grey(picture) > 250
        assert abs(bright.any(axis=1).sum() - height) <= 1
        assert abs(bright.sum(axis=1).max() - width) <= 1


def test_colours_cover_only_what_deviates():
    volume, deviation = volume_of(np.zeros(SHAPE)), np.zeros(SHAPE, dtype=np.float32)
    deviation[:, :, 7:] = 2 * DEVIATION_LIMIT_HU
    plain = slice_picture(volume, "axial", 5, WINDOWS["full"], size=SIZE)
    picture = slice_picture(volume, "axial", 5, WINDOWS["full"], deviation, size=SIZE)
    assert picture.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(picture[40:80, 70:100], plain[40:80, 70:100])
    red, green, blue = picture[40:80, 20:50].reshape(-1, 3).mean(axis=0)
    assert red > 200 > blue > 100
    assert green > 200


def test_an_error_is_dark_where_there_is_none():
    volume = volume_of(np.zeros(SHAPE))
    other = np.zeros(SHAPE, dtype=np.float32)
    other[:, :, 7:] = DEVIATION_LIMIT_HU
    picture = error_picture(volume, other, "coronal", 5, size=SIZE)
    assert middle(picture, columns=slice(75, 95)) < 10
    assert middle(picture, columns=slice(25, 45)) > 180
    # either sign
    np.testing.assert_array_equal(picture, error_picture(volume, -other, "coronal", 5, size=SIZE))


def test_every_code_has_a_colour_of_its_own():
    colours = code_colours(np.arange(512))
    assert len(np.unique(colours, axis=0)) > 500
    apart = np.abs(np.diff(colours.astype(int), axis=0)).sum(axis=1)
    assert apart.min() > 100


def test_codes_lie_where_their_voxels_do():
    codes = np.zeros((2, 3, 2), dtype=np.int64)
    codes[1, :, 1] = 5
    volume = volume_of(np.zeros((8, 12, 8)))
    upper, lower = (code_picture(codes, volume, "axial", number, size=SIZE) for number in (8, 1))
    background, marked = code_colours(np.array([0, 5]))
    assert (lower[30:60, 30:90] == background).all()
    assert (upper[30:60, 30:50] == marked).all()
    assert (upper[30:60, 70:90] == background).all()


def test_a_view_keeps_its_shape_and_brightness():
    pixels = np.full((20, 40), 30000, dtype=np.uint16)
    picture = view_picture(Image.fromarray(pixels), ("inferior", "left"), "frontal", size=SIZE)
    assert picture.shape == (SIZE, SIZE, 3)
    assert abs(middle(picture, slice(40, 80), slice(30, 50)) - 30000 / 257) <= 1
    assert grey(picture)[5:20, 20:40].max() < 30


def test_unknown_planes_and_empty_windows_are_refused():
    volume = volume_of(np.zeros(SHAPE))
    with pytest.raises(ValueError, match="plane: found 'oblique'"):
        slice_picture(volume, "oblique", 1, WINDOWS["full"])
    with pytest.raises(ValueError, match="window: found"):
        slice_picture(volume, "axial", 1, (100, 100))
    assert slice_picture(volume, "axial", 1, (0, 1)).shape == (PICTURE_SIZE, PICTURE_SIZE, 3)


def test_a_turntable_has_its_frames_and_tells_how_far_it_is(tmp_path):
    hu = np.full((16, 16, 16), -1000.0)
    hu[4:12, 4:12, 8:12] = 700
    told = []
    path = save_turntable(
        tmp_path / "turn.gif", volume_of(hu), "bone", lambda done, total: told.append((done, total)), 5, 32
    )
    with Image.open(path) as gif:
        assert gif.n_frames == 5
        first = np.asarray(gif.convert("L"))
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert first[:, :16].max() > first[:, 20:].max()
