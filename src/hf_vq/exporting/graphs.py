"""The parts of a model that run without its python: what each computes, and its inputs and outputs by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..models import CodeTransformer, VQTokenizer

SPATIAL_NAMES = {2: ("height", "width"), 3: ("depth", "height", "width")}
# Sides of a code grid for tracing where sizes stay free: all different, and not 1, which tracing takes for a constant.
EXAMPLE_GRID = (3, 4, 5)


class FreeAxis(NamedTuple):
    """An axis whose length is known at run time only: a multiple of a number that other axes may share by its name."""

    name: str
    multiple: int = 1


BATCH = FreeAxis("batch")
MakeInputs = Callable[[int, torch.Generator], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Graph:
    """A part of a model to export.

    Attributes:
        name: of its file, without suffix.
        module: computes it; the inputs are its arguments by name.
        make_inputs: draws inputs for a batch of a size with a generator, in their order.
        outputs: names of the outputs in order.
        free_axes: for each input, the axes of free length by their position.
    """

    name: str
    module: nn.Module
    make_inputs: MakeInputs
    outputs: tuple[str, ...]
    free_axes: dict[str, dict[int, FreeAxis]]


class TokenizerEncoderGraph(nn.Module):
    """`pixel_values` -> codes, latents before quantisation, and the codes' vectors as a sequence (`embed_codes`)."""

    def __init__(self, tokenizer: VQTokenizer) -> None:
        super().__init__()
        self.encoder, self.quantizer = tokenizer.encoder, tokenizer.quantizer  # and not the decoder's weights

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        latents = self.encoder(pixel_values)
        codes = self.quantizer.encode(latents)
        return codes, latents, self.quantizer.decode(codes).flatten(2).transpose(1, 2)


class TokenizerDecoderGraph(nn.Module):
    """`codes` -> reconstruction."""

    def __init__(self, tokenizer: VQTokenizer) -> None:
        super().__init__()
        self.quantizer, self.decoder = tokenizer.quantizer, tokenizer.decoder

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.quantizer.decode(codes))


