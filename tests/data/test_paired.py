import csv
import re

import nibabel
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Nifti, Value
from datasets import Image as ImageFeature
from PIL import Image
from pydicom.dataset import Dataset as Dicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from torch.utils.data import DataLoader

from hf_vq import CTVolumeProcessor, XrayImageProcessor
from hf_vq.data import BeamGeometry, PairedDataset
from hf_vq.data.paired_sources import DatasetSource, unique_subjects
from hf_vq.files import looks_like_path
from hf_vq.processors.scans import open_nifti

AFFINE = np.diag([4.0, 3.0, 2.0, 1.0])
SUBJECTS = ["anna", "bert", "carl"]


def volume_of(index: int) -> np.ndarray:
    return (np.arange(2 * 3 * 4).reshape(2, 3, 4) + 100 * index).astype(np.int16)


def image_of(index: int, view: int) -> np.ndarray:
    return (np.arange(30).reshape(5, 6) * 1000 + 100 * index + 10 * view).astype(np.uint16)


def write_metadata(folder, rows):
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_split(folder) -> list[dict[str, str]]:
    """A split of three subjects with two views and a column that is no view."""
    (folder / "views").mkdir(parents=True)
    rows = []
    for index, subject in enumerate(SUBJECTS):
        row = {"file_name": f"{subject}.nii.gz", "age": str(50 + index)}
        nibabel.Nifti1Image(volume_of(index), AFFINE).to_filename(folder / row["file_name"])
        for number, view in enumerate(["frontal", "lateral"]):
            row[view] = f"views/{subject}_{view}.png"
            Image.fromarray(image_of(index, number)).save(folder / row[view])
        rows.append({**row, "subject": subject})
    write_metadata(folder, rows)
    return rows


@pytest.fixture
def folder(tmp_path):
    write_split(tmp_path / "paired" / "test")
    return tmp_path / "paired"


@pytest.fixture
def rows(folder):
    with (folder / "test" / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def as_dataset(folder, volumes="file") -> Dataset:
    """The same split as a `datasets` data set."""
    split = folder / "test"
    columns = {
        "volume": [str(split / f"{subject}.nii.gz") for subject in SUBJECTS],
        "frontal": [str(split / f"views/{subject}_frontal.png") for subject in SUBJECTS],
        "lateral": [str(split / f"views/{subject}_lateral.png") for subject in SUBJECTS],
        "subject": SUBJECTS,
    }
    feature = Nifti() if volumes == "nifti" else Value("string")
    features = {"volume": feature, "frontal": ImageFeature(), "lateral": ImageFeature(), "subject": Value("string")}
    return Dataset.from_dict(columns, features=Features(features))


@pytest.fixture(params=["folder", "nifti column", "path column"])
def source(request, folder, tmp_path):
    """The same subjects in every form of the paired format."""
    if request.param == "folder":
        return folder
    dataset = as_dataset(folder, "nifti" if request.param == "nifti column" else "file")
    DatasetDict({"test": dataset}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_every_form_gives_the_same_subjects_views_and_items(source):
    dataset = PairedDataset(str(source), "test", CTVolumeProcessor(), XrayImageProcessor(output_range=[0, 1]))
    assert len(dataset) == 3
    assert dataset.subjects == SUBJECTS
    assert dataset.view_names == ["frontal", "lateral"]
    for index in range(3):
        item = dataset[index]
        assert item["subject"] == SUBJECTS[index]
        expected = torch.from_numpy(volume_of(index).transpose(2, 1, 0).astype(np.float32))[None] / 1000
        torch.testing.assert_close(item["pixel_values"], expected)
        views = np.stack([image_of(index, 0), image_of(index, 1)])[:, None].astype(np.float32) / 65535
        torch.testing.assert_close(item["view_pixel_values"], torch.from_numpy(views))


def test_every_form_gives_the_true_volume_and_the_stored_image(source):
    dataset = PairedDataset(source, "test")
    image = dataset.volume(2)
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume_of(2))
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(dataset.view_image(1, "lateral")), image_of(1, 1))


