"""Low-discrepancy orders of the cells of a grid."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

BASES = (2, 3, 5)
"""Base of the Halton sequence along each axis; it bounds the number of axes."""


@lru_cache(maxsize=16)
def halton_order(sides: tuple[int, ...]) -> torch.Tensor:
    """Cells of a grid in the order in which the Halton sequence (Halton, 1960) first hits them.

    Point i of the sequence has as coordinates the digits of i in the bases 2, 3, 5, read backwards behind the point. It
    lies in one cell of the unit cube cut into `sides` parts; a cell that was hit before is passed over. Any first part
    of the order is spread over the grid more evenly than a random choice of as many cells.

    Args:
        sides: one to three sides of the grid, each at least 1.

    Returns:
        `(N,)` int64, every flat index (last axis fastest) once. Shared between calls: do not change it in place.

    Raises:
        ValueError: if there are no sides, more than three, or one below 1.
    """
    if not 1 <= len(sides) <= len(BASES) or min(sides) < 1:
        raise ValueError(f"the code grid must have 1 to {len(BASES)} sides of at least 1 each; got {list(sides)}")
    count = 4 * math.prod(sides)
    while True:
        points = np.arange(1, count + 1)
        coordinates = [
            (_radical_inverse(points, base) * side).astype(np.int64) for base, side in zip(BASES, sides, strict=False)
        ]
        cells, first = np.unique(np.ravel_multi_index(coordinates, sides), return_index=True)
        if len(cells) == math.prod(sides):
            return torch.from_numpy(cells[first.argsort()])
        count *= 2


def shifted_halton_ranks(sides: Sequence[int], shifts: torch.Tensor) -> torch.Tensor:
    """Rank of every cell in the Halton order, moved around the grid's edges by a shift for each sample.

    Under uniform shifts every cell is equally often at every rank.

    Args:
        sides: sides of the grid.
        shifts: `(B, axes)` int64 cells.

    Returns:
        `(B, N)` int64 on the device of `shifts`.

    Raises:
        ValueError: as `halton_order`.
    """
    ranks = halton_order(tuple(sides)).argsort().to(shifts.device)
    cells = torch.arange(len(ranks), device=shifts.device)
    flat = torch.zeros(len(shifts), len(ranks), dtype=torch.int64, device=shifts.device)
    for shift, side, cell in zip(shifts.T, sides, torch.unravel_index(cells, tuple(sides)), strict=True):
        flat = flat * side + (cell - shift[:, None]) % side
    return ranks[flat]


def _radical_inverse(numbers: np.ndarray, base: int) -> np.ndarray:
    """Digits of whole numbers in a base, mirrored at the point: 1, 2, 3 in base 2 give 1/2, 1/4, 3/4."""
    result, rest, weight = np.zeros(len(numbers)), numbers.copy(), 1.0
    while rest.any():
        weight /= base
        result += weight * (rest % base)
        rest //= base
    return result
