"""Sharded volumes give what the folder gives, to the bit, from files that are mapped into memory."""

import pickle
import runpy
import sys
from pathlib import Path

import cohort_phantom as phantom
import nibabel
import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image

from hf_vq import CTVolumeProcessor, XrayImageProcessor
from hf_vq.data import PairedDataset, describe_data
from hf_vq.data.mapped_columns import MappedColumn
from hf_vq.data.sharded_volumes import grey_pixels

SCRIPT = Path(__file__).parents[2] / "scripts" / "shard_volumes.py"


def shard(*flags):
    argv, sys.argv = sys.argv, [str(SCRIPT), *map(str, flags)]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A cohort whose volumes have halves of HU, oblique axes and labels, and its shards."""
    root = tmp_path_factory.mktemp("shards")
    phantom.write_cohort(root / "cohort")
    shard("--data", root / "cohort", "--output_dir", root / "shards", "--shard_size", 3, "--voxel_type", "float32")
    return root


@pytest.mark.parametrize("fields", [{}, {"size": [8, 10, 12], "spacing": [4.0, 4.0, 5.0]}])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_shards_give_the_same_items_as_the_folder(folders, split, fields):
    processors = (CTVolumeProcessor(**fields), XrayImageProcessor())
    folder, shards = (PairedDataset(folders / name, split, *processors) for name in ("cohort", "shards"))
    for name in ("subjects", "view_names", "labels", "beam"):
        assert getattr(folder, name) == getattr(shards, name)
    for index in range(len(folder)):
        expected, found = folder[index], shards[index]
        for name in ("pixel_values", "view_pixel_values"):
            assert torch.equal(expected[name], found[name])
        np.testing.assert_array_equal(folder.volume(index).affine, shards.volume(index).affine)


def test_shards_are_described_as_the_folder_is(folders):
    folder, shards = (describe_data(folders / name) for name in ("cohort", "shards"))
    assert {**folder, "name": ""} == {**shards, "name": ""}


def test_a_row_is_mapped_and_not_copied(folders):
    dataset = load_from_disk(str(folders / "shards"))["train"]
    assert len(dataset.cache_files) == 2
    column = MappedColumn(dataset, "voxels")
    assert len(column) == phantom.COUNTS["train"]
    row = column[-1]
    assert row.base is not None and not row.flags.owndata and not row.flags.writeable
    np.testing.assert_array_equal(row, np.asarray(dataset[3]["voxels"], dtype=np.float32))
    np.testing.assert_array_equal(MappedColumn(dataset.select([2, 0]), "voxels")[1], column[0])
    with pytest.raises(IndexError):
        column[4]


def test_a_worker_that_is_not_forked_gets_no_voxels_but_the_files(folders):
    shards = PairedDataset(folders / "shards", "train")
    pickled = pickle.dumps(shards)
    assert len(pickled) < shards.volume(0).get_fdata().nbytes
    again = pickle.loads(pickled)
    assert all(np.array_equal(again.volume(i).dataobj, shards.volume(i).dataobj) for i in range(len(shards)))


def test_voxels_that_int16_cannot_hold_are_refused(folders, tmp_path, capsys):
    with pytest.raises(SystemExit):
        shard("--data", folders / "cohort", "--output_dir", tmp_path / "out")
    message = capsys.readouterr().err
    assert "train_1" in message and "--voxel_type float32" in message and not (tmp_path / "out").exists()


def test_volumes_of_two_shapes_are_refused(tmp_path, capsys):
    phantom.write_cohort(tmp_path / "cohort")
    path = tmp_path / "cohort" / "test" / "test_1.nii.gz"
    nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_filename(path)
    with pytest.raises(SystemExit):
        shard("--data", tmp_path / "cohort", "--output_dir", tmp_path / "out", "--voxel_type", "float32")
    assert "test_1" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_are_kept_as_they_are(dtype):
    pixels = np.linspace(0, np.iinfo(dtype).max, 600).astype(dtype).reshape(20, 30)
    found = grey_pixels(Image.fromarray(pixels))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


def test_pictures_without_grey_pixels_are_refused():
    with pytest.raises(ValueError, match="mode F"):
        grey_pixels(Image.fromarray(np.full((2, 2), 0.3, np.float32)))
