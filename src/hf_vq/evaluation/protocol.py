"""The evaluation protocol: which volumes are held against the true ones, and how each row of the report is made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..processors.geometry import VIEW_AXES
from ..processors.image_processing_xray import XrayImageProcessor
from .baselines import fit_ridge, mean_volume, nearest_subjects
from .metrics import Window, reprojection_error, volume_scores
from .report import (
    ROW_AVERAGE_SAMPLE,
    ROW_MEAN_OF_SAMPLES,
    ROW_MEAN_VOLUME,
    ROW_NEAREST,
    ROW_ONE_SAMPLE,
    ROW_RIDGE,
)
from .volumes import GridVolume, onto_grid, read_volume

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


def read_subjects(dataset: Any, image_size: tuple[int, int] | None = None) -> Iterator[Subject]:
    """Read the subjects of one split.

    Args:
        dataset: a `PairedDataset`.
        image_size: (rows, cols) to which the views are resized; those of the first subject's first view by default.

    Yields:
        Each subject with its true volume, untouched by any processor, and its views.

    Raises:
        ValueError: a data set without views, or a volume or a view that can't be read.
    """
    view_names = tuple(dataset.view_names)
    if not view_names:
        raise ValueError("data: found no view columns, expected at least one such as 'frontal'; add the views")
    cols, rows = dataset.view_image(0, view_names[0]).size
    height, width = image_size or (rows, cols)
    processor = XrayImageProcessor(size={"height": height, "width": width}, output_range=(0.0, 1.0))
    for index, name in enumerate(dataset.subjects):
        images = [dataset.view_image(index, view) for view in view_names]
        views = np.asarray(processor(images)["pixel_values"][:, 0])
        yield Subject(name, read_volume(dataset.volume(index), f"volume of {name}"), views, view_names)


def score_row(subjects: Sequence[Subject], volumes: Volumes, window: Window) -> list[Scores]:
    """Scores of one volume for each subject.

    Args:
        subjects: the subjects.
        volumes: for each subject a volume on the grid of its true one, (D, H, W), in HU.
        window: lowest and highest HU.

    Returns:
        For each subject `volume_scores` and, where the views can be rendered, `reprojection`.

    Raises:
        ValueError: as `volume_scores`.
    """
    rows: list[Scores] = [
        volume_scores(subject.truth.hu, volume, window) for subject, volume in zip(subjects, volumes, strict=True)
    ]
    if can_be_rendered(subjects[0].view_names):
        return [scores | more for scores, more in zip(rows, reprojection_row(subjects, volumes), strict=True)]
    return rows


def sample_rows(subjects: Sequence[Subject], samples: Sequence[Volumes], window: Window) -> dict[str, list[Scores]]:
    """Rows of the generated volumes: the first sample, the average over all samples' scores, the mean volume's scores.

    Args:
        subjects: the subjects.
        samples: for each subject its generated volumes on the grid of the true one, in HU.
        window: lowest and highest HU; samples are clipped to it before they are averaged.

    Returns:
        One row with one sample, three rows with more.

    Raises:
        ValueError: as `volume_scores`.
    """
    count = len(samples[0])
    every = [score_row(subjects, [volumes[index] for volumes in samples], window) for index in range(count)]
    rows = {ROW_ONE_SAMPLE: every[0]}
    if count > 1:
        by_subject = list(zip(*every, strict=True))
        rows[ROW_AVERAGE_SAMPLE.format(count=count)] = [
            {metric: float(np.mean([scores[metric] for scores in group])) for metric in group[0]}
            for group in by_subject
        ]
        means = [np.mean([np.clip(volume, *window) for volume in volumes], axis=0) for volumes in samples]
        rows[ROW_MEAN_OF_SAMPLES.format(count=count)] = score_row(subjects, means, window)
    return rows


def reprojection_row(subjects: Sequence[Subject], volumes: Volumes) -> list[Scores]:
    """Re-projection error alone; with the true volumes it is the floor that no other volume need go below.

    Args:
        subjects: the subjects, whose views can be rendered.
        volumes: for each subject a volume on the grid of its true one, (D, H, W), in HU.

    Returns:
        For each subject `reprojection`.

    Raises:
        ValueError: as `reprojection_error`.
    """
    return [
        {"reprojection": reprojection_error(volume, subject.truth.spacing, subject.views, subject.view_names)}
        for subject, volume in zip(subjects, volumes, strict=True)
    ]


def baseline_volumes(
    train: Sequence[Subject], validation: Sequence[Subject], subjects: Sequence[Subject], window: Window
) -> tuple[dict[str, list[npt.NDArray[np.float32]]], float]:
    """Predictions of the three trivial baselines for each subject, on the grid of its true volume.

    All volumes are clipped to the window and, where grids differ, resampled onto the first training volume's grid.

    Args:
        train: training subjects.
        validation: validation subjects, on which the ridge regression's penalty is chosen.
        subjects: the subjects to be predicted.
        window: lowest and highest HU.

    Returns:
        For each baseline's row of the report one volume for each subject, in HU; and the ridge regression's penalty.

    Raises:
        ValueError: views of different sizes or names.
    """
    grid = train[0].truth
    train_views, validation_views, views = (_views(group, train[0]) for group in (train, validation, subjects))
    train_volumes, validation_volumes = (
        np.stack([np.clip(onto_grid(one.truth, grid, window[0]), *window) for one in group])
        for group in (train, validation)
    )
    ridge = fit_ridge(train_views, train_volumes, validation_views, validation_volumes)
    nearest = nearest_subjects(train_views, views)
    predictions: dict[str, Sequence[npt.NDArray[Any]]] = {
        ROW_MEAN_VOLUME: [mean_volume(train_volumes)] * len(subjects),
        ROW_NEAREST: [train_volumes[index] for index in nearest],
        ROW_RIDGE: list(ridge.predict(views)),
    }
    moved = {
        name: [
            onto_grid(grid.with_hu(volume), subject.truth, window[0])
            for volume, subject in zip(volumes, subjects, strict=True)
        ]
        for name, volumes in predictions.items()
    }
    return moved, ridge.penalty


def can_be_rendered(view_names: Sequence[str]) -> bool:
    """Whether every view is one that `hf_vq.data.radiographs` can render, so that re-projection has a meaning."""
    return all(name in VIEW_AXES for name in view_names)


def _views(subjects: Sequence[Subject], expected: Subject) -> npt.NDArray[np.float32]:
    """Views of all subjects, (N, V, rows, cols), in the order in which the expected subject has them."""
    for subject in subjects:
        if sorted(subject.view_names) != sorted(expected.view_names) or subject.views.shape != expected.views.shape:
            raise ValueError(
                f"{subject.name}: found views {list(subject.view_names)} of shape {subject.views.shape}, expected "
                f"{list(expected.view_names)} of shape {expected.views.shape} as {expected.name} has; make them alike"
            )
    return np.stack(
        [subject.views[[subject.view_names.index(name) for name in expected.view_names]] for subject in subjects]
    )
