"""Alternating optimisation of codebook and network (Huh et al., 2023, section 4.2), as an explicit training step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..quantizers import VectorQuantizer
from ..quantizers.codebook import PlacementWatch
from ..quantizers.distributed import average_over_processes
from .moments import forget_moments

OptimizerFactory = Callable[..., torch.optim.Optimizer]


class AlternatingOptimizer:
    """Moves the codes of all quantizers with `update="alternating"`, with an optimizer of its own.

    In each training step, first the codebook and its parameterisation take `inner_steps` steps on
    `mean |sg(z) - z_q|^2` with the encoder held fixed and the assignments computed anew each time; then the network
    takes its usual step on task and commitment loss. On several processes the gradients are those of the joined batch.

    Args:
        model: a `VectorQuantizer` or any module that holds some. Wrapping it for distributed training afterwards, or
            moving it to another device, is fine.
        learning_rate: of the inner optimizer.
        inner_steps: optimizer steps per call, at least 1.
        optimizer_class: called with the parameters and `lr`.

    Raises:
        ValueError: if `model` holds no quantizer with `update="alternating"`, or `inner_steps` is below 1.

    Example:
        >>> alternating = AlternatingOptimizer(quantizer, learning_rate=1e-3)
        >>> for images in batches:
        ...     alternating.step(encoder(images))
        ...     output = quantizer(encoder(images))
        ...     (task_loss(output.quantized) + output.loss).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float = 1e-3,
        inner_steps: int = 1,
        optimizer_class: OptimizerFactory = torch.optim.Adam,
    ) -> None:
        self.quantizers = alternating_quantizers(model)
        if not self.quantizers:
            raise ValueError("the model holds no VectorQuantizer with update='alternating'; nothing to optimise")
        if inner_steps < 1:
            raise ValueError(f"inner_steps={inner_steps} is out of range; it must be at least 1")
        self.inner_steps, self.learning_rate = inner_steps, learning_rate
        codebooks = [codebook for quantizer in self.quantizers for codebook in quantizer.all_codebooks]
        for codebook in codebooks:
            codebook.has_own_optimizer = True
        self.parameters = [p for codebook in codebooks for p in codebook.parameters() if p.requires_grad]
        self.optimizer = optimizer_class(self.parameters, lr=learning_rate)
        self._watch = PlacementWatch(model)

    def step(self, *features: torch.Tensor, rate_factor: float = 1.0) -> torch.Tensor | None:
        """Takes the inner steps; call it before the network's own forward.

        Codes that wait for their k-means initialisation, which comes with the first training batch, are left alone, and
        so are frozen ones.

        Args:
            features: encoder outputs, one tensor for each quantizer in the order of `model.modules()`, shaped as for
                `VectorQuantizer.forward`. No gradient flows into them.
            rate_factor: factor on the learning rate of these steps, for a schedule.

        Returns:
            The objective before the last inner step, scalar, on this process; `None` if there was nothing to move.

        Raises:
            ValueError: if the number of tensors is not the number of quantizers.
        """
        if len(features) != len(self.quantizers):
            raise ValueError(f"expected features for {len(self.quantizers)} quantizer(s); got {len(features)}")
        pairs = [(q, f) for q, f in zip(self.quantizers, features, strict=True) if _is_ready(q)]
        self._forget_moved_codes()
        for group in self.optimizer.param_groups:
            group["lr"] = rate_factor * self.learning_rate
        objective = None
        for _ in range(self.inner_steps if pairs else 0):
            objective = self._inner_step(pairs)
        return objective

    def state_dict(self) -> dict[str, Any]:
        """State of the inner optimizer; the codes themselves are saved with the model."""
        self._forget_moved_codes()
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.optimizer.load_state_dict(state)

    def _inner_step(self, pairs: Sequence[tuple[VectorQuantizer, torch.Tensor]]) -> torch.Tensor:
        objective = torch.stack([quantizer.codebook_objective(features) for quantizer, features in pairs]).sum()
        moving = [parameter for parameter in self.parameters if parameter.requires_grad]
        gradients = dict(zip(moving, torch.autograd.grad(objective, moving, allow_unused=True), strict=True))
        outer_gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            gradient = gradients.get(parameter)
            parameter.grad = None if gradient is None else average_over_processes(gradient)
        self.optimizer.step()
        # What the network's own loss has accumulated for the codes (the synchronised update) belongs to its optimizer.
        for parameter, outer_gradient in zip(self.parameters, outer_gradients, strict=True):
            parameter.grad = outer_gradient
        return objective.detach()

    def _forget_moved_codes(self) -> None:
        forget_moments(self.optimizer.state, self._watch.take())


def alternating_quantizers(model: nn.Module) -> list[VectorQuantizer]:
    """The quantizers in a model whose codes only an `AlternatingOptimizer` moves."""
    quantizers = [module for module in model.modules() if isinstance(module, VectorQuantizer)]
    return [quantizer for quantizer in quantizers if quantizer.config.update == "alternating"]


def _is_ready(quantizer: VectorQuantizer) -> bool:
    return all(codebook.initialized and not codebook.frozen for codebook in quantizer.all_codebooks)
