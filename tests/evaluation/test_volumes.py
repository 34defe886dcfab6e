"""Orientation, grids, and folders of generated volumes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hf_vq.evaluation.volumes import (
    Alignment,
    GridVolume,
    ValueRange,
    find_generated,
    onto_grid,
    read_volume,
    same_grid,
)


def _affine(spacing: tuple[float, float, float], origin: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def _save(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    array = np.zeros((4, 4, 4), dtype=np.int16) if array is None else array
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def test_any_storage_order_becomes_canonical(tmp_path: Path) -> None:
    """One bright voxel at the right-anterior-superior corner, stored in LPS order with permuted axes."""
    canonical = np.zeros((3, 4, 5), dtype=np.int16)
    canonical[-1, -1, -1] = 700
    image = nib.Nifti1Image(canonical, _affine((2, 3, 4), (-5, 6, 7)))
    for code in ("RAS", "LPS", "SAR", "PIL"):
        target = nib.orientations.axcodes2ornt(code)
        stored = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
        volume = read_volume(_save(tmp_path / f"{code}.nii.gz", np.asarray(stored.dataobj), stored.affine))
        assert volume.hu.shape == (5, 4, 3)
        assert volume.hu[-1, -1, -1] == 700
        assert volume.spacing == pytest.approx((4, 3, 2))
        np.testing.assert_allclose(volume.affine, image.affine)


def test_writing_and_reading_is_exact() -> None:
    volume = GridVolume(
        np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32), _affine((1, 2, 3), (4, 5, 6))
    )
    again = read_volume(volume.to_nifti())
    np.testing.assert_array_equal(again.hu, volume.hu)
    np.testing.assert_array_equal(again.affine, volume.affine)


def test_a_volume_on_the_same_grid_is_untouched_wherever_its_origin_lies() -> None:
    hu = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
    target = GridVolume(np.zeros_like(hu), _affine((2, 2, 3), (100, -50, 20)))
    volume = GridVolume(hu, _affine((2, 2, 3)))
    assert same_grid(volume, target.grid)
    assert onto_grid(volume, target.grid) is hu


def test_a_coarser_volume_is_laid_centre_on_centre() -> None:
    """A ramp in mm about the centre of the field of view stays that ramp on a grid of half the voxel size."""

    def ramp(size: int, spacing: float, origin: float) -> GridVolume:
        positions = (np.arange(size) - (size - 1) / 2) * spacing
        hu = np.broadcast_to(positions[:, None, None], (size, size, size)).astype(np.float32)
        return GridVolume(hu, _affine((spacing,) * 3, (origin,) * 3))

    coarse, fine = ramp(8, 4.0, 300.0), ramp(16, 2.0, -40.0)
    assert not same_grid(coarse, fine.grid)
    np.testing.assert_allclose(onto_grid(coarse, fine.grid)[2:-2], fine.hu[2:-2], atol=1e-4)


def test_outside_the_generated_field_of_view_is_air() -> None:
    small, large = (GridVolume(np.zeros((size,) * 3, dtype=np.float32), np.eye(4)) for size in (4, 8))
    moved = onto_grid(small, large.grid, fill_value=-1000.0)
    assert (moved[2:6, 2:6, 2:6] == 0).all()
    assert (moved[0] == -1000).all()


def test_world_alignment_trusts_the_origins() -> None:
    """A volume whose world begins 6 mm further to the right lands three voxels of 2 mm further right."""
    hu = np.random.default_rng(2).uniform(0, 100, size=(4, 5, 6)).astype(np.float32)
    target = GridVolume(np.zeros_like(hu), _affine((2, 2, 3), (10, 20, 30))).grid
    volume = GridVolume(hu, _affine((2, 2, 3), (16, 20, 30)))
    assert not same_grid(volume, target, Alignment.WORLD)
    moved = onto_grid(volume, target, alignment=Alignment.WORLD)
    np.testing.assert_allclose(moved[:, :, 3:], hu[:, :, :3], atol=1e-3)
    assert (moved[:, :, :3] == -1000).all()
    assert onto_grid(volume, volume.grid, alignment=Alignment.WORLD) is hu


def test_value_ranges_are_linear_and_not_clipped() -> None:
    """X2CT-GAN's 0 ... 2500 for -1000 ... 1500 HU; a range may run downwards."""
    values = np.array([0.0, 1000.0, 2500.0, 3000.0], dtype=np.float32)
    np.testing.assert_allclose(ValueRange(0, 2500, -1000, 1500).to_hu(values), [-1000, 0, 1500, 2000], atol=1e-3)
    np.testing.assert_allclose(ValueRange(1, -1, -1000, 1000).to_hu(np.float32([1, 0, -1])), [-1000, 0, 1000])


