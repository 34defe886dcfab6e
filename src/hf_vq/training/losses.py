"""Training losses of absorbing code diffusion."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..quantizers.distributed import all_reduce_sum, is_distributed, joined_mean_factor

CODE_LOSSES = ("elbo", "mlm", "reweighted_elbo")
MASK_RATES = ("uniform", "cosine")


def draw_mask_rates(
    batch_size: int,
    distribution: str = "uniform",
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    r"""Mask rates t of a training batch.

    `"uniform"` on (0, 1], as the bounds of absorbing diffusion ask for; `"cosine"`: \(t = \cos(\pi u / 2)\) of a
    uniform u, which trains nearly full masks more often (MaskGIT; Chang et al., 2022), where the views count most.

    Args:
        batch_size: samples.
        distribution: one of `MASK_RATES`.
        generator: source of randomness, one or a list of one per sample.

    Returns:
        `(batch_size,)` float64 in (0, 1].

    Raises:
        ValueError: if `distribution` is unknown, or `batch_size` negative.
    """
    if batch_size < 0:
        raise ValueError(f"batch_size must be at least 0; got {batch_size}")
    if isinstance(generator, Sequence):
        return torch.cat([draw_mask_rates(1, distribution, own) for own in generator])
    draws = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    if distribution == "uniform":
        return 1 - draws
    if distribution == "cosine":
        return torch.cos(draws * math.pi / 2)
    raise ValueError(f"mask_rates={distribution!r} is unknown; choose one of {MASK_RATES}")


def soft_code_targets(codebook: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""For each true code a distribution over the codes that lie close to it.

    Row k is \(\mathrm{softmax}_j(-|e_k - e_j|^2 / (\tau m))\), m being the mean squared distance of a code to its
    nearest neighbour, so that the temperature \(\tau\) means the same for every codebook.

    Args:
        codebook: `(K, C)` effective codebook.
        temperature: above 0; towards 0 the true code alone.

    Returns:
        `(K, K)`, each row summing to 1.

    Raises:
        ValueError: if the temperature is not finite and above 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and above 0; got {temperature}")
    distances = torch.cdist(codebook.double(), codebook.double()).square()
    nearest = distances.masked_fill(torch.eye(len(codebook), dtype=torch.bool, device=codebook.device), math.inf)
    scale = nearest.amin(dim=1).mean().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.softmax(-distances / (temperature * scale), dim=1).float()


def masked_code_loss(
    logits: torch.Tensor,
    codes: torch.Tensor,
    masked: torch.Tensor,
    timesteps: torch.Tensor,
    loss_type: str = "reweighted_elbo",
    soft_targets: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Cross-entropy of the true codes at masked positions, weighted over the mask rate t.

    With CE the sum over a volume's N positions that are masked, in nats, averaged over the batch:
    `"elbo"`: \(CE / (t N)\), the bound on the negative log-likelihood per code (Bond-Taylor et al., 2022, eq. 8);
    `"mlm"`: \(CE / \text{number masked}\);
    `"reweighted_elbo"`: \((1 - t + 1/N)\, CE / N\) (ibid., eq. 9; the discrete schedule's weight at t = 1 is 1/N, not
    0, so that the first sampling step is trained too).

    `"elbo"` is a bound for rates drawn uniformly, and `"reweighted_elbo"` a reweighting of it. With an exact number of
    masks `"elbo"` and `"mlm"` are one and the same; with coins they are not.

    Args:
        logits: `(B, N, K)`, or those of the masked positions alone, `(M, K)` row by row.
        codes: `(B, N)` int64 true codes.
        masked: `(B, N)` bool, positions that count.
        timesteps: `(B,)` mask rates t in (0, 1]. Where an exact number of positions was masked, the rate is that number
            over N: the rate that was asked for may round to fewer positions than are masked, and 1/t would explode.
        loss_type: one of `CODE_LOSSES`.
        soft_targets: `(K, K)` from `soft_code_targets`; the true codes alone by default.

    Returns:
        Scalar in nats.

    Raises:
        ValueError: if `loss_type` is unknown, the logits do not fit, or a code is out of range (on the CPU).
    """
    num_positions, (logits, true) = codes.shape[1], _at_masked(logits, codes, masked)
    if soft_targets is None:
        per_position = F.cross_entropy(logits, true, reduction="none")
    else:
        per_position = -(soft_targets[true] * F.log_softmax(logits, dim=-1)).sum(dim=-1)
    summed = torch.zeros_like(masked, dtype=logits.dtype).masked_scatter(masked, per_position).sum(dim=1)
    rates = timesteps.to(summed)
    if loss_type == "elbo":
        weighted = summed / (rates * num_positions)
    elif loss_type == "mlm":
        weighted = summed / masked.sum(dim=1).clamp(min=1)
    elif loss_type == "reweighted_elbo":
        weighted = (1 - rates + 1 / num_positions) * summed / num_positions
    else:
        raise ValueError(f"loss_type={loss_type!r} is unknown; choose one of {CODE_LOSSES}")
    return weighted.mean()


