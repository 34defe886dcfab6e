"""NIfTI files that are broken or lie: every reader says so, and strange but whole ones are read as they are."""

import os

import dicom_phantom as phantom
import nibabel
import numpy as np
import pytest
from bad_files import AFFINE, HU, NIFTI_FAULTS, NIFTI_FILES, NIFTI_READERS, write_nifti

from hf_vq import CTVolumeProcessor
from hf_vq.data.preparation import PreparationConfig, prepare_volume
from hf_vq.processors.scans import read_scan


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("fault", NIFTI_FAULTS)
def test_a_wrong_nifti_header_is_named(tmp_path, fault, suffix, reader):
    fields, words = NIFTI_FAULTS[fault]
    path = write_nifti(tmp_path / f"scan{suffix}", **fields)
    with pytest.raises(ValueError, match=rf"scan\.nii(\.gz)?: {words}"):
        NIFTI_READERS[reader](path)


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("fault", NIFTI_FILES)
def test_a_damaged_nifti_file_is_named(tmp_path, fault, reader):
    write, words = NIFTI_FILES[fault]
    write(tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match=rf"scan\.nii\.gz: {words}"):
        NIFTI_READERS[reader](tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("reader", ["CTVolumeProcessor", "read_volume", "prepare_cohort"])
def test_what_is_no_file_is_named(tmp_path, reader):
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(ValueError, match=r"folder.nii.gz: found a folder, expected a .nii or .nii.gz file; check"):
        NIFTI_READERS[reader](tmp_path / "folder.nii.gz")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    with pytest.raises(ValueError, match=r"loop.nii: found a file that cannot be opened \(Too many levels"):
        NIFTI_READERS[reader](tmp_path / "loop.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(ValueError, match=r"pipe.nii: found a device or pipe, expected a .nii or .nii.gz file; check"):
        NIFTI_READERS[reader](tmp_path / "pipe.nii")
    (tmp_path / "scan.mgz").write_bytes(b"another format")
    with pytest.raises(
        ValueError, match=r"scan.mgz: found another kind of file, expected a .nii or .nii.gz file; conv"
    ):
        NIFTI_READERS[reader](tmp_path / "scan.mgz")


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted(tmp_path, reader, bad):
    hu = HU.astype(np.float32)
    hu[1, 2, 3] = bad
    nibabel.Nifti1Image(hu, AFFINE).to_filename(tmp_path / "scan.nii")
    with pytest.raises(ValueError, match=r"scan.nii: found 1 NaN or infinite voxels, expected finite HU; repair or ex"):
        NIFTI_READERS[reader](tmp_path / "scan.nii")


@pytest.mark.parametrize("factor", [1e4, 1e30])
def test_values_far_outside_are_clipped_before_they_are_averaged(factor):
    """One absurd voxel changes its neighbours no more than metal would, and the far side not at all."""
    hu = np.zeros((8, 8, 8), dtype=np.float32)
    hu[0, 0, 0], hu[7, 7, 7] = factor * 100, -factor * 100
    processor = CTVolumeProcessor(spacing=[2.5, 2.5, 2.5], hu_window=[-1000, 1000])
    pixels = processor(hu, np.eye(4))["pixel_values"][0, 0]
    metal = hu.clip(-1024, 32767)
    np.testing.assert_allclose(pixels, processor(metal, np.eye(4))["pixel_values"][0, 0], atol=1e-6)
    assert abs(pixels[1, 1, 1]) < 1e-6
    config = PreparationConfig(size=(4, 4, 4), spacing=(2.0,) * 3, image_size=(8, 8), views=("frontal",))
    prepared, expected = prepare_volume(hu, np.eye(4), config), prepare_volume(metal, np.eye(4), config)
    np.testing.assert_array_equal(prepared.volume_hu, expected.volume_hu)
    np.testing.assert_array_equal(prepared.views["frontal"], expected.views["frontal"])


def test_a_sheared_scan_is_resampled_where_it_lies():
    """HU that are linear in the world stay so at the world's points of the model grid."""
    affine = np.array([[2.0, 0.5, 0.0, -10], [0.0, 2.0, 0.7, 5], [0.0, 0.0, 2.5, 3], [0, 0, 0, 1]])
    shape = (20, 18, 16)
    slope = np.array([3.0, -5.0, 7.0])
    hu = phantom.world_points(affine, shape) @ slope
    processor = CTVolumeProcessor(size=[4, 4, 4], spacing=[1.5] * 3, output_range=[-1000, 1000])
    batch = processor(hu.astype(np.float32), affine)
    grid = batch["geometry"][0].affine
    expected = (phantom.world_points(grid, (4, 4, 4)) @ slope).transpose(2, 1, 0)
    np.testing.assert_allclose(batch["pixel_values"][0, 0], expected, atol=1.0)


def test_bytes_behind_the_voxels_are_left_alone(tmp_path):
    """A gzip file that unfolds to 256 MiB more than it declares is read as what it declares."""
    write_nifti(tmp_path / "bomb.nii.gz", junk=bytes(2**28))
    voxels, _ = read_scan(tmp_path / "bomb.nii.gz")
    np.testing.assert_array_equal(voxels, HU)