class TransformerGraph(nn.Module):
    """Masked codes and whatever the model is conditional on -> logits."""

    def __init__(self, transformer: CodeTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        sample: torch.Tensor,
        context: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        output = self.transformer(sample, context, view_mask=view_mask, class_labels=class_labels, return_dict=False)
        return output[0]


class PrefixTransformerGraph(nn.Module):
    """As `TransformerGraph`, with the views as keys and as values of all blocks, `(blocks, B, heads, M, head_dim)`."""

    def __init__(self, transformer: CodeTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        sample: torch.Tensor,
        context_keys: torch.Tensor,
        context_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        output = self.transformer(
            sample,
            context_key_values=list(zip(context_keys.unbind(), context_values.unbind(), strict=True)),
            view_mask=view_mask,
            class_labels=class_labels,
            return_dict=False,
        )
        return output[0]


class ContextEncoderGraph(nn.Module):
    """`context` -> keys and values of the view tokens in all blocks, as `PrefixTransformerGraph` takes them."""

    def __init__(self, transformer: CodeTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, context: torch.Tensor, view_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = zip(*self.transformer.encode_context(context, view_mask=view_mask), strict=True)
        return torch.stack(keys), torch.stack(values)


def model_graphs(model: VQTokenizer | CodeTransformer, spatial: Sequence[int] | None = None) -> list[Graph]:
    """The graphs of a model.

    Args:
        model: a tokenizer or a transformer.
        spatial: sides of a tokenizer's input in voxels or pixels; they stay free by default.

    Raises:
        ValueError: if the model is another one or not in float32, `spatial` does not fit, or it is given for a
            transformer, whose sizes are in its config.
    """
    if not isinstance(model, VQTokenizer | CodeTransformer):
        raise ValueError(
            f"found a {type(model).__name__}; expected a VQTokenizer, a CodeTransformer or a pipeline of them"
        )
    if model.dtype != torch.float32:
        raise ValueError(f"the model is in {model.dtype}, expected torch.float32; load it with dtype=torch.float32")
    if isinstance(model, VQTokenizer):
        return tokenizer_graphs(model, spatial)
    if spatial is not None:
        raise ValueError(f"spatial={tuple(spatial)} is given for a transformer, whose sizes are fixed; leave it out")
    return transformer_graphs(model)


def tokenizer_graphs(tokenizer: VQTokenizer, spatial: Sequence[int] | None = None) -> list[Graph]:
    """`encoder` and `decoder` of a tokenizer; see `model_graphs`."""
    config: Any = tokenizer.config
    factor, names = config.downsampling_factor, SPATIAL_NAMES[config.spatial_dims]
    grid = EXAMPLE_GRID[: config.spatial_dims] if spatial is None else tokenizer.code_grid(spatial)
    books = () if config.num_codebooks == 1 else (config.num_codebooks,)

    def pixel_values(batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        shape = (batch_size, config.in_channels, *[factor * side for side in grid])
        return {"pixel_values": 2 * torch.rand(shape, generator=generator) - 1}

    def codes(batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        size = config.quantizer_config.codebook_size
        return {"codes": torch.randint(size, (batch_size, *books, *grid), generator=generator)}

    def free_axes(first: int, multiple: int) -> dict[int, FreeAxis]:
        sides = {} if spatial is not None else {first + i: FreeAxis(name, multiple) for i, name in enumerate(names)}
        return {0: BATCH, **sides}

    return [
        Graph(
            "encoder",
            TokenizerEncoderGraph(tokenizer),
            pixel_values,
            ("codes", "latents", "embeddings"),
            {"pixel_values": free_axes(2, factor)},
        ),
        Graph("decoder", TokenizerDecoderGraph(tokenizer), codes, ("sample",), {"codes": free_axes(1 + len(books), 1)}),
    ]


def transformer_graphs(transformer: CodeTransformer) -> list[Graph]:
    """`transformer`, and with `context_attention="prefix"` `context_encoder` in front of it; see `model_graphs`."""
    config, draw = transformer.config, _TransformerInputs(transformer)
    if config.context_dim is None or config.context_attention == "full":
        axes = {name: {0: BATCH} for name in draw.of_codes(1, torch.Generator())}
        return [Graph("transformer", TransformerGraph(transformer), draw.of_codes, ("logits",), axes)]
    context_axes = {name: {0: BATCH} for name in draw.of_context(1, torch.Generator())}
    axes = {name: {0: BATCH} for name in draw.with_prefix(1, torch.Generator())}
    axes |= {name: {1: BATCH} for name in ("context_keys", "context_values")}
    outputs = ("context_keys", "context_values")
    return [
        Graph("context_encoder", ContextEncoderGraph(transformer), draw.of_context, outputs, context_axes),
        Graph("transformer", PrefixTransformerGraph(transformer), draw.with_prefix, ("logits",), axes),
    ]


class _TransformerInputs:
    """Draws the inputs that a transformer's config asks for."""

    def __init__(self, transformer: CodeTransformer) -> None:
        self.config = transformer.config
        self.num_views = len(transformer.view_names)
        self.tokens_per_view = math.prod(self.config.context_grid)

    def of_context(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The views' code vectors, and which of the views are there if the model does without some."""
        if self.config.context_dim is None:
            return {}
        shape = (batch_size, self.num_views, self.tokens_per_view, self.config.context_dim)
        return {"context": torch.randn(shape, generator=generator), **self._view_mask(batch_size, generator)}

    def of_codes(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """All inputs, the views as code vectors."""
        context = self.of_context(batch_size, generator)
        return {**self._sample(batch_size, generator), **context, **self._labels(batch_size, generator)}

    def with_prefix(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """All inputs, the views as keys and values."""
        config = self.config
        length, head_dim = self.num_views * self.tokens_per_view, config.hidden_size // config.num_heads
        shape = (config.num_layers, batch_size, config.num_heads, length, head_dim)
        return {
            **self._sample(batch_size, generator),
            "context_keys": torch.randn(shape, generator=generator),
            "context_values": torch.randn(shape, generator=generator),
            **self._view_mask(batch_size, generator),
            **self._labels(batch_size, generator),
        }

    def _sample(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        shape = (batch_size, math.prod(self.config.code_grid))
        return {"sample": torch.randint(self.config.num_codes + 1, shape, generator=generator)}

    def _view_mask(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if not self.config.view_dropout and not self.config.context_dropout:
            return {}
        mask = torch.rand(batch_size, self.num_views, generator=generator) < 0.5
        mask[:, 0] |= not self.config.context_dropout
        return {"view_mask": mask}

    def _labels(self, batch_size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if self.config.num_classes is None:
            return {}
        return {"class_labels": torch.randint(-1, self.config.num_classes, (batch_size,), generator=generator)}
