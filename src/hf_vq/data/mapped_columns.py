"""Columns of arrays in memory-mapped Arrow files, read without copying or parsing anything."""

from bisect import bisect_right
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt


class MappedColumn:
    """A column of arrays of one shape, of a `datasets` data set; the operating system reads what is looked at.

    Args:
        dataset: a `datasets.Dataset`; mapped into memory if it was loaded from files.
        name: a column of type `Array2D`, `Array3D` and so on, of plain numbers.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self._arguments = dataset, name
        if dataset._indices is not None:
            dataset = dataset.flatten_indices()
        shape = dataset.features[name].shape
        self._chunks = [_as_array(chunk, shape) for chunk in dataset.data.column(name).chunks if len(chunk)]
        self._ends = list(accumulate(len(chunk) for chunk in self._chunks))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments  # a worker that is not forked maps the files anew

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """Returns the array of a row, which cannot be written to."""
        index = range(len(self))[index]
        chunk = bisect_right(self._ends, index)
        array: npt.NDArray[Any] = self._chunks[chunk][index - (self._ends[chunk - 1] if chunk else 0)]
        return array


def _as_array(chunk: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A chunk as (rows, *shape); the nested lists of Arrow lie behind each other without a gap."""
    values = chunk.storage
    for _ in shape:
        values = values.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=True)).reshape(len(chunk), *shape)
