"""Configuration of the vector quantizer: one field per orthogonal choice."""

import math
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any, get_args

PARAMETERIZATIONS = ("plain", "affine")
INITS = ("random", "kmeans")


@dataclass
class VectorQuantizerConfig:
    """Choices of a `VectorQuantizer`; names follow the terms they act on.

    Args:
        codebook_size: number of codes K, at least 2.
        codebook_dim: channels C of a code, at least 1.
        parameterization: `"plain"`, or `"affine"` for codes that share a learned scale and shift (Huh et al., 2023).
        affine_groups: with `"affine"`, number of groups of codes with a scale and a shift of their own; divides K.
        affine_lr_scale: with `"affine"`, factor s on the learning speed of the shared parameters, above 0.
        sync_weight: synchronised update nu of Huh et al.: the task's gradient g reaches the chosen code as `nu * g`; 0
            to 2.
        init: `"kmeans"` places the codes by k-means++ on the first training batch, `"random"` draws them uniformly in
            `[-1/K, 1/K]`.
        replace_after: a code unused for this many training batches becomes a recent encoder output; `None` is off.
        commitment_weight: factor of `mean |z - sg(z_q)|^2`.
        codebook_weight: factor of `mean |sg(z) - z_q|^2`. In the notation of Huh et al., `codebook_weight = alpha *
            beta` and `commitment_weight = alpha * (1 - beta)`.
        channel_last: input is `(B, ..., C)` instead of `(B, C, ...)`.
        seed: seed of initialisation and replacement.

    Raises:
        ValueError: if a field is out of range or two fields contradict each other.
    """

    codebook_size: int = 512
    codebook_dim: int = 64
    parameterization: str = "affine"
    affine_groups: int = 1
    affine_lr_scale: float = 1.0
    sync_weight: float = 0.0
    init: str = "kmeans"
    replace_after: int | None = 20
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    channel_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, field in self.__dataclass_fields__.items():
            _require_type(name, getattr(self, name), field.type)
        _require(self.codebook_size >= 2, "codebook_size", self.codebook_size, "at least 2")
        _require(self.codebook_dim >= 1, "codebook_dim", self.codebook_dim, "at least 1")
        _require(
            self.parameterization in PARAMETERIZATIONS,
            "parameterization",
            self.parameterization,
            f"one of {PARAMETERIZATIONS}",
        )
        _require(self.init in INITS, "init", self.init, f"one of {INITS}")
        _require(0 <= self.sync_weight <= 2, "sync_weight", self.sync_weight, "between 0 and 2")
        _require(
            self.replace_after is None or self.replace_after >= 1,
            "replace_after",
            self.replace_after,
            "None or at least 1",
        )
        for name in ("commitment_weight", "codebook_weight"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "finite and at least 0")
        self._check_affine()

    def _check_affine(self) -> None:
        scale = self.affine_lr_scale
        _require(math.isfinite(scale) and scale > 0, "affine_lr_scale", scale, "finite and above 0")
        divides = self.affine_groups >= 1 and self.codebook_size % self.affine_groups == 0
        expected = f"a divisor of codebook_size={self.codebook_size}"
        _require(divides, "affine_groups", self.affine_groups, expected)
        if self.parameterization != "affine" and self.affine_groups != 1:
            raise ValueError(
                f"affine_groups={self.affine_groups} has no effect with parameterization={self.parameterization!r}; "
                "set affine_groups=1 or parameterization='affine'"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VectorQuantizerConfig":
        """Inverse of `to_dict`.

        Raises:
            ValueError: if a key is no field of this config, naming it and the fields there are.
        """
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown quantizer field(s) {unknown}; the fields are {sorted(known)}")
        return cls(**values)


def _require_type(name: str, value: object, annotation: Any) -> None:
    kinds = get_args(annotation) or (annotation,)
    accepted = (*kinds, int) if float in kinds else kinds
    right = isinstance(value, accepted) and (bool in kinds or not isinstance(value, bool))
    expected = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
    _require(right, name, value, f"of type {expected}")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r} is out of range; it must be {expected}")
