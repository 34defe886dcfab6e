import sys

import nibabel
import numpy as np
import pytest
import torch

from hf_vq.processors.scans import open_nifti, read_scan


@pytest.fixture
def array():
    return np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


def save(path, array, affine=None):
    nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def test_a_file_an_image_an_array_and_a_tensor_read_alike(tmp_path, array):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    path = save(tmp_path / "scan.nii.gz", array, affine)
    scans = [
        read_scan(path),
        read_scan(str(path)),
        read_scan(nibabel.load(path)),
        read_scan(array, affine),
        read_scan(torch.from_numpy(array), affine),
    ]
    for voxels, matrix in scans:
        np.testing.assert_array_equal(voxels, array)
        assert voxels.dtype == np.float32
        np.testing.assert_array_equal(matrix, affine)


def test_slope_and_intercept_of_the_header_are_applied(tmp_path, array):
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    image.to_filename(tmp_path / "scaled.nii")
    stored = np.asarray(nibabel.load(tmp_path / "scaled.nii").dataobj.get_unscaled())
    voxels, _ = read_scan(tmp_path / "scaled.nii")
    np.testing.assert_allclose(voxels, stored * 2.0 - 1024.0)


def test_a_trailing_axis_of_length_one_is_dropped(tmp_path, array):
    voxels, _ = read_scan(save(tmp_path / "scan.nii", array[..., None]))
    np.testing.assert_array_equal(voxels, array)


def test_a_series_is_refused(tmp_path):
    path = save(tmp_path / "series.nii", np.zeros((2, 3, 4, 5), dtype=np.int16))
    with pytest.raises(ValueError, match=r"series.nii: found an array of shape \(2, 3, 4, 5\), expected three axes.*;"):
        read_scan(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(tmp_path, bad):
    array = np.zeros((2, 3, 4), dtype=np.float32)
    array[1, 1, 1] = bad
    path = save(tmp_path / "broken.nii.gz", array)
    with pytest.raises(ValueError, match=r"broken.nii.gz: found 1 NaN or infinite voxels, expected finite HU; repair"):
        read_scan(path)


def test_a_header_without_spacing_and_orientation_is_refused(tmp_path, array):
    nibabel.Nifti1Image(array, None).to_filename(tmp_path / "plain.nii")
    with pytest.raises(ValueError, match=r"plain.nii: found neither sform nor qform.*; write the scan with its affine"):
        read_scan(tmp_path / "plain.nii")


def test_a_singular_affine_is_refused_with_the_file(tmp_path, array):
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header["srow_y"] = 0
    image.header["sform_code"] = 1
    with (tmp_path / "flat.nii").open("wb") as file:
        file.write(image.header.binaryblock + bytes(4) + array.tobytes(order="F"))
    with pytest.raises(ValueError, match=r"flat.nii: found voxel spacing \[1.0, 0.0, 1.0\]"):
        read_scan(tmp_path / "flat.nii")


def test_an_array_without_an_affine_is_refused(array):
    with pytest.raises(ValueError, match=r"volumes\[3\]: found no affine, expected a 4 x 4 matrix in mm; .*`affines`"):
        read_scan(array, label="volumes[3]")


def test_an_affine_beside_an_image_is_refused(tmp_path, array):
    path = save(tmp_path / "scan.nii", array)
    with pytest.raises(ValueError, match=r"scan.nii: found an affine beside an image that has its own.*; drop"):
        read_scan(path, np.eye(4))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.nii: found no such file, expected a .nii or .nii.gz file; check"):
        open_nifti(tmp_path / "none.nii")


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "scan.nii").write_text("not a scan")
    with pytest.raises(ValueError, match=r"scan.nii: found no NIfTI image .*; convert the scan to NIfTI"):
        read_scan(tmp_path / "scan.nii")


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
def test_a_truncated_file_is_named(tmp_path, generator, name):
    noise = torch.randint(0, 1000, (16, 16, 16), generator=generator).numpy().astype(np.int16)
    path = save(tmp_path / name, noise)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut.nii.*: found voxels that cannot be read .*; copy it again"):
        read_scan(path)


def test_colour_voxels_are_refused(tmp_path):
    colour = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ValueError, match=r"colour.nii: found voxels of type .*, expected one HU value per voxel"):
        read_scan(save(tmp_path / "colour.nii", colour))


def test_any_other_object_is_refused():
    with pytest.raises(ValueError, match="volume: found int, expected a path, a nibabel image, or an array"):
        read_scan(3)


def test_an_array_of_truth_values_is_refused():
    with pytest.raises(ValueError, match="volume: found voxels of type bool, expected one HU value per voxel"):
        read_scan(np.zeros((2, 2, 2), dtype=bool), np.eye(4))


def test_a_missing_nibabel_says_how_to_install_it(tmp_path, monkeypatch):
    path = save(tmp_path / "scan.nii", np.zeros((2, 2, 2), dtype=np.int16))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"pip install hf-vq\[medical\]"):
        read_scan(path)
