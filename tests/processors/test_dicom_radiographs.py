import sys
import threading
import warnings

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from hf_vq import XrayImageProcessor
from hf_vq.processors.dicom_radiographs import is_dicom, is_real_radiograph, quiet, read_radiograph
from hf_vq.processors.image_processing_xray import RENDERED_VIEWS_ONLY

STORED = np.array([[0, 1000, 2000], [3000, 4000, 4095]], dtype=np.uint16)
PATIENT = "Doe^Jane"


def write(path, stored=STORED, syntax=ExplicitVRLittleEndian, **elements):
    """A CR image of 12 bits with a patient's name; `elements` replace what it holds, None removes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = PATIENT, PATIENT
    defaults = {
        "Modality": "CR",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "BitsAllocated": stored.dtype.itemsize * 8,
        "BitsStored": 12 if stored.dtype.itemsize == 2 else 8,
        "HighBit": 11 if stored.dtype.itemsize == 2 else 7,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
    }
    for name, value in {**defaults, **elements}.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW" if stored.dtype.itemsize == 2 else "OB"
    if syntax is not ExplicitVRLittleEndian:
        dataset.compress(syntax)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "view.dcm"


def shown(path) -> np.ndarray:
    """What the processor makes of a file, black and white being 0 and 1."""
    pixel_values = XrayImageProcessor(output_range=[0, 1])(path)["pixel_values"]
    assert pixel_values.dtype == torch.float32
    return pixel_values[0, 0].numpy()


def test_the_range_of_the_stored_bits_is_black_to_white(path):
    np.testing.assert_allclose(shown(write(path)), STORED / 4095, atol=1e-6)
    np.testing.assert_allclose(shown(write(path, BitsStored=16, HighBit=15)), STORED / 65535, atol=1e-6)
    eight = (STORED // 16).astype(np.uint8)
    np.testing.assert_allclose(shown(write(path, eight)), eight / 255, atol=1e-6)
    signed = STORED.astype(np.int16) - 2048
    np.testing.assert_allclose(shown(write(path, signed)), STORED / 4095, atol=1e-6)


def test_bits_that_are_not_stored_do_not_count(path):
    np.testing.assert_allclose(shown(write(path, STORED | 0xF000)), STORED / 4095, atol=1e-6)


def test_monochrome1_is_inverted(path):
    inverted = shown(write(path, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted, 1 - STORED / 4095, atol=1e-6)


def test_rescaling_keeps_the_full_range(path):
    rescaled = shown(write(path, RescaleSlope=0.5, RescaleIntercept=-100))
    np.testing.assert_allclose(rescaled, STORED / 4095, atol=1e-6)
    falling = shown(write(path, RescaleSlope=-2, RescaleIntercept=10))
    np.testing.assert_allclose(falling, 1 - STORED / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (None, ((STORED - 1999.5) / 1999 + 0.5).clip(0, 1)),
        ("LINEAR_EXACT", ((STORED - 2000.0) / 2000 + 0.5).clip(0, 1)),
        ("SIGMOID", 1 / (1 + np.exp(-4 * (STORED - 2000.0) / 2000))),
    ],
)
def test_a_window_is_applied_to_rescaled_values(path, function, expected):
    write(path, WindowCenter=2000, WindowWidth=2000, VOILUTFunction=function)
    np.testing.assert_allclose(shown(path), expected, atol=1e-6)
    write(path, RescaleSlope=2, RescaleIntercept=0, WindowCenter=4000, WindowWidth=4000, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(shown(path), ((STORED - 2000.0) / 2000 + 0.5).clip(0, 1), atol=1e-6)


def test_the_first_of_several_windows_counts_and_an_empty_one_does_not(path):
    write(path, WindowCenter=[2000, 100], WindowWidth=[2000, 50], VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(shown(path), ((STORED - 2000.0) / 2000 + 0.5).clip(0, 1), atol=1e-6)
    np.testing.assert_allclose(shown(write(path, WindowCenter="", WindowWidth="")), STORED / 4095, atol=1e-6)


def test_the_narrowest_window_is_a_step(path):
    step = shown(write(path, WindowCenter=2000, WindowWidth=1))
    np.testing.assert_array_equal(step, STORED > 1999.5)


def test_a_table_is_preferred_to_a_window(path):
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 10]
    table.LUTData = np.linspace(1023, 0, 4096).astype(np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    write(path, VOILUTSequence=[table], WindowCenter=100, WindowWidth=10)
    np.testing.assert_allclose(shown(path), 1 - STORED / 4095, atol=1e-3)


def test_a_compressed_file_reads_like_a_plain_one(path):
    np.testing.assert_allclose(shown(write(path, syntax=RLELossless)), STORED / 4095, atol=1e-6)


@pytest.mark.parametrize("name", ["view.dcm", "view.DICOM", "view"])
def test_files_are_known_by_their_beginning_whatever_their_name(tmp_path, name):
    path = write(tmp_path / name)
    assert is_dicom(path)
    assert is_real_radiograph(read_radiograph(path))
    assert shown(str(path)).shape == (2, 3)
    Image.fromarray(STORED).save(tmp_path / "view.png")
    assert not is_dicom(tmp_path / "view.png")
    assert not is_real_radiograph(Image.open(tmp_path / "view.png"))


def test_a_model_of_rendered_views_warns_of_real_radiographs_only(path, tmp_path):
    write(path)
    Image.fromarray(STORED).save(tmp_path / "view.png")
    processor = XrayImageProcessor(views_rendered=True)
    with pytest.warns(UserWarning, match="trained only on views rendered from CT volumes") as caught:
        processor([path, str(path), read_radiograph(path)])
    assert [str(warning.message) for warning in caught] == [RENDERED_VIEWS_ONLY]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(tmp_path / "view.png")
        XrayImageProcessor()(path)


def test_the_warning_outlives_saving(tmp_path):
    XrayImageProcessor(views_rendered=True).save_pretrained(tmp_path)
    assert XrayImageProcessor.from_pretrained(tmp_path).views_rendered is True
    assert XrayImageProcessor().to_dict()["views_rendered"] is False


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Modality": "CT"}, "found modality CT, expected a radiograph, one of .*; choose another file"),
        ({"PhotometricInterpretation": "RGB"}, "found photometric interpretation RGB, expected MONOCHROME1 or"),
        ({"PhotometricInterpretation": None}, "found photometric interpretation None"),
        ({"NumberOfFrames": 2, "Rows": 1}, "found 2 frames, expected one image; choose one frame"),
        ({"BitsStored": None}, "found None bits stored, expected 1 to 16; convert it"),
        ({"Rows": 3}, "found pixels that cannot be read .*, expected a whole DICOM image; copy it again"),
        ({"Columns": None}, "found pixels that cannot be read"),
        ({"WindowCenter": 10, "WindowWidth": 0}, r"found pixels that cannot be read \(window LINEAR of width 0\)"),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, r"found pixels that cannot be read \(rescale slope 0"),
    ],
)
def test_other_files_are_refused_without_naming_the_patient(path, elements, message):
    write(path, **elements)
    with pytest.raises(ValueError, match=rf"view.dcm: {message}") as error:
        XrayImageProcessor()(path)
    assert "Doe" not in str(error.value)


def test_a_file_without_a_modality_passes(path):
    np.testing.assert_allclose(shown(write(path, Modality=None)), STORED / 4095, atol=1e-6)


def test_damaged_files_are_named(path):
    path.write_text("no radiograph")
    with pytest.raises(ValueError, match=r"view.dcm: found no readable DICOM file .*, expected a radiograph; copy"):
        read_radiograph(path)
    write(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"view.dcm: found"):
        read_radiograph(path)


def test_who_the_patient_is_is_never_read(path, monkeypatch):
    write(path)
    read = []
    original = pydicom.dcmread

    def remember(*arguments, **options):
        read.append(original(*arguments, **options))
        return read[-1]

    monkeypatch.setattr(pydicom, "dcmread", remember)
    read_radiograph(path)
    assert all("PatientName" not in dataset and "PatientID" not in dataset for dataset in read)
    assert len(read) == 1


def test_a_missing_pydicom_says_how_to_install_it(path, monkeypatch):
    write(path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"pip install hf-vq\[medical\]"):
        XrayImageProcessor()(path)


def test_threads_that_are_quiet_at_the_same_time_leave_the_filters_as_they_were():
    filters = list(warnings.filters)
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()

    def second():
        first_is_in.wait()
        with quiet():
            second_is_in.set()
            first_is_out.wait()

    thread = threading.Thread(target=second)
    thread.start()
    with quiet():
        first_is_in.set()
        second_is_in.wait(0.2)  # in vain, where one waits for the other
    first_is_out.set()
    thread.join()
    assert warnings.filters == filters
