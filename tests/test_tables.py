"""Tables that others have written, and the files that they name."""

import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from datasets import Dataset, Features, Nifti, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_vq import CTVolumeProcessor
from hf_vq.data import PairedDataset
from hf_vq.data.paired_sources import DatasetSource
from hf_vq.data.publishable import open_cohort
from hf_vq.evaluation.volumes import find_generated
from hf_vq.tables import MAX_TABLE_BYTES, listed_file, read_table

HU = np.zeros((2, 3, 4), dtype=np.int16)


def write_scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(HU, np.eye(4)).to_filename(path)
    return path


def write_table(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_a_byte_order_mark_and_rows_that_end_early_are_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("\ufefffile_name,subject,note\na,Jürgen\n".encode())
    assert read_table(path) == ([{"file_name": "a", "subject": "Jürgen", "note": ""}], ["file_name", "subject", "note"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file_name,subject\na,Jürgen\n".encode("latin-1"), "found no readable table .* decode byte 0xfc .* in UTF-8"),
        ("file_name,subject\na,b\n".encode("utf-16"), "found no readable table"),
        (b"file_name,subject\na," + b"x" * 200000, "found no readable table .field larger than field limit"),
        (b"subject,subject\na,b\n", r"found the columns \['subject'\] twice, expected each once; rename or remove"),
        (b"file_name,subject\na,b,c\n", "found more cells in row 1 than the columns"),
    ],
    ids=["latin-1", "utf-16", "an endless cell", "a column twice", "too many cells"],
)
def test_what_is_no_table_is_named(tmp_path, content, words):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"table.csv: {words}"):
        read_table(tmp_path / "table.csv")


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv: found no such file, expected a CSV file; check the path"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"found no readable table \(Is a directory\)"):
        read_table(tmp_path)
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    with pytest.raises(ValueError, match=r"loop.csv: found no readable table \(Too many levels of symbolic links\)"):
        read_table(tmp_path / "loop.csv")


def test_an_enormous_table_is_refused_unread(tmp_path):
    with (tmp_path / "table.csv").open("wb") as file:
        file.truncate(MAX_TABLE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match=f"found over {MAX_TABLE_BYTES} bytes, expected a smaller table; divide it"):
        read_table(tmp_path / "table.csv")


@pytest.mark.parametrize(
    "name", ["../secret.nii", "deeper/../../secret.nii", "{root}/secret.nii", "/etc/hostname", "..", "a\0b.nii"]
)
def test_names_that_climb_out_are_refused_whatever_lies_there(tmp_path, name):
    write_scan(tmp_path / "secret.nii")
    table = write_table(tmp_path / "data" / "train" / "metadata.csv", "file_name,subject")
    (table.parent / "deeper").mkdir()
    name = name.format(root=tmp_path)
    with pytest.raises(
        ValueError, match=r"metadata.csv: found .* in column file_name, expected a path inside the fold"
    ):
        listed_file(table, name, "file_name", tmp_path / "data")


def test_links_are_followed_within_the_data_set_only(tmp_path):
    train = tmp_path / "data" / "train"
    table = write_table(train / "metadata.csv", "file_name,subject", "link.nii,anna")
    inside, outside = write_scan(tmp_path / "data" / "shared.nii"), write_scan(tmp_path / "secret.nii")
    (train / "link.nii").symlink_to(inside)
    assert PairedDataset(tmp_path / "data", "train", CTVolumeProcessor())[0]["pixel_values"].shape == (1, 4, 3, 2)
    (train / "link.nii").unlink()
    (train / "link.nii").symlink_to(outside)
    words = f"found 'link.nii' in column file_name, a link to {re.escape(str(outside))}, expected a file inside the dat"
    for read in (lambda: PairedDataset(tmp_path / "data", "train"), lambda: open_cohort(tmp_path / "data")):
        with pytest.raises(ValueError, match=f"metadata.csv: {words}"):
            read()
    (train / "link.nii").unlink()
    (train / "link.nii").symlink_to(train / "link.nii")
    with pytest.raises(ValueError, match=r"found no file 'link.nii' of column file_name"):
        listed_file(table, "link.nii", "file_name")


