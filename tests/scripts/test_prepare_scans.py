import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from script_calls import load

from hf_vq import CTVolumeProcessor, XrayImageProcessor
from hf_vq.data import PairedDataset

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "prepare_scans.py"
SETTINGS = ["--size", "8", "10", "12", "--spacing", "8", "--image_size", "16", "20"]
SMALL = {"shape": (24, 20, 6), "spacing": (3.5, 3.4, 10.0)}
NUM_NIFTI = 6

phantom = load(ROOT / "tests" / "data" / "dicom_phantom.py")


@pytest.fixture(scope="session")
def script():
    return load(SCRIPT)


def write_nifti(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.random.default_rng(seed).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
    nibabel.Nifti1Image(hu, np.diag([8.0, 8.0, 8.0, 1.0])).to_filename(path)


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Six NIfTI files, a patient with two DICOM series, three bad scans and a file of another kind."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(NUM_NIFTI):
        write_nifti(folder / "nifti" / f"n{number}.nii.gz", number)
    phantom.write_series(folder / "dicom" / "one", **SMALL)
    phantom.write_series(folder / "dicom" / "two", **SMALL, orientation=phantom.FEET_FIRST)
    phantom.write_series(folder / "dicom" / "gap", **SMALL, edit=lambda one, index: None if index == 2 else one)
    phantom.write_series(folder / "dicom" / "mr", **SMALL, edit=phantom.edited(Modality="MR"))
    (folder / "nifti" / "broken.nii.gz").write_bytes(b"half a file")
    (folder / "readme.txt").write_text("scans")
    return folder


def run(script, scans, output_dir, *extra):
    script.main(["--input_dir", str(scans), "--output_dir", str(output_dir), *SETTINGS, *map(str, extra)])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def report(folder):
    with (folder / "report.csv").open(newline="") as file:
        return {row["input"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def prepared(script, scans, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("prepared") / "data"
    run(script, scans, output_dir)
    return output_dir


def test_the_result_is_a_paired_data_set(prepared):
    processor = CTVolumeProcessor(size=[8, 10, 12], spacing=[8.0] * 3)
    subjects = []
    for split in ("train", "validation", "test"):
        dataset = PairedDataset(prepared, split, processor, XrayImageProcessor())
        assert dataset.view_names == ["frontal", "lateral"]
        assert dataset[0]["pixel_values"].shape == (1, 8, 10, 12)
        assert dataset[0]["view_pixel_values"].shape == (2, 1, 16, 20)
        voxels = np.asarray(dataset.volume(0).dataobj).transpose(2, 1, 0)
        np.testing.assert_allclose(dataset[0]["pixel_values"][0] * 1000, voxels.clip(-1000, 1000), atol=1e-3)
        subjects += dataset.subjects
    assert len(subjects) == len(set(subjects)) == NUM_NIFTI + 2


def test_every_input_stands_in_the_report_once_with_its_reason(prepared, scans):
    rows = report(prepared)
    assert len(rows) == NUM_NIFTI + 5
    reasons = {name.split(" (")[0]: row["reason"] for name, row in rows.items() if row["status"] == "skipped"}
    assert set(reasons) == {"dicom/gap", "dicom/mr", "nifti/broken.nii.gz"}
    assert "slices are missing" in reasons["dicom/gap"]
    assert "found modality 'MR'" in reasons["dicom/mr"]
    assert "found no NIfTI image" in reasons["nifti/broken.nii.gz"]
    assert all(reason.startswith("found ") for reason in reasons.values())
    for row in rows.values():
        written = (prepared / row["split"] / f"{row['subject']}.nii.gz").is_file()
        assert written == (row["status"] == "prepared")
    summary = (prepared / "report.md").read_text()
    assert f"{NUM_NIFTI + 2} of {NUM_NIFTI + 5} inputs prepared, 3 skipped; 1 other files ignored" in summary
    assert all(reason in summary for reason in reasons.values())


def test_a_patients_scans_share_a_split_and_the_patient_stays_unknown(prepared):
    rows = [row for name, row in report(prepared).items() if name.startswith(("dicom/one", "dicom/two"))]
    assert len({row["split"] for row in rows}) == len({row["patient"] for row in rows}) == 1
    assert len({row["subject"] for row in rows}) == 2
    for name, data in contents(prepared).items():
        assert phantom.PATIENT_ID not in name
        assert phantom.PATIENT_ID.encode() not in data


def test_dicom_and_nifti_of_one_scan_give_one_result(script, tmp_path):
    """The phantom through both doors lands on the same voxels."""
    phantom.write_series(tmp_path / "scans" / "dicom", **SMALL)
    affine = np.diag([3.5, 3.4, 10.0, 1.0])
    affine[:3, 3] = phantom.CENTER - affine.diagonal()[:3] * (np.array(SMALL["shape"]) - 1) / 2
    hu = phantom.phantom_hu(phantom.world_points(affine, SMALL["shape"])).round().astype(np.int16)
    nibabel.Nifti1Image(hu, affine).to_filename(tmp_path / "scans" / "same.nii.gz")
    run(script, tmp_path / "scans", tmp_path / "out", "--fractions", 1, 0, 0)
    images = [nibabel.load(path) for path in (tmp_path / "out" / "train").glob("*.nii.gz")]
    np.testing.assert_allclose(images[0].affine, images[1].affine, atol=1e-3)
    difference = np.asarray(images[0].dataobj).astype(int) - np.asarray(images[1].dataobj)
    assert np.abs(difference).max() <= 1


def test_paths_of_scans_stand_in_the_reports_only(prepared, scans):
    told = {name for name, data in contents(prepared).items() if b"dicom/one" in data or str(scans).encode() in data}
    assert told == {"report.csv"}


def test_several_workers_give_what_one_gives(script, scans, prepared, tmp_path):
    run(script, scans, tmp_path / "data", "--num_workers", 1)
    assert contents(tmp_path / "data") == contents(prepared)


def test_a_rerun_does_only_what_is_new(script, tmp_path):
    scans, output = tmp_path / "scans", tmp_path / "out"
    for number in range(4):
        write_nifti(scans / f"n{number}.nii.gz", number)
    run(script, scans, output)
    first, times = contents(output), {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
    run(script, scans, output)
    assert contents(output) == first
    write_nifti(scans / "n4.nii.gz", 4)
    write_nifti(scans / "n0.nii.gz", 40)
    run(script, scans, output)
    redone = {path.name for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert redone == {"n0.nii.gz"}
    rows = report(output)
    assert len(rows) == 5
    splits = {row["patient"]: row["split"] for row in csv.DictReader((output / "splits.csv").open())}
    assert all((output / splits[f"n{number}"] / f"n{number}.nii.gz").is_file() for number in range(5))


def test_what_was_deleted_is_prepared_again(script, scans, tmp_path):
    run(script, scans, tmp_path / "data")
    before = contents(tmp_path / "data")
    for name in ("n1.nii.gz", "n2_frontal.png"):
        next((tmp_path / "data").glob(f"*/{name}")).unlink()
    run(script, scans, tmp_path / "data")
    assert contents(tmp_path / "data") == before


def test_a_split_whose_scans_are_all_bad_is_told(script, tmp_path, capsys):
    for number in range(3):
        write_nifti(tmp_path / "scans" / f"n{number}.nii.gz", number)
    (tmp_path / "scans" / "n1.nii.gz").write_bytes(b"half a file")
    (tmp_path / "splits.csv").write_text("patient,split\nn0,train\nn1,validation\nn2,test\n")
    run(script, tmp_path / "scans", tmp_path / "data", "--splits", tmp_path / "splits.csv")
    assert "No scan of validation could be used" in capsys.readouterr().err
    assert not (tmp_path / "data" / "validation" / "metadata.csv").exists()
    assert "| validation | 0 | 0 |" in (tmp_path / "data" / "report.md").read_text()


def test_other_settings_are_refused_unless_all_is_to_be_written_anew(script, scans, tmp_path):
    run(script, scans, tmp_path / "data", "--remove_table")
    before = contents(tmp_path / "data")
    with pytest.raises(ValueError, match=r"other settings \(remove_table; remove_table was True, now False\)"):
        run(script, scans, tmp_path / "data")
    assert contents(tmp_path / "data") == before
    (tmp_path / "data" / "mine.txt").write_text("kept")
    run(script, scans, tmp_path / "data", "--overwrite")
    assert json.loads((tmp_path / "data" / "preparation.json").read_text())["remove_table"] is False
    assert (tmp_path / "data" / "mine.txt").read_text() == "kept"


def test_a_folder_of_something_else_is_left_alone(script, scans, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")
    with pytest.raises(ValueError, match=r"found files but no preparation.json, expected an empty folder"):
        run(script, scans, tmp_path / "thesis", "--overwrite")
    assert contents(tmp_path / "thesis") == {"chapter": b"1"}


def test_splits_and_names_come_from_a_file(script, scans, tmp_path):
    rows = [f"n{number},{'test' if number else 'train'},{'first' if number == 0 else ''}" for number in range(3)]
    table = "patient,split,name\n" + "\n".join([*rows, f"{phantom.PATIENT_ID},validation,jane"]) + "\n"
    (tmp_path / "splits.csv").write_text(table)
    run(script, scans, tmp_path / "data", "--splits", tmp_path / "splits.csv")
    rows = {name.split(" (")[0]: row for name, row in report(tmp_path / "data").items()}
    assert rows["nifti/n0.nii.gz"]["subject"] == "first"
    assert rows["nifti/n1.nii.gz"]["split"] == rows["nifti/n2.nii.gz"]["split"] == "test"
    assert rows["dicom/one"]["split"] == rows["dicom/two"]["split"] == "validation"
    assert rows["dicom/one"]["subject"].startswith("jane_")
    assert rows["nifti/n5.nii.gz"]["reason"] == "found no such patient in splits.csv, so it belongs to no split"
    again = tmp_path / "data" / "splits.csv"
    assert "jane,validation" in again.read_text()
    assert phantom.PATIENT_ID not in again.read_text()


def test_the_splits_of_one_preparation_serve_another(script, scans, prepared, tmp_path):
    run(script, scans, tmp_path / "data", "--splits", prepared / "splits.csv", "--spacing", 4)
    known = {name: (row["subject"], row["split"]) for name, row in report(prepared).items()}
    assert {name: (row["subject"], row["split"]) for name, row in report(tmp_path / "data").items()} == known


def test_real_radiographs_are_paired_with_their_patients(script, scans, tmp_path):
    (tmp_path / "films").mkdir()
    for name, value in (("f", 1000), ("l", 2000)):
        Image.fromarray(np.full((32, 40), value, np.uint16)).save(tmp_path / "films" / f"{name}.png")
    rows = "".join(f"n{number},films/f.png,films/l.png\n" for number in range(3))
    (tmp_path / "views.csv").write_text("patient,frontal,lateral\n" + rows)
    run(script, scans, tmp_path / "data", "--views_csv", tmp_path / "views.csv")
    done = [row for row in report(tmp_path / "data").values() if row["status"] == "prepared"]
    assert [row["subject"] for row in done] == ["n0", "n1", "n2"]
    with Image.open(tmp_path / "data" / done[0]["split"] / "n0_lateral.png") as image:
        assert (np.asarray(image) == 2000).all()
    (tmp_path / "films" / "l.png").unlink()
    with pytest.raises(ValueError, match=r"n0.nii.gz: .*l.png: found no such file, expected an image; check the path"):
        run(script, scans, tmp_path / "data", "--views_csv", tmp_path / "views.csv", "--on_error", "stop")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_first_bad_scan_stops_a_run_that_asks_for_it(script, scans, tmp_path, workers):
    with pytest.raises(ValueError, match=r"^dicom/gap \(series \w+\): found .*slices are missing"):
        run(script, scans, tmp_path / "data", "--on_error", "stop", "--num_workers", workers)
    assert not list((tmp_path / "data").rglob("metadata.csv"))
    assert not (tmp_path / "data" / "report.csv").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--views", "frontal", "top"], "found view 'top', expected one of"),
        (["--splits", "none.csv"], "--splits: found no file none.csv, expected a CSV file"),
        (["--num_workers", "-1"], "--num_workers: found -1, expected 0 or more"),
        (["--fractions", "0.5", "0.1", "0.1"], r"fractions: found \[0.5, 0.1, 0.1\], expected shares that sum to 1"),
        (["--size", "8", "8"], r"size: found \(8, 8\), expected 3 numbers above 0"),
    ],
)
def test_bad_requests_are_named_before_anything_is_written(script, scans, tmp_path, extra, message):
    with pytest.raises(ValueError, match=message):
        run(script, scans, tmp_path / "data", *extra)
    assert not (tmp_path / "data").exists()


def test_scans_and_result_may_not_lie_in_each_other(script, scans):
    with pytest.raises(ValueError, match=r"expected a folder beside .*, neither in it nor around it"):
        run(script, scans, scans / "prepared")


def test_when_nothing_can_be_prepared_the_report_is_pointed_to(script, tmp_path):
    for number in range(3):
        path = tmp_path / "scans" / f"{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"prepared none of 3 scans; .*report.csv says why"):
        run(script, tmp_path / "scans", tmp_path / "data")
    assert len(report(tmp_path / "data")) == 3


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_and_ends_like_one_that_was_left_alone(script, scans, prepared, tmp_path, workers):
    output = tmp_path / "data"
    command = [sys.executable, str(SCRIPT), "--input_dir", str(scans), "--output_dir", str(output), *SETTINGS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [*command, "--num_workers", str(workers)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while process.poll() is None and not list(output.glob("records/dicom-*.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = set(output.glob("records/*.json"))
    assert finished
    for path in output.rglob("*.nii.gz"):
        assert path.name.startswith(".") or nibabel.load(path).get_fdata().shape == (12, 10, 8)
    (output / "train").mkdir(exist_ok=True)
    (output / "train" / ".0123abcd.cut.nii.gz").write_bytes(b"what a kill while writing leaves behind")
    times = {path: path.stat().st_mtime_ns for path in finished}
    run(script, scans, output, "--num_workers", workers)
    assert contents(output) == contents(prepared)
    assert {path: path.stat().st_mtime_ns for path in finished} == times
