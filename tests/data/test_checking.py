"""Files that are cut short are noticed by their ends, and whole ones are never blamed."""

import gzip

import nibabel
import numpy as np
import pytest
from PIL import Image

from hf_vq import CTVolumeProcessor
from hf_vq.data import PairedDataset
from hf_vq.data.checking import Skipped, looks_whole, stop_message, usable

NAMES = ("volume.nii.gz", "volume.nii", "view.png", "view.jpg")


@pytest.fixture
def folder(tmp_path):
    """A split of twelve subjects."""
    (tmp_path / "train").mkdir()
    volume = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    for number in range(12):
        nibabel.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / "train" / f"{number}.nii.gz")
    rows = [f"{number}.nii.gz,s{number}" for number in range(12)]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(["file_name,subject", *rows]) + "\n")
    return tmp_path


def cut(path, count=20):
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize("name", NAMES)
def test_whole_files_look_whole_and_empty_ones_do_not(tmp_path, name):
    path = tmp_path / name
    if name.startswith("volume"):
        nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_filename(path)
    else:
        Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(path)
    assert looks_whole(path)
    if not name.endswith(".jpg"):
        cut(path)
        assert not looks_whole(path)
    path.write_bytes(b"")
    assert not looks_whole(path)
    path.unlink()
    assert not looks_whole(path)


def test_a_file_of_several_gzip_members_is_read_before_it_is_blamed(folder):
    path = folder / "train" / "0.nii.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    assert not looks_whole(path)
    dataset = PairedDataset(folder, "train", CTVolumeProcessor())
    assert usable(dataset, "train", "stop") == list(range(12))


def test_all_files_that_are_cut_are_named_before_a_run(folder):
    for number in (2, 7):
        cut(folder / "train" / f"{number}.nii.gz")
    dataset = PairedDataset(folder, "train", CTVolumeProcessor())
    with pytest.raises(
        ValueError, match=r"found 2 .*subject s2: .*2\.nii\.gz.*subject s7: .*7\.nii\.gz.*--on_error skip"
    ):
        usable(dataset, "train", "stop")


def test_subjects_that_cannot_be_read_are_left_out(folder, capsys):
    content = bytearray((folder / "train" / "2.nii.gz").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "train" / "2.nii.gz").write_bytes(content)
    (folder / "train" / "7.nii.gz").unlink()
    dataset = PairedDataset(folder, "train", CTVolumeProcessor(), allow_missing=True)
    assert usable(dataset, "train", "skip") == [index for index in range(12) if index not in (2, 7)]
    assert "subject s2" in (error := capsys.readouterr().err) and "subject s7" in error
    with pytest.raises(ValueError, match=r"7\.nii\.gz"):
        PairedDataset(folder, "train")


def test_a_run_without_a_single_subject_does_not_start(folder):
    for path in folder.glob("train/*.nii.gz"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no subject that can be read"):
        usable(PairedDataset(folder, "train", CTVolumeProcessor()), "train", "skip")


def test_no_more_than_ten_are_named():
    message = stop_message([Skipped("train", f"s{number}", "gone") for number in range(13)])
    assert "found 13" in message and "s9: gone" in message and "s10" not in message and "and 3 more" in message


def test_an_unknown_policy_is_refused(folder):
    with pytest.raises(ValueError, match="found 'ignore', expected one of"):
        usable(PairedDataset(folder, "train"), "train", "ignore")