def code_vector_loss(
    logits: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor, codebook: torch.Tensor
) -> torch.Tensor:
    """How far the expected code vector under the predicted distribution is from the true one, at masked positions.

    Cross-entropy takes every wrong code to be equally wrong; this loss tells a close one from a far one.

    Args:
        logits: `(B, N, K)`, or those of the masked positions alone, `(M, K)` row by row.
        codes: `(B, N)` int64 true codes.
        masked: `(B, N)` bool, positions that count.
        codebook: `(K, C)` effective codebook.

    Returns:
        Scalar: mean squared distance over the masked positions, in units of the codebook's total variance.

    Raises:
        ValueError: if the logits do not fit, or a code is out of range (on the CPU).
    """
    logits, true = _at_masked(logits, codes, masked)
    expected = torch.softmax(logits, dim=-1) @ codebook.float()
    squared = (expected - codebook.float()[true]).square().sum(dim=-1)
    variance = codebook.float().var(dim=0, correction=0).sum().clamp(min=1e-12)
    return squared.sum() / masked.sum().clamp(min=1) / variance


def _at_masked(logits: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 logits `(M, K)` and true codes `(M,)` of the masked positions, row by row."""
    true = codes[masked]
    if logits.ndim == 3 and logits.shape[:2] == masked.shape:
        logits = logits[masked]
    if logits.ndim != 2 or len(logits) != len(true):
        raise ValueError(
            f"logits must be {(*masked.shape, 'K')}, or ({len(true)}, K) of the masked positions; got "
            f"{tuple(logits.shape)}"
        )
    # Elsewhere the device itself stops at such a code, and asking it would make every step wait.
    if true.device.type == "cpu" and true.numel() and not 0 <= int(true.min()) <= int(true.max()) < logits.shape[1]:
        raise ValueError(
            f"codes must lie in [0, {logits.shape[1]}), the codes that the logits are of; got values from "
            f"{int(true.min())} to {int(true.max())}"
        )
    return logits.float(), true


class CodeObjective:
    """What a code transformer is trained to minimise.

    Args:
        loss_type: one of `CODE_LOSSES`.
        codebook: `(K, C)` effective codebook of the codes to be predicted.
        soft_target_temperature: of `soft_code_targets`; 0 for the true codes alone.
        code_vector_weight: weight of `code_vector_loss`.
        causal: whether the model is. It predicts all codes at once, so there is no mask rate to weight by: its loss is
            the mean over all codes, whichever `loss_type`.

    Raises:
        ValueError: if a number is negative or `loss_type` is unknown.
    """

    def __init__(
        self,
        loss_type: str,
        codebook: torch.Tensor,
        soft_target_temperature: float = 0.0,
        code_vector_weight: float = 0.0,
        causal: bool = False,
    ) -> None:
        if loss_type not in CODE_LOSSES:
            raise ValueError(f"--loss_type {loss_type} is unknown; choose one of {CODE_LOSSES}")
        numbers = {"soft_target_temperature": soft_target_temperature, "code_vector_weight": code_vector_weight}
        for name, value in numbers.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"--{name} must be a finite number of at least 0; got {value}")
        self._loss_type = "mlm" if causal else loss_type
        self._codebook, self._code_vector_weight = codebook.detach(), code_vector_weight
        self._soft_targets: torch.Tensor | None = None
        if soft_target_temperature:
            self._soft_targets = soft_code_targets(self._codebook, soft_target_temperature)

    def __call__(
        self, logits: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Scalar loss; the arguments are those of `masked_code_loss`."""
        loss = masked_code_loss(logits, codes, masked, timesteps, self._loss_type, self._soft_targets)
        if self._code_vector_weight:
            total = all_reduce_sum(masked.sum()).clamp(min=1)  # of all processes, each of which hides another number
            share = joined_mean_factor(int(masked.sum()), total) if is_distributed() else 1.0
            distance = code_vector_loss(logits, codes, masked, self._codebook)
            loss = loss + self._code_vector_weight * share * distance
        return loss
