"""Orientation of displayed slices and the pictures that are written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.evaluation.sheets import (
    SheetSubject,
    oriented_slice,
    save_evaluation_sheet,
    save_reconstruction_sheet,
    save_sample_sheet,
)
from hf_vq.processors.radiographs import render_views


def _marker(superior: bool, anterior: bool, right: bool) -> np.ndarray:
    """Air with one bright block in an octant of a volume that is not cubic; every middle plane cuts the block."""
    volume = np.full((10, 12, 14), -1000.0)
    block = []
    for size, upper in zip(volume.shape, (superior, anterior, right), strict=True):
        block.append(slice(size // 2, size - 1) if upper else slice(1, size // 2 + 1))
    volume[tuple(block)] = 1000.0
    return volume


def _corner(image: np.ndarray) -> tuple[str, str]:
    """Where the bright part of an image lies."""
    rows, columns = np.nonzero(image > image.min() + 0.5 * np.ptp(image))
    return (
        "top" if rows.mean() < (image.shape[0] - 1) / 2 else "bottom",
        "left" if columns.mean() < (image.shape[1] - 1) / 2 else "right",
    )


@pytest.mark.parametrize("superior", [True, False])
@pytest.mark.parametrize("anterior", [True, False])
@pytest.mark.parametrize("right", [True, False])
def test_slices_follow_the_radiological_convention(superior: bool, anterior: bool, right: bool) -> None:
    volume = _marker(superior, anterior, right)
    across = "left" if right else "right"
    up = "top" if superior else "bottom"
    assert _corner(oriented_slice(volume, "axial")) == ("top" if anterior else "bottom", across)
    assert _corner(oriented_slice(volume, "coronal")) == (up, across)
    assert _corner(oriented_slice(volume, "sagittal")) == (up, "left" if anterior else "right")


def test_slices_agree_with_the_views() -> None:
    """The coronal slice looks like the frontal view and the sagittal one like the lateral view."""
    volume = _marker(True, False, True)
    views = render_views(torch.from_numpy(volume).float()[None, None], (5, 5, 5), image_size=(14, 14))[0, :, 0].numpy()
    assert _corner(views[0]) == _corner(oriented_slice(volume, "coronal"))
    assert _corner(views[1]) == _corner(oriented_slice(volume, "sagittal"))


def test_slice_shapes_and_positions() -> None:
    volume = np.arange(2 * 3 * 4, dtype=float).reshape(2, 3, 4)
    assert oriented_slice(volume, "axial", 1).tolist() == volume[1, ::-1, ::-1].tolist()
    assert oriented_slice(volume, "coronal", 0).tolist() == volume[::-1, 0, ::-1].tolist()
    assert oriented_slice(volume, "sagittal", 3).tolist() == volume[::-1, ::-1, 3].tolist()
    with pytest.raises(ValueError, match="axial"):
        oriented_slice(volume, "oblique")


def _subject(name: str, views: tuple[str, ...] = ("frontal", "lateral")) -> SheetSubject:
    volume = _marker(True, True, False)
    images = {view: np.linspace(0, 1, 64).reshape(8, 8) for view in views}
    return SheetSubject(name, images, volume, volume + 100, (5.0, 2.0, 2.0), "26.0 dB")


def test_evaluation_sheet_grows_with_its_subjects(tmp_path: Path) -> None:
    one = save_evaluation_sheet(tmp_path / "one.png", [_subject("a")])
    two = save_evaluation_sheet(tmp_path / "deep" / "two.png", [_subject("a"), _subject("b")])
    with Image.open(one) as first, Image.open(two) as second:
        assert first.width == second.width
        assert second.height > first.height + 100
        assert len(np.unique(np.asarray(second.convert("L")))) > 20
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["one.png", "two.png"]


def test_an_evaluation_sheet_names_whose_volumes_it_shows(tmp_path: Path) -> None:
    pictures = []
    for title in ("ours (one sample)", "theirs (one sample)", "ours (one sample)"):
        path = save_evaluation_sheet(tmp_path / "sheet.png", [_subject("a")], generated_title=title)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[2] != pictures[1]


def test_evaluation_sheet_needs_subjects_with_the_same_views(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        save_evaluation_sheet(tmp_path / "sheet.png", [])
    with pytest.raises(ValueError, match=r"b has the views \['frontal'\]"):
        save_evaluation_sheet(tmp_path / "sheet.png", [_subject("a"), _subject("b", ("frontal",))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(10, 1, 8, 9), (2, 1, 6, 8, 10), (1, 1, 8, 8)])
@pytest.mark.parametrize("title", ["", "step 10"])
def test_reconstruction_sheets_of_images_and_volumes(tmp_path: Path, shape: tuple[int, ...], title: str) -> None:
    inputs = torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    path = save_reconstruction_sheet(inputs, -inputs, tmp_path / "sheet.png", title=title)
    with Image.open(path) as image:
        assert min(image.size) > 100


def test_the_value_range_of_a_reconstruction_sheet_is_free(tmp_path: Path) -> None:
    """The same picture whatever the units: [-1, 1] or [0, 10], values beyond it clipped."""
    inputs = torch.linspace(-1.5, 1.5, 128).reshape(2, 1, 8, 8)
    pictures = []
    for scale, shift, value_range in ((1, 0, (-1.0, 1.0)), (5, 5, (0.0, 10.0))):
        pair = inputs * scale + shift, inputs.flip(0) * scale + shift
        path = save_reconstruction_sheet(*pair, tmp_path / "sheet.png", value_range=value_range)
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert("L"), dtype=int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    with pytest.raises(ValueError, match="value_range"):
        save_reconstruction_sheet(inputs, inputs, tmp_path / "other.png", value_range=(1.0, -1.0))


def test_reconstruction_sheet_accepts_what_a_training_step_has(tmp_path: Path) -> None:
    inputs = torch.rand(2, 1, 8, 8, dtype=torch.bfloat16)
    save_reconstruction_sheet(inputs, inputs.clone().requires_grad_(), tmp_path / "sheet.png", max_items=1)
    with pytest.raises(ValueError, match="one shape"):
        save_reconstruction_sheet(inputs, inputs[:1], tmp_path / "other.png")


def test_reconstruction_sheet_of_colour_images(tmp_path: Path) -> None:
    """A red input against its black reconstruction: red is drawn, and the error is the mean over the channels."""
    inputs = torch.full((1, 3, 8, 8), -1.0)
    inputs[:, 0] = 1
    path = save_reconstruction_sheet(inputs, torch.full_like(inputs, -1), tmp_path / "sheet.png")
    with Image.open(path) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(255, 0, 0), (0, 0, 0)} <= colours
    with pytest.raises(ValueError, match="3, H, W"):
        save_reconstruction_sheet(inputs[:, :2], inputs[:, :2], tmp_path / "other.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_sheet_has_a_row_for_each_class(tmp_path: Path, channels: int) -> None:
    images = torch.linspace(-0.5, 1.5, 5 * channels * 64).reshape(5, channels, 8, 8)
    one = save_sample_sheet(tmp_path / "one.png", {"Sneaker": images}, title="step 10")
    two = save_sample_sheet(tmp_path / "two.png", {"Sneaker": images, "Bag": images[:2]}, title="step 10")
    with Image.open(one) as first, Image.open(two) as second:
        assert first.width == second.width
        assert second.height > first.height + 100


@pytest.mark.parametrize("rows", [{}, {"Bag": torch.zeros(0, 1, 8, 8)}, {"Bag": torch.zeros(2, 8, 8)}])
def test_sample_sheet_needs_images(tmp_path: Path, rows: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"at least one row|'Bag' has shape"):
        save_sample_sheet(tmp_path / "sheet.png", rows)
