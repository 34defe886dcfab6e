"""Stateless arithmetic of vector quantisation: search, gradient estimators, losses, usage figures."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .search import nearest_codes as nearest_codes

# Vectors shorter than this have no direction to rotate.
MIN_NORM = 1e-12


def straight_through(vectors: torch.Tensor, quantized: torch.Tensor, sync_weight: float = 0.0) -> torch.Tensor:
    r"""Quantised value with the straight-through gradient and the synchronised update (Huh et al., 2023, section 4.3).

    Value: `quantized`. Gradient g of the task reaches `vectors` as g and the chosen codes as `sync_weight * g`:
    \(z + sg(z_q - z) + \nu (z_q - sg(z_q))\).

    Args:
        vectors: encoder outputs z, any shape.
        quantized: chosen effective codes z_q, same shape.
        sync_weight: nu of the paper, 0 (plain straight-through) or more.
    """
    return _GradientCarried.apply(quantized, vectors, sync_weight)


def rotation(vectors: torch.Tensor, quantized: torch.Tensor, sync_weight: float = 0.0) -> torch.Tensor:
    r"""Quantised value with the gradient of the rotation trick (Fifty et al., 2024, section 4.2).

    Value: `quantized`. Each z is taken to its code by a rotation in their common plane and a rescaling, both held
    constant in backward: \(\tilde q = sg(\frac{|z_q|}{|z|} R) z\), \(R = I - 2 r r^T + 2 \hat q \hat z^T\),
    \(r = \frac{\hat z + \hat q}{|\hat z + \hat q|}\). So a gradient keeps its angle to the code as an angle to z.
    Where z is 0 there is no rotation, and the gradient passes straight through.

    Args:
        vectors: encoder outputs z, `(N, C)`.
        quantized: chosen effective codes z_q, `(N, C)`.
        sync_weight: nu of the synchronised update, as in `straight_through`.
    """
    with torch.no_grad():
        norm = vectors.norm(dim=1, keepdim=True)
        unit, target = F.normalize(vectors, dim=1), F.normalize(quantized, dim=1)
        bisector = F.normalize(unit + target, dim=1)
        scale = quantized.norm(dim=1, keepdim=True) / norm.clamp(min=MIN_NORM)
    reflected = (vectors * bisector).sum(dim=1, keepdim=True) * bisector
    turned = (vectors * unit).sum(dim=1, keepdim=True) * target
    rotated = torch.where(norm > MIN_NORM, scale * (vectors - 2 * reflected + 2 * turned), vectors)
    return _GradientCarried.apply(quantized, rotated, sync_weight)


class _GradientCarried(torch.autograd.Function):
    """The quantised value to the last bit, with no arithmetic on it: the gradient goes to `carrier` and, weighted, to
    the codes. As sums and differences it would cost five passes over memory."""

    generate_vmap_rule = True

    @staticmethod
    def forward(quantized: torch.Tensor, carrier: torch.Tensor, sync_weight: float) -> torch.Tensor:
        # Compiled training gets wrong gradients from a view of an input: it loses this function's backward.
        return quantized.clone() if torch.compiler.is_compiling() else quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.sync_weight = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None]:
        return ctx.sync_weight * gradient if ctx.sync_weight else None, gradient, None


def quantization_losses(vectors: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`commitment_loss` and `codebook_loss` at the price of one: their values are equal, their gradients are not.

    Args:
        vectors: encoder outputs z, any shape.
        quantized: chosen effective codes z_q, same shape.

    Returns:
        Two scalars.
    """
    return _QuantizationLosses.apply(vectors, quantized)


class _QuantizationLosses(torch.autograd.Function):
    """Keeps its inputs only, which are kept anyway, and computes their difference anew in backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(vectors: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = torch.linalg.vector_norm(vectors - quantized).square() / max(vectors.numel(), 1)
        return value, value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        vectors, quantized = ctx.saved_tensors
        difference = (vectors - quantized) * (2 / max(vectors.numel(), 1))
        of_vectors, of_quantized = ctx.needs_input_grad
        commitment, codebook = gradients
        return (
            commitment * difference if of_vectors else None,
            -codebook * difference if of_quantized else None,
        )


def commitment_loss(vectors: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`mean |z - sg(z_q)|^2`, which pulls the encoder towards its codes (van den Oord et al., 2017, eq. 3)."""
    return _mean_square(vectors - quantized.detach())


