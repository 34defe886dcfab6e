"""Making rows of arrays out of the subjects of a paired data set, for `ShardedSource` to read."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..processors.dicom_radiographs import is_real_radiograph
from ..processors.image_processing_xray import read_image
from ..processors.scans import read_scan
from .paired import PairedDataset
from .paired_sources import LABEL_COLUMN
from .sharded_source import AFFINE_COLUMN, VOXELS_COLUMN

VOXEL_TYPES = ("int16", "float32")


class VolumeRows:
    """Subjects of a paired data set as rows of arrays.

    Args:
        datasets: all splits.
        voxel_type: `"int16"`, which CT scans in whole HU need, or `"float32"`.

    Raises:
        ValueError: the type is unknown, or the splits have other views.
    """

    def __init__(self, datasets: dict[str, PairedDataset], voxel_type: str = "int16") -> None:
        if voxel_type not in VOXEL_TYPES:
            raise ValueError(f"--voxel_type: found {voxel_type!r}, expected one of {list(VOXEL_TYPES)}; choose one")
        self._datasets, self._type = datasets, np.dtype(voxel_type)
        self._first: dict[str, Any] = {}
        first = next(iter(datasets.values()))
        for split, dataset in datasets.items():
            if dataset.view_names != first.view_names:
                raise ValueError(
                    f"{split}: found the views {dataset.view_names}, expected {first.view_names} as in the other "
                    "splits; complete metadata.csv"
                )

    def row(self, split: str, index: int) -> tuple[Any, dict[str, list[Any]]]:
        """Returns the `datasets.Features` and the columns of one subject.

        Raises:
            ValueError: its files cannot be read, or an array cannot be stored without a loss.
        """
        from datasets import Array2D, Array3D, Features, Value

        dataset = self._datasets[split]
        voxels, affine = read_scan(dataset.volume(index))
        arrays = {VOXELS_COLUMN: self._stored(voxels).T, AFFINE_COLUMN: affine}
        arrays.update((view, grey_pixels(dataset.view_image(index, view))) for view in dataset.view_names)
        kinds = {name: Array3D if array.ndim == 3 else Array2D for name, array in arrays.items()}
        features = {name: kinds[name](array.shape, str(array.dtype)) for name, array in arrays.items()}
        columns: dict[str, list[Any]] = {"subject": [dataset.subjects[index]]}
        columns.update((name, [np.ascontiguousarray(array)]) for name, array in arrays.items())
        for name, feature in features.items():
            if self._first.setdefault(name, feature) != feature:
                raise ValueError(
                    f"found {name} as {feature}, expected {self._first[name]} as of the first subject; bring all to "
                    "one grid, as prepare_scans.py does"
                )
        texts = {"subject": Value("string")}
        if dataset.labels is not None:
            texts[LABEL_COLUMN] = Value("string")
            columns[LABEL_COLUMN] = [dataset.labels[index]]
        return Features({**texts, **features}), columns

    def _stored(self, voxels: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        stored = voxels.astype(self._type)
        if not np.array_equal(stored, voxels):
            raise ValueError(
                f"found HU between whole numbers or outside {np.iinfo(np.int16).min} ... {np.iinfo(np.int16).max}, "
                "which int16 cannot hold; pass --voxel_type float32"
            )
        return stored


def grey_pixels(image: Image.Image) -> npt.NDArray[Any]:
    """Returns the pixels of a view, (rows, columns) of 8 or 16 bits.

    Raises:
        ValueError: the image is no grey one of 8 or 16 bits, or a DICOM radiograph, whose mark would be lost.
    """
    if is_real_radiograph(image):
        raise ValueError(
            "found a DICOM radiograph, expected views as images: shards would not say that it is a real one; keep the "
            "folder as it is"
        )
    bits = {"L": (255, np.uint8), "RGB": (255, np.uint8)}.get(image.mode, (65535, np.uint16))
    scaled = read_image(image) * np.float32(bits[0])
    pixels = scaled.round().astype(bits[1])
    if image.mode == "F" or not np.array_equal(read_image(Image.fromarray(pixels)), read_image(image)):
        raise ValueError(f"found an image of mode {image.mode}, expected a grey one of 8 or 16 bits; convert it")
    return pixels
