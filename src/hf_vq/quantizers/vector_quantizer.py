"""The vector quantizer layer."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .codebook import Codebook
from .configuration import VectorQuantizerConfig
from .distributed import all_reduce_sum, joined_mean_factor
from .functional import active_fraction, codebook_loss, commitment_loss, nearest_codes, perplexity, straight_through


@dataclass
class VectorQuantizerOutput:
    """What a quantizer returns.

    Attributes:
        quantized: same shape and dtype as the input; carries the estimator's gradient.
        codes: the input's shape without its channel axis, int64 in `[0, K)`.
        loss: scalar, `commitment_weight * commitment_loss + codebook_weight * codebook_loss`, float32.
        commitment_loss: scalar `mean |z - sg(z_q)|^2`.
        codebook_loss: scalar `mean |sg(z) - z_q|^2`.
        perplexity: scalar, of this batch (in training over all processes); an epoch's is what `CodebookUsage` reports.
        active_fraction: scalar, share of the codes that this batch uses (in training over all processes).
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    commitment_loss: torch.Tensor
    codebook_loss: torch.Tensor
    perplexity: torch.Tensor
    active_fraction: torch.Tensor


class VectorQuantizer(nn.Module):
    """Replaces each vector of a feature map by its nearest code, with a gradient for what came before.

    Implements van den Oord et al., 2017 (vector quantisation with a straight-through gradient) and, from Huh et al.,
    2023, the affine re-parameterised codebook and the synchronised update. Arithmetic is float32 or better under any
    autocast. In training mode the codes may be initialised or replaced at the start of `forward`; in eval mode nothing
    changes.

    Args:
        config: a `VectorQuantizerConfig`; alternatively give its fields as keywords.

    Example:
        >>> quantizer = VectorQuantizer(codebook_size=512, codebook_dim=64)
        >>> output = quantizer(torch.randn(2, 64, 8, 8))
        >>> output.codes.shape
        torch.Size([2, 8, 8])
    """

    def __init__(self, config: VectorQuantizerConfig | None = None, **fields: object) -> None:
        super().__init__()
        if config is not None and fields:
            raise ValueError(f"give either config or fields, not both; got config and {sorted(fields)}")
        self.config = config if config is not None else VectorQuantizerConfig.from_dict(fields)
        self.codebook = Codebook(self.config)

    @property
    def effective_codebook(self) -> torch.Tensor:
        """`(K, C)` codes as used for look-up and decoding."""
        return self.codebook.effective()

    def forward(self, features: torch.Tensor) -> VectorQuantizerOutput:
        """Quantises `(B, C, *spatial)`, or `(B, ..., C)` with `channel_last`.

        Raises:
            ValueError: if the channel axis is not `codebook_dim` wide.
        """
        with torch.autocast(features.device.type, enabled=False):
            vectors, shape = self._flatten(features)
            if self.training:
                self.codebook.prepare(vectors.detach())
            effective = self._float(self.effective_codebook)
            codes = nearest_codes(vectors, effective)
            counts = torch.bincount(codes, minlength=self.config.codebook_size)
            factor: torch.Tensor | float = 1.0
            if self.training:
                counts = all_reduce_sum(counts)
                factor = joined_mean_factor(len(codes), counts.sum())
                self.codebook.record(counts)
            quantized = F.embedding(codes, effective)
            commitment = factor * commitment_loss(vectors, quantized)
            codebook = factor * codebook_loss(vectors, quantized)
            output = straight_through(vectors, quantized, self.config.sync_weight)
        return VectorQuantizerOutput(
            quantized=self._unflatten(output, shape).to(features.dtype),
            codes=codes.view(shape),
            loss=self.config.commitment_weight * commitment + self.config.codebook_weight * codebook,
            commitment_loss=commitment,
            codebook_loss=codebook,
            perplexity=perplexity(counts),
            active_fraction=active_fraction(counts),
        )

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes of `(B, C, *spatial)` features: `(B, *spatial)` int64. Changes no state, in training mode either."""
        with torch.autocast(features.device.type, enabled=False):
            vectors, shape = self._flatten(features)
            return nearest_codes(vectors, self._float(self.effective_codebook)).view(shape)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Effective vectors of codes: `(B, *spatial)` int64 -> `(B, C, *spatial)`, or `(B, ..., C)` with
        `channel_last`.

        Raises:
            ValueError: if a code is outside `[0, K)`.
        """
        if codes.numel():
            low, high = (int(bound) for bound in torch.aminmax(codes))
            if low < 0 or high >= self.config.codebook_size:
                raise ValueError(
                    f"codes must lie in [0, {self.config.codebook_size}); got values from {low} to {high}. "
                    "Masked positions must be filled before decoding."
                )
        vectors = F.embedding(codes, self.effective_codebook)
        return vectors if self.config.channel_last else vectors.movedim(-1, 1)

    def freeze_codebook(self) -> None:
        """Freezes codes, parameterisation, counters and replacement."""
        self.codebook.freeze()

    def _flatten(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
        channel_axis = -1 if self.config.channel_last else 1
        if features.ndim < 2 or features.shape[channel_axis] != self.config.codebook_dim:
            raise ValueError(
                f"expected {self.config.codebook_dim} channels (codebook_dim) on axis {channel_axis}; got shape "
                f"{tuple(features.shape)}"
            )
        channels_last = features.movedim(channel_axis, -1)
        return self._float(channels_last.reshape(-1, self.config.codebook_dim)), channels_last.shape[:-1]

    def _unflatten(self, vectors: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        output = vectors.view(*shape, self.config.codebook_dim)
        return output if self.config.channel_last else output.movedim(-1, 1)

    @staticmethod
    def _float(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
