"""Predictions of the trivial baselines for the subjects of a report, kept in files instead of in memory."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from .baselines import fit_ridge, mean_volume, nearest_subjects
from .metrics import FloatArray, Window
from .protocol import Subject
from .report import ROW_MEAN_VOLUME, ROW_NEAREST, ROW_RIDGE
from .volumes import onto_grid


class BaselineVolumes:
    """Mean training volume, nearest training subject by view, and ridge regression from views to voxels.

    All volumes are clipped to the window and, where grids differ, resampled onto the first training volume's grid. They
    lie in float32 files, which are read a block of voxels or a subject at a time.

    Args:
        train: training subjects; each is read once.
        validation: validation subjects, on which the ridge regression's penalty is chosen.
        subjects: the subjects to be predicted.
        window: lowest and highest HU.
        scratch: an existing folder for the files, `4 B x voxels` for each subject of all three sets.

    Attributes:
        penalty: the ridge regression's penalty.

    Raises:
        ValueError: views of different sizes or names, or too little space in the scratch folder.
    """

    def __init__(
        self,
        train: Sequence[Subject],
        validation: Sequence[Subject],
        subjects: Sequence[Subject],
        window: Window,
        scratch: Path,
    ) -> None:
        first = train[0]
        self._grid, self._window = first.truth, window
        _check_space(scratch, (len(train) + len(validation) + len(subjects)) * first.truth.hu.nbytes)
        train_views, self._train = self._stacked(train, first, scratch / "train.npy")
        validation_views, validation_volumes = self._stacked(validation, first, scratch / "validation.npy")
        views = np.stack([_views(subject, first) for subject in subjects])
        ridge = fit_ridge(train_views, self._train, validation_views, validation_volumes)
        self.penalty = ridge.penalty
        self._ridge = ridge.predict(views, out=_volume_file(scratch / "ridge.npy", len(subjects), first))
        self._nearest = nearest_subjects(train_views, views)
        self._mean = mean_volume(self._train).astype(np.float32)

    def volumes(self, index: int, subject: Subject) -> dict[str, npt.NDArray[np.float32]]:
        """Predictions for one subject.

        Args:
            index: its place among the subjects to be predicted.
            subject: the subject.

        Returns:
            For each baseline's row of the report a volume on the grid of the true one, in HU.
        """
        predictions = {
            ROW_MEAN_VOLUME: self._mean,
            ROW_NEAREST: self._train[self._nearest[index]],
            ROW_RIDGE: self._ridge[index],
        }
        return {
            name: onto_grid(self._grid.with_hu(volume), subject.truth.grid, self._window[0])
            for name, volume in predictions.items()
        }

    def _stacked(
        self, subjects: Sequence[Subject], like: Subject, path: Path
    ) -> tuple[npt.NDArray[np.float32], FloatArray]:
        """Views (N, V, rows, cols) in memory and volumes (N, D, H, W) in a file, all like those of one subject."""
        volumes = _volume_file(path, len(subjects), like)
        views = np.empty((len(subjects), *like.views.shape), dtype=np.float32)
        for index in tqdm(range(len(subjects)), desc=f"read {path.stem}"):
            subject = subjects[index]
            views[index] = _views(subject, like)
            volumes[index] = np.clip(onto_grid(subject.truth, self._grid.grid, self._window[0]), *self._window)
        return views, volumes


def _volume_file(path: Path, count: int, like: Subject) -> FloatArray:
    """A new memory-mapped file of volumes, (N, D, H, W) float32."""
    shape = (count, *like.truth.hu.shape)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)  # type: ignore[no-untyped-call]


def _check_space(scratch: Path, needed: int) -> None:
    """Raises ValueError when the files would not fit: a memory-mapped file fails much later, with a bus error."""
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise ValueError(
            f"{os.path.abspath(scratch)}: found {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for the "
            "volumes of the baselines; name a larger disk with --scratch_dir"
        )


def _views(subject: Subject, expected: Subject) -> npt.NDArray[np.float32]:
    """Views (V, rows, cols) in the order in which the expected subject has them."""
    if sorted(subject.view_names) != sorted(expected.view_names) or subject.views.shape != expected.views.shape:
        raise ValueError(
            f"{subject.name}: found views {list(subject.view_names)} of shape {subject.views.shape}, expected "
            f"{list(expected.view_names)} of shape {expected.views.shape} as {expected.name} has; make them alike"
        )
    return subject.views[[subject.view_names.index(name) for name in expected.view_names]]
