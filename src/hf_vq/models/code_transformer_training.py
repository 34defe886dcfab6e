"""What training does with a code transformer beyond calling it: its start, and what it hides of the conditions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

HEAD_INIT_STD = 0.05

Generators = torch.Generator | Sequence[torch.Generator] | None


class CodeTransformerTraining:
    """Methods of `CodeTransformer` that only training calls."""

    config: Any
    code_embedding: nn.Embedding
    context_projection: nn.Linear
    head: nn.Linear

    @torch.no_grad()
    def initialize_from_codebooks(self, codes: torch.Tensor, context_codes: torch.Tensor | None = None) -> None:
        """Starts training from what the tokenizers' codebooks already know; call it once, on a new model.

        Codes that lie close together in the codebook get similar input vectors and similar output weights, by one
        random projection each. The context projection is scaled so that view content has unit variance, the size of the
        position vectors, whatever the scale of the codebook: position does not drown content at the start.

        Args:
            codes: `(num_codes, C)` effective codebook of the tokenizer, any C.
            context_codes: `(K, context_dim)` effective codebook of the view tokenizer, for a model with views.

        Raises:
            ValueError: if a shape does not fit, or `context_codes` are missing or of no use.
        """
        if codes.ndim != 2 or len(codes) != self.config.num_codes:
            raise ValueError(f"codes must be ({self.config.num_codes}, C); got {tuple(codes.shape)}")
        if (context_codes is None) != (self.config.context_dim is None):
            raise ValueError(
                f"context_codes belong to a model with views: context_dim is {self.config.context_dim}, and they are "
                f"{'missing' if context_codes is None else 'given'}"
            )
        if context_codes is not None and context_codes.shape[1:] != (self.config.context_dim,):
            raise ValueError(f"context_codes must be (K, {self.config.context_dim}); got {tuple(context_codes.shape)}")
        hidden_size = self.config.hidden_size
        mean, scale = _mean_and_scale(codes)
        standardized = (codes - mean) / scale
        self.code_embedding.weight[:-1] = standardized @ _random_projection(codes, hidden_size)
        self.head.weight.copy_(HEAD_INIT_STD * standardized @ _random_projection(codes, hidden_size))
        if context_codes is None:
            return
        mean, scale = _mean_and_scale(context_codes)
        weight = _random_projection(context_codes, hidden_size).T / scale
        self.context_projection.weight.copy_(weight)
        self.context_projection.bias.copy_(-weight @ mean)

    def drop_labels(self, class_labels: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Labels of a training batch with the share `label_dropout` of them, at random, replaced by -1, no label.

        Args:
            class_labels: `(B,)` int64.
            generator: source of randomness, one or a list of one per sample.
        """
        draws = _uniform((len(class_labels),), generator, class_labels.device)
        return class_labels.masked_fill(draws < self.config.label_dropout, -1)

    def drop_views(self, batch_size: int, generator: Generators = None) -> torch.Tensor | None:
        """Which views a training batch shows: `(B, V)` bool, False where `view_dropout` or `context_dropout` hides one.

        `view_dropout` alone leaves each subject at least one view, drawn at random. `None` if both are 0.

        Args:
            batch_size: subjects.
            generator: source of randomness, one or a list of one per subject.
        """
        config = self.config
        if not config.view_dropout and not config.context_dropout:
            return None
        draws = _uniform((batch_size, len(self.config.view_axes) + 1), generator)
        views, whole = draws[:, :-1], draws[:, -1:]
        shown = (views >= config.view_dropout) | (views == views.amax(dim=1, keepdim=True))
        return shown & (whole >= config.context_dropout)


def _uniform(shape: tuple[int, ...], generator: Generators, device: torch.device | None = None) -> torch.Tensor:
    """Uniform draws on `device`, or where the generator is; from a list of generators a row of each."""
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"got {len(generator)} generators for {shape[0]} samples; give one, or one per sample")
        return torch.cat([_uniform((1, *shape[1:]), own, device) for own in generator])
    source = device if generator is None else generator.device
    draws = torch.rand(shape, generator=generator, device=source)
    return draws if device is None else draws.to(device)


def _mean_and_scale(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return vectors.mean(dim=0), vectors.std(dim=0, correction=0).clamp(min=1e-6)


def _random_projection(vectors: torch.Tensor, hidden_size: int) -> torch.Tensor:
    return torch.randn(vectors.shape[1], hidden_size).to(vectors) / math.sqrt(vectors.shape[1])
