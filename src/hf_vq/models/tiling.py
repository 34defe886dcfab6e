"""Encoding and decoding of images and volumes that are larger than memory, in tiles."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..quantizers.functional import as_float
from ..quantizers.vector_quantizer import check_codes
from ..scalars import is_whole
from .activations import Box, FeatureMap, Workspace, at, boxes
from .configuration_vq_tokenizer import VQTokenizerConfig
from .out_of_core import OutOfCore

MODES = ("exact", "blended")
# Sides of a tile that nobody chose, in pixels and voxels.
DEFAULT_TILE = {2: 512, 3: 64}


@dataclass(frozen=True)
class Tiling:
    """How a tokenizer works in tiles.

    Attributes:
        tile: sides of a tile in voxels (pixels), multiples of the downsampling factor.
        overlap: of neighbouring tiles, likewise; 0 with mode `"exact"`, whose tiles need none.
        mode: `"exact"` or `"blended"`.
        spill_dir: folder for feature maps that are kept in files; `None` for the system's.
    """

    tile: tuple[int, ...]
    overlap: tuple[int, ...]
    mode: str = "exact"
    spill_dir: Path | None = None

    def layer_by_layer(self, batch: int, sides: Sequence[int]) -> bool:
        """Whether so many items of these sides are taken layer by layer; what fits into one tile is taken whole."""
        larger = any(side > tile for side, tile in zip(sides, self.tile, strict=True))
        return self.mode == "exact" and larger and batch > 0


@dataclass(frozen=True)
class Span:
    """Where one of several overlapping tiles lies along an axis, in codes.

    Attributes:
        start: where the tile begins.
        stop: where it ends.
        first: where the part begins that is farther from the tile's ends than from those of its neighbours.
        last: where that part ends. These parts make up the axis.
    """

    start: int
    stop: int
    first: int
    last: int


def spans(side: int, tile: int, overlap: int) -> list[Span]:
    """Tiles, evenly spread over a side, that overlap by at least `overlap`."""
    tile = min(tile, side)
    count = 1 if tile == side else math.ceil((side - overlap) / (tile - overlap))
    starts = [round(index * (side - tile) / max(count - 1, 1)) for index in range(count)]
    cuts = [0, *((before + tile + start) // 2 for before, start in itertools.pairwise(starts)), side]
    return [Span(start, start + tile, *cuts[index : index + 2]) for index, start in enumerate(starts)]


def shares(tiles: Sequence[Span], factor: int) -> list[torch.Tensor]:
    """What each tile along an axis contributes to its voxels (pixels): falls linearly where a neighbour overlaps.

    Args:
        tiles: from `spans`.
        factor: voxels of a code.

    Returns:
        For each tile `((stop - start) * factor,)` float64; they add up to 1 everywhere.
    """
    total, made = torch.zeros(tiles[-1].stop * factor, dtype=torch.float64), []
    for index, tile in enumerate(tiles):
        place = torch.arange((tile.stop - tile.start) * factor, dtype=torch.float64) + 0.5
        share = torch.ones_like(place)
        if index > 0 and tiles[index - 1].stop > tile.start:
            share = torch.minimum(share, place / ((tiles[index - 1].stop - tile.start) * factor))
        if index + 1 < len(tiles) and tiles[index + 1].start < tile.stop:
            share = torch.minimum(share, place.flip(0) / ((tile.stop - tiles[index + 1].start) * factor))
        made.append(share)
        total[tile.start * factor : tile.stop * factor] += share
    return [share / total[tile.start * factor : tile.stop * factor] for tile, share in zip(tiles, made, strict=True)]


class CodeVectors:
    """The decoder's input, looked up tile by tile: a `Source` for `OutOfCore`.

    Args:
        tokenizer: whose quantizer knows the vectors.
        codes: `(B, *grid)`, with several codebooks `(B, num_codebooks, *grid)`.
        workspace: where the feature maps behind it are kept.
    """

    def __init__(self, tokenizer: Any, codes: torch.Tensor, workspace: Workspace) -> None:
        self.tokenizer, self.codes, self.workspace = tokenizer, codes, workspace
        self.batch, self.scale = len(codes), tokenizer.config.downsampling_factor
        self.sides = tuple(codes.shape[-tokenizer.config.spatial_dims :])

    def read(self, item: int, box: Box) -> torch.Tensor:
        """`(1, codebook_dim, *box)` on the tokenizer's device."""
        return self.look_up(self.codes[item : item + 1][at(box)])

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors of some of the codes, `(B, codebook_dim, *box)`, as the decoder takes them."""
        vectors: torch.Tensor = self.tokenizer.quantizer.decode(codes.to(self.tokenizer.device))
        return vectors.to(self.tokenizer.dtype)

    def release(self) -> None:
        """There is nothing to let go of."""


class TiledCoding:
    """What `VQTokenizer` has for inputs larger than memory; see `enable_tiling`."""

    _tiling: Tiling | None = None

    def enable_tiling(
        self: Any,
        tile_sample_size: int | Sequence[int] | None = None,
        *,
        overlap: int | Sequence[int] | None = None,
        mode: str = "exact",
        spill_dir: str | Path | None = None,
    ) -> None:
        """From now on, `encode`, `encode_latents`, `decode` and `decode_into` take large inputs in tiles.

        In eval mode only, and without gradients; training mode, and `forward`, which computes the training loss, take
        an input whole as before. Inputs may lie on another device than the model, mapped from a file for example: tiles
        travel to the model, and results come back to the device of the input. On the CPU, what is larger than 16 MiB
        lies in temporary files without a name, large results too.

        Args:
            tile_sample_size: sides of a tile in voxels (pixels), one number for all axes or one for each, multiples of
                `config.downsampling_factor`. By default 64 in 3D and 512 in 2D, or the next multiple.
            overlap: of neighbouring tiles, with mode `"blended"` only: likewise, and at most half the tile. By default
                a quarter of the tile, or the next multiple.
            mode: `"exact"`: layer by layer over tiles, with the statistics of the whole: the result of the whole but
                for rounding. `"blended"`: each tile by itself, with its own statistics, codes from the tiles'
                interiors, decoded tiles faded into each other: another result, without large temporary files.
            spill_dir: folder for the temporary files, by default the system's. It should not lie in memory itself, as
                `/tmp` does on some systems.

        Raises:
            ValueError: if a value does not fit.
        """
        self._tiling = _checked(self.config, tile_sample_size, overlap, mode, spill_dir)

    def disable_tiling(self) -> None:
        """Takes every input whole again."""
        self._tiling = None

    @property
    def tiling(self) -> Tiling | None:
        """What `enable_tiling` was given last, defaults filled in; `None` without tiling."""
        return self._tiling

    @property
    def _tiling_now(self: Any) -> Tiling | None:
        """How to encode and decode at this moment."""
        return None if self.training else self._tiling


@torch.no_grad()
def latents_in_tiles(tokenizer: Any, tiling: Tiling, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the encoder makes of `(B, in_channels, *spatial)`: `(B, codebook_dim, *grid)` on the device of the input."""
    workspace, sides = Workspace(pixel_values.device, tiling.spill_dir), pixel_values.shape[2:]
    if tiling.layer_by_layer(len(pixel_values), sides):
        source = FeatureMap.of(pixel_values, 1, workspace)
        made = OutOfCore(tiling.tile, _only_device(tokenizer)).run(tokenizer.encoder, source)
        return made.whole()
    factor = tokenizer.config.downsampling_factor
    grid = [side // factor for side in sides]
    latents = FeatureMap(len(pixel_values), grid, factor, workspace, channels_last=False, keep_moments=False)
    for parts in itertools.product(*_spans(grid, tiling, factor)):
        seen = tuple(slice(part.start * factor, part.stop * factor) for part in parts)
        tile = tokenizer.encoder(pixel_values[at(seen)].to(tokenizer.device))
        kept = tuple(slice(part.first - part.start, part.last - part.start) for part in parts)
        place = tuple(slice(part.first, part.last) for part in parts)
        latents.room_for(tile)[at(place)].copy_(tile[at(kept)])
        latents.release()
    return latents.whole()


@torch.no_grad()
def codes_in_tiles(tokenizer: Any, tiling: Tiling, latents: torch.Tensor) -> torch.Tensor:
    """Codes of `(B, codebook_dim, *grid)` latents, on their device: `(B, *grid)`, or with an axis of codebooks."""
    axes = () if tokenizer.config.num_codebooks == 1 else (tokenizer.config.num_codebooks,)
    codes = torch.empty((len(latents), *axes, *latents.shape[2:]), dtype=torch.int64, device=latents.device)
    for box in boxes(latents.shape[2:], [side // tokenizer.config.downsampling_factor for side in tiling.tile]):
        codes[at(box)] = tokenizer.quantizer.encode(latents[at(box)].to(tokenizer.device)).to(codes.device)
    return codes


@torch.no_grad()
def decoded_in_tiles(
    tokenizer: Any, tiling: Tiling, codes: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """What the decoder makes of codes, `(B, in_channels, *spatial)`, on their device or in `out`."""
    check_codes(codes, tokenizer.config.quantizer_config.codebook_size)
    workspace = Workspace(codes.device, tiling.spill_dir)
    source = CodeVectors(tokenizer, codes, workspace)
    sides = [side * source.scale for side in source.sides]
    if out is None:
        target = FeatureMap(len(codes), sides, 1, workspace, channels_last=False, keep_moments=False)
    else:
        target = FeatureMap.of(out, 1, Workspace(out.device))
    if tiling.layer_by_layer(len(codes), sides):
        return OutOfCore(tiling.tile, _only_device(tokenizer)).run(tokenizer.decoder, source, target).whole()
    if out is not None:
        out.zero_()
    axes = _spans(source.sides, tiling, source.scale)
    weighted = [zip(tiles, shares(tiles, source.scale), strict=True) for tiles in axes]
    for parts in itertools.product(*weighted):
        seen = tuple(slice(part.start, part.stop) for part, _ in parts)
        tile = tokenizer.decoder(source.look_up(codes[at(seen)]))
        box = tuple(slice(part.start * source.scale, part.stop * source.scale) for part, _ in parts)
        place = target.room_for(tile)[at(box)]
        place += _faded(tile, [share for _, share in parts]).to(place.device, place.dtype)
        target.release()
    return target.whole()


def _spans(grid: Sequence[int], tiling: Tiling, factor: int) -> list[list[Span]]:
    """Overlapping tiles of a code grid, axis by axis."""
    sizes = zip(grid, tiling.tile, tiling.overlap, strict=True)
    return [spans(side, tile // factor, overlap // factor) for side, tile, overlap in sizes]


def _faded(tile: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """A decoded tile times its share of the result, float32 or wider."""
    tile = as_float(tile)
    for axis, share in enumerate(weights):
        tile = tile * share.to(tile.dtype).to(tile.device).view(-1, *[1] * (len(weights) - 1 - axis))
    return tile


def _only_device(tokenizer: Any) -> torch.device:
    devices = {parameter.device for parameter in tokenizer.parameters()}
    if len(devices) != 1 or torch.device("meta") in devices:
        raise ValueError(
            f"tiling with mode='exact' found a tokenizer on {', '.join(sorted(map(str, devices)))}, expected all of it "
            "on one device; load it without device_map, or choose mode='blended'"
        )
    return devices.pop()


def _checked(
    config: VQTokenizerConfig,
    tile: int | Sequence[int] | None,
    overlap: int | Sequence[int] | None,
    mode: str,
    spill_dir: str | Path | None,
) -> Tiling:
    """The arguments of `enable_tiling` with defaults filled in, or a ValueError."""
    factor, dims = config.downsampling_factor, config.spatial_dims
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; choose one of {MODES}")
    if mode == "exact" and overlap is not None:
        raise ValueError(f"overlap={overlap} does not go with mode='exact', whose tiles need none; leave it out")
    folder = None if spill_dir is None else Path(spill_dir)
    if folder is not None and not folder.is_dir():
        raise ValueError(f"spill_dir={str(folder)!r} is no folder; make it first, or name one that is there")
    tile = _next_multiple(DEFAULT_TILE[dims], factor) if tile is None else tile
    tiles = _multiples("tile_sample_size", tile, factor, dims)
    if mode == "exact":
        return Tiling(tiles, (0,) * dims, mode, folder)
    if overlap is None:
        overlap = [min(_next_multiple(side // 4, factor), side // 2 // factor * factor) for side in tiles]
    overlaps = _multiples("overlap", overlap, factor, dims, smallest=0)
    if any(2 * shared > side for shared, side in zip(overlaps, tiles, strict=True)):
        raise ValueError(f"overlap={overlap} is more than half of tile_sample_size={tile}; choose less")
    return Tiling(tiles, overlaps, mode, folder)


def _multiples(name: str, value: int | Sequence[int], factor: int, dims: int, smallest: int = 1) -> tuple[int, ...]:
    """One number for each axis, or a ValueError."""
    sides = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    fits = all(is_whole(side) and side % factor == 0 and side >= smallest for side in sides)
    if len(sides) != dims or not fits:
        raise ValueError(
            f"{name}={value} must be one integer or {dims}, each a multiple of the downsampling factor {factor} and at "
            f"least {smallest * factor}"
        )
    return sides


def _next_multiple(value: int, factor: int) -> int:
    return -(-value // factor) * factor
