"""Prepared subjects as memory-mapped arrays: reading one is slicing a file, with nothing to decompress or decode."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..processors.geometry import import_nibabel
from .mapped_columns import MappedColumn
from .paired_sources import LABEL_COLUMN, chosen_views, unique_subjects

VOXELS_COLUMN, AFFINE_COLUMN = "voxels", "affine"


class ShardedSource:
    """A split that `scripts/shard_volumes.py` wrote.

    Its columns are subject; voxels, HU in the order z, y, x in which NIfTI files store them; affine (4, 4), voxel index
    (x, y, z) to RAS+ world, mm; one per view, grey pixels of 8 or 16 bits; and label, text, where there is one.

    Args:
        dataset: the split, a `datasets.Dataset` mapped into memory.
        name: what errors call it.
        views: names of the views to use, in this order; all of them, sorted, when absent.

    Raises:
        ValueError: a view is missing, or a subject's name cannot be a file's.
    """

    def __init__(self, dataset: Any, name: str, views: Sequence[str] | None = None) -> None:
        from datasets import Array2D

        found = [
            column
            for column, feature in dataset.features.items()
            if isinstance(feature, Array2D) and column != AFFINE_COLUMN
        ]
        self.view_names = chosen_views(found, views, name)
        self.subjects = unique_subjects(list(dataset["subject"]), name)
        self.labels = list(dataset[LABEL_COLUMN]) if LABEL_COLUMN in dataset.column_names else None
        columns = (VOXELS_COLUMN, AFFINE_COLUMN, *self.view_names)
        self._columns = {column: MappedColumn(dataset, column) for column in columns}

    def volume(self, index: int) -> Any:
        """Returns a subject's volume as a nibabel image in HU, its voxels in the file that is mapped."""
        affine, voxels = self._columns[AFFINE_COLUMN][index], self._columns[VOXELS_COLUMN][index]
        if voxels.dtype == np.float32:  # which others are copied to anyway, and nobody may write to the file
            voxels = voxels.copy()
        return import_nibabel().Nifti1Image(voxels.T, affine)

    def view_image(self, index: int, view: str) -> Image.Image:
        """Returns one view of a subject."""
        return Image.fromarray(self._columns[view][index])

    def files(self, index: int, volume: bool, views: Sequence[str]) -> list[Path]:
        """Returns none: all subjects lie in few files, which were checked when they were mapped."""
        return []
