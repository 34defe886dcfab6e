"""Configuration of the vector quantizer: one field per orthogonal choice."""

import math
from dataclasses import dataclass
from typing import ClassVar

from .fields import QuantizerConfig, require

# A field beyond these is a slip of the pen, which would fill the memory before anyone saw it.
MAX_SIZES = {"codebook_size": 1 << 24, "codebook_dim": 1 << 16, "num_codebooks": 1 << 10}
MAX_SEED = 1 << 31

CHOICES = {
    "parameterization": ("plain", "affine", "affine_running", "linear"),
    "update": ("gradient", "ema", "alternating"),
    "estimator": ("straight_through", "rotation"),
    "distance": ("euclidean", "cosine"),
    "init": ("random", "kmeans"),
    "structure": ("single", "grouped", "residual"),
}


@dataclass
class VectorQuantizerConfig(QuantizerConfig):
    r"""Choices of a `VectorQuantizer`; names follow the terms they act on.

    The defaults are the arm that won the ablation of `docs/quantizers.md`; the loss weights are those of Huh et al.'s
    notation with \(\alpha = 1.25, \beta = 0.95\).

    Args:
        codebook_size: number of codes K of each codebook, at least 2.
        codebook_dim: channels C of the layer's input and output, at least 1.
        parameterization: how the stored codes become the effective ones. `"plain"`: they are; `"affine"`: with a
            learned scale and shift shared by all codes (Huh et al., 2023, section 4.1); `"affine_running"`: shifted and
            scaled so that their running moments match those of the encoder's outputs (ibid.); `"linear"`: fixed random
            codes through one learned matrix (SimVQ, Zhu et al., 2024).
        affine_groups: with `"affine"`, number of groups of codes with a scale and a shift of their own; divides K.
        affine_lr_scale: with `"affine"`, factor s on the learning speed of the shared parameters, above 0.
        codebook_lr_scale: factor on the learning speed of the codes beside that of the network, above 0: they are
            stored divided by it, so a step of Adam moves them this much further (one of plain SGD by its square).
            Without effect on codes that no gradient moves (`"linear"`, `update="ema"`).
        update: what moves the codes. `"gradient"`: the codebook loss, by the optimizer of the whole network; `"ema"`:
            averages of the encoder's outputs (van den Oord et al., 2017, appendix A.1), which needs
            `parameterization="plain", sync_weight=0`; `"alternating"`: an optimizer
            of its own in the training step (Huh et al., section 4.2; see `hf_vq.training.alternating`), without whose
            calls the codes stand still.
        ema_decay: with `update="ema"`, share of the old average that each batch keeps, in (0, 1).
        estimator: gradient through the look-up: `"straight_through"` or `"rotation"` (Fifty et al., 2024).
        sync_weight: synchronised update \(\nu\) of Huh et al.: the task's gradient g reaches the chosen code as
            `nu * g`; 0 to 2.
        distance: `"euclidean"`, or `"cosine"`: encoder outputs and codes are l2-normalised, the quantised vectors too.
        init: `"kmeans"` places the codes by k-means++ on the first training batch, `"random"` draws them uniformly in
            `[-1/K, 1/K]` (normally with `"linear"`, with variance 1/C, and with `"affine_running"`, with the
            encoder's mean and spread).
        replace_after: a code unused for this many training batches becomes a recent encoder output; `None` is off.
        structure: `"single"` codebook; `"grouped"`: the channels are split over `num_codebooks` codebooks (product
            quantisation); `"residual"`: each codebook quantises what the ones before it left over.
        num_codebooks: 1 for `"single"`, at least 2 otherwise; with `"grouped"` it divides C.
        commitment_weight: factor of `mean |z - sg(z_q)|^2`.
        codebook_weight: factor of `mean |sg(z) - z_q|^2`; without effect unless `update="gradient"`. In the notation of
            Huh et al., `codebook_weight = alpha * beta` and `commitment_weight = alpha * (1 - beta)`.
        channel_last: input is `(B, ..., C)` instead of `(B, C, ...)`.
        seed: seed of initialisation and replacement.

    Raises:
        ValueError: if a field is out of range or two fields contradict each other.
    """

    quantizer_type: ClassVar[str] = "vector"

    codebook_size: int = 512
    codebook_dim: int = 64
    parameterization: str = "affine"
    affine_groups: int = 1
    affine_lr_scale: float = 1.0
    codebook_lr_scale: float = 50.0
    update: str = "gradient"
    ema_decay: float = 0.99
    estimator: str = "straight_through"
    sync_weight: float = 1.0
    distance: str = "euclidean"
    init: str = "kmeans"
    replace_after: int | None = 20
    structure: str = "single"
    num_codebooks: int = 1
    commitment_weight: float = 0.0625
    codebook_weight: float = 1.1875
    channel_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.require_types()
        for name, choices in CHOICES.items():
            require(getattr(self, name) in choices, name, getattr(self, name), f"one of {choices}")
        for name, least in (("codebook_size", 2), ("codebook_dim", 1), ("num_codebooks", 1)):
            most, value = MAX_SIZES[name], getattr(self, name)
            require(least <= value <= most, name, value, f"at least {least} and at most {most}")
        require(abs(self.seed) <= MAX_SEED, "seed", self.seed, f"at most {MAX_SEED} in size")
        require(0 <= self.sync_weight <= 2, "sync_weight", self.sync_weight, "between 0 and 2")
        require(0 < self.ema_decay < 1, "ema_decay", self.ema_decay, "between 0 and 1, exclusive")
        off_or_positive = self.replace_after is None or self.replace_after >= 1
        require(off_or_positive, "replace_after", self.replace_after, "None or at least 1")
        for name in ("commitment_weight", "codebook_weight"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "finite and at least 0")
        self._check_affine()
        self._check_update()
        self._check_structure()

    @property
    def dim_per_codebook(self) -> int:
        """Channels of a code in each codebook: C, or C over the number of groups."""
        return self.codebook_dim // self.num_codebooks if self.structure == "grouped" else self.codebook_dim

    def _check_affine(self) -> None:
        for name in ("affine_lr_scale", "codebook_lr_scale"):
            scale = getattr(self, name)
            require(math.isfinite(scale) and scale > 0, name, scale, "finite and above 0")
        divides = self.affine_groups >= 1 and self.codebook_size % self.affine_groups == 0
        require(divides, "affine_groups", self.affine_groups, f"a divisor of codebook_size={self.codebook_size}")
        if self.parameterization != "affine" and self.affine_groups != 1:
            raise ValueError(
                f"affine_groups={self.affine_groups} has no effect with parameterization={self.parameterization!r}; "
                "set affine_groups=1 or parameterization='affine'"
            )

    def _check_update(self) -> None:
        if self.update == "ema" and (self.parameterization != "plain" or self.sync_weight):
            raise ValueError(
                f"update='ema' sets the codes to averages, which leaves parameterization={self.parameterization!r} and "
                f"sync_weight={self.sync_weight} nothing to do; set parameterization='plain' and sync_weight=0 (the "
                "defaults are others), or another update"
            )

    def _check_structure(self) -> None:
        if (self.structure == "single") != (self.num_codebooks == 1):
            raise ValueError(
                f"structure={self.structure!r} does not fit num_codebooks={self.num_codebooks}: 'single' has 1, "
                "'grouped' and 'residual' at least 2"
            )
        if self.structure == "grouped" and self.codebook_dim % self.num_codebooks:
            raise ValueError(
                f"num_codebooks={self.num_codebooks} must divide codebook_dim={self.codebook_dim} with "
                "structure='grouped'"
            )
        if self.structure == "residual" and self.distance == "cosine":
            raise ValueError(
                "distance='cosine' drops the length of a vector, which structure='residual' needs to take up what is "
                "left over; set distance='euclidean' or structure='grouped'"
            )
