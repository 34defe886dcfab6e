"""Volumes paired with their views, as a torch data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from ..processors import CTVolumeProcessor, XrayImageProcessor
from ..processors.fields import one_line
from ..processors.scans import open_nifti
from .checking import looks_whole
from .locating import local_folder
from .paired_sources import open_source
from .rendered_views import rendered_beam


class PairedDataset(Dataset[dict[str, Any]]):
    """One split of a paired data set.

    An item has `subject` (str); with a volume processor `pixel_values` (1, D, H, W); with a view processor
    `view_pixel_values` (V, 1, H, W), views in the order of `view_names`.

    Args:
        source: folder with a folder for each split, each holding volumes (.nii.gz, HU), images and metadata.csv with
            the columns file_name, one per view, and subject; or folder with a `datasets` data set (as `save_to_disk`
            or `hf download` writes it) with the columns volume, one per view, and subject; or the id on the Hub of
            either, `owner/name` or `owner/name@revision`.
        split: name of the split.
        volume_processor: makes `pixel_values`.
        view_processor: makes `view_pixel_values`.
        views: names of the views to use, in this order; all of them, sorted, when absent.
        cache: keep processed items in memory, all of them in the end; they are shared, so do not change them in place.
        allow_missing: let subjects pass whose files are missing; to read one is an error then.

    Attributes:
        subjects: name of each subject.
        view_names: name of each view.
        labels: name of each subject's class, empty where it is not known; None without a column label.
        beam: rays with which the views were rendered from the volumes; None where nothing says that they were.

    Raises:
        ValueError: the source is missing or malformed, or a view processor is given while there are no views.
    """

    def __init__(
        self,
        source: str | Path,
        split: str,
        volume_processor: CTVolumeProcessor | None = None,
        view_processor: XrayImageProcessor | None = None,
        views: Sequence[str] | None = None,
        cache: bool = False,
        allow_missing: bool = False,
    ) -> None:
        folder = local_folder(source)
        self._source = open_source(folder, split, str(source), views, allow_missing)
        self._name = f"{source} ({split})"
        self.subjects = self._source.subjects
        self.view_names = self._source.view_names
        self.labels = self._source.labels
        self.beam = rendered_beam(folder)
        if view_processor is not None and not self.view_names:
            raise ValueError(f"{self._name}: found no view columns, expected at least one such as 'frontal'; add one")
        self._volume_processor = volume_processor
        self._view_processor = view_processor
        self._cache: dict[int, dict[str, Any]] | None = {} if cache else None

    def __len__(self) -> int:
        """Returns the number of subjects."""
        return len(self.subjects)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the item of one subject; raises ValueError, naming it, when its files cannot be used."""
        index = range(len(self))[index]
        if self._cache is None:
            return self._load(index)
        if index not in self._cache:
            self._cache[index] = self._load(index)
        return dict(self._cache[index])

    def volume(self, index: int) -> Any:
        """Returns a subject's volume as a `nibabel` image in HU, as stored."""
        volume = self._source.volume(index)
        return open_nifti(volume) if isinstance(volume, str | Path) else volume

    def view_image(self, index: int, name: str) -> Image.Image:
        """Returns one view of a subject as it is stored; raises ValueError when there is no such view."""
        if name not in self.view_names:
            raise ValueError(f"{self._name}: found no view {name!r}, expected one of {self.view_names}; choose one")
        return self._source.view_image(index, name)

    def problem(self, index: int, thorough: bool = False) -> str | None:
        """Returns what is wrong with the files of a subject that its items are made of, None if nothing is.

        Args:
            index: of the subject.
            thorough: read them, instead of looking at their headers and sizes; see `checking.looks_whole`.
        """
        images = self.view_names if self._view_processor is not None else []
        files = self._source.files(index, self._volume_processor is not None, images)
        if not thorough and all(map(looks_whole, files)):
            return None
        try:
            self._load(index)
        except (ValueError, OSError) as error:
            return one_line(error)
        return None

    def _load(self, index: int) -> dict[str, Any]:
        """Reads and processes one subject."""
        item: dict[str, Any] = {"subject": self.subjects[index]}
        try:
            if self._volume_processor is not None:
                item["pixel_values"] = self._volume_processor(self._source.volume(index))["pixel_values"][0]
            if self._view_processor is not None:
                item["view_pixel_values"] = self._process_views(index, self._view_processor)
        except ValueError as error:
            raise ValueError(f"{self._name}, subject {self.subjects[index]}: {error}") from error
        return item

    def _process_views(self, index: int, processor: XrayImageProcessor) -> torch.Tensor:
        """The views of one subject, (V, 1, H, W)."""
        images = [self.view_image(index, name) for name in self.view_names]
        pixel_values: torch.Tensor = processor(images)["pixel_values"]
        return pixel_values
