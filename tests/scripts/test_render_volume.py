"""`scripts/render_volume.py`: the files it writes, several volumes side by side, and what it refuses."""

import runpy
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from script_calls import load

SCRIPT = Path(__file__).parents[2] / "scripts" / "render_volume.py"


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


def write_scan(path: Path, shape=(12, 10, 8), spacing=(4.0, 5.0, 6.0)) -> Path:
    """A body of 0 HU with bone on its right and a lung on its left, stored from left to right."""
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[2:-2, 2:-2] = 0
    hu[-4:-2, 6:8] = 900
    hu[4:6, 4:6] = -800
    nibabel.Nifti1Image(hu[::-1], np.diag([-spacing[0], *spacing[1:], 1.0])).to_filename(path)
    return path


def call(script, *flags: object) -> None:
    script.main([str(flag) for flag in flags])


def test_slices_maxima_and_turntables_are_written(script, tmp_path, capsys):
    scan, out = write_scan(tmp_path / "ct.nii.gz"), tmp_path / "deep" / "out"
    call(script, "--volume", scan, "--output_dir", out, "--frames", 5, "--size", 32, "--slices", 2)
    names = ["mip.png", "slices.png", "turntable-bone.gif", "turntable-lung.gif", "turntable-mip.gif"]
    assert sorted(path.name for path in out.iterdir()) == names
    for mode in ("mip", "bone", "lung"):
        with Image.open(out / f"turntable-{mode}.gif") as gif:
            assert (gif.n_frames, gif.info["loop"], gif.size) == (5, 0, (40, 40))
    with Image.open(out / "turntable-bone.gif") as gif:
        first = np.asarray(gif.convert("L"), dtype=float)
    assert first[:, :20].sum() > 20 * first[:, 20:].sum()
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_volumes_stand_side_by_side_under_their_names(script, tmp_path):
    """The same scan on two grids looks the same through the one camera."""
    hu = nibabel.load(write_scan(tmp_path / "a.nii.gz")).get_fdata()
    fine = np.kron(hu, np.ones((2, 2, 2)))
    nibabel.Nifti1Image(fine.astype(np.int16), np.diag([-2.0, 2.5, 3.0, 1.0])).to_filename(tmp_path / "b.nii")
    flags = ["--modes", "mip", "--frames", 2, "--size", 64, "--output_dir", tmp_path / "out"]
    call(script, "--volume", tmp_path / "a.nii.gz", tmp_path / "b.nii", "--labels", "true", "generated", *flags)
    with Image.open(tmp_path / "out" / "turntable-mip.gif") as gif:
        assert gif.size == (2 * 64 + 3 * 4, 64 + 16 + 2 * 4)
        frame = np.asarray(gif.convert("L"), dtype=float)[20:84]
    left, right = frame[:, 4:68], frame[:, 72:136]
    assert left.max() > 200
    assert np.abs(left - right).mean() < 8
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.95


def test_the_table_is_hidden_on_demand(script, tmp_path):
    hu = np.full((24, 24, 8), -1000, dtype=np.int16)
    hu[6:18, 10:20] = 0
    hu[2:22, 2:4] = 300
    scan = tmp_path / "ct.nii"
    nibabel.Nifti1Image(hu, np.eye(4)).to_filename(scan)
    bright = []
    for name, flags in (("with", []), ("without", ["--body_only"])):
        common = ["--modes", "mip", "--frames", 1, "--size", 48, "--window", -1000, 300]
        call(script, "--volume", scan, "--output_dir", tmp_path / name, *common, *flags)
        with Image.open(tmp_path / name / "turntable-mip.gif") as gif:
            bright.append((np.asarray(gif.convert("L")) > 240).sum())
    assert bright[0] > 100
    assert bright[1] == 0


def test_what_is_no_scan_ends_with_one_line_and_no_pictures(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.nii.gz").write_text("not a scan")
    flags = ["--volume", str(tmp_path / "text.nii.gz"), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("render_volume.py: error: ")
    assert "found no NIfTI image" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_file_and_an_empty_array_are_named(script, tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(ValueError, match=r"empty.nii.gz: found an empty file"):
        call(script, "--volume", tmp_path / "empty.nii.gz", "--output_dir", tmp_path / "out")
    with pytest.raises(ValueError, match=r"none.nii: found no such file"):
        call(script, "--volume", tmp_path / "none.nii", "--output_dir", tmp_path / "out")
    nibabel.Nifti1Image(np.zeros((2, 2, 2, 3), np.int16), np.eye(4)).to_filename(tmp_path / "series.nii")
    with pytest.raises(ValueError, match=r"series.nii: found an array of shape \(2, 2, 2, 3\)"):
        call(script, "--volume", tmp_path / "series.nii", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frames", 0], "--frames: found 0, expected at least 1"),
        (["--slices", 0], "--slices: found 0, expected at least 1"),
        (["--size", 8], "--size: found 8, expected at least 16"),
        (["--max_size", 1], "--max_size: found 1, expected at least 8"),
        (["--milliseconds", 5], "--milliseconds: found 5, expected at least 10"),
        (["--window", 100, -100], "--window: found 100 -100, expected LOW below HIGH"),
        (["--labels", "a", "b"], "--labels: found 2 for 1 volumes"),
        (["--background", "mauvish"], "--background: found 'mauvish', expected a colour"),
    ],
)
def test_impossible_flags_are_named_before_anything_is_read(script, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        call(script, "--volume", tmp_path / "none.nii", "--output_dir", tmp_path / "out", *flags)
    assert not list(tmp_path.iterdir())


def test_an_output_file_and_an_unknown_mode_are_refused(script, tmp_path, capsys):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="--output_dir: found a file"):
        call(script, "--volume", tmp_path / "none.nii", "--output_dir", tmp_path / "out")
    with pytest.raises(SystemExit):
        call(script, "--volume", "none.nii", "--output_dir", "out", "--modes", "skin")
    assert "invalid choice: 'skin'" in capsys.readouterr().err