def test_an_item_holds_what_its_processors_make(folder):
    assert set(PairedDataset(folder, "test")[0]) == {"subject"}
    assert set(PairedDataset(folder, "test", CTVolumeProcessor())[0]) == {"subject", "pixel_values"}
    views_only = PairedDataset(folder, "test", view_processor=XrayImageProcessor())
    assert set(views_only[0]) == {"subject", "view_pixel_values"}


def test_views_are_chosen_and_ordered(folder):
    dataset = PairedDataset(folder, "test", view_processor=XrayImageProcessor(), views=["lateral", "frontal"])
    assert dataset.view_names == ["lateral", "frontal"]
    default = PairedDataset(folder, "test", view_processor=XrayImageProcessor())
    assert torch.equal(dataset[0]["view_pixel_values"], default[0]["view_pixel_values"].flip(0))
    assert PairedDataset(folder, "test", views=["frontal"]).view_names == ["frontal"]


def test_views_found_come_sorted_whatever_the_order_of_the_columns(folder, rows, tmp_path):
    write_metadata(folder / "test", [{key: row[key] for key in sorted(row, reverse=True)} for row in rows])
    dataset = as_dataset(folder).select_columns(["lateral", "subject", "frontal", "volume"])
    DatasetDict({"test": dataset}).save_to_disk(tmp_path / "saved")
    for source in (folder, tmp_path / "saved"):
        assert PairedDataset(source, "test").view_names == ["frontal", "lateral"]
        assert PairedDataset(source, "test", views=["lateral", "frontal"]).view_names == ["lateral", "frontal"]


def test_the_cache_spares_the_files_and_no_cache_reads_them_again(folder):
    cached = PairedDataset(folder, "test", CTVolumeProcessor(), cache=True)
    uncached = PairedDataset(folder, "test", CTVolumeProcessor())
    before = cached[0]["pixel_values"]
    assert torch.equal(uncached[0]["pixel_values"], before)
    nibabel.Nifti1Image(volume_of(2), AFFINE).to_filename(folder / "test" / "anna.nii.gz")
    assert torch.equal(cached[0]["pixel_values"], before)
    assert not torch.equal(uncached[0]["pixel_values"], before)


def test_a_data_loader_batches_it(folder):
    dataset = PairedDataset(folder, "test", CTVolumeProcessor(), XrayImageProcessor())
    (batch,) = DataLoader(dataset, batch_size=3)
    assert batch["subject"] == SUBJECTS
    assert batch["pixel_values"].shape == (3, 1, 4, 3, 2)
    assert batch["view_pixel_values"].shape == (3, 2, 1, 5, 6)


def write_radiograph(path, stored: np.ndarray) -> None:
    """A DICOM radiograph of 16 bits in which low values are bright."""
    dataset = Dicom()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation = "DX", "MONOCHROME1"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)


def test_views_may_be_dicom_radiographs(folder, rows):
    for index, row in enumerate(rows):
        row["lateral"] = f"views/{row['subject']}.dcm"
        write_radiograph(folder / "test" / row["lateral"], 65535 - image_of(index, 1))
    write_metadata(folder / "test", rows)
    dataset = PairedDataset(folder, "test", view_processor=XrayImageProcessor(output_range=[0, 1]))
    assert dataset.view_names == ["frontal", "lateral"]
    for index in range(3):
        views = np.stack([image_of(index, 0), image_of(index, 1)])[:, None].astype(np.float32) / 65535
        torch.testing.assert_close(dataset[index]["view_pixel_values"], torch.from_numpy(views))
    image = dataset.view_image(1, "lateral")
    assert image.size == (6, 5)
    with pytest.warns(UserWarning, match="real radiograph"):
        XrayImageProcessor(views_rendered=True)(image)
    rows[1]["lateral"] = "../secret.dcm"
    write_metadata(folder / "test", rows)
    with pytest.raises(ValueError, match=r"found '../secret.dcm' in column lateral, expected a path inside the folder"):
        PairedDataset(folder, "test")