def test_a_linked_folder_of_links_is_followed_as_a_whole(tmp_path):
    """Links on the way to the data set are the user's own; only those in it are the data set's."""
    write_table(tmp_path / "disk" / "train" / "metadata.csv", "file_name,subject", "a.nii,anna")
    write_scan(tmp_path / "disk" / "train" / "a.nii")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert PairedDataset(tmp_path / "data", "train").subjects == ["anna"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train").symlink_to(tmp_path / "disk" / "train")
    assert PairedDataset(tmp_path / "other", "train").subjects == ["anna"]


def snapshot(cache: Path, shared: bool) -> Path:
    """A data set as the Hub's cache holds it: links to digests, which may be links to a store of all repositories."""
    repository = cache / "datasets--owner--name"
    folder = repository / "snapshots" / "0123abc"
    blob = repository / "blobs" / "d1"
    write_scan(cache / "scan.nii")
    blob.parent.mkdir(parents=True)
    if shared:
        (cache / "blobs" / "ab").mkdir(parents=True)
        (cache / "scan.nii").rename(cache / "blobs" / "ab" / "d1")
        blob.symlink_to(os.path.relpath(cache / "blobs" / "ab" / "d1", blob.parent))
    else:
        (cache / "scan.nii").rename(blob)
    write_table(folder / "train" / "metadata.csv", "file_name,subject", "a.nii,anna")
    (folder / "train" / "a.nii").symlink_to(os.path.relpath(blob, folder / "train"))
    return folder


@pytest.mark.parametrize("shared", [False, True])
def test_the_links_of_the_hubs_cache_are_followed(tmp_path, shared):
    folder = snapshot(tmp_path / "hub", shared)
    assert PairedDataset(folder, "train", CTVolumeProcessor())[0]["pixel_values"].shape == (1, 4, 3, 2)
    (folder / "train" / "a.nii").unlink()
    (folder / "train" / "a.nii").symlink_to(write_scan(tmp_path / "secret.nii"))
    with pytest.raises(ValueError, match=r"a link to .*secret.nii, expected a file inside the data set; copy it there"):
        PairedDataset(folder, "train")


def test_generated_volumes_stay_in_their_folder(tmp_path):
    write_scan(tmp_path / "generated" / "a.nii")
    write_scan(tmp_path / "secret.nii")
    table = write_table(tmp_path / "generated" / "metadata.csv", "file_name,subject,sample", "a.nii,anna,0")
    assert find_generated(table.parent, ["anna"]) == {"anna": [table.parent / "a.nii"]}
    write_table(table, "file_name,subject,sample", "../secret.nii,anna,0")
    with pytest.raises(ValueError, match="expected a path inside the folder"):
        find_generated(table.parent, ["anna"])


def rows_of_paths(folder: Path) -> Dataset:
    """A data set whose rows name files in place of holding them."""
    columns = {
        "volume": [{"bytes": None, "path": str(folder / "secret.nii")}],
        "frontal": [{"bytes": None, "path": str(folder / "secret.png")}],
        "subject": ["anna"],
    }
    features = Features({"volume": Nifti(), "frontal": ImageFeature(), "subject": Value("string")})
    return Dataset.from_dict(columns, features=features)


def test_rows_of_a_data_set_from_the_hub_name_no_files_of_the_user(tmp_path):
    write_scan(tmp_path / "secret.nii")
    Image.new("L", (3, 2)).save(tmp_path / "secret.png")
    rows = rows_of_paths(tmp_path)
    own = DatasetSource(rows, "own", folder=tmp_path / "saved")
    assert own.volume(0) == tmp_path / "secret.nii"
    assert own.view_image(0, "frontal").size == (3, 2)
    folder = snapshot(tmp_path / "hub", shared=False)
    foreign = DatasetSource(rows, "owner/name", folder=folder)
    words = "of subject 'anna': found the path .*, expected a file inside the data set from the Hub; do not use"
    with pytest.raises(ValueError, match=f"owner/name: volume {words}"):
        foreign.volume(0)
    with pytest.raises(ValueError, match=f"owner/name: frontal {words}"):
        foreign.view_image(0, "frontal")


@pytest.mark.parametrize("address", ["https://example.org/a.png", "hf://datasets/owner/name/a.png", "zip://a::b.zip"])
def test_rows_that_name_addresses_are_not_fetched(tmp_path, address):
    """`datasets` would open them, with the user's token for those on the Hub."""
    features = Features({"volume": Nifti(), "frontal": ImageFeature(), "subject": Value("string")})
    columns = {name: [{"bytes": None, "path": address}] for name in ("volume", "frontal")}
    source = DatasetSource(
        Dataset.from_dict({**columns, "subject": ["anna"]}, features=features), "rows", None, tmp_path
    )
    with pytest.raises(ValueError, match="found no such file, expected an image; check the path"):
        source.view_image(0, "frontal")
    with pytest.raises(ValueError, match=r"found no such file, expected a .nii or .nii.gz file; check the path"):
        CTVolumeProcessor()(source.volume(0))
