"""Encoder and decoder of a `VQTokenizer`, layer by layer over tiles, with the result of the whole at once.

Group normalisation takes its statistics from the whole volume, so that a tile by itself gives other numbers everywhere.
Here each layer runs over all tiles before the next one begins: a tile is read with the neighbours that its convolution
sees, zeros stand outside the volume only, and the statistics are gathered while the layer before is written. Nothing is
computed twice but norm and activation of the neighbours. Memory holds a tile; the feature maps lie in files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from .activations import Box, FeatureMap, Workspace, at, boxes
from .vq_tokenizer_blocks import (
    VQTokenizerAttentionBlock,
    VQTokenizerDecoder,
    VQTokenizerDepthwiseBlock,
    VQTokenizerDownsample,
    VQTokenizerEncoder,
    VQTokenizerNearestUpsample,
    VQTokenizerPaddedDownsample,
    VQTokenizerResidualBlock,
    VQTokenizerUpsample,
    depth_to_space,
)

Activation = Callable[[torch.Tensor], torch.Tensor]
Pointwise = Callable[[int, torch.Tensor], torch.Tensor]
"""What changes each element by itself: index of the item in the batch and its tile `(1, C, *box)` -> such a tile."""

RESAMPLINGS = (
    VQTokenizerDownsample,
    VQTokenizerPaddedDownsample,
    VQTokenizerUpsample,
    VQTokenizerNearestUpsample,
)
CONVOLVE: dict[int, Callable[..., torch.Tensor]] = {2: F.conv2d, 3: F.conv3d}
ACTIVATIONS: dict[type[nn.Module], Activation] = {VQTokenizerResidualBlock: F.silu, VQTokenizerDepthwiseBlock: F.gelu}


class Source(Protocol):
    """What a layer reads: a `FeatureMap`, or what can be computed tile by tile."""

    batch: int
    sides: tuple[int, ...]
    scale: int
    workspace: Workspace

    def read(self, item: int, box: Box) -> torch.Tensor:
        """`(1, C, *box)` of one item."""

    def release(self) -> None:
        """Called when a tile has been dealt with."""


@dataclass(frozen=True)
class Convolution:
    """A convolution, with what of the input a part of its output comes from.

    Attributes:
        conv: the convolution.
        repeat: each element of the input stands this many times along each axis before it.
        spread: depth to space by this factor behind it.
    """

    conv: nn.Conv2d | nn.Conv3d
    repeat: int = 1
    spread: int = 1

    @classmethod
    def of(cls, module: nn.Module) -> "Convolution":
        """That of a convolution by itself or of a resampling block.

        Raises:
            ValueError: if it is none of these: adapters put other modules in their places.
        """
        repeat = 2 if isinstance(module, VQTokenizerNearestUpsample) else 1
        spread = module.stride if isinstance(module, VQTokenizerUpsample) else 1
        conv = module.conv if isinstance(module, RESAMPLINGS) else module
        if not isinstance(conv, (nn.Conv2d, nn.Conv3d)):
            raise ValueError(
                f"tiling with mode='exact' found a {type(conv).__name__} where it expected a convolution; merge "
                "adapters into the model first, or choose mode='blended'"
            )
        return cls(conv, repeat, spread)

    @property
    def stride(self) -> int:
        """That of the convolution."""
        return self.conv.stride[0]

    def output_sides(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Sides of the output for these of the input."""
        return tuple(side * self.repeat // self.stride * self.spread for side in sides)

    def apply(self, read: Callable[[Box], torch.Tensor], sides: Sequence[int], box: Box) -> torch.Tensor:
        """A part of the output.

        Args:
            read: gives a part of the input, `(1, C, *box)`.
            sides: of the input.
            box: the part, in elements of the output; begins at multiples of `spread`.
        """
        inner = [self._seen(part) for part in box]
        held = [(max(a, 0), min(b, side * self.repeat)) for (a, b), side in zip(inner, sides, strict=True)]
        tile = read(tuple(slice(a // self.repeat, -(-b // self.repeat)) for a, b in held))
        if self.repeat > 1:
            tile = F.interpolate(tile, scale_factor=self.repeat, mode="nearest")
            tile = tile[at(tuple(slice(a % self.repeat, a % self.repeat + b - a) for a, b in held))]
        missing = [n for (a, b), (c, d) in zip(reversed(inner), reversed(held), strict=True) for n in (c - a, b - d)]
        if any(missing):
            tile = F.pad(tile, missing)
        conv = self.conv
        tile = CONVOLVE[len(sides)](tile, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        return depth_to_space(tile, self.spread, len(sides))

    def _seen(self, part: slice) -> tuple[int, int]:
        """What the convolution sees along one axis, beyond the ends of the volume too."""
        kernel, padding = self.conv.kernel_size[0], int(self.conv.padding[0])
        first, last = part.start // self.spread, (part.stop - 1) // self.spread
        return first * self.stride - padding, last * self.stride - padding + kernel


class OutOfCore:
    """Runs encoder and decoder layer by layer over tiles.

    Args:
        tile: sides of a tile, in voxels (pixels) of the tokenizer's input.
        device: where tiles are computed.
    """

    def __init__(self, tile: Sequence[int], device: torch.device) -> None:
        self.tile = tuple(tile)
        self.device = device

    def run(
        self, network: VQTokenizerEncoder | VQTokenizerDecoder, source: Source, out: FeatureMap | None = None
    ) -> FeatureMap:
        """The network's output for a source.

        Args:
            network: encoder or decoder.
            source: its input.
            out: what the output is written to; a new feature map by default.
        """
        current: FeatureMap | None = None
        for block in network.blocks:
            current = self._block(block, source if current is None else current)
        assert current is not None
        if out is None:
            sides, scale = self._output(Convolution.of(network.conv_out), current)
            out = FeatureMap(current.batch, sides, scale, current.workspace, channels_last=False, keep_moments=False)
        before = self._normalization(network.norm_out, network.act_out, current)
        return self._convolve(network.conv_out, current, before, out=out)

    def _block(self, block: nn.Module, source: Source) -> FeatureMap:
        if isinstance(block, (VQTokenizerResidualBlock, VQTokenizerDepthwiseBlock)):
            assert isinstance(source, FeatureMap)
            activation = ACTIVATIONS[type(block)]
            inner = self._convolve(block.conv1, source, self._normalization(block.norm1, activation, source))
            before = self._normalization(block.norm2, activation, inner)
            return self._convolve(block.conv2, inner, before, residual=source, skip=block.skip)
        if isinstance(block, VQTokenizerAttentionBlock):
            assert isinstance(source, FeatureMap)
            return self._attend(block, source)
        return self._convolve(block, source)

    def _convolve(
        self,
        module: nn.Module,
        source: Source,
        before: Pointwise | None = None,
        residual: FeatureMap | None = None,
        skip: nn.Module | None = None,
        out: FeatureMap | None = None,
    ) -> FeatureMap:
        """A convolution over all tiles: `before` in front of it, `skip` of the residual added to it."""
        layer = Convolution.of(module)
        if out is None:
            sides, scale = self._output(layer, source)
            out = FeatureMap(source.batch, sides, scale, source.workspace, reuse=residual)
        for item in range(source.batch):
            for box in boxes(out.sides, self._tile(out)):
                made = layer.apply(partial(self._read, source, before, item), source.sides, box)
                if residual is not None and skip is not None:
                    made = skip(residual.read(item, box).to(self.device)) + made
                    residual.release()
                out.write(item, box, made)
                out.release()
                source.release()
        return out

    def _attend(self, block: VQTokenizerAttentionBlock, source: FeatureMap) -> FeatureMap:
        """Keys and values of all positions first, then the queries of one tile after the other."""
        maps = [
            FeatureMap(source.batch, source.sides, source.scale, source.workspace, keep_moments=False) for _ in "kv"
        ]
        before = self._normalization(block.norm, None, source)
        for item in range(source.batch):
            for box in boxes(source.sides, self._tile(source)):
                projected = block.to_qkv(self._tokens(source, before, item, box)).chunk(3, dim=-1)[1:]
                for kept, tokens in zip(maps, projected, strict=True):
                    kept.write(item, box, _as_tile(tokens, box))
        out = FeatureMap(source.batch, source.sides, source.scale, source.workspace, reuse=source)
        for item in range(source.batch):
            key, value = (_as_tokens(kept.whole()[item : item + 1]).to(self.device).unsqueeze(1) for kept in maps)
            for box in boxes(source.sides, self._tile(source)):
                query = block.to_qkv(self._tokens(source, before, item, box)).chunk(3, dim=-1)[0]
                attended, _ = block.attention(query.unsqueeze(1), key, value)
                made = source.read(item, box).to(self.device) + _as_tile(block.to_out(attended.squeeze(2)), box)
                out.write(item, box, made)
                for kept in (out, source, *maps):
                    kept.release()
        return out

    def _tokens(self, source: FeatureMap, before: Pointwise, item: int, box: Box) -> torch.Tensor:
        return _as_tokens(self._read(source, before, item, box))

    def _read(self, source: Source, before: Pointwise | None, item: int, box: Box) -> torch.Tensor:
        tile = source.read(item, box).to(self.device)
        return tile if before is None else before(item, tile)

    def _normalization(self, norm: nn.Module, activation: Activation | None, source: FeatureMap) -> Pointwise:
        """Norm and activation of a tile, with the statistics of the whole if the norm asks for them."""
        if isinstance(norm, nn.GroupNorm):
            terms = [moments.normalization(norm) for moments in source.moments]
            apply: Pointwise = partial(_apply_group_norm, terms)
        else:
            apply = lambda item, tile: norm(tile)  # noqa: E731
        return apply if activation is None else lambda item, tile: activation(apply(item, tile))

    def _output(self, layer: Convolution, source: Source) -> tuple[tuple[int, ...], int]:
        return layer.output_sides(source.sides), source.scale * layer.stride // (layer.repeat * layer.spread)

    def _tile(self, features: FeatureMap) -> tuple[int, ...]:
        return tuple(side // features.scale for side in self.tile)


def _apply_group_norm(
    terms: Sequence[tuple[torch.Tensor, torch.Tensor]], item: int, tile: torch.Tensor
) -> torch.Tensor:
    factor, summand = terms[item]
    # Channels last: then the two vectors are met in the order in which the tile lies in memory.
    normalized = torch.addcmul(summand, tile.movedim(1, -1).to(factor.dtype), factor).movedim(-1, 1)
    # As torch's own, whose result is float32 under autocast and of the input's type without it.
    return normalized if torch.is_autocast_enabled(tile.device.type) else normalized.to(tile.dtype)


def _as_tokens(tile: torch.Tensor) -> torch.Tensor:
    """`(1, C, *box)` -> `(1, N, C)`."""
    return tile.flatten(2).transpose(1, 2)


def _as_tile(tokens: torch.Tensor, box: Box) -> torch.Tensor:
    """`(1, N, C)` -> `(1, C, *box)`."""
    return tokens.transpose(1, 2).unflatten(2, [part.stop - part.start for part in box])
