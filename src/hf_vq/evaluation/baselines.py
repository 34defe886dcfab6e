"""Trivial predictors that every generated volume is compared with.

A model that can't beat the mean training volume, the training subject with the most similar views, or a linear map
from views to voxels has learned nothing worth having. Volumes and views are plain arrays on one common grid; volumes
may be memory-mapped files (`numpy.memmap`), of which only a block of voxels or one subject is read at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import FloatArray

RIDGE_PENALTIES: tuple[float, ...] = tuple(float(value) for value in np.logspace(-6, 3, 28))
BLOCK_ELEMENTS = 1 << 23
"""Numbers that are converted to float64 at a time: 64 MiB."""


def mean_volume(train_volumes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Voxel-wise mean of the training volumes: the best guess that ignores the views.

    Args:
        train_volumes: shape (N, D, H, W), in HU.

    Returns:
        Shape (D, H, W), in HU.

    Raises:
        ValueError: no volumes, or other than four axes.
    """
    volumes = _stack("train_volumes", train_volumes, 4)
    mean = np.zeros(volumes.shape[1:])
    for volume in volumes:
        mean += volume
    return np.asarray(mean / len(volumes))


def nearest_subjects(train_views: npt.ArrayLike, query_views: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Index of the training subject whose views are closest, for each query subject.

    The distance is the L2 norm over the pixels of all views together.

    Args:
        train_views: shape (N, V, rows, cols).
        query_views: shape (M, V, rows, cols).

    Returns:
        Indices into the training set, shape (M,); the lower index wins a tie.

    Raises:
        ValueError: no subjects, or views of other shapes.
    """
    train = _stack("train_views", train_views, 4)
    query = _stack("query_views", query_views, 4)
    _check_same_views(query, train.shape[1:])
    distances = np.zeros((len(query), len(train)))
    for columns in _blocks(len(train), train[0].size):
        pixels, wanted = _columns(train, columns), _columns(query, columns)
        distances += np.stack([np.square(pixels - row).sum(axis=1) for row in wanted])
    return np.asarray(distances.argmin(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class RidgeRegression:
    """Ridge regression from the pixels of all views to all voxels: `y = mean_y + (x - mean_x) B`.

    Held in its dual form `B = Xᵀ (X Xᵀ + penalty I)⁻¹ Y` with centred X (N, pixels) and Y (N, voxels): only the N x N
    Gram matrix is ever decomposed, in float64, whatever the number of pixels and voxels.

    Attributes:
        penalty: chosen penalty, a fraction of the Gram matrix's mean eigenvalue.
        validation_mse: mean squared error in HU² on the validation split for each candidate penalty.
        train_views: training views, shape (N, V, rows, cols).
        train_volumes: training volumes in HU, shape (N, D, H, W).
        dual_map: `(X Xᵀ + penalty I)⁻¹`, shape (N, N).
    """

    penalty: float
    validation_mse: dict[float, float]
    train_views: FloatArray
    train_volumes: FloatArray
    dual_map: npt.NDArray[np.float64]

    def predict(self, views: npt.ArrayLike, out: FloatArray | None = None) -> FloatArray:
        """Predict the volume of each subject.

        Args:
            views: shape (M, V, rows, cols), views as in training.
            out: where to write them, such as a memory-mapped file, shape (M, D, H, W); a new float64 array by default.

        Returns:
            Shape (M, D, H, W), in HU.

        Raises:
            ValueError: views of another shape than the training views.
        """
        query = _stack("views", views, 4)
        _check_same_views(query, self.train_views.shape[1:])
        volumes = self.train_volumes
        result: FloatArray = np.empty((len(query), *volumes.shape[1:])) if out is None else out
        weights = _kernel(query, self.train_views) @ self.dual_map
        flat = result.reshape(len(query), -1)
        for columns in _blocks(len(volumes), volumes[0].size):
            block = _columns(volumes, columns)
            centre = block.mean(axis=0)
            flat[:, columns] = centre + weights @ (block - centre)
        return result


def fit_ridge(
    train_views: npt.ArrayLike,
    train_volumes: npt.ArrayLike,
    validation_views: npt.ArrayLike,
    validation_volumes: npt.ArrayLike,
    penalties: Sequence[float] = RIDGE_PENALTIES,
) -> RidgeRegression:
    """Fit a ridge regression from views to voxels and choose its penalty on the validation split.

    Args:
        train_views: shape (N, V, rows, cols).
        train_volumes: shape (N, D, H, W), in HU.
        validation_views: shape (M, V, rows, cols).
        validation_volumes: shape (M, D, H, W), in HU.
        penalties: candidates, as fractions of the mean eigenvalue of the centred views' Gram matrix.

    Returns:
        The fitted regression with the penalty of the smallest validation error.

    Raises:
        ValueError: unequal numbers of views and volumes, unequal shapes, or penalties that aren't positive.
    """
    views, volumes = _pairs("train", train_views, train_volumes)
    queries, truth = _pairs("validation", validation_views, validation_volumes)
    _check_same_views(queries, views.shape[1:])
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties is {list(penalties)}; expected at least one number, each above 0")
    eigenvalues, basis = np.linalg.eigh(_kernel(views, views))
    scale = float(eigenvalues.mean()) or 1.0
    kernel = _kernel(queries, views)
    maps = {penalty: (basis / (eigenvalues + penalty * scale)) @ basis.T for penalty in penalties}
    products = _volume_products(volumes, truth)
    errors = {penalty: products.error(kernel @ dual_map) for penalty, dual_map in maps.items()}
    best = min(errors, key=lambda penalty: errors[penalty])
    return RidgeRegression(best, errors, views, volumes, maps[best])


@dataclass(frozen=True)
class _VolumeProducts:
    """Inner products over all voxels, from which the error of any blend of training volumes follows.

    Attributes:
        train: (N, N), among the training volumes, centred on their mean.
        cross: (M, N), of the true volumes and the training volumes, both centred on the training mean.
        true: sum of the M squared norms of the centred true volumes.
        num_voxels: voxels of all true volumes.
    """

    train: npt.NDArray[np.float64]
    cross: npt.NDArray[np.float64]
    true: float
    num_voxels: int

    def error(self, weights: npt.NDArray[np.float64]) -> float:
        """Mean squared error of `mean + weights @ centred training volumes`, weights (M, N)."""
        total = np.sum((weights @ self.train) * weights) - 2 * np.sum(weights * self.cross) + self.true
        return max(0.0, float(total)) / self.num_voxels


def _volume_products(volumes: FloatArray, truth: FloatArray) -> _VolumeProducts:
    """One pass over the voxels of both splits, however many penalties are tried afterwards."""
    train, cross, true = np.zeros((len(volumes),) * 2), np.zeros((len(truth), len(volumes))), 0.0
    for columns in _blocks(len(volumes) + len(truth), volumes[0].size):
        block = _columns(volumes, columns)
        centre = block.mean(axis=0)
        block -= centre
        wanted = _columns(truth, columns) - centre
        train += block @ block.T
        cross += wanted @ block.T
        true += float(np.square(wanted).sum())
    return _VolumeProducts(train, cross, true, truth.size)


def _stack(name: str, arrays: npt.ArrayLike, ndim: int) -> FloatArray:
    """Check a stack of subjects' arrays: floating point, `ndim` axes, at least one subject, finite."""
    stack: npt.NDArray[Any] = np.asarray(arrays)
    if not np.issubdtype(stack.dtype, np.floating):
        stack = stack.astype(np.float64)
    if stack.ndim != ndim or len(stack) == 0:
        raise ValueError(f"{name} has shape {stack.shape}; expected {ndim} axes, the first over at least one subject")
    if not all(np.isfinite(one).all() for one in stack):
        raise ValueError(f"{name} contains NaN or infinite values; expected finite numbers")
    return stack


def _pairs(split: str, views: npt.ArrayLike, volumes: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Check one split's views (N, V, rows, cols) and volumes (N, D, H, W)."""
    images, truth = _stack(f"{split}_views", views, 4), _stack(f"{split}_volumes", volumes, 4)
    if len(images) != len(truth):
        raise ValueError(f"{split} split has views of {len(images)} subjects but {len(truth)} volumes; expected pairs")
    return images, truth


def _check_same_views(views: FloatArray, expected: tuple[int, ...]) -> None:
    """Distances and linear maps need the same pixels in every subject."""
    if views.shape[1:] != expected:
        raise ValueError(f"views have shape {views.shape[1:]}; expected {expected}, as the training views")


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Blocks of columns, of which `num_rows` rows hold about `BLOCK_ELEMENTS` numbers."""
    width = max(1, BLOCK_ELEMENTS // num_rows)
    for start in range(0, num_columns, width):
        yield slice(start, start + width)


def _columns(stack: FloatArray, columns: slice) -> npt.NDArray[np.float64]:
    """Some pixels or voxels of every subject, a float64 copy (N, columns)."""
    return stack.reshape(len(stack), -1)[:, columns].astype(np.float64)


def _kernel(views: FloatArray, train_views: FloatArray) -> npt.NDArray[np.float64]:
    """Inner products (M, N) of views and training views, both centred on the training mean."""
    kernel = np.zeros((len(views), len(train_views)))
    for columns in _blocks(len(train_views), train_views[0].size):
        train = _columns(train_views, columns)
        centre = train.mean(axis=0)
        kernel += (_columns(views, columns) - centre) @ (train - centre).T
    return kernel