def test_a_data_set_says_how_its_views_were_rendered(folder):
    assert PairedDataset(folder, "test").beam is None
    (folder / "cohort.json").write_text("{}")
    assert PairedDataset(folder, "test").beam == BeamGeometry()


def test_indices_count_from_either_end_and_stop(folder):
    dataset = PairedDataset(folder, "test")
    assert dataset[-1]["subject"] == "carl"
    with pytest.raises(IndexError):
        dataset[3]


@pytest.mark.parametrize("column", ["file_name", "subject"])
def test_a_missing_column_is_named(folder, rows, column):
    write_metadata(folder / "test", [{key: row[key] for key in row if key != column} for row in rows])
    with pytest.raises(ValueError, match=rf"metadata.csv: found columns .*, expected '{column}' among them; rename"):
        PairedDataset(folder, "test")


def test_a_missing_view_column_is_named(folder):
    with pytest.raises(
        ValueError, match=r"metadata.csv: found view columns \['frontal', 'lateral'\], expected \['oblique'\] too; add"
    ):
        PairedDataset(folder, "test", views=["frontal", "oblique"])
    with pytest.raises(ValueError, match="expected each once"):
        PairedDataset(folder, "test", views=["frontal", "frontal"])
    with pytest.raises(ValueError, match=r"found no view 'oblique', expected one of \['frontal', 'lateral'\]"):
        PairedDataset(folder, "test").view_image(0, "oblique")


@pytest.mark.parametrize("column", ["file_name", "lateral"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gone.png", r"found no file 'gone.png' of column {column}, expected it in .*test; add it"),
        ("", r"found no {column} for subject 'bert', expected a file; fill it in"),
        ("../secret.png", r"found '../secret.png' in column {column}, expected a path inside the folder"),
        ("views/../../secret.png", "in column {column}, expected a path inside the folder"),
        ("/etc/hostname", "found '/etc/hostname' in column {column}, expected a path inside the folder"),
    ],
)
def test_a_file_that_is_missing_or_outside_is_named(folder, rows, column, value, message):
    Image.fromarray(image_of(0, 0)).save(folder / "secret.png")
    rows[1][column] = value
    write_metadata(folder / "test", rows)
    with pytest.raises(ValueError, match="metadata.csv: .*" + message.format(column=column)):
        PairedDataset(folder, "test")


def test_an_empty_split_is_named(folder, rows):
    write_metadata(folder / "test", rows)
    header = (folder / "test" / "metadata.csv").read_text().splitlines()[0]
    (folder / "test" / "metadata.csv").write_text(header + "\n")
    with pytest.raises(ValueError, match=r"metadata.csv: found no rows, expected at least one subject; fill"):
        PairedDataset(folder, "test")


def test_a_subject_listed_twice_is_named(folder, rows):
    rows[2]["subject"] = "anna"
    write_metadata(folder / "test", rows)
    with pytest.raises(ValueError, match=r"metadata.csv: found subject 'anna' twice, expected unique names; rename"):
        PairedDataset(folder, "test")


@pytest.mark.parametrize("subject", ["", ".", "..", "../anna", "a/b", "a\\b", "/anna", "an\0na"])
def test_a_subject_that_cannot_name_a_file_is_named(folder, subject):
    with pytest.raises(ValueError, match=r"^data: found subject .*, expected a name that can be a file's.*; rename it"):
        unique_subjects(["bert", subject], "data")
    dataset = as_dataset(folder).remove_columns("subject").add_column("subject", [subject, "bert", "carl"])
    with pytest.raises(ValueError, match=re.escape(f"patients: found subject {subject!r}")):
        DatasetSource(dataset, "patients")


def test_ordinary_subject_names_pass():
    assert unique_subjects(["anna.1", "..b", "c d", "é"], "data") == ["anna.1", "..b", "c d", "é"]


