"""Parameterisations of the codebook: how the stored (raw) codes become the effective codes used for look-up.

Each is a module with `forward(raw) -> effective` and `inverse(effective_rows, indices) -> raw_rows`; everything that
places a code at a wanted vector (initialisation, replacement) goes through `inverse`.
"""

import torch
from torch import nn


class PlainParameterization(nn.Module):
    """Effective codes are the raw codes."""

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """`(K, C)` -> `(K, C)`, unchanged."""
        return raw

    def inverse(self, effective: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Raw rows whose effective rows are `effective`; the identity here."""
        return effective


class AffineParameterization(nn.Module):
    """Effective codes share a learned scale and shift: `(1 + s * gamma) * e + s * b` (Huh et al., 2023, section 4.1).

    A gradient on any chosen code moves the shared parameters and with them every code, used or not, so the codebook
    follows the encoder's distribution.

    Args:
        codebook_size: K.
        codebook_dim: C.
        num_groups: the codes are split into this many consecutive groups with a scale and a shift of their own.
        lr_scale: s, the factor on the learning speed of the shared parameters.
    """

    # A scale that crosses zero would fold all codes of a group onto one point; its inverse stops here.
    MIN_SCALE = 1e-4

    def __init__(self, codebook_size: int, codebook_dim: int, num_groups: int = 1, lr_scale: float = 1.0) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.lr_scale = lr_scale
        self.gamma = nn.Parameter(torch.zeros(num_groups, codebook_dim))
        self.shift = nn.Parameter(torch.zeros(num_groups, codebook_dim))

    def _scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        repeats = self.codebook_size // self.gamma.shape[0]
        scale = (1 + self.lr_scale * self.gamma).repeat_interleave(repeats, dim=0)
        return scale, (self.lr_scale * self.shift).repeat_interleave(repeats, dim=0)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw `(K, C)` -> effective `(K, C)`."""
        scale, shift = self._scale_and_shift()
        return scale * raw + shift

    def inverse(self, effective: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Raw rows that make the codes `indices` effective as `effective`: both `(m, C)`."""
        scale, shift = (part[indices] for part in self._scale_and_shift())
        safe = torch.where(scale.abs() < self.MIN_SCALE, torch.full_like(scale, self.MIN_SCALE).copysign(scale), scale)
        return (effective - shift) / safe
