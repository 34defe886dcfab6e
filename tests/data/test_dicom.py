import sys

import dicom_phantom as phantom
import nibabel
import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import MPEG2MPML, JPEGLosslessSV1, RLELossless, generate_uid

from hf_vq.data.dicom import anonymous_name, find_series, read_series

SMALL = {"shape": (24, 20, 6), "spacing": (3.5, 3.4, 10.0)}


def read(folder):
    (series,), damaged = find_series(folder)
    assert not damaged
    return read_series(series)


def changed(index, **tags):
    """An edit that sets tags of one slice only."""

    def edit(dataset, at):
        return phantom.edited(**tags)(dataset, at) if at == index else dataset

    return edit


def without(*names):
    def edit(dataset, index):
        for name in names:
            delattr(dataset, name)
        return dataset

    return edit


def moved(move):
    """An edit that moves slice i by `move(i)`, LPS+ mm."""

    def edit(dataset, index):
        position = np.array(dataset.ImagePositionPatient, dtype=float) + move(index)
        dataset.ImagePositionPatient = [round(float(value), 4) for value in position]
        return dataset

    return edit


@pytest.mark.parametrize(
    ("orientation", "codes"),
    [
        (phantom.HEAD_FIRST, "LPS"),
        (phantom.FEET_FIRST, "RPI"),
        ((1, 0, 0, 0, -1, 0), "LAI"),
        ((0, 1, 0, 0, 0, -1), "PIR"),
        ((1, 0, 0, 0, 0, -1), "LIP"),
    ],
)
def test_every_voxel_is_where_the_phantom_has_it(tmp_path, orientation, codes):
    array, affine = read(phantom.write_series(tmp_path, **SMALL, orientation=orientation))
    assert array.shape == (24, 20, 6)
    assert array.dtype == np.float32
    assert "".join(nibabel.aff2axcodes(affine)) == codes
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), SMALL["spacing"])
    expected = phantom.phantom_hu(phantom.world_points(affine, array.shape))
    np.testing.assert_allclose(array, expected, atol=0.6)


def test_an_oblique_series_lies_right_in_the_world(tmp_path):
    angle = np.radians(20)
    orientation = (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)
    array, affine = read(phantom.write_series(tmp_path, **SMALL, orientation=orientation))
    expected = phantom.phantom_hu(phantom.world_points(affine, array.shape))
    np.testing.assert_allclose(array, expected, atol=2)


def test_the_landmarks_of_an_anisotropic_scan_are_found_at_their_places(tmp_path):
    array, affine = read(phantom.write_series(tmp_path))
    places = phantom.landmark_places(array, affine)
    assert len(places) == len(phantom.LANDMARKS)
    np.testing.assert_allclose(places, phantom.true_places(), atol=0.5)


def test_slope_and_intercept_are_those_of_each_slice(tmp_path):
    plain, affine = read(phantom.write_series(tmp_path / "plain", **SMALL))
    folder = phantom.write_series(tmp_path / "scaled", **SMALL, intercepts=(-1024.0, -1000.0, 7.5), slopes=(1.0, 0.5))
    scaled, same_affine = read(folder)
    np.testing.assert_array_equal(affine, same_affine)
    np.testing.assert_allclose(scaled, plain, atol=1.01)


def test_positions_that_are_stored_rounded_are_accepted(tmp_path):
    def rounded(dataset, index):
        dataset.ImagePositionPatient = [round(float(value), 1) for value in dataset.ImagePositionPatient]
        return dataset

    _, affine = read(phantom.write_series(tmp_path, shape=(24, 20, 9), spacing=(3.5, 3.4, 0.625), edit=rounded))
    assert affine[2, 2] == pytest.approx(0.625, abs=0.02)


def test_series_are_told_apart_wherever_their_files_lie(tmp_path):
    for uid, depth in ((generate_uid(), 4), (generate_uid(), 5)):
        phantom.write_series(tmp_path / "all", **SMALL | {"shape": (24, 20, depth)}, uid=uid)
        for number, path in enumerate(sorted((tmp_path / "all").glob("IM*"))):
            place = tmp_path / f"{depth}" / f"nest{number % 2}" / f"{number}.weird name"
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    (tmp_path / "notes.txt").write_text("DICM")
    (tmp_path / "empty").touch()
    series, damaged = find_series(tmp_path)
    assert not damaged
    assert sorted(read_series(one)[0].shape[2] for one in series) == [4, 5]
    assert len({one.key for one in series}) == len({one.name for one in series}) == 2


