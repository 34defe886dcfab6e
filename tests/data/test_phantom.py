"""One marker in a known octant, followed from a stored scan through tensors and views back to NIfTI."""

import nibabel
import numpy as np
import pytest
import torch

from hf_vq import CTVolumeProcessor
from hf_vq.data import render_views
from hf_vq.processors.geometry import grid_affine

SPACING = (3.0, 2.0, 1.0)  # of the stored scan along superior, anterior, right, mm
SHAPE = (20, 24, 40)
CENTER = np.array([-37.0, 12.5, 110.0])
OFFSETS = {
    "right anterior superior": np.array([10.0, 14.0, 18.0]),
    "left anterior superior": np.array([-10.0, 14.0, 18.0]),
    "right posterior inferior": np.array([10.0, -14.0, -18.0]),
}


def phantom(codes: str, offset: np.ndarray) -> nibabel.Nifti1Image:
    """A scan stored with axes in the directions `codes`: air, with a marker `offset` mm from its centre."""
    affine = grid_affine(SHAPE, SPACING, CENTER)
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE[::-1]], indexing="ij"), axis=-1)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    hu = np.where((np.abs(world - CENTER - offset) <= 3).all(axis=-1), 900, -1000).astype(np.int16)
    canonical, stored = (nibabel.orientations.axcodes2ornt(axes) for axes in ("RAS", codes))
    return nibabel.Nifti1Image(hu, affine).as_reoriented(nibabel.orientations.ornt_transform(canonical, stored))


def marker_place(hu: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World coordinates of the marker's centre of mass, mm, from an (x, y, z) array."""
    weights = hu.astype(np.float64) + 1000
    weights[weights < 50] = 0
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in hu.shape], indexing="ij"), axis=-1)
    center = (weights[..., None] * indices).sum(axis=(0, 1, 2)) / weights.sum()
    return affine[:3, :3] @ center + affine[:3, 3]


@pytest.fixture(params=["RAS", "LAS", "LPS", "PIR", "SAL"])
def codes(request):
    return request.param


@pytest.fixture(params=list(OFFSETS), ids=lambda name: name.replace(" ", "-"))
def octant(request):
    return request.param


@pytest.fixture
def processor():
    return CTVolumeProcessor(size=[24, 24, 24], spacing=[2.5, 2.0, 2.0])


def test_the_marker_comes_back_at_the_same_world_coordinates(codes, octant, processor, tmp_path):
    image = phantom(codes, OFFSETS[octant])
    assert nibabel.aff2axcodes(image.affine) == tuple(codes)
    image.to_filename(tmp_path / "scan.nii.gz")
    inputs = processor(tmp_path / "scan.nii.gz")
    (restored,) = processor.postprocess(inputs["pixel_values"], geometry=inputs["geometry"])
    restored.to_filename(tmp_path / "restored.nii.gz")
    loaded = nibabel.load(tmp_path / "restored.nii.gz")
    np.testing.assert_array_equal(loaded.affine, image.affine)
    assert loaded.shape == image.shape
    before = marker_place(np.asarray(image.dataobj), image.affine)
    after = marker_place(np.asarray(loaded.dataobj), loaded.affine)
    np.testing.assert_allclose(before, CENTER + OFFSETS[octant], atol=1.5)
    np.testing.assert_allclose(after, before, atol=0.5)


def test_the_marker_lies_in_its_octant_of_the_tensor(codes, octant, processor):
    inputs = processor(phantom(codes, OFFSETS[octant]))
    volume = inputs["pixel_values"][0, 0]
    in_octant = torch.nonzero(volume > 0).float().mean(dim=0)
    signs = torch.from_numpy(np.sign(OFFSETS[octant])[::-1].copy()).float()
    assert torch.equal(torch.sign(in_octant - 11.5), signs)
    (geometry,) = inputs["geometry"]
    place = marker_place(volume.numpy().transpose(2, 1, 0) * 1000, geometry.affine)
    np.testing.assert_allclose(place, CENTER + OFFSETS[octant], atol=1.5)


def test_generated_volumes_keep_the_marker_in_its_octant_of_the_nifti(octant, processor):
    inputs = processor(phantom("LAS", OFFSETS[octant]))
    (image,) = processor.postprocess(inputs["pixel_values"])
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(marker_place(np.asarray(image.dataobj), image.affine), OFFSETS[octant], atol=1.5)


@pytest.mark.parametrize(
    ("octant", "frontal", "lateral"),
    [
        ("right anterior superior", ("top", "left"), ("top", "left")),
        ("left anterior superior", ("top", "right"), ("top", "left")),
        ("right posterior inferior", ("bottom", "left"), ("bottom", "right")),
    ],
)
def test_the_marker_shows_in_its_corner_of_each_view(codes, octant, frontal, lateral, processor):
    pixel_values = processor(phantom(codes, OFFSETS[octant]))["pixel_values"]
    volume = torch.from_numpy(processor.postprocess(pixel_values, output_type="hu"))[:, None]
    for image, (row, column) in zip(render_views(volume, processor.spacing)[0, :, 0], (frontal, lateral), strict=True):
        rows, columns = torch.nonzero(image > image.max() / 2).float().mean(dim=0)
        assert (rows < 11.5) == (row == "top")
        assert (columns < 11.5) == (column == "left")
