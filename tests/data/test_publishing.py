"""What is written to be published: the same data again, in Parquet files that stream, and a card that tells no lies."""

import json
import shutil
import tracemalloc
from pathlib import Path

import cohort_phantom as phantom
import nibabel
import numpy as np
import pyarrow.parquet
import pytest
import yaml
from datasets import Array2D, Array3D, ClassLabel, Dataset, DatasetDict, Features, Image, Nifti, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from hf_vq.data import PairedDataset, describe_data
from hf_vq.data.publishing import batches, write_publication
from hf_vq.training.codes import CodeRows, load_codes

NAME = "somebody/cohort"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return phantom.write_cohort(tmp_path_factory.mktemp("source") / "cohort")


@pytest.fixture(scope="module")
def publication(cohort, tmp_path_factory):
    stated = {"source": "a phantom", "license": "cc0-1.0"}
    return write_publication(cohort, tmp_path_factory.mktemp("publication"), NAME, stated, shard_bytes=20_000)


@pytest.mark.parametrize("split", list(phantom.COUNTS))
def test_subjects_are_the_same_after_publishing(cohort, publication, split):
    expected = phantom.found_in(PairedDataset(cohort, split))
    assert phantom.found_in(PairedDataset(publication.folder, split)) == expected
    assert expected["beam"] is not None


def test_every_file_is_embedded_byte_for_byte_and_further_columns_are_kept(cohort, publication):
    splits = load_dataset(str(publication.folder))
    assert set(splits) == set(phantom.COUNTS)
    features = splits["train"].features
    assert isinstance(features["volume"], Nifti)
    assert [name for name, feature in features.items() if isinstance(feature, ImageFeature)] == list(phantom.VIEWS)
    assert features["label"] == ClassLabel(names=["sick", "well"])
    assert splits["train"]["label"][:] == [1, 0, None, 1]
    assert splits["train"]["age"][:] == ["050", "051", "052", "053"]
    for split, dataset in splits.items():
        raw = dataset.cast_column("volume", Nifti(decode=False))
        for view in phantom.VIEWS:
            raw = raw.cast_column(view, Image(decode=False))
        for row in raw:
            files = [f"{row['subject']}.nii.gz", *(f"views/{row['subject']}_{view}.png" for view in phantom.VIEWS)]
            for column, file in zip(("volume", *phantom.VIEWS), files, strict=True):
                assert row[column]["bytes"] == (cohort / split / file).read_bytes()
                assert row[column]["path"] == Path(file).name


def test_streaming_gives_the_subjects_in_their_order(cohort, publication):
    stream = load_dataset(str(publication.folder), split="train", streaming=True)
    dataset = PairedDataset(cohort, "train")
    for index, row in enumerate(stream):
        assert row["subject"] == dataset.subjects[index]
        np.testing.assert_array_equal(row["volume"].dataobj, dataset.volume(index).dataobj)
        np.testing.assert_array_equal(np.asarray(row["lateral"]), phantom.view_of(index, 1))
    assert index == phantom.COUNTS["train"] - 1


def test_files_are_divided_by_size(publication):
    sizes = {path: size for path, size in publication.files.items() if path.endswith(".parquet")}
    assert sum(path.startswith("data/train-") for path in sizes) > 1
    assert sum(pyarrow.parquet.read_metadata(publication.folder / path).num_rows for path in sizes) == 8
    assert {"README.md", "cohort.json"} == set(publication.files) - set(sizes)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [range(0, 1)]),
        ([4, 4, 4], [range(0, 2), range(2, 3)]),
        ([20, 1, 9, 1], [range(0, 1), range(1, 3), range(3, 4)]),
    ],
)
def test_rows_are_divided_into_runs_that_fit(sizes, expected):
    assert list(batches(sizes, 10)) == expected


