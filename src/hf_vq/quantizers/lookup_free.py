"""Lookup-free quantisation: every channel becomes one bit, on a hypercube (LFQ) or on the unit sphere (BSQ)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from .distributed import all_reduce_sum
from .fields import QuantizerConfig, config_or_fields, require
from .functional import commitment_loss
from .implicit import MAX_CODEBOOK_SIZE, ImplicitCodebookQuantizer

MAX_BITS = MAX_CODEBOOK_SIZE.bit_length() - 1
# Shorter vectors keep their length: normalising what is next to nothing would blow up its gradient.
MIN_NORM = 1e-6


@dataclass
class LookupFreeQuantizerConfig(QuantizerConfig):
    """Choices of a `LookupFreeQuantizer`.

    Args:
        codebook_dim: channels C, each of which becomes a bit, so there are 2^C codes; 1 to 24, or from 2 with
            `spherical`.
        spherical: inputs are l2-normalised and codes lie on the unit sphere (BSQ) instead of the cube's corners (LFQ).
        commitment_weight: factor of `mean |z - sg(z_q)|^2`.
        entropy_weight: factor of the entropy penalty `mean H(p) - diversity_weight * H(mean p)`, in nats.
        diversity_weight: gamma, how much the use of many codes over the batch counts against certainty about each one.
        temperature: tau of the probabilities `p(code | z) ~ exp(-|z - code|^2 / tau)` in the entropies, above 0.
        entropy_group_size: `H(mean p)` is that of the joint distribution of so many bits, summed over consecutive
            groups of them. From `codebook_dim` on it is exact; 1 sees each bit by itself and takes bits that always
            agree for diverse; in between it is an upper bound. Time grows with 2^size a vector, memory with 2^(size/2).
        channel_last: input is `(B, ..., C)` instead of `(B, C, ...)`.

    Raises:
        ValueError: if a field is out of range.
    """

    quantizer_type: ClassVar[str] = "lookup_free"

    codebook_dim: int = 10
    spherical: bool = False
    commitment_weight: float = 0.25
    entropy_weight: float = 0.03
    diversity_weight: float = 1.0
    temperature: float = 0.1
    entropy_group_size: int = 10
    channel_last: bool = False

    def __post_init__(self) -> None:
        self.require_types()
        # One channel on the sphere is its sign whatever the input: the gradient would be 0 for ever.
        fewest = 2 if self.spherical else 1
        expected = f"{fewest} to {MAX_BITS} with spherical={self.spherical}"
        require(fewest <= self.codebook_dim <= MAX_BITS, "codebook_dim", self.codebook_dim, expected)
        for name in ("commitment_weight", "entropy_weight", "diversity_weight"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "finite and at least 0")
        temperature = self.temperature
        require(math.isfinite(temperature) and temperature > 0, "temperature", temperature, "finite and above 0")
        size = self.entropy_group_size
        require(1 <= size <= MAX_BITS, "entropy_group_size", size, f"1 to {MAX_BITS}")

    @property
    def codebook_size(self) -> int:
        """Number of codes K = 2^C."""
        return 1 << self.codebook_dim


class LookupFreeQuantizer(ImplicitCodebookQuantizer):
    r"""Takes the sign of every channel: C channels are C bits of a code, and no codebook is searched.

    LFQ (Yu et al., 2023, section 3.1): \(z_q = \mathrm{sign}(z)\), with 0 counted as negative. With `spherical`, BSQ
    (Zhao et al., 2024): \(u = z / |z|\), \(u_q = \mathrm{sign}(u) / \sqrt{C}\), and u stands for z from here on. Both
    are the nearest of the 2^C codes; its number is \(\sum_i 2^i [z_i > 0]\), i from 0. Gradients pass straight through
    the sign; the derivative of the normalisation stays.

    `loss = commitment_weight * mean |z - sg(z_q)|^2 + entropy_weight * (mean H(p) - diversity_weight * H(mean p))`,
    with \(p(c | z) \propto \exp(-|z - c|^2 / \tau)\). The codes are all corners \(\pm a\) of a cube, so p is that of C
    independent bits, \(p(c_i > 0) = \sigma(4 a z_i / \tau)\), and H(p) is exactly the sum of their entropies. Bits are
    not independent under a mean of such p; for H(mean p) see `entropy_group_size`. In training the means are over the
    vectors of all processes. There are no parameters and no state; `codebook_loss` is a constant zero.

    Args:
        config: a `LookupFreeQuantizerConfig` or its plain dict; alternatively give its fields as keywords.

    Example:
        >>> quantizer = LookupFreeQuantizer(codebook_dim=10)
        >>> output = quantizer(torch.randn(2, 10, 16, 16))
        >>> output.codes.shape
        torch.Size([2, 16, 16])
    """

    config: LookupFreeQuantizerConfig
    SHOWN_FIELDS = ("codebook_dim", "codebook_size", "spherical", "entropy_weight")

    def __init__(self, config: LookupFreeQuantizerConfig | dict[str, Any] | None = None, **fields: object) -> None:
        super().__init__(config_or_fields(LookupFreeQuantizerConfig, config, fields))

    def _bound(self, vectors: torch.Tensor) -> torch.Tensor:
        if not self.config.spherical:
            return vectors
        norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        return vectors / torch.where(norm > MIN_NORM, norm, 1.0)

    def _assign(self, bounded: torch.Tensor) -> torch.Tensor:
        # Shifts by name: the operators << and >> have no counterpart in ONNX.
        return torch.bitwise_left_shift((bounded > 0).to(torch.int64), self._bits(bounded.device)).sum(dim=-1)

    def _look_up(self, codes: torch.Tensor) -> torch.Tensor:
        bits = torch.bitwise_right_shift(codes.to(torch.int64)[..., None], self._bits(codes.device)) % 2
        signs = 2 * bits - 1
        return self._corner * signs.to(self._dtype)

    def _losses(
        self, bounded: torch.Tensor, quantized: torch.Tensor, factor: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        commitment = factor * commitment_loss(bounded, quantized)
        loss = self.config.commitment_weight * commitment
        if self.config.entropy_weight:
            logits = 4 * self._corner / self.config.temperature * bounded
            certainty = factor * binary_entropy(logits).sum() / max(len(logits), 1)
            groups = logits.split(self.config.entropy_group_size, dim=1)
            diversity = torch.stack([self._joined_entropy(group, factor) for group in groups]).sum()
            loss = loss + self.config.entropy_weight * (certainty - self.config.diversity_weight * diversity)
        return loss, commitment

    def _joined_entropy(self, logits: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
        """This rank's share of H(mean p) over the joined batch; averaged over ranks, value and gradient are exact.

        Probabilities sum to 1, so dH = -sum log(mean p) d(mean p). With log(mean p) of the joined batch held constant
        this is linear in the rank's own probabilities, hence a mean over rows like every other loss.
        """
        mean = factor * mean_code_probabilities(logits)
        joined = all_reduce_sum(mean.detach()) if self.training else mean.detach()
        surprise = (
            -(joined / joined.sum().clamp(min=torch.finfo(joined.dtype).tiny))
            .clamp(min=torch.finfo(joined.dtype).tiny)
            .log()
        )
        return (surprise * mean).sum()

    @property
    def _corner(self) -> float:
        """The size of each channel of a code."""
        return 1 / math.sqrt(self.config.codebook_dim) if self.config.spherical else 1.0

    def _bits(self, device: torch.device) -> torch.Tensor:
        return torch.arange(self.config.codebook_dim, device=device)


def binary_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of a bit that is 1 with probability `sigmoid(logit)`: elementwise, accurate at both ends."""
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def mean_code_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Mean over vectors of the joint distribution of their independent bits, without a table of all vectors' codes.

    A joint probability is that of the low bits times that of the high bits, so the sum over vectors is a product of two
    narrow matrices.

    Args:
        logits: `(N, g)`, bit i of vector n is 1 with probability `sigmoid(logits[n, i])`.

    Returns:
        `(2^g,)`; entry c is the mean probability of the bits of c, bit 0 the least significant.
    """
    half = logits.shape[1] // 2
    low, high = _joint_probabilities(logits[:, :half]), _joint_probabilities(logits[:, half:])
    return (high.T @ low).flatten() / max(len(logits), 1)


def _joint_probabilities(logits: torch.Tensor) -> torch.Tensor:
    joint = logits.new_ones(len(logits), 1)
    for column in logits.unbind(dim=1):
        joint = torch.cat((joint * torch.sigmoid(-column)[:, None], joint * torch.sigmoid(column)[:, None]), dim=1)
    return joint
