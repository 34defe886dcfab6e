"""Sheets and turntables made of volumes."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.evaluation.rendering_pictures import mip_sheet, save_gif, save_png, slice_sheet, turntable_frames
from hf_vq.evaluation.volumes import GridVolume
from hf_vq.processors.geometry import grid_affine


def volume_of(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> GridVolume:
    hu = np.random.default_rng(0).uniform(-1000, 1000, shape).astype(np.float32)
    return GridVolume(hu, grid_affine(shape, spacing))


def marked(colour: int, count: int = 4) -> torch.Tensor:
    """Frames with a bright square that moves."""
    frames = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    for index in range(count):
        frames[index, 4:8, 3 * index : 3 * index + 4] = colour
    return frames


def test_a_gif_has_its_frames_and_loops_for_ever(tmp_path):
    frames = turntable_frames([marked(200)], [""])
    path = save_gif(tmp_path / "new" / "turntable.gif", frames, 120)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (4, 0, 120)
        for index, frame in enumerate(frames):
            gif.seek(index)
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - np.asarray(frame)).max() <= 2
    assert [entry.name for entry in path.parent.iterdir()] == ["turntable.gif"]


def test_frames_that_stay_the_same_are_shown_longer(tmp_path):
    path = save_gif(tmp_path / "still.gif", turntable_frames([marked(200)[:1].repeat(3, 1, 1, 1)], [""]), 50)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["duration"]) == (1, 150)


def test_turntables_stand_side_by_side_in_their_order():
    (frame,) = turntable_frames([marked(200, 1), marked(90, 1)], ["", ""], background="#ff0000")
    pixels = np.asarray(frame)
    assert pixels.shape == (24, 44, 3)
    assert (pixels[0] == (255, 0, 0)).all()
    assert np.array_equal(pixels[4:20, 4:20], marked(200, 1)[0])
    assert np.array_equal(pixels[4:20, 24:40], marked(90, 1)[0])
    (labelled,) = turntable_frames([marked(200, 1), marked(90, 1)], ["true", "made"])
    assert labelled.width == frame.width
    assert labelled.height > frame.height


def test_turntables_must_fit_each_other():
    with pytest.raises(ValueError, match="one label for each turntable"):
        turntable_frames([marked(1), marked(1)], ["one"])
    with pytest.raises(ValueError, match="one label for each turntable"):
        turntable_frames([marked(1), marked(1, 3)], ["one", "two"])
    with pytest.raises(ValueError, match="one label for each turntable"):
        turntable_frames([], [])


@pytest.mark.parametrize(("count", "milliseconds"), [(0, 80), (1, 9)])
def test_a_gif_that_cannot_be_is_refused(tmp_path, count, milliseconds):
    with pytest.raises(ValueError, match=rf"{count} frames of {milliseconds} ms"):
        save_gif(tmp_path / "no.gif", [Image.new("RGB", (2, 2))] * count, milliseconds)
    assert not list(tmp_path.iterdir())


def cells(sheet: Image.Image, widths: list[int], heights: list[int]) -> list[list[np.ndarray]]:
    """The pictures of a sheet: 4 pixels stand between them and 16 for the caption above."""
    pixels, top, rows = np.asarray(sheet.convert("L")), 4, []
    for height in heights:
        left, row = 4, []
        for width in widths:
            row.append(pixels[top + 16 : top + 16 + height, left : left + width])
            left += width + 4
        rows.append(row)
        top += height + 20
    assert pixels.shape == (top, left)
    return rows


def test_slices_have_their_size_in_millimetres_and_stand_where_they_should():
    """A volume of 20 x 40 x 80 mm; sagittal slices have no sign over their voxels."""
    volume = volume_of((5, 20, 40), (4.0, 2.0, 2.0))
    sheet = slice_sheet([volume], [""], 3, window=(-1000, 1000), size=160)
    assert sheet.size == (4 * 4 + 3 * 160, 3 * 20 + 4 + 80 + 40 + 40)
    sagittal = np.asarray(sheet.convert("L"))[-44:-4]
    for index, column in zip((30, 20, 10), range(3), strict=True):
        left = 4 + column * 164 + (160 - 80) // 2
        shown = sagittal[:, left : left + 80].reshape(5, 8, 20, 4)
        expected = ((volume.hu[::-1, ::-1, index] + 1000) * 255 / 2000).round()
        np.testing.assert_allclose(shown, np.broadcast_to(expected[:, None, :, None], shown.shape), atol=1)


def test_volumes_are_cut_at_the_same_distances_from_their_middles():
    """The smaller volume reaches only the middle one of three cuts; sagittal slices bear no sign over their voxels."""
    large, small = volume_of((30, 30, 30)), volume_of((9, 9, 9))
    sheet = slice_sheet([large, small], ["large", "small"], 3, size=60)
    rows = cells(sheet, [60] * 3, [60, 18] * 3)
    brightest = [picture.max() for picture in rows[-1]]
    assert brightest[1] > 200
    assert brightest[0] == brightest[2] < 20


def test_maxima_are_taken_along_all_three_axes():
    volume = volume_of((10, 10, 10))
    volume.hu[:] = -1000
    volume.hu[7, 2, 3] = 1000
    ((axial, coronal, sagittal),) = cells(mip_sheet([volume], ["one"], size=100), [100] * 3, [100])
    for picture, (row, column) in zip((axial, coronal, sagittal), ((7, 6), (2, 6), (2, 7)), strict=True):
        block = picture[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
        assert (block == 255).all()
        assert (picture[30:] == 255).sum() == (100 if row >= 3 else 0)


def test_what_cannot_be_drawn_is_named(tmp_path):
    volume = volume_of((3, 3, 3))
    with pytest.raises(ValueError, match="0 volumes"):
        mip_sheet([], [])
    with pytest.raises(ValueError, match="1 volumes and 2 labels"):
        slice_sheet([volume], ["a", "b"])
    with pytest.raises(ValueError, match="at least 1 slice"):
        slice_sheet([volume], [""], 0)
    with pytest.raises(ValueError, match="lower HU first"):
        mip_sheet([volume], [""], window=(5, 5))


def test_a_picture_is_written_whole(tmp_path):
    path = save_png(tmp_path / "new" / "picture.png", Image.new("RGB", (3, 2), "red"))
    with Image.open(path) as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((3, 2), (255, 0, 0))