def codebook_loss(vectors: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`mean |sg(z) - z_q|^2`, which pulls the codes towards the encoder (van den Oord et al., 2017, eq. 3)."""
    return _mean_square(quantized - vectors.detach())


def _mean_square(difference: torch.Tensor) -> torch.Tensor:
    # 0 and not NaN for the empty batch that a rank may get at the end of an epoch.
    return difference.square().sum() / max(difference.numel(), 1)


def as_float(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32, or in its own type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def count_codes(codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """How often each code occurs: `(K,)` int64 from codes of any shape, without making the host wait for the device."""
    flat = codes.flatten()
    if flat.device.type == "cpu":
        return torch.bincount(flat, minlength=codebook_size)
    return flat.new_zeros(codebook_size).scatter_add_(0, flat, torch.ones_like(flat))  # bincount asks for the maximum


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of the code usage: the number of codes in even use.

    Args:
        counts: `(K,)` how often each code was used.

    Returns:
        Scalar float in `[1, K]`, or 0 if nothing was counted.
    """
    total = counts.sum()
    probabilities = counts.to(torch.float64) / total.clamp(min=1)
    entropy = -torch.xlogy(probabilities, probabilities).sum()
    return torch.where(total > 0, entropy.exp(), 0.0).to(torch.float32)


def active_fraction(counts: torch.Tensor) -> torch.Tensor:
    """Share of the codes that were used at least once: scalar float in `[0, 1]` from `(K,)` counts."""
    return (counts > 0).to(torch.float32).mean()


def kmeans(
    samples: torch.Tensor, num_clusters: int, generator: torch.Generator, num_iterations: int = 10
) -> torch.Tensor:
    """k-means++ seeding (Arthur & Vassilvitskii, 2007) followed by Lloyd iterations.

    It always returns `num_clusters` rows. Clusters that go empty keep their centre. With fewer distinct samples than
    clusters the remaining centres are samples moved by a small noise, so no two codes are born equal.

    Args:
        samples: `(N, C)` float32, N >= 1.
        num_clusters: K.
        generator: CPU generator, the only source of randomness.
        num_iterations: Lloyd iterations.

    Returns:
        `(num_clusters, C)` centres.
    """
    centres = _kmeans_plus_plus(samples, num_clusters, generator)
    for _ in range(num_iterations):
        codes = nearest_codes(samples, centres)
        counts = count_codes(codes, num_clusters).to(samples.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, samples)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return centres


def _kmeans_plus_plus(samples: torch.Tensor, num_clusters: int, generator: torch.Generator) -> torch.Tensor:
    draws = torch.rand(num_clusters, generator=generator, dtype=torch.float64).to(samples.device)
    noise = torch.randn(num_clusters, samples.shape[1], generator=generator).to(samples)
    spread = samples.std(dim=0, correction=0).mean().clamp(min=1e-6)
    centres = torch.empty(num_clusters, samples.shape[1], dtype=samples.dtype, device=samples.device)
    squared_distance = torch.full((samples.shape[0],), torch.inf, dtype=samples.dtype, device=samples.device)
    weights = torch.ones(samples.shape[0], dtype=torch.float64, device=samples.device)
    for k in range(num_clusters):
        cumulative = weights.cumsum(0)
        # When every sample is already a centre all weights are 0: fall back to a uniform draw and a little noise.
        exhausted = cumulative[-1] <= 0
        uniform = (draws[k] * samples.shape[0]).long()
        weighted = torch.searchsorted(cumulative, draws[k] * cumulative[-1], right=True)
        pick = torch.where(exhausted, uniform, weighted).clamp(max=samples.shape[0] - 1)
        centres[k] = samples[pick] + torch.where(exhausted, 1e-3 * spread, 0.0) * noise[k]
        squared_distance = torch.minimum(squared_distance, (samples - centres[k]).square().sum(dim=1))
        weights = squared_distance.to(torch.float64)
    return centres
