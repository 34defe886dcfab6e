"""Laws of the Halton order of grid cells."""

import math

import pytest
import torch

from hf_vq.schedulers.halton import halton_order, shifted_halton_ranks

GRIDS = [(1,), (8,), (7,), (4, 4), (5, 3), (8, 8, 8), (7, 5, 3), (1, 6, 2)]


@pytest.mark.parametrize("grid", GRIDS)
def test_every_cell_comes_once(grid):
    assert halton_order(grid).sort().values.tolist() == list(range(math.prod(grid)))


def test_the_first_cells_are_those_of_the_first_points():
    """Points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), then (5/8, 7/9) in a cell of its own."""
    assert halton_order((4, 3))[:5].tolist() == [2 * 3 + 1, 1 * 3 + 2, 3 * 3 + 0, 0 * 3 + 1, 2 * 3 + 2]


def test_in_base_two_the_order_of_a_line_is_bit_reversal():
    assert halton_order((8,)).tolist() == [4, 2, 6, 1, 5, 3, 7, 0]


def discrepancy(cells, grid):
    """Largest difference between a box's share of the cells and its share of the grid, over boxes at the origin."""
    shares = torch.zeros(math.prod(grid), dtype=torch.float64)
    shares[cells] = 1 / len(cells)
    difference = shares.view(grid) - 1 / math.prod(grid)
    for axis in range(len(grid)):
        difference = difference.cumsum(axis)
    return float(difference.abs().max())


@pytest.mark.parametrize("grid", [(8, 8), (8, 8, 8), (4, 6, 8)])
@pytest.mark.parametrize("fraction", [8, 4, 2])
def test_any_first_part_is_spread_more_evenly_than_random_and_raster_cells(grid, fraction):
    generator, size = torch.Generator().manual_seed(0), math.prod(grid)
    count = size // fraction
    shifts = torch.stack([torch.randint(side, (20,), generator=generator) for side in grid], dim=1)
    ranks = shifted_halton_ranks(grid, shifts)
    moved = [discrepancy(row.argsort()[:count], grid) for row in ranks]
    random = [discrepancy(torch.randperm(size, generator=generator)[:count], grid) for _ in range(20)]
    raster = discrepancy(torch.arange(count), grid)
    assert sum(moved) < 0.75 * sum(random)
    assert discrepancy(halton_order(grid)[:count], grid) < 0.75 * sum(random) / 20
    assert max(moved) < raster / 2


@pytest.mark.parametrize("grid", GRIDS)
def test_shifts_move_the_order_around_the_edges(grid):
    order = torch.stack(torch.unravel_index(halton_order(grid), grid), dim=1)
    shifts = torch.stack([torch.arange(3) % side for side in grid], dim=1)
    for shift, ranks in zip(shifts, shifted_halton_ranks(grid, shifts), strict=True):
        moved = (order + shift) % torch.tensor(grid)
        flat = torch.zeros(len(order), dtype=torch.int64)
        for cells, side in zip(moved.T, grid, strict=True):
            flat = flat * side + cells
        assert torch.equal(ranks.argsort(), flat)


def test_under_all_shifts_every_cell_is_equally_often_at_every_rank():
    grid = (3, 4)
    shifts = torch.cartesian_prod(*map(torch.arange, grid))
    assert bool((shifted_halton_ranks(grid, shifts).sort(dim=0).values == torch.arange(12)[:, None]).all())


@pytest.mark.parametrize("grid", [(), (2, 2, 2, 2), (4, 0)])
def test_bad_grids_are_named(grid):
    with pytest.raises(ValueError, match="1 to 3 sides"):
        halton_order(grid)
