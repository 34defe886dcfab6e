"""Figures that show a codebook collapsing while it happens."""

from collections.abc import Callable

import torch
from torch import nn

from ..quantizers import CodebookLookUp, VectorQuantizer
from ..quantizers.codebook import codebooks_of

MIN_SCALE = 1e-12


def codebook_figures(quantizer: nn.Module, features: torch.Tensor) -> dict[str, float]:
    r"""How well the codes lie where the encoder's outputs are.

    Args:
        quantizer: a `VectorQuantizer`. Others have no codes that could stray: they give no figures.
        features: encoder outputs, as for its `forward`. No state is changed.

    Returns:
        Means over the codebooks of `quantization_error` \(mean |z - z_q|^2\); `relative_quantization_error`, that over
        the variance of z (1 is what a single code at the mean would do); `mean_distance`
        \(\|\mu_z - \mu_{\bar e}\| / \|\sigma_z\|\) and `std_distance` \(\|\sigma_z - \sigma_{\bar e}\| / \|\sigma_z\|\)
        between the moments, channel by channel, of encoder outputs and effective codes (Huh et al., 2023, section 3:
        their divergence is what starves the codes).
    """
    if not isinstance(quantizer, VectorQuantizer):
        return {}
    figures = [_figures_of(look_up) for look_up in quantizer.inspect(features)]
    return {name: sum(figure[name] for figure in figures) / len(figures) for name in figures[0]}


def _figures_of(look_up: CodebookLookUp) -> dict[str, float]:
    vectors, effective = look_up.vectors, look_up.codebook.effective().detach().to(look_up.vectors)
    error = (vectors - look_up.quantized).square().mean()
    std, code_std = vectors.std(dim=0, correction=0), effective.std(dim=0, correction=0)
    scale = std.norm().clamp(min=MIN_SCALE)
    return {
        "quantization_error": float(error),
        "relative_quantization_error": float(error / std.square().mean().clamp(min=MIN_SCALE)),
        "mean_distance": float((vectors.mean(dim=0) - effective.mean(dim=0)).norm() / scale),
        "std_distance": float((std - code_std).norm() / scale),
    }


def gradient_gap(
    task_loss: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor, quantized: torch.Tensor
) -> float:
    r"""How wrong the straight-through gradient is: \(\|g(z_q) - g(z)\| / \|g(z)\|\) (Huh et al., 2023, section 3).

    g is the gradient of the task loss at the input of what follows the quantizer. The straight-through estimator takes
    the one at the quantised point for the one at the encoder's output.

    Args:
        task_loss: loss of the rest of the network, as a function of its input. It must not change state: put the
            network into eval mode.
        features: encoder outputs z.
        quantized: z_q, same shape.

    Returns:
        0 where quantising loses nothing; about 1.4 where the two gradients have nothing to do with each other.
    """
    with torch.enable_grad():
        points = [point.detach().clone().requires_grad_() for point in (features, quantized)]
        at_features, at_codes = (torch.autograd.grad(task_loss(point), point)[0].float() for point in points)
    return float((at_codes - at_features).norm() / at_features.norm().clamp(min=MIN_SCALE))


def codes_with_gradient(model: nn.Module) -> dict[str, float]:
    """Share of the codes that the last backward gave a gradient, over all codebooks whose codes learn by gradient.

    Call it between `backward` and `optimizer.step`; empty where no codes learn by gradient.
    """
    # In alternating optimisation the network's loss holds the codes with a factor of 0.
    codebooks = [book for book in codebooks_of(model) if book.config.update == "gradient" or book.config.sync_weight]
    gradients = [codebook.weight.grad for codebook in codebooks if codebook.weight.grad is not None]
    if not gradients:
        return {}
    reached = [(gradient != 0).any(dim=1).float().mean() for gradient in gradients]
    return {"codes_with_gradient": float(torch.stack(reached).mean())}
