"""Finite scalar quantisation: every channel is bounded and rounded to a few levels."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from .fields import QuantizerConfig, config_or_fields, require, require_type
from .implicit import MAX_CODEBOOK_SIZE, ImplicitCodebookQuantizer


@dataclass
class FiniteScalarQuantizerConfig(QuantizerConfig):
    """Choices of a `FiniteScalarQuantizer`.

    Args:
        levels: number of levels L of each channel, at least 2 each; Mentzer et al. advise 5 or more. There are as many
            channels as entries, and as many codes as combinations, at most 2^24. The default has 1000 codes.
        channel_last: input is `(B, ..., C)` instead of `(B, C, ...)`.

    Raises:
        ValueError: if a field is out of range.
    """

    quantizer_type: ClassVar[str] = "finite_scalar"

    levels: list[int] = field(default_factory=lambda: [8, 5, 5, 5])
    channel_last: bool = False

    def __post_init__(self) -> None:
        require_type("channel_last", self.channel_last, bool)
        levels = self.levels
        integers = isinstance(levels, list | tuple) and all(type(level) is int for level in levels)
        require(integers, "levels", levels, "a list of int, one for each channel")
        require(len(levels) > 0 and min(levels) >= 2, "levels", levels, "at least one number, each at least 2")
        require(math.prod(levels) <= MAX_CODEBOOK_SIZE, "levels", levels, f"of a product up to {MAX_CODEBOOK_SIZE}")
        self.levels = list(levels)

    @property
    def codebook_dim(self) -> int:
        """Channels C: the number of entries of `levels`."""
        return len(self.levels)

    @property
    def codebook_size(self) -> int:
        """Number of codes K: the product of `levels`."""
        return math.prod(self.levels)


class FiniteScalarQuantizer(ImplicitCodebookQuantizer):
    r"""Bounds every channel by a tanh and rounds it to one of its levels (FSQ, Mentzer et al., 2023, section 3).

    With \(h = \lfloor L/2 \rfloor\) a channel of L levels becomes \(z_q = \mathrm{round}(f(z)) / h\) in [-1, 1], where
    \(f(z) = \frac{L-1}{2} \tanh(z + s) - o\). For odd L both o and s are 0. For even L the levels reach from -h to
    h - 1, so o = 1/2, and the shift \(s = \mathrm{artanh}(1 / (L-1))\) keeps f(0) = 0, the centre of a level (the
    paper's listing has tan there, which agrees up to the third order in 1/L). With L = 2 that level is the end of the
    range, which no shift reaches: there s = 0, and z = 0 is the border between the two levels. Rounding passes
    gradients straight through; the derivative of f stays.

    A code is the number whose digits in the mixed radix `levels` are the levels of the channels, counted from 0; the
    first channel is the least significant digit. There are no parameters, no state and nothing to collapse: `loss`,
    `commitment_loss` and `codebook_loss` are constant zeros.

    Args:
        config: a `FiniteScalarQuantizerConfig` or its plain dict; alternatively give its fields as keywords.

    Example:
        >>> quantizer = FiniteScalarQuantizer(levels=[8, 5, 5, 5])
        >>> output = quantizer(torch.randn(2, 4, 16, 16))
        >>> output.codes.shape
        torch.Size([2, 16, 16])
    """

    config: FiniteScalarQuantizerConfig
    SHOWN_FIELDS = ("levels", "codebook_size")

    def __init__(self, config: FiniteScalarQuantizerConfig | dict[str, Any] | None = None, **fields: object) -> None:
        super().__init__(config_or_fields(FiniteScalarQuantizerConfig, config, fields))

    def _bound(self, vectors: torch.Tensor) -> torch.Tensor:
        levels = self._levels(vectors.device)
        half_range = (levels - 1).to(vectors.dtype) / 2
        offset = (1 - levels % 2).to(vectors.dtype) / 2
        shift = torch.where(levels > 2, offset / half_range, 0.0).atanh()
        return (half_range * torch.tanh(vectors + shift) - offset) / (levels // 2)

    def _assign(self, bounded: torch.Tensor) -> torch.Tensor:
        levels = self._levels(bounded.device)
        half_width = levels // 2
        digits = torch.round(bounded * half_width).to(torch.int64) + half_width
        # No finite input leaves the range; a NaN has no level, and what it becomes must still be a code.
        digits = torch.minimum(digits.clamp(min=0), levels - 1)
        return (digits * self._place_values(bounded.device)).sum(dim=-1)

    def _look_up(self, codes: torch.Tensor) -> torch.Tensor:
        levels = self._levels(codes.device)
        digits = codes.to(torch.int64)[..., None] // self._place_values(codes.device) % levels
        half_width = levels // 2
        return (digits - half_width).to(self._dtype) / half_width

    def _losses(
        self, bounded: torch.Tensor, quantized: torch.Tensor, factor: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return bounded.new_zeros(()), bounded.new_zeros(())

    def _levels(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.config.levels, device=device)

    def _place_values(self, device: torch.device) -> torch.Tensor:
        levels = self.config.levels  # not by cumprod, which ONNX lacks
        return torch.tensor([math.prod(levels[:channel]) for channel in range(len(levels))], device=device)