def test_a_dicom_file_that_is_cut_short_is_named(tmp_path):
    phantom.write_series(tmp_path, **SMALL)
    whole = (tmp_path / "IM000").read_bytes()
    (tmp_path / "IM000").write_bytes(whole[:300])
    (series,), damaged = find_series(tmp_path)
    assert [path.name for path in damaged] == ["IM000"]
    assert len(series.files) == 5
    (tmp_path / "IM000").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"\(series .*IM000: found pixels that cannot be decoded .*; copy it again"):
        read(tmp_path)


def test_a_number_of_odd_length_is_a_damaged_file(tmp_path):
    phantom.write_series(tmp_path, **SMALL)
    path = tmp_path / "IM000"
    data, rows = path.read_bytes(), b"\x28\x00\x10\x00US\x02\x00"
    start = data.index(rows)
    path.write_bytes(data[: start + 6] + b"\x03\x00" + bytes(3) + data[start + 10 :])
    with pytest.raises(ValueError, match=r"IM000: found a damaged DICOM file \(BytesLengthException\)"):
        read(tmp_path)


def test_a_file_that_is_dicom_by_its_name_only_is_named(tmp_path):
    """An empty file at the end of a stack leaves no gap by which its absence would be noticed."""
    for path in phantom.write_series(tmp_path, **SMALL).glob("IM*"):
        path.rename(path.with_suffix(".dcm"))
    (tmp_path / "IM000.dcm").write_bytes(b"")
    (tmp_path / "old.DICOM").write_bytes((tmp_path / "IM001.dcm").read_bytes()[132:])
    (series,), damaged = find_series(tmp_path)
    assert [path.name for path in damaged] == ["IM000.dcm", "old.DICOM"]
    assert "found an empty file, expected a DICOM file; copy it again" in damaged[tmp_path / "IM000.dcm"]
    assert len(series.files) == 5


def test_nothing_that_tells_who_the_patient_is_leaves_the_module(tmp_path):
    uid = generate_uid()
    phantom.write_series(tmp_path / "a", **SMALL, uid=uid, edit=changed(2, RescaleSlope=0))
    (series,), _ = find_series(tmp_path)
    told = [str(series)]
    with pytest.raises(ValueError, match="RescaleSlope 0") as caught:
        read_series(series)
    told.append(str(caught.value))
    for text in told:
        assert not any(secret in text for secret in (phantom.PATIENT_ID, "Smith", uid))


def test_a_patient_has_one_anonymous_name_for_each_salt(tmp_path):
    phantom.write_series(tmp_path / "a", **SMALL)
    phantom.write_series(tmp_path / "b", **SMALL, patient_id=f" {phantom.PATIENT_ID} ")
    phantom.write_series(tmp_path / "c", **SMALL, patient_id="other")
    names = [one.patient for one in find_series(tmp_path)[0]]
    assert names[0] == names[1] == anonymous_name(phantom.PATIENT_ID)
    assert names[2] != names[0]
    salted = [one.patient for one in find_series(tmp_path, salt="secret")[0]]
    assert salted[0] == salted[1] == anonymous_name(phantom.PATIENT_ID, "secret")
    assert not set(salted) & set(names)
    keys = [{one.key for one in find_series(tmp_path, salt)[0]} for salt in ("", "secret", "another")]
    assert len(set.union(*keys)) == 9


