"""Further training pairs out of the ones there are: a volume moved by whole voxels, and its views moved with it."""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F

from ..processors.geometry import VOLUME_AXES, view_layout


def shift_pair(
    volume: torch.Tensor, views: torch.Tensor, view_names: Sequence[str], shift: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves a volume, and its views as parallel rays would show it then.

    Along its rays a shift does not change a view. What is moved in repeats the edge. Volume and views must show the
    same field of view, and the rays must be parallel and run along an axis of the volume.

    Args:
        volume: `(1, D, H, W)`.
        views: `(V, 1, rows, columns)`.
        view_names: name of each view, such as `frontal`.
        shift: voxels along D, H, W by which the content moves towards higher indices.

    Returns:
        Volume and views of the same shapes.

    Raises:
        ValueError: if a view's pixels do not divide the voxels of its axes evenly, or its rays run along no axis.
    """
    shifted = [
        _moved(view, _pixel_shift(name, view.shape[1:], volume.shape[1:], shift))
        for view, name in zip(views, view_names, strict=True)
    ]
    return _moved(volume, shift), torch.stack(shifted)


def draw_shifts(count: int, max_shift: int, generator: torch.Generator) -> list[tuple[int, int, int]]:
    """Different shifts by up to `max_shift` voxels along each axis, without the one that moves nothing.

    Raises:
        ValueError: if there are not as many.
    """
    steps = range(-max_shift, max_shift + 1)
    others = [shift for shift in product(steps, repeat=3) if any(shift)]
    if not 0 <= count <= len(others):
        raise ValueError(
            f"found {count} shifts by up to {max_shift} voxels wanted, expected 0 to {len(others)}; raise the largest"
        )
    return [others[index] for index in torch.randperm(len(others), generator=generator)[:count].tolist()]


def _pixel_shift(name: str, size: Sequence[int], sides: Sequence[int], shift: Sequence[int]) -> list[int]:
    """Pixels along the rows and the columns of a view by which its content moves."""
    _, axes, flipped = view_layout(name)
    pixels = []
    for axis, extent in zip(axes, size, strict=True):
        scale, rest = divmod(extent, sides[axis])
        if rest:
            raise ValueError(
                f"{name}: found {extent} pixels for {sides[axis]} voxels towards {VOLUME_AXES[axis]}, expected a "
                "multiple; change the size of the views or leave the shifts out"
            )
        pixels.append(-scale * shift[axis] if axis in flipped else scale * shift[axis])
    return pixels


def _moved(tensor: torch.Tensor, shift: Sequence[int]) -> torch.Tensor:
    """A `(1, *sides)` tensor whose content is moved towards higher indices; the edge is repeated."""
    pads = [amount for step in reversed(shift) for amount in (max(step, 0), max(-step, 0))]
    padded = F.pad(tensor[None], pads, mode="replicate")[0]
    window = [slice(max(-step, 0), max(-step, 0) + side) for step, side in zip(shift, tensor.shape[1:], strict=True)]
    return padded[(slice(None), *window)]
