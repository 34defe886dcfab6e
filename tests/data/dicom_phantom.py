"""Writes DICOM series of a phantom whose contents are known in world coordinates."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

LANDMARKS = np.array([[18.0, 8.0, 15.0], [-22.0, 4.0, 8.0], [6.0, -14.0, -16.0], [-8.0, 12.0, -9.0]])
"""Centres of the bright spheres in RAS+ about the phantom's middle, mm; no flip maps them onto each other."""

RADIUS = 8.0
SHAPE = (120, 96, 28)  # columns, rows, slices
SPACING = (0.7, 0.7, 2.5)  # between columns, between rows, between slices, mm
CENTER = np.array([12.0, -30.0, 140.0])  # RAS+, mm
HEAD_FIRST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
FEET_FIRST = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # supine too: the images are seen from the other side
PATIENT_ID = "SMITH-1953-07"


def phantom_hu(points: np.ndarray, in_water: bool = False) -> np.ndarray:
    """HU at RAS+ points (..., 3) in mm: spheres of 900 HU with soft edges in water, an ellipsoid in air or endless."""
    offsets = points - CENTER
    body = np.clip((1 - np.linalg.norm(offsets / np.array([36.0, 28.0, 30.0]), axis=-1)) * 20 + 0.5, 0, 1)
    hu = -1000 + 1000 * (np.ones_like(body) if in_water else body)
    for landmark in LANDMARKS:
        inside = np.clip((RADIUS - np.linalg.norm(offsets - landmark, axis=-1)) / 1.5 + 0.5, 0, 1)
        hu = hu + inside * (900 - hu)
    return hu


def write_series(
    folder: Path,
    shape: Sequence[int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    orientation: Sequence[float] = HEAD_FIRST,
    patient_id: str = PATIENT_ID,
    intercepts: Sequence[float] = (-1024.0,),
    slopes: Sequence[float] = (1.0,),
    edit: Callable[[Dataset, int], Dataset | None] = lambda dataset, index: dataset,
    uid: str | None = None,
    in_water: bool = False,
) -> Path:
    """Writes one file for each slice, in an order that neither names nor numbers tell.

    Args:
        folder: where to write; made if need be.
        shape: columns, rows, slices.
        spacing: distances between columns, rows and slices, mm.
        orientation: direction cosines of the rows and the columns, LPS+.
        patient_id: the PatientID.
        intercepts: RescaleIntercept of the slices, repeated.
        slopes: RescaleSlope of the slices, repeated.
        edit: changes a slice before it is written; one for which it returns None is left out.
        uid: SeriesInstanceUID, a new one by default.
        in_water: fill the whole scan with water.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    axes = np.stack([row, column, np.cross(row, column)], axis=1) * spacing
    first = CENTER * [-1, -1, 1] - axes @ ((np.array(shape) - 1) / 2)
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in shape[:2]], indexing="ij"), axis=-1)
    names = np.random.default_rng(0).permutation(shape[2])
    for index in range(shape[2]):
        position = first + axes[:, 2] * index
        points = (position + indices @ axes[:, :2].T) * [-1, -1, 1]
        slope, intercept = slopes[index % len(slopes)], intercepts[index % len(intercepts)]
        stored = np.round((phantom_hu(points, in_water).T - intercept) / slope)
        dataset = edit(_dataset(stored, position, orientation, spacing, (slope, intercept), patient_id, uid), index)
        if dataset is not None:
            dataset.save_as(folder / f"IM{names[index]:03d}", enforce_file_format=True)
    return folder


def _dataset(stored, position, orientation, spacing, scale, patient_id, uid) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = uid
    dataset.PatientID = patient_id
    dataset.PatientName = "Smith^Jane"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelSpacing = [spacing[1], spacing[0]]
    dataset.ImageOrientationPatient = [float(value) for value in orientation]
    dataset.ImagePositionPatient = [round(float(value), 4) for value in position]
    dataset.RescaleSlope, dataset.RescaleIntercept = scale
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.PixelData = stored.astype("<i2").tobytes()
    return dataset


def world_points(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """RAS+ coordinates of every voxel of an (x, y, z) grid, mm."""
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def landmark_places(hu: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """RAS+ centres of all bright objects of an (x, y, z) volume, wherever they are, mm, sorted by x."""
    from skimage import measure

    labels = measure.label(hu > 450)
    centers = [region.centroid for region in measure.regionprops(labels) if region.area >= 4]
    places = np.array(centers).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    return places[places[:, 0].argsort()]


def true_places() -> np.ndarray:
    """RAS+ centres of the landmarks, mm, sorted by x."""
    places = LANDMARKS + CENTER
    return places[places[:, 0].argsort()]


def edited(**tags) -> Callable[[Dataset, int], Dataset]:
    """An `edit` that sets tags of every slice."""

    def edit(dataset: Dataset, index: int) -> Dataset:
        for name, value in tags.items():
            setattr(dataset, name, value)
        return dataset

    return edit
