"""What quantizers without a stored codebook share: their codes are computed from the numbers that stand for them."""

import abc
from typing import ClassVar

import torch
from torch import nn

from .distributed import all_reduce_sum, joined_mean_factor
from .fields import QuantizerConfig, shown_fields
from .functional import active_fraction, as_float, count_codes, perplexity, straight_through
from .vector_quantizer import VectorQuantizerOutput, check_codes, check_numbers, flatten_features, unflatten_vectors

# Usage is counted for each code, in training on every batch; 2^24 counters are 128 MiB.
MAX_CODEBOOK_SIZE = 1 << 24


class ImplicitCodebookQuantizer(nn.Module, abc.ABC):
    """Base of quantizers whose K codes form a fixed grid: no parameters, no state, no `(K, C)` table in memory.

    The interface is that of `VectorQuantizer`. Arithmetic is float32 or better under any autocast; what `decode` and
    `effective_codebook` return has the dtype that the module was moved to.
    """

    SHOWN_FIELDS: ClassVar[tuple[str, ...]] = ("codebook_size",)

    config: QuantizerConfig
    anchor: torch.Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        # Empty and not saved: it only takes note of the device and the dtype that the module is moved to.
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    @property
    def effective_codebook(self) -> torch.Tensor:
        """`(K, C)` codes as used for look-up and decoding, built anew on each access."""
        return self._look_up(torch.arange(self.config.codebook_size, device=self.anchor.device)).to(self.anchor.dtype)

    def forward(self, features: torch.Tensor) -> VectorQuantizerOutput:
        """Quantises `(B, C, *spatial)`, or `(B, ..., C)` with `channel_last`.

        Raises:
            ValueError: if the channel axis is not `codebook_dim` wide, or features are no floating-point numbers.
        """
        with torch.autocast(features.device.type, enabled=False):
            bounded, shape = self._flatten_and_bound(features)
            codes = self._assign(bounded.detach())
            counts = count_codes(codes, self.config.codebook_size)
            factor: torch.Tensor | float = 1.0
            if self.training:
                counts = all_reduce_sum(counts)
                factor = joined_mean_factor(len(codes), counts.sum())
            quantized = self._look_up(codes).to(bounded.dtype)
            loss, commitment = self._losses(bounded, quantized, factor)
            # Where there is no loss to show it, what is not a number must stay visible in the output.
            output = straight_through(bounded, torch.where(bounded.isnan(), bounded.detach(), quantized))
        return VectorQuantizerOutput(
            quantized=unflatten_vectors(output, shape, self.config.channel_last).to(features.dtype),
            codes=codes.view(shape),
            loss=loss,
            commitment_loss=commitment,
            codebook_loss=torch.zeros_like(commitment),
            perplexity=perplexity(counts),
            active_fraction=active_fraction(counts),
        )

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes of `(B, C, *spatial)` features: `(B, *spatial)` int64.

        Raises:
            ValueError: as `forward`, and if a feature is NaN or infinite.
        """
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            vectors, shape = flatten_features(features, self.config.codebook_dim, self.config.channel_last)
            check_numbers(vectors)
            return self._assign(self._bound(vectors)).view(shape)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors of codes: `(B, *spatial)` int64 -> `(B, C, *spatial)`, or `(B, ..., C)` with `channel_last`.

        Raises:
            ValueError: if a code is outside `[0, K)`, or codes are no integers.
        """
        check_codes(codes, self.config.codebook_size)
        vectors = self._look_up(codes).to(self.anchor.dtype)
        return vectors if self.config.channel_last else vectors.movedim(-1, 1)

    def freeze_codebook(self) -> None:
        """Does nothing: the codes are constants. It is there so that every quantizer can be frozen alike."""

    def extra_repr(self) -> str:
        """The main fields of the config, for `repr`."""
        return shown_fields(self.config, self.SHOWN_FIELDS)

    def _flatten_and_bound(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
        vectors, shape = flatten_features(features, self.config.codebook_dim, self.config.channel_last)
        return self._bound(vectors), shape

    @property
    def _dtype(self) -> torch.dtype:
        """In which codes are computed, before they are rounded to the dtype that is asked for."""
        return as_float(self.anchor).dtype

    @abc.abstractmethod
    def _bound(self, vectors: torch.Tensor) -> torch.Tensor:
        """Takes `(N, C)` inputs to the space of the codes, differentiably."""

    @abc.abstractmethod
    def _assign(self, bounded: torch.Tensor) -> torch.Tensor:
        """Nearest codes, `(N,)` int64, of vectors `(N, C)` that `_bound` returned."""

    @abc.abstractmethod
    def _look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors `(..., C)` of codes `(...)`, in `_dtype`."""

    @abc.abstractmethod
    def _losses(
        self, bounded: torch.Tensor, quantized: torch.Tensor, factor: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars `(loss, commitment_loss)`; `factor` belongs on each mean over this rank's rows."""
