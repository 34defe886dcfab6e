"""Parameterisations of the codebook: how the stored (raw) codes become the effective codes used for look-up.

Everything that places a code at a wanted vector (initialisation, replacement) goes through `inverse`.
"""

import torch
from torch import nn

from .configuration import VectorQuantizerConfig
from .distributed import global_moments
from .functional import as_float
from .host_flags import RememberedFlag


class PlainParameterization(nn.Module):
    """Effective codes are the raw codes times a constant. The base of the other parameterisations.

    Args:
        code_scale: the constant: the learning speed of the codes relative to what reads them.
    """

    def __init__(self, code_scale: float = 1.0) -> None:
        super().__init__()
        self.code_scale = code_scale

    @property
    def awaits_first_batch(self) -> bool:
        """True while the first training batch is still to set something that later ones only move."""
        return False

    def reset_parameters(self) -> None:
        """Fills every parameter and buffer with its value before training: the identity."""

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw `(K, C)` -> effective `(K, C)`, differentiable, both float32 or better."""
        return self.code_scale * raw

    def inverse(self, effective: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Raw rows that make the codes `indices` effective as `effective`: both `(m, C)`."""
        return effective / self.code_scale

    def observe(self, raw: torch.Tensor, vectors: torch.Tensor) -> None:
        """Takes note of a training batch, `(N, C)` on this rank, before it is quantised."""


class AffineParameterization(PlainParameterization):
    """Effective codes share a learned scale and shift: `(1 + s * gamma) * e + s * b` (Huh et al., 2023, section 4.1).

    e is the raw code times `code_scale`.

    A gradient on any chosen code moves the shared parameters and with them every code, used or not, so the codebook
    follows the encoder's distribution.

    Args:
        codebook_size: K.
        codebook_dim: C.
        num_groups: the codes are split into this many consecutive groups with a scale and a shift of their own.
        lr_scale: s, the factor on the learning speed of the shared parameters.
        code_scale: the factor on the learning speed of the codes.
    """

    # A scale that crosses zero would fold all codes of a group onto one point; its inverse stops here.
    MIN_SCALE = 1e-4

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        num_groups: int = 1,
        lr_scale: float = 1.0,
        code_scale: float = 1.0,
    ) -> None:
        super().__init__(code_scale)
        self.codebook_size = codebook_size
        self.lr_scale = lr_scale
        self.gamma = nn.Parameter(torch.zeros(num_groups, codebook_dim))
        self.shift = nn.Parameter(torch.zeros(num_groups, codebook_dim))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.shift)

    def _scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        repeats = self.codebook_size // self.gamma.shape[0]
        scale = (1 + self.lr_scale * as_float(self.gamma)).repeat_interleave(repeats, dim=0)
        return scale, (self.lr_scale * as_float(self.shift)).repeat_interleave(repeats, dim=0)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        scale, shift = self._scale_and_shift()
        return scale * super().forward(raw) + shift

    def inverse(self, effective: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        scale, shift = (part[indices] for part in self._scale_and_shift())
        safe = torch.where(scale.abs() < self.MIN_SCALE, torch.full_like(scale, self.MIN_SCALE).copysign(scale), scale)
        return super().inverse((effective - shift) / safe, indices)


class RunningAffineParameterization(PlainParameterization):
    r"""Effective codes have the running moments of the encoder's outputs (Huh et al., 2023, section 4.1).

    \(\bar e = \sqrt{var_z / var_e} \odot (e - mean_e) + mean_z\) channel by channel. The moments change in training
    only, before a batch is quantised; the first batch sets them. The scale of the raw codes has no effect on the
    effective ones, but on how far an optimizer's step moves them: it is their initial standard deviation, beside the
    encoder's.

    Args:
        codebook_dim: C.
        initial_std: standard deviation of the raw codes before training.
        momentum: weight of the newest batch in the running moments.
    """

    MIN_VARIANCE = 1e-20

    started: torch.Tensor
    encoder_mean: torch.Tensor
    encoder_variance: torch.Tensor
    code_mean: torch.Tensor
    code_variance: torch.Tensor

    def __init__(self, codebook_dim: int, initial_std: float = 1.0, momentum: float = 0.1) -> None:
        super().__init__()
        self.initial_std = initial_std
        self.momentum = momentum
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._started_flag = RememberedFlag()
        for owner in ("encoder", "code"):
            self.register_buffer(f"{owner}_mean", torch.zeros(codebook_dim))
            self.register_buffer(f"{owner}_variance", torch.ones(codebook_dim))

    @property
    def awaits_first_batch(self) -> bool:
        return not self._started_flag.read(self.started)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.started)
        for owner in ("encoder", "code"):
            nn.init.zeros_(getattr(self, f"{owner}_mean"))
            nn.init.ones_(getattr(self, f"{owner}_variance"))

    @torch.no_grad()
    def observe(self, raw: torch.Tensor, vectors: torch.Tensor) -> None:
        batch_moments = global_moments(vectors)
        if batch_moments is None:
            return
        is_first = self.awaits_first_batch
        momentum = 1.0 if is_first else self.momentum
        moments = (*batch_moments, raw.mean(dim=0), raw.var(dim=0, correction=0))
        running = (self.encoder_mean, self.encoder_variance, self.code_mean, self.code_variance)
        for average, moment in zip(running, moments, strict=True):
            average.lerp_(moment.to(average), momentum)
        if is_first:
            self.started.fill_(True)

    def _scale(self) -> torch.Tensor:
        # In float32 even where the module was cast: a quotient of variances overflows half precision.
        variances = self.encoder_variance, self.code_variance
        encoder_variance, code_variance = (as_float(variance).clamp(min=self.MIN_VARIANCE) for variance in variances)
        return (encoder_variance / code_variance).sqrt()

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return self._scale() * (raw - self.code_mean) + self.encoder_mean

    def inverse(self, effective: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return (effective - self.encoder_mean) / self._scale() + self.code_mean

    @torch.no_grad()
    def measure_codes(self, raw: torch.Tensor) -> None:
        """Sets the codes' moments to those that `raw` `(K, C)` has now, for raw codes that were exchanged."""
        self.code_mean.copy_(raw.mean(dim=0))
        self.code_variance.copy_(raw.var(dim=0, correction=0))


class LinearParameterization(PlainParameterization):
    """Effective codes are fixed raw codes through one learned matrix: `e @ M` (SimVQ, Zhu et al., 2024).

    The gradient of any chosen code moves the whole space that the codes span.

    Args:
        codebook_dim: C.
    """

    def __init__(self, codebook_dim: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(codebook_dim))

    def reset_parameters(self) -> None:
        nn.init.eye_(self.matrix)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return raw @ as_float(self.matrix)

    def inverse(self, effective: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        # The pseudo-inverse: of a matrix that has lost a direction it still gives the closest codes there are.
        return effective @ torch.linalg.pinv(as_float(self.matrix))


def build_parameterization(config: VectorQuantizerConfig) -> PlainParameterization:
    """The parameterisation of one codebook of `config`."""
    if config.parameterization == "affine":
        return AffineParameterization(
            config.codebook_size,
            config.dim_per_codebook,
            config.affine_groups,
            config.affine_lr_scale,
            config.codebook_lr_scale,
        )
    if config.parameterization == "affine_running":
        return RunningAffineParameterization(config.dim_per_codebook, 1 / config.codebook_lr_scale)
    if config.parameterization == "linear":
        return LinearParameterization(config.dim_per_codebook)
    return PlainParameterization(config.codebook_lr_scale if config.update != "ema" else 1.0)