def test_a_missing_split_is_named(folder):
    with pytest.raises(ValueError, match=r"paired: found splits \['test'\], expected 'train' with a metadata.csv; add"):
        PairedDataset(folder, "train")


def test_an_id_on_the_hub_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [looks_like_path(name) for name in ("cohort", "owner/cohort")] == [False, False]


def test_a_view_processor_needs_views(folder, rows):
    write_metadata(folder / "test", [{"file_name": row["file_name"], "subject": row["subject"]} for row in rows])
    assert PairedDataset(folder, "test", CTVolumeProcessor()).view_names == []
    with pytest.raises(ValueError, match="found no view columns, expected at least one such as 'frontal'; add one"):
        PairedDataset(folder, "test", view_processor=XrayImageProcessor())


def test_a_broken_file_is_named_with_its_subject(folder):
    nan = np.full((2, 3, 4), np.nan, dtype=np.float32)
    nibabel.Nifti1Image(nan, AFFINE).to_filename(folder / "test" / "bert.nii.gz")
    (folder / "test" / "views" / "carl_frontal.png").write_text("no picture")
    dataset = PairedDataset(folder, "test", CTVolumeProcessor(), XrayImageProcessor())
    assert dataset[0]["subject"] == "anna"
    with pytest.raises(ValueError, match=r"\(test\), subject bert: .*bert.nii.gz: found 24 NaN or infinite voxels"):
        dataset[1]
    with pytest.raises(ValueError, match=r"\(test\), subject carl: .*carl_frontal.png: found no readable image"):
        dataset[2]


@pytest.mark.parametrize("column", ["volume", "subject"])
def test_a_missing_column_of_a_data_set_is_named(folder, tmp_path, column):
    DatasetDict({"test": as_dataset(folder).remove_columns(column)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=rf"saved \(test\): found columns .*, expected '{column}' among them; rename"):
        PairedDataset(tmp_path / "saved", "test")


def test_a_missing_view_or_split_of_a_data_set_is_named(folder, tmp_path):
    DatasetDict({"test": as_dataset(folder)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"found view columns \['frontal', 'lateral'\], expected \['oblique'\] too"):
        PairedDataset(tmp_path / "saved", "test", views=["oblique"])
    with pytest.raises(ValueError, match=r"saved: found splits \['test'\], expected 'train'; save a DatasetDict"):
        PairedDataset(tmp_path / "saved", "train")


def test_an_empty_data_set_is_named(folder):
    with pytest.raises(ValueError, match=r"patients \(test\): found no rows, expected at least one subject; choose"):
        DatasetSource(as_dataset(folder).select([]), "patients (test)")


def test_a_missing_or_damaged_value_of_a_data_set_is_named():
    columns = {"volume": [None, b"no scan", "gone.nii.gz"], "subject": SUBJECTS}
    dataset = Dataset.from_dict(columns, Features({"volume": Nifti(), "subject": Value("string")}))
    source = DatasetSource(dataset, "patients (test)")
    with pytest.raises(ValueError, match=r"patients \(test\): found no volume of subject 'anna', expected one; fill"):
        source.volume(0)
    with pytest.raises(ValueError, match=r"patients \(test\): volume of subject 'bert': found no NIfTI image .*; conv"):
        source.volume(1)
    with pytest.raises(ValueError, match=r"gone.nii.gz: found no such file"):
        open_nifti(source.volume(2))


def test_a_path_column_with_a_missing_file_names_the_file(folder, tmp_path):
    DatasetDict({"test": as_dataset(folder)}).save_to_disk(tmp_path / "saved")
    (folder / "test" / "anna.nii.gz").unlink()
    dataset = PairedDataset(tmp_path / "saved", "test", CTVolumeProcessor())
    with pytest.raises(ValueError, match=r"anna.nii.gz: found no such file"):
        dataset.volume(0)
    with pytest.raises(ValueError, match=r"subject anna: .*anna.nii.gz: found no such file"):
        dataset[0]