@pytest.mark.parametrize("ends", [(1, 1, 0, 10), (0, 1, 5, 5), (0, float("inf"), 0, 1), (float("nan"), 1, 0, 1)])
def test_value_ranges_without_width_are_refused(ends: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="two different ends"):
        ValueRange(*ends)


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (np.zeros((4, 4, 4, 2), dtype=np.int16), np.eye(4), "three axes"),
        (np.full((4, 4, 4), np.nan, dtype=np.float32), np.eye(4), "NaN"),
        (np.zeros((4, 4, 4), dtype=np.int16), None, "sform"),
    ],
)
def test_bad_volumes_are_named(array: np.ndarray, affine: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"scan 7: .*{message}"):
        read_volume(nib.Nifti1Image(array, affine), "scan 7")


def test_what_is_not_nifti_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"not a volume")
    with pytest.raises(ValueError, match=r"a\.nii\.gz: found no NIfTI"):
        read_volume(path)


def _folder(tmp_path: Path, rows: list[str], header: str = "file_name,subject,sample") -> Path:
    (tmp_path / "metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    for row in rows:
        name = row.split(",")[0]
        if not name.startswith(".."):
            _save(tmp_path / name)
    return tmp_path


def test_samples_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [f"f{number}.nii.gz,a,{number}" for number in (10, 2, 0)] + ["x.nii.gz,b,0"])
    assert [path.name for path in find_generated(folder, ["a"])["a"]] == ["f0.nii.gz", "f2.nii.gz", "f10.nii.gz"]


def test_a_folder_without_metadata_has_one_volume_per_subject(tmp_path: Path) -> None:
    _save(tmp_path / "a.b.nii.gz")
    _save(tmp_path / "c.nii")
    found = find_generated(tmp_path, ["c", "a.b"])
    assert {subject: [path.name for path in paths] for subject, paths in found.items()} == {
        "c": ["c.nii"],
        "a.b": ["a.b.nii.gz"],
    }


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a0.nii.gz,a,0"], "file_name,subject,sample", r"no volume for 1 of 2 subjects \(b\)"),
        (["a0.nii.gz,a,0", "a1.nii.gz,a,1", "b0.nii.gz,b,0"], "file_name,subject,sample", "1 samples of b but 2 of a"),
        (["a0.nii.gz,a,0", "b0.nii.gz,b,0"], "file_name,name,sample", r"add \['subject'\]"),
        (["a0.nii.gz,a,x", "b0.nii.gz,b,0"], "file_name,subject,sample", "sample 'x'"),
        (["a0.nii.gz,a,0", "a1.nii.gz,a,0"], "file_name,subject,sample", "sample 0 of a twice"),
        (["../a0.nii.gz,a,0", "b0.nii.gz,b,0"], "file_name,subject,sample", "inside the folder"),
        ([], "file_name,subject,sample", "no volumes"),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, rows: list[str], header: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_generated(_folder(tmp_path, rows, header), ["a", "b"])


def test_subjects_without_volumes_may_be_allowed(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["c0.nii.gz,c,0", "a0.nii.gz,a,0"])
    assert list(find_generated(folder, ["a", "b", "c"], allow_missing=True)) == ["a", "c"]
    with pytest.raises(ValueError, match="--allow_missing"):
        find_generated(folder, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"2 of 2 subjects \(x, y\).*name files as their subjects"):
        find_generated(folder, ["x", "y"], allow_missing=True)


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        find_generated(tmp_path / "nowhere", ["a"])
    with pytest.raises(ValueError, match="no volumes"):
        find_generated(tmp_path, ["a"])
    folder = _folder(tmp_path, ["a0.nii.gz,a,0"])
    (folder / "a0.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"no file 'a0\.nii\.gz'"):
        find_generated(folder, ["a"])
