"""Finding data: what is a path, what is an id, and the one line that says why neither is there."""

import pytest
from datasets import Dataset, DatasetDict

from hf_vq.data import ImageDataset, PairedDataset
from hf_vq.data.locating import holds_dataset, load_splits, local_folder, split_revision
from hf_vq.training.codes import load_codes

READERS = [
    lambda source: PairedDataset(source, "train"),
    lambda source: ImageDataset(source, "train"),
    load_codes,
]


def test_a_folder_is_itself(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name@v1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path, str(tmp_path), "owner", "owner/name@v1", "./owner"):
        assert local_folder(source).samefile(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
    ],
)
def test_an_id_may_name_a_revision(source, expected):
    assert split_revision(source) == expected


def test_a_mark_without_a_revision_is_named():
    with pytest.raises(ValueError, match="owner/name@: found no revision after '@', expected a branch"):
        split_revision("owner/name@")


@pytest.mark.parametrize("read", READERS, ids=["paired", "images", "codes"])
@pytest.mark.parametrize("source", ["no/such/cohort", "./cohort", "/cohort", "~/cohort", "there/cohort", "cohort/"])
def test_a_wrong_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, read, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=f"^{source}: found no such folder.* not looked for on the Hub"):
        read(source)


@pytest.mark.parametrize("read", READERS, ids=["paired", "images", "codes"])
@pytest.mark.parametrize("source", ["codes", "nobody/nothing", "nobody/nothing@v1"])
def test_an_id_without_a_hub_to_ask_gets_one_line(capfd, read, source):
    name = source.partition("@")[0]
    with pytest.raises(ValueError, match=f"^{name}: found neither such a folder nor such a name on the Hub") as info:
        read(source)
    assert "\n" not in str(info.value)
    assert capfd.readouterr().err == ""


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "cohort.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cohort.zip: found a file, expected a folder"):
        local_folder(tmp_path / "cohort.zip")


def test_splits_are_loaded_however_they_are_stored(tmp_path):
    splits = DatasetDict({name: Dataset.from_dict({"row": [name, name]}) for name in ("train", "test")})
    splits.save_to_disk(tmp_path / "saved")
    (tmp_path / "files" / "data").mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(tmp_path / "files" / "data" / f"{name}-00000-of-00001.parquet")
    for folder in (tmp_path / "saved", tmp_path / "files"):
        assert holds_dataset(folder)
        loaded = load_splits(folder, "rows")
        assert {name: split["row"][:] for name, split in loaded.items()} == {
            name: [name, name] for name in ("train", "test")
        }
    splits["train"].save_to_disk(tmp_path / "single")
    assert list(load_splits(tmp_path / "single", "rows")) == ["train"]


def test_a_damaged_data_set_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    assert holds_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"^rows: found no data set that `datasets` can load \(.*\), expected one"):
        load_splits(tmp_path, "rows")
    (tmp_path / "empty").mkdir()
    assert not holds_dataset(tmp_path / "empty")
