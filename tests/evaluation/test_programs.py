"""Volumes of any program on the grid of the true ones, in HU."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hf_vq.evaluation.programs import GeneratedVolumes, Program, parse_value_range, split_name
from hf_vq.evaluation.protocol import Scorer, Subject
from hf_vq.evaluation.volumes import GridVolume, ValueRange

WINDOW = (-1000.0, 1000.0)


def _subject(name: str, seed: int) -> Subject:
    hu = np.random.default_rng(seed).uniform(-900, 900, size=(12, 12, 12)).astype(np.float32)
    views = np.zeros((1, 4, 4), dtype=np.float32)
    return Subject(name, GridVolume(hu, np.diag([2.0, 2.0, 2.0, 1.0])), views, ("unknown",))


def _save(folder: Path, subject: Subject, values: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    nib.save(subject.truth.with_hu(values).to_nifti(), folder / f"{subject.name}.nii.gz")


@pytest.fixture
def subjects() -> list[Subject]:
    return [_subject(name, seed) for seed, name in enumerate("ab")]


def test_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has a `=` in its own name needs no other."""
    monkeypatch.chdir(tmp_path)
    Path("steps=16").mkdir()
    assert split_name("generated") == ("", "generated")
    assert split_name("ours=generated") == ("ours", "generated")
    assert split_name("steps=16") == ("", "steps=16")
    assert split_name("ours=steps=16") == ("ours", "steps=16")


def test_value_ranges_of_the_command_line() -> None:
    assert parse_value_range("other=0,2500,-1000,1500", WINDOW) == ("other", ValueRange(0, 2500, -1000, 1500))
    assert parse_value_range("-1,1", WINDOW) == ("", ValueRange(-1, 1, -1000, 1000))
    for text in ("other=0", "other=a,b", "0,1,2", "other="):
        with pytest.raises(ValueError, match="--value_range"):
            parse_value_range(text, WINDOW)


def test_stated_values_become_hu(subjects: list[Subject], tmp_path: Path) -> None:
    for subject in subjects:
        _save(tmp_path, subject, (subject.truth.hu + 1000) / 2000)
    volumes = GeneratedVolumes.find(tmp_path, ["a", "b"], values=ValueRange(0, 1, -1000, 1000))
    assert volumes.num_samples == 1
    for subject in subjects:
        np.testing.assert_allclose(volumes.sample(subject, 0), subject.truth.hu, atol=1e-3)
    assert volumes.suspicion() is None
    assert volumes.num_resampled == 0


def test_values_that_can_hardly_be_hu_are_noticed(subjects: list[Subject], tmp_path: Path) -> None:
    _save(tmp_path, subjects[0], (subjects[0].truth.hu + 1000) / 2000)
    volumes = GeneratedVolumes.find(tmp_path, ["a"])
    assert volumes.suspicion() is None
    volumes.samples(subjects[0])
    sentence = volumes.suspicion()
    assert sentence is not None and "--value_range" in sentence
    assert Program("x", volumes).notes() == [sentence]


def test_resampled_volumes_are_counted(subjects: list[Subject], tmp_path: Path) -> None:
    fine = np.full((24, 24, 24), 70, dtype=np.float32)
    nib.save(GridVolume(fine, np.eye(4)).to_nifti(), tmp_path / "a.nii.gz")
    _save(tmp_path, subjects[1], subjects[1].truth.hu)
    volumes = GeneratedVolumes.find(tmp_path, ["a", "b"])
    found = [volumes.sample(subject, 0) for subject in subjects]
    assert found[0].shape == (12, 12, 12)
    np.testing.assert_allclose(found[0], 70, atol=1e-2)
    assert volumes.num_resampled == 1
    assert Program("x", volumes).notes() == [
        "1 generated volumes of 'x' lay on another grid and were resampled onto the true one."
    ]


def test_rows_bear_the_programs_name(subjects: list[Subject], tmp_path: Path) -> None:
    for subject, other in zip(subjects, subjects[::-1], strict=True):
        _save(tmp_path / "right", subject, subject.truth.hu)
        _save(tmp_path / "wrong", subject, other.truth.hu)
    found = [GeneratedVolumes.find(tmp_path / name, ["a", "b"]) for name in ("right", "wrong")]
    rows = Program("ours", *found).rows(Scorer(WINDOW), subjects[0])
    assert list(rows) == ["ours: one sample", "ours: shuffled views, one sample"]
    assert rows["ours: one sample"]["psnr_3d"] == 100.0 > rows["ours: shuffled views, one sample"]["psnr_3d"]
    assert list(Program("", found[0]).rows(Scorer(WINDOW), subjects[0])) == ["one sample"]


def test_a_program_has_the_subjects_that_its_control_has_too(subjects: list[Subject], tmp_path: Path) -> None:
    for subject in subjects:
        _save(tmp_path / "generated", subject, subject.truth.hu)
    _save(tmp_path / "shuffled", subjects[1], subjects[0].truth.hu)
    found = [
        GeneratedVolumes.find(tmp_path / name, ["a", "b"], allow_missing=True) for name in ("generated", "shuffled")
    ]
    assert Program("x", *found).subjects(["a", "b"]) == ["b"]
    assert Program("x", found[0]).subjects(["a", "b"]) == ["a", "b"]
    assert Program("x", *found).settings().shuffled == str(tmp_path / "shuffled")
