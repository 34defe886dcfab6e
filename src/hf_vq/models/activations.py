"""Feature maps that need not fit in memory: written and read by tiles, kept in a temporary file when they are large.

Such a file has no name, so that the system takes it back however the process ends. It is mapped into memory, and what
a tile touched is let go of behind it: the process holds no more than a tile of it, and the system may keep the rest in
the memory that nobody else wants.
"""

import itertools
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..quantizers.functional import as_float

Box = tuple[slice, ...]
"""A part of a feature map or volume: where it starts and stops along each spatial axis."""

# Below this many bytes a file would save nothing worth its handling.
LARGEST_IN_MEMORY = 1 << 24


def at(box: Box) -> tuple[Any, ...]:
    """Index of a part in a tensor whose last axes are the spatial ones."""
    return (..., *box)


def boxes(sides: Sequence[int], tile: Sequence[int]) -> Iterator[Box]:
    """All parts of at most `tile` elements along each axis that together make up these sides, each element once."""
    starts = (range(0, side, step) for side, step in zip(sides, tile, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(a, min(a + step, side)) for a, step, side in zip(corner, tile, sides, strict=True))


class Moments:
    """Count, mean and sum of squared deviations of each channel, gathered tile by tile (Chan et al., 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.deviations = torch.zeros(())

    def add(self, tile: torch.Tensor) -> None:
        """Takes a `(1, C, *box)` tile into account."""
        values, axes = as_float(tile), tuple(range(2, tile.ndim))
        mean = values.mean(axes, keepdim=True)
        wide = torch.float32 if tile.device.type == "mps" else torch.float64  # which mps has not
        deviations = (values - mean).square_().sum(axes)[0].to(wide)
        mean, count = mean.flatten().to(wide), math.prod(tile.shape[2:])
        if self.count == 0:
            self.count, self.mean, self.deviations = count, mean, deviations
            return
        total, difference = self.count + count, mean - self.mean
        self.deviations = self.deviations + deviations + difference.square() * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def normalization(self, norm: nn.GroupNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and summand, `(C,)` each, float32 or wider, by which `norm` changes the values of each channel."""
        means, deviations = self.mean.unflatten(0, (norm.num_groups, -1)), self.deviations.view(norm.num_groups, -1)
        mean = means.mean(dim=1, keepdim=True)
        squares = deviations.sum(dim=1, keepdim=True) + self.count * (means - mean).square().sum(dim=1, keepdim=True)
        scale = (squares / (self.count * means.shape[1]) + norm.eps).rsqrt()
        factor = norm.weight.to(scale.dtype) * scale.expand_as(means).flatten()
        summand = norm.bias.to(scale.dtype) - factor * mean.expand_as(means).flatten()
        dtype = torch.promote_types(norm.weight.dtype, torch.float32)
        return factor.to(dtype), summand.to(dtype)


class Workspace:
    """Where feature maps are kept.

    Args:
        device: of their tensors. On the CPU, those above `LARGEST_IN_MEMORY` bytes are kept in files.
        folder: of these files; by default the system's folder for temporary files.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device = device
        self.folder = folder

    def allocate(
        self, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
    ) -> tuple[torch.Tensor, mmap.mmap | None]:
        """A tensor `(B, C, *sides)` of zeros, and its file as it is mapped into memory, if it has one.

        Raises:
            OSError: if the folder cannot be written to or has too little room.
        """
        batch, channels, *sides = shape
        stored = (batch, *sides, channels) if channels_last else tuple(shape)
        size = math.prod(stored) * dtype.itemsize
        if self.device.type == "cpu" and size > LARGEST_IN_MEMORY:
            mapping = self._map(size)
            tensor = torch.frombuffer(mapping, dtype=dtype).view(stored)
        else:
            mapping, tensor = None, torch.zeros(stored, dtype=dtype, device=self.device)
        return tensor.movedim(-1, 1) if channels_last else tensor, mapping

    def _map(self, size: int) -> mmap.mmap:
        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                if hasattr(os, "posix_fallocate"):  # else a full disk is found out by a signal that ends the process
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            except OSError as error:
                folder = self.folder or tempfile.gettempdir()
                raise OSError(
                    error.errno,
                    f"{folder}: found no room for a feature map of {size:,} bytes ({error.strerror}); make room, or "
                    "give enable_tiling(spill_dir=...) a folder that has it",
                ) from error
            return mmap.mmap(file.fileno(), size)


class FeatureMap:
    """A batch of feature maps `(B, C, *sides)` that is written and read tile by tile.

    Its tensor is made with the first tile, which tells channels and type.

    Args:
        batch: B.
        sides: number of elements along each spatial axis.
        scale: voxels (pixels) of the tokenizer's input for each element along an axis.
        workspace: where it is kept.
        reuse: a feature map that is no longer wanted and may be overwritten tile by tile.
        channels_last: the order in memory. Tiles of a map whose channels lie together are found in fewer places.
        keep_moments: gather the statistics that a following group normalisation asks for.
    """

    def __init__(
        self,
        batch: int,
        sides: Sequence[int],
        scale: int,
        workspace: Workspace,
        reuse: "FeatureMap | None" = None,
        channels_last: bool = True,
        keep_moments: bool = True,
    ) -> None:
        self.batch, self.sides, self.scale, self.workspace = batch, tuple(sides), scale, workspace
        self.moments = [Moments() for _ in range(batch)] if keep_moments else []
        self._reuse, self._channels_last = reuse, channels_last
        self._mapping: mmap.mmap | None = None
        self.tensor: torch.Tensor | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor, scale: int, workspace: Workspace) -> "FeatureMap":
        """A given tensor `(B, C, *sides)` as a feature map; nothing is copied."""
        made = cls(len(tensor), tensor.shape[2:], scale, workspace, keep_moments=False)
        made.tensor = tensor
        return made

    def whole(self) -> torch.Tensor:
        """`(B, C, *sides)`, when all tiles have been written."""
        assert self.tensor is not None
        self.release()
        return self.tensor

    def read(self, item: int, box: Box) -> torch.Tensor:
        """`(1, C, *box)` of one item of the batch: a view, where the feature map is kept."""
        assert self.tensor is not None
        return self.tensor[(slice(item, item + 1), slice(None), *box)]

    def write(self, item: int, box: Box, tile: torch.Tensor) -> None:
        """Puts a tile `(1, C, *box)` in its place."""
        if self.moments:
            self.moments[item].add(tile)
        self.room_for(tile)[(slice(item, item + 1), slice(None), *box)].copy_(tile)

    def release(self) -> None:
        """Lets go of the memory that reading and writing tiles of a file has taken; the file keeps its content."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def room_for(self, tile: torch.Tensor) -> torch.Tensor:
        """The tensor `(B, C, *sides)`; if there is none yet, zeros with the channels and of the type of a tile."""
        if self.tensor is None:
            shape, old = (self.batch, tile.shape[1], *self.sides), self._reuse
            if old is not None and (old.whole().shape, old.whole().dtype) == (shape, tile.dtype):
                self.tensor, self._mapping = old.tensor, old._mapping
            else:
                self.tensor, self._mapping = self.workspace.allocate(shape, tile.dtype, self._channels_last)
            self._reuse = None
        assert self.tensor is not None
        return self.tensor
