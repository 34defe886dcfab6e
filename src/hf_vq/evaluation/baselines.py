"""Trivial predictors that every generated volume is compared with.

A model that can't beat the mean training volume, the training subject with the most similar views, or a linear map
from views to voxels has learned nothing worth having. Volumes and views are plain arrays on one common grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .metrics import FloatArray

RIDGE_PENALTIES: tuple[float, ...] = tuple(float(value) for value in np.logspace(-6, 3, 28))
_VOXEL_BLOCK = 1 << 16


def mean_volume(train_volumes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Voxel-wise mean of the training volumes: the best guess that ignores the views.

    Args:
        train_volumes: shape (N, D, H, W), in HU.

    Returns:
        Shape (D, H, W), in HU.

    Raises:
        ValueError: no volumes, or other than four axes.
    """
    return np.asarray(_stack("train_volumes", train_volumes, 4).mean(axis=0, dtype=np.float64))


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
    pixels = _flat(train)
    nearest = [int(np.argmin(np.square(pixels - row).sum(axis=1))) for row in _flat(query)]
    return np.asarray(nearest, dtype=np.int64)


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

    def predict(self, views: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Predict the volume of each subject.

        Args:
            views: shape (M, V, rows, cols), views as in training.

        Returns:
            Shape (M, D, H, W), in HU.

        Raises:
            ValueError: views of another shape than the training views.
        """
        query = _stack("views", views, 4)
        _check_same_views(query, self.train_views.shape[1:])
        return _blend(_kernel(query, self.train_views) @ self.dual_map, self.train_volumes)


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
    errors = {
        penalty: float(np.mean(np.square(_blend(kernel @ dual_map, volumes) - truth)))
        for penalty, dual_map in maps.items()
    }
    best = min(errors, key=lambda penalty: errors[penalty])
    return RidgeRegression(best, errors, views, volumes, maps[best])


def _stack(name: str, arrays: npt.ArrayLike, ndim: int) -> FloatArray:
    """Check a stack of subjects' arrays: floating point, `ndim` axes, at least one subject, finite."""
    stack = np.asarray(arrays)
    if not np.issubdtype(stack.dtype, np.floating):
        stack = stack.astype(np.float64)
    if stack.ndim != ndim or len(stack) == 0:
        raise ValueError(f"{name} has shape {stack.shape}; expected {ndim} axes, the first over at least one subject")
    if not np.isfinite(stack).all():
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


def _flat(stack: FloatArray) -> npt.NDArray[np.float64]:
    """One float64 row per subject."""
    return stack.reshape(len(stack), -1).astype(np.float64)


def _kernel(views: FloatArray, train_views: FloatArray) -> npt.NDArray[np.float64]:
    """Inner products (M, N) of views and training views, both centred on the training mean."""
    train = _flat(train_views)
    centre = train.mean(axis=0)
    return (_flat(views) - centre) @ (train - centre).T


def _blend(weights: npt.NDArray[np.float64], volumes: FloatArray) -> npt.NDArray[np.float64]:
    """`mean + weights @ (volumes - mean)` in float64, over blocks of voxels to bound the memory of the conversion."""
    flat = volumes.reshape(len(volumes), -1)
    result = np.empty((len(weights), flat.shape[1]))
    for start in range(0, flat.shape[1], _VOXEL_BLOCK):
        columns = slice(start, start + _VOXEL_BLOCK)
        block = flat[:, columns].astype(np.float64)
        centre = block.mean(axis=0)
        result[:, columns] = centre + weights @ (block - centre)
    return result.reshape(len(weights), *volumes.shape[1:])
