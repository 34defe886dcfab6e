"""The evaluation protocol: which volumes are held against the true ones, and how each row of the report is made.

Subjects are read one at a time, scored in all rows and forgotten, so memory does not grow with their number.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from ..processors.geometry import is_view
from ..processors.image_processing_xray import XrayImageProcessor
from ..processors.radiographs import BeamGeometry
from .metrics import DEFAULT_WINDOW, Window, reprojection_error, volume_scores
from .report import ROW_AVERAGE_SAMPLE, ROW_MEAN_OF_SAMPLES, ROW_ONE_SAMPLE
from .volumes import GridVolume, read_volume

Volumes = Sequence[npt.NDArray[Any]]
Scores = dict[str, float]


@dataclass(frozen=True)
class Subject:
    """One subject of a paired data set.

    Attributes:
        name: subject's name.
        truth: true volume, HU.
        views: images in display units 0 to 1, shape (V, rows, cols).
        view_names: name of each view.
    """

    name: str
    truth: GridVolume
    views: npt.NDArray[np.float32]
    view_names: tuple[str, ...]


class SubjectSet(Sequence[Subject]):
    """Subjects of one split, each read when it is asked for and not kept.

    Args:
        dataset: a `PairedDataset`.
        image_size: (rows, cols) to which the views are resized; those of the first subject's first view by default.
        names: the subjects wanted; all of them by default, always in the data set's order.

    Attributes:
        image_size: (rows, cols) of every view.
        names: name of each subject.
        view_names: name of each view.
        beam: rays with which the views were rendered, as the data set says; None where it says nothing.

    Raises:
        ValueError: a data set without views; and when a subject is read, a volume or a view that can't be.
    """

    def __init__(
        self, dataset: Any, image_size: tuple[int, int] | None = None, names: Sequence[str] | None = None
    ) -> None:
        self.view_names = tuple(dataset.view_names)
        if not self.view_names:
            raise ValueError("data: found no view columns, expected at least one such as 'frontal'; add the views")
        self._dataset, self.beam = dataset, getattr(dataset, "beam", None)
        self._indices = [i for i, name in enumerate(dataset.subjects) if names is None or name in names]
        self.names = [str(dataset.subjects[index]) for index in self._indices]
        if image_size is None:
            cols, rows = dataset.view_image(0, self.view_names[0]).size
            image_size = (rows, cols)
        self.image_size = image_size
        self._processor = XrayImageProcessor(
            size={"height": image_size[0], "width": image_size[1]}, output_range=(0.0, 1.0)
        )

    def subset(self, names: Sequence[str]) -> "SubjectSet":
        """Some of the subjects."""
        return SubjectSet(self._dataset, self.image_size, names)

    def __len__(self) -> int:
        """Returns the number of subjects."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Subject: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Subject]: ...

    def __getitem__(self, index: int | slice) -> Subject | Sequence[Subject]:
        """Reads a subject, or several."""
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        position = self._indices[index]
        images = [self._dataset.view_image(position, view) for view in self.view_names]
        views = np.asarray(self._processor(images)["pixel_values"][:, 0])
        name = self.names[index]
        return Subject(name, read_volume(self._dataset.volume(position), f"volume of {name}"), views, self.view_names)


@dataclass(frozen=True)
class Scorer:
    """How one volume is held against the true one.

    Attributes:
        window: lowest and highest HU.
        beam: rays with which the views were made; parallel ones by default.
    """

    window: Window = DEFAULT_WINDOW
    beam: BeamGeometry | None = None

    def scores(self, subject: Subject, volume: npt.NDArray[Any]) -> Scores:
        """All scores of a volume.

        Args:
            subject: the subject.
            volume: a volume on the grid of the true one, (D, H, W), in HU.

        Returns:
            `volume_scores` and, where the views can be rendered, `reprojection`.

        Raises:
            ValueError: as `volume_scores`.
        """
        scores = volume_scores(subject.truth.hu, volume, self.window)
        return scores | (self.reprojection(subject, volume) if can_be_rendered(subject.view_names) else {})

    def reprojection(self, subject: Subject, volume: npt.NDArray[Any]) -> Scores:
        """Re-projection error alone; with the true volume it is the floor that no other volume need go below.

        Args:
            subject: the subject, whose views can be rendered.
            volume: a volume on the grid of the true one, (D, H, W), in HU.

        Returns:
            `reprojection`.

        Raises:
            ValueError: as `reprojection_error`.
        """
        error = reprojection_error(volume, subject.truth.spacing, subject.views, subject.view_names, self.beam)
        return {"reprojection": error}

    def sample_rows(self, subject: Subject, samples: Volumes) -> dict[str, Scores]:
        """Rows of one subject's generated volumes: the first, the average of all samples' scores, their mean's scores.

        Args:
            subject: the subject.
            samples: its generated volumes on the grid of the true one, in HU; clipped to the window before they are
                averaged.

        Returns:
            One row with one sample, three rows with more.

        Raises:
            ValueError: as `volume_scores`.
        """
        every = [self.scores(subject, volume) for volume in samples]
        rows = {ROW_ONE_SAMPLE: every[0]}
        if len(samples) > 1:
            rows[ROW_AVERAGE_SAMPLE.format(count=len(samples))] = {
                metric: float(np.mean([scores[metric] for scores in every])) for metric in every[0]
            }
            mean = np.mean([np.clip(volume, *self.window) for volume in samples], axis=0)
            rows[ROW_MEAN_OF_SAMPLES.format(count=len(samples))] = self.scores(subject, mean)
        return rows


RowMaker = Callable[[int, Subject], Mapping[str, Scores]]
"""Rows of the report for one subject, given its number and the subject itself."""


def score_subjects(
    subjects: Sequence[Subject], makers: Iterable[RowMaker], num_workers: int = 1
) -> dict[str, list[Scores]]:
    """Scores every subject in every row, each subject read once.

    Args:
        subjects: the subjects.
        makers: what makes the rows, in the order of the report; the same rows for every subject.
        num_workers: subjects scored at a time, each in a thread.

    Returns:
        For each row one mapping of metric to score for each subject, in their order.

    Raises:
        ValueError: what the makers raise.
    """
    table: dict[str, list[Scores]] = {}
    one = partial(_all_rows, subjects, list(makers))
    with ThreadPoolExecutor(num_workers) as pool:
        for rows in tqdm(pool.map(one, range(len(subjects))), total=len(subjects), desc="score"):
            for name, scores in rows.items():
                table.setdefault(name, []).append(dict(scores))
    return table


def can_be_rendered(view_names: Sequence[str]) -> bool:
    """Whether every view is one that `render_views` knows, so that re-projection has a meaning."""
    return all(is_view(name) for name in view_names)


def _all_rows(subjects: Sequence[Subject], makers: Sequence[RowMaker], index: int) -> dict[str, Scores]:
    """All rows of one subject."""
    subject = subjects[index]
    rows: dict[str, Scores] = {}
    for maker in makers:
        rows |= maker(index, subject)
    return rows