def test_files_without_or_with_several_patient_ids_have_no_patient(tmp_path):
    phantom.write_series(tmp_path / "a", **SMALL, edit=without("PatientID"))
    phantom.write_series(tmp_path / "b", **SMALL, edit=changed(1, PatientID="another"))
    assert [one.patient for one in find_series(tmp_path)[0]] == [None, None]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (phantom.edited(GantryDetectorTilt=12.5), r"found a gantry tilt of 12.5 degrees, expected 0; correct the tilt"),
        (
            moved(lambda index: np.array([0, 2.0 * index, 0])),
            r"found slices shifted sideways by up to 10 mm \(a shear of 11.3 degrees\), expected less than 1.7 mm",
        ),
        (
            lambda dataset, index: None if index == 3 else dataset,
            r"found slice distances of 10 ... 20 mm, expected equal ones \(median 10 mm\); slices are missing",
        ),
        (
            moved(lambda index: np.array([0, 0, -10.0 * (index == 3)])),
            r"found 2 slices at the same positions \(first at .*expected each once; remove copies",
        ),
        (
            changed(4, ImageOrientationPatient=list(phantom.FEET_FIRST)),
            r"found orientation .* and .* in one series, expected one orientation; separate them",
        ),
        (
            changed(4, PixelSpacing=[3.4, 3.6]),
            r"found pixel spacing \[3.4, 3.[56]\] and \[3.4, 3.[56]\] in one series, expected one pixel spacing",
        ),
        (
            changed(4, Rows=10, Columns=48),
            r"found size \(rows, columns\) \[.0, ..\] and \[.0, ..\] in one series, expected one size",
        ),
        (
            phantom.edited(Modality="MR"),
            r"found modality 'MR', expected one of \['CT'\]; leave the series out or accept",
        ),
        (
            phantom.edited(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
            r"found a localizer \(ImageType LOCALIZER\), expected axial slices; leave the series out",
        ),
        (
            phantom.edited(NumberOfFrames=3),
            r"found 3 frames of 1 samples in one file, expected one grey slice; convert",
        ),
        (without("RescaleSlope"), r"found RescaleSlope \[\], expected 1 finite number; export the series again"),
        (without("PixelSpacing"), r"found PixelSpacing \[\], expected 2 finite numbers"),
        (without("ImagePositionPatient"), r"found ImagePositionPatient \[\], expected 3 finite numbers"),
        (phantom.edited(RescaleType="OD"), r"found RescaleType 'OD', expected HU; leave the series out"),
        (
            phantom.edited(ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0]),
            r"found ImageOrientationPatient .*, expected two perpendicular unit vectors; export the series again",
        ),
        (
            lambda dataset, index: dataset if index == 0 else None,
            r"found 1 slice, expected at least 2; complete the series",
        ),
    ],
)
def test_each_defect_is_named_with_its_series(tmp_path, edit, message):
    (series,), _ = find_series(phantom.write_series(tmp_path / "chest", **SMALL, edit=edit).parent)
    with pytest.raises(ValueError, match=rf"^chest \(series {series.key}\): {message}"):
        read_series(series)


def test_other_modalities_are_read_when_they_are_allowed(tmp_path):
    (series,), _ = find_series(phantom.write_series(tmp_path, **SMALL, edit=phantom.edited(Modality="OT")))
    assert read_series(series, modalities=("CT", "OT"))[0].shape == (24, 20, 6)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (JPEGLosslessSV1, r"found pixels compressed as 'JPEG Lossless.*', expected a decoder for them; install one"),
        (MPEG2MPML, r"found pixels stored as 'MPEG2.*', expected a transfer syntax that pydicom knows; decompress"),
    ],
)
def test_pixels_that_nothing_can_decode_are_named(tmp_path, monkeypatch, syntax, message):
    monkeypatch.setattr(get_decoder(JPEGLosslessSV1), "_available", {})  # as where none of its plugins is installed

    def compressed(dataset, index):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        return dataset

    (series,), _ = find_series(phantom.write_series(tmp_path, **SMALL, edit=compressed))
    with pytest.raises(ValueError, match=message):
        read_series(series)


def test_lossless_compression_that_can_be_decoded_changes_nothing(tmp_path):
    def compressed(dataset, index):
        dataset.compress(RLELossless)
        return dataset

    uid = generate_uid()
    plain, _ = read(phantom.write_series(tmp_path / "plain", **SMALL, uid=uid))
    packed, _ = read(phantom.write_series(tmp_path / "packed", **SMALL, uid=uid, edit=compressed))
    np.testing.assert_array_equal(packed, plain)


def test_a_missing_pydicom_says_how_to_install_it(tmp_path, monkeypatch):
    phantom.write_series(tmp_path, **SMALL)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"pip install hf-vq\[medical\]"):
        find_series(tmp_path)
