"""Position vectors of code grids, from one learned table per axis."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import nn

# Each axis of space may be walked in two directions; a position is stored under the first of the pair.
OPPOSITE_DIRECTIONS = {"inferior": "superior", "posterior": "anterior", "left": "right"}
DIRECTIONS = (*OPPOSITE_DIRECTIONS.values(), *OPPOSITE_DIRECTIONS)
DEFAULT_VOLUME_AXES = ("superior", "anterior", "right")
IMAGE_AXES = ("rows", "columns")


class AxisTables(nn.Module):
    """The tables of `AxialPositions`, read by a call: that is what offloading waits for to bring the weights.

    Args:
        tables: for each axis `(side, hidden)`.
    """

    def __init__(self, tables: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        # in the order that optimizer states of older checkpoints count them in
        for axis, table in sorted(tables.items()):
            self.register_parameter(axis, table)

    def forward(self, axis: str) -> torch.Tensor:
        """`(side, hidden)`, the table of an axis."""
        table: torch.Tensor = getattr(self, axis)
        return table.view_as(table)  # group offloading exchanges the parameter's own data when this call is over


class AxialPositions(nn.Module):
    """Position vectors built from one learned table per axis of space, shared by the volume's codes and by the views.

    A code at (d, h, w) gets the sum of three rows, one of each axis; a token of a view gets the sum of the rows of the
    two axes that the view shows. So a frontal row and the volume's superior-inferior coordinate are the same thing from
    the first step, and training is free to move the tables away from that.

    Args:
        grid: sides of the code grid, one table of that length for each.
        axes: directions in which the grid's indices grow.
        hidden_size: width of a position vector.
    """

    def __init__(self, grid: Sequence[int], axes: Sequence[str], hidden_size: int) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.tables = AxisTables(
            {
                axis_of(axis): nn.Parameter(torch.randn(side, hidden_size) / math.sqrt(len(grid)))
                for axis, side in zip(axes, grid, strict=True)
            }
        )

    def forward(self, axes: Sequence[str], sides: Sequence[int]) -> torch.Tensor:
        """`(prod(sides), hidden)` positions, row-major, of a grid whose indices grow in the directions `axes`."""
        parts = [
            self._along(axis, side).view(*[side if i == index else 1 for i in range(len(sides))], -1)
            for index, (axis, side) in enumerate(zip(axes, sides, strict=True))
        ]
        return reduce(torch.add, parts).flatten(0, -2)

    def _along(self, axis: str, side: int) -> torch.Tensor:
        table = self.tables(axis_of(axis))
        same_direction = axis in self.axes
        if side != table.shape[0]:
            table = F.interpolate(table.T[None], size=side, mode="linear", align_corners=False)[0].T
        return table if same_direction else table.flip(0)


class AxialRotation(nn.Module):
    """Rotary positions (Su et al., 2021) on the axes that the volume's codes and the views share.

    The channels of each head are divided among the axes; those of an axis are turned by angles that grow along it, so
    that attention depends on the distance between two tokens along this axis. A token of a view lies nowhere along the
    axis of its rays: its channels of that axis are not turned.

    Args:
        grid: sides of the code grid, in whose steps distances are measured.
        axes: directions in which the grid's indices grow.
        head_dim: channels of a head.

    Raises:
        ValueError: if a head has no pair of channels for each axis.
    """

    def __init__(self, grid: Sequence[int], axes: Sequence[str], head_dim: int) -> None:
        super().__init__()
        self.axes, self.grid = tuple(axes), tuple(grid)
        self.num_frequencies = head_dim // 2 // len(grid)
        if self.num_frequencies < 1:
            raise ValueError(
                f"position_embedding='axial_rotary' turns a pair of channels at least for each of {len(grid)} axes; "
                f"got heads of {head_dim} channels. Choose a larger hidden_size or a smaller num_heads."
            )

    def forward(self, axes: Sequence[str], sides: Sequence[int], device: torch.device) -> torch.Tensor:
        """`(prod(sides), pairs)` angles, row-major, of a grid whose indices grow in the directions `axes`."""
        directions = [axis_of(axis) for axis in axes]
        angles = []
        for own, extent in zip(self.axes, self.grid, strict=True):
            exponents = torch.arange(self.num_frequencies, device=device) / max(1, self.num_frequencies - 1)
            frequencies = float(extent) ** -exponents
            if axis_of(own) not in directions:
                angles.append(torch.zeros(math.prod(sides), self.num_frequencies, device=device))
                continue
            index = directions.index(axis_of(own))
            steps = (torch.arange(sides[index], device=device) + 0.5) * (extent / sides[index])
            along = steps if axes[index] == own else extent - steps
            shape = [side if i == index else 1 for i, side in enumerate(sides)]
            places = along.view(shape).expand(*sides).flatten()
            angles.append(places[:, None] * frequencies)
        return torch.cat(angles, dim=-1)


def rotate(tensor: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turns pairs of channels: the first `2 * pairs` channels of `(..., N, C)` by angles `(..., N, pairs)`."""
    pairs = angles.shape[-1]
    first, second, rest = tensor.split((pairs, pairs, tensor.shape[-1] - 2 * pairs), dim=-1)
    cosine, sine = angles.cos().to(tensor), angles.sin().to(tensor)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine, rest), dim=-1)


def axis_of(direction: str) -> str:
    """Name of the axis along which a direction leads: one name for both of its directions."""
    return OPPOSITE_DIRECTIONS.get(direction, direction)
