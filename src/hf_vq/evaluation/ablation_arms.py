"""Arms of the ablation of quantizers: what each of them is, and which loss weights are tried for it."""

from typing import Any

from ..quantizers import VectorQuantizerConfig
from .ablation import Weights

# Commitment and codebook weight: alpha (1 - beta) and alpha beta for alpha in {1.25, 5}, beta in {0.8, 0.95}, in the
# notation of Huh et al., 2023; the first is what most published code uses.
GRID: tuple[Weights, ...] = ((0.25, 1.0), (0.0625, 1.1875), (1.0, 4.0), (0.25, 4.75))
NO_WEIGHTS: Weights = (None, None)

PLAIN: dict[str, Any] = {
    "parameterization": "plain",
    "update": "gradient",
    "estimator": "straight_through",
    "codebook_lr_scale": 1.0,
    "sync_weight": 0.0,
    "distance": "euclidean",
    "init": "random",
    "replace_after": None,
    "structure": "single",
}
"""Plain VQ, spelled out so that it stays the same when a default changes."""

TECHNIQUES: dict[str, dict[str, Any]] = {
    "kmeans": {"init": "kmeans"},
    "sync": {"sync_weight": 1.0},
    "affine": {"parameterization": "affine"},
    "alternating": {"update": "alternating"},
    "replacement": {"replace_after": 20},
}

FAST: dict[str, Any] = {"codebook_lr_scale": 50.0}
"""Codes that learn faster than the network."""
RUNNING: dict[str, Any] = {"parameterization": "affine_running"}
"""The other way to the affine codebook that Huh et al. describe: by running moments instead of learned parameters."""

FSQ_LEVELS = {256: [8, 6, 5], 1024: [8, 5, 5, 5]}
"""Levels of the FSQ arm for each K: 240 and 1000 codes, the nearest that its authors advise."""

FSQ, CEILING = "fsq", "none"


def combined(*names: str) -> dict[str, Any]:
    """Fields of several techniques together."""
    return {field: value for name in names for field, value in TECHNIQUES[name].items()}


def _vector_arms() -> dict[str, dict[str, Any]]:
    single = [name for name in TECHNIQUES if name != "kmeans"]
    arms = {
        "vq": {},
        "kmeans": combined("kmeans"),
        **{f"kmeans+{name}": combined("kmeans", name) for name in single},
        "kmeans+affine+replacement": combined("kmeans", "affine", "replacement"),
        "all": combined(*TECHNIQUES),
        **{f"all-{name}": combined(*(other for other in TECHNIQUES if other != name)) for name in TECHNIQUES},
        "fast+replacement": combined("kmeans", "replacement") | FAST,
        "fast+sync+replacement": combined("kmeans", "sync", "replacement") | FAST,
        "fast+affine+sync+replacement": combined("kmeans", "affine", "sync", "replacement") | FAST,
        "fast+running+sync+replacement": combined("kmeans", "sync", "replacement") | RUNNING | FAST,
        "running+sync+replacement": combined("kmeans", "sync", "replacement") | RUNNING,
        "ema+replacement": {**combined("kmeans", "replacement"), "update": "ema"},
        "simvq": {"parameterization": "linear"},
        "rotation": {**combined("kmeans"), "estimator": "rotation"},
    }
    default = find_arm(arms, VectorQuantizerConfig())
    return arms if default else {**arms, "default": choices(VectorQuantizerConfig())}


def choices(config: VectorQuantizerConfig) -> dict[str, Any]:
    """Fields of a config without those that every run sets anew: sizes, weights and seed."""
    varied = ("quantizer_type", "codebook_size", "codebook_dim", "commitment_weight", "codebook_weight", "seed")
    return {name: value for name, value in config.to_dict().items() if name not in varied}


def find_arm(arms: dict[str, dict[str, Any]], config: VectorQuantizerConfig) -> str | None:
    """Name of the arm that a config is, whatever its sizes, weights and seed; `None` if it is none of them."""
    same = (
        name for name, fields in arms.items() if choices(VectorQuantizerConfig(**PLAIN | fields)) == choices(config)
    )
    return next(same, None)


VECTOR_ARMS = _vector_arms()
"""For each arm of `VectorQuantizerConfig` the fields in which it differs from `PLAIN`.

`default` is among them only while `VectorQuantizerConfig()` is none of the others.
"""

DEFAULT_ARM = find_arm(VECTOR_ARMS, VectorQuantizerConfig()) or "default"
"""The arm that `VectorQuantizerConfig()` is."""

ARMS = (*VECTOR_ARMS, FSQ, CEILING)


def arm_fields(arm: str, codebook_size: int) -> dict[str, Any]:
    """What makes an arm's quantizer, as differences from plain VQ.

    Args:
        arm: one of `ARMS`.
        codebook_size: nominal K.

    Returns:
        Fields of a quantizer's config; for FSQ all of them, for the ceiling none.

    Raises:
        ValueError: there are no levels of FSQ for this K.
    """
    if arm == FSQ:
        if codebook_size not in FSQ_LEVELS:
            raise ValueError(
                f"arm {FSQ}: found no levels for K = {codebook_size}, expected K in {sorted(FSQ_LEVELS)}; leave it out"
            )
        return {"quantizer_type": "finite_scalar", "levels": FSQ_LEVELS[codebook_size]}
    return {} if arm == CEILING else VECTOR_ARMS[arm]


def search_grid(arm: str) -> list[Weights]:
    """Loss weights to be tried for an arm: those points of `GRID` that differ for it.

    With EMA and alternating updates no loss of the network moves the codes, so the commitment weight alone counts; FSQ
    and the ceiling have no such losses.
    """
    if arm in (FSQ, CEILING):
        return [NO_WEIGHTS]
    if VECTOR_ARMS[arm].get("update", "gradient") == "gradient":
        return list(GRID)
    return [(commitment, None) for commitment in dict.fromkeys(commitment for commitment, _ in GRID)]