def test_a_cohort_is_never_in_memory_as_a_whole(tmp_path):
    folder, rows, size = tmp_path / "cohort" / "train", ["file_name,subject"], 0
    folder.mkdir(parents=True)
    for number in range(8):
        voxels = np.random.default_rng(number).integers(-1000, 1000, (64, 64, 128)).astype(np.int16)
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"{number}.nii")
        rows.append(f"{number}.nii,{number}")
        size += voxels.nbytes
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    usual = pyarrow.default_memory_pool()
    pool = pyarrow.proxy_memory_pool(usual)  # counts for itself
    pyarrow.set_memory_pool(pool)
    tracemalloc.start()
    try:
        publication = write_publication(tmp_path / "cohort", tmp_path / "out", NAME, shard_bytes=2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(usual)
    assert peak < size / 2
    assert 0 < pool.max_memory() < size / 2
    assert len(publication.files) == 9


def metadata_of(publication):
    return yaml.safe_load(str(publication.card).split("---")[1])


def test_the_card_tells_what_is_recorded(publication):
    card, metadata = str(publication.card), metadata_of(publication)
    assert (publication.folder / "README.md").read_text(encoding="utf-8") == card
    assert metadata["license"] == "cc0-1.0"
    assert {"hf_vq", "nifti"} <= set(metadata["tags"])
    assert metadata["size_categories"] == "n<1K"
    assert {one["name"]: one["num_examples"] for one in metadata["dataset_info"]["splits"]} == phantom.COUNTS
    for words in (
        "Source of the scans or images: a phantom.",
        "Licence: cc0-1.0.",
        "| train | 4 |",
        "| voxels along x, y and z | 16 x 16 x 16 |",
        "| voxel size, mm | 2.5 x 2 x 3 |",
        "| frontal | 16 rows x 18 columns, 16 bits a pixel, PNG |",
        "cone beam (source to detector 1800 mm, source to the volume's middle 1600 mm)",
        "detector: 400 x 350 mm",
        "All subjects are deformed copies of one CT scan: these are not 8 patients",
        f'load_dataset("{NAME}", streaming=True)',
    ):
        assert words in card, words


def test_the_card_says_what_is_not_recorded(cohort, tmp_path):
    bare = tmp_path / "bare"
    for split in phantom.COUNTS:
        (bare / split).parent.mkdir(exist_ok=True)
        (bare / split).symlink_to(cohort / split)
    publication = write_publication(bare, tmp_path / "out", NAME)
    assert "license" not in metadata_of(publication)
    for words in (
        "Source of the scans or images: not recorded.",
        "Licence: not recorded.",
        "How the subjects were prepared is not recorded.",
        "Nothing says that they were rendered",
    ):
        assert words in str(publication.card), words


def test_what_is_stated_goes_with_the_data(publication):
    facts = describe_data(publication.folder)
    assert (facts["source"], facts["license"]) == ("a phantom", "cc0-1.0")


def test_texts_in_headers_and_names_are_pointed_out(publication):
    assert any(note.startswith("8 volumes have descrip in their NIfTI headers") for note in publication.notes)
    assert any("(the first is train_0) and the columns age are uploaded" in note for note in publication.notes)


def test_texts_in_images_are_pointed_out(cohort, tmp_path):
    """A view is uploaded byte for byte, with what a scanner or a viewer wrote beside its pixels."""
    folder = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    (path,) = sorted((folder / "train").rglob("*.png"))[:1]
    texts = PngInfo()
    texts.add_text("Patient", "anna")
    with PillowImage.open(path) as image:
        image.load()
    image.save(path, pnginfo=texts)
    notes = write_publication(folder, tmp_path / "published", "me/cohort").notes
    assert any(
        note.startswith("1 views have 'Patient' in their files, which are uploaded as they are") for note in notes
    )


@pytest.mark.parametrize(("noted", "published"), [("rendered", "rendered"), ("0123456789abcdef", "given")])
def test_reports_and_digests_of_secrets_stay_here(cohort, tmp_path, noted, published):
    for split in phantom.COUNTS:
        (tmp_path / "cohort").mkdir(exist_ok=True)
        (tmp_path / "cohort" / split).symlink_to(cohort / split)
    settings = {"size": [16] * 3, "radiographs": noted, "salt_digest": "5a17", "splits_digest": "1157"}
    (tmp_path / "cohort" / "preparation.json").write_text(json.dumps(settings))
    for name in ("report.csv", "report.md", "splits.csv"):
        (tmp_path / "cohort" / name).write_text("patient Smith")
    publication = write_publication(tmp_path / "cohort", tmp_path / "out", NAME)
    assert json.loads((tmp_path / "out" / "preparation.json").read_text()) == {
        "size": [16] * 3,
        "radiographs": published,
    }
    assert not {"report.csv", "report.md", "splits.csv"} & set(publication.files)
    for path in publication.files:
        content = (tmp_path / "out" / path).read_bytes()
        assert b"Smith" not in content and b"5a17" not in content and b"1157" not in content
    assert "Patients, never scans, were divided" in str(publication.card)
    assert ("with parallel rays" in str(publication.card)) == (noted == "rendered")


def save_codes(folder):
    """Codes as encode_codes.py writes them, with what it records of them."""
    features = {"subject": Value("string"), "codes": Array3D((2, 3, 4), "int32"), "frontal": Array2D((3, 4), "int32")}
    splits = {}
    for number, split in enumerate(("train", "validation")):
        random = np.random.default_rng(number)
        columns = {
            "subject": [f"{split}_{index}" for index in range(5)],
            "codes": random.integers(0, 1000, (5, 2, 3, 4)).astype(np.int32),
            "frontal": random.integers(0, 1000, (5, 3, 4)).astype(np.int32),
            "label": [0, 1, -1, 1, 0],
        }
        kinds = Features({**features, "label": ClassLabel(names=["sick", "well"])})
        splits[split] = Dataset.from_dict(columns, features=kinds)
    DatasetDict(splits).save_to_disk(folder)
    record = {"data": {"name": "lungs", "kind": "paired"}, "num_shifts": 8, "max_shift": 1}
    record["tokenizers"] = {"volume_tokenizer": "somebody/tokenizer"}
    (folder / "encoding.json").write_text(json.dumps(record))
    return folder


def test_codes_are_the_same_after_publishing(tmp_path):
    source = save_codes(tmp_path / "codes")
    publication = write_publication(source, tmp_path / "out", "somebody/codes", {"license": "mit"}, shard_bytes=300)
    assert len(publication.files) > 4
    before, after = load_codes(str(source)), load_codes(str(tmp_path / "out"))
    for split in ("train", "validation"):
        assert before[split].features == after[split].features
        assert before[split]["subject"][:] == after[split]["subject"][:]
        rows, again = CodeRows(before[split]).columns, CodeRows(after[split]).columns
        assert set(rows) == set(again) == {"codes", "frontal", "label"}
        for name, column in rows.items():
            assert column.dtype == again[name].dtype
            assert column.tolist() == again[name].tolist()
    for words in (
        *("of the data set `lungs`", "8 copies, moved by up to 1 voxels along each axis"),
        "Tokenizers: `somebody/tokenizer` (volume_tokenizer).",
    ):
        assert words in str(publication.card), words
    assert metadata_of(publication)["license"] == describe_data(tmp_path / "out")["license"] == "mit"


def test_codes_without_a_record_are_published_as_such(tmp_path):
    source = save_codes(tmp_path / "codes")
    (source / "encoding.json").unlink()
    card = str(write_publication(source, tmp_path / "out", "somebody/codes").card)
    for words in ("of a data set that is not recorded", "Tokenizers: not recorded.", "Licence: not recorded."):
        assert words in card, words
    assert "encoding.json" not in card


def test_what_cannot_be_published_is_named(cohort, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"found neither a prepared cohort .* nor codes"):
        write_publication(tmp_path / "none", tmp_path / "out", NAME)
    with pytest.raises(ValueError, match="cohort: found no owner, expected owner/name"):
        write_publication(cohort, tmp_path / "out", "cohort")
    DatasetDict(train=Dataset.from_dict({"text": ["a"]})).save_to_disk(tmp_path / "texts")
    with pytest.raises(ValueError, match=r"found the columns \['text'\] in train, expected 'codes'"):
        write_publication(tmp_path / "texts", tmp_path / "texts_out", "somebody/texts")
    broken = phantom.write_cohort(tmp_path / "broken")
    (broken / "test" / "views" / "test_1_lateral.png").write_bytes(b"DICM")
    with pytest.raises(ValueError, match=r"test_1_lateral.png: found no image that a data set can hold .*views_csv"):
        write_publication(broken, tmp_path / "broken_out", NAME)
    PillowImage.fromarray(np.zeros((1, 2), np.uint8)).save(broken / "test" / "views" / "test_1_lateral.png")
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 0.5)  # as if two pixels were the size of a bomb
    with pytest.raises(ValueError, match=r"png: found no image that a data set can hold \(Image size .* exceeds"):
        write_publication(broken, tmp_path / "bomb_out", NAME)
    monkeypatch.undo()
    metadata = cohort / "test" / "metadata.csv"
    (broken / "test" / "metadata.csv").write_text(metadata.read_text().replace("age,", "years,"))
    with pytest.raises(ValueError, match=r"found the columns .*'years'.* in test .* expected the same in all splits"):
        write_publication(broken, tmp_path / "other_out", NAME)


def test_a_column_may_not_take_the_volumes_name(tmp_path):
    cohort = phantom.write_cohort(tmp_path / "cohort")
    for split in phantom.COUNTS:
        metadata = cohort / split / "metadata.csv"
        metadata.write_text(metadata.read_text().replace("age,", "volume,"))
    with pytest.raises(ValueError, match="found a column 'volume', expected other names beside that of the volumes"):
        write_publication(cohort, tmp_path / "out", NAME)


def test_grey_views_of_8_bits_are_told_from_those_of_16(tmp_path):
    cohort = phantom.write_cohort(tmp_path / "cohort")
    path = cohort / "train" / "views" / "train_0_frontal.png"
    PillowImage.new("L", (18, 16)).save(path)
    card = str(write_publication(cohort, tmp_path / "out", NAME).card)
    assert "16 bits a pixel, PNG (7), 16 rows x 18 columns, 8 bits a pixel, PNG (1)" in card
