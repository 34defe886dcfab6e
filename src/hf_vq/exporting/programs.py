"""Graphs as programs of torch.export."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..models import CodeTransformer, VQTokenizer
from .graphs import FreeAxis, Graph, model_graphs

# Tracing takes an axis of length 0 or 1 for a constant.
EXAMPLE_BATCH_SIZE = 2


def export_programs(
    model: VQTokenizer | CodeTransformer, spatial: Sequence[int] | None = None
) -> dict[str, torch.export.ExportedProgram]:
    """A model's graphs as programs of torch.export, in eval mode, with a batch of free size.

    Args:
        model: `VQTokenizer` or `CodeTransformer` in float32; it stays as it is.
        spatial: sides of a tokenizer's input in voxels or pixels; they stay free by default.

    Returns:
        For a tokenizer `{"encoder", "decoder"}`, for a transformer `{"transformer"}`, with
        `context_attention="prefix"` also `{"context_encoder"}`. Inputs are keywords; see docs/export.md for their
        names.

    Raises:
        ValueError: if the model is another one or not in float32, or `spatial` does not fit.
    """
    return {graph.name: export_program(graph) for graph in model_graphs(model, spatial)}


def export_program(graph: Graph) -> torch.export.ExportedProgram:
    """One graph as a program of torch.export."""
    inputs = graph.make_inputs(EXAMPLE_BATCH_SIZE, torch.Generator().manual_seed(0))
    with torch.no_grad(), eval_mode(graph.module):
        return torch.export.export(
            graph.module, (), kwargs=_on_device_of(graph.module, inputs), dynamic_shapes=_dynamic_shapes(graph)
        )


def _dynamic_shapes(graph: Graph) -> dict[str, dict[int, Any]]:
    names = {axis.name for axes in graph.free_axes.values() for axis in axes.values()}
    dims: dict[str, Any] = {name: torch.export.Dim(name) for name in names}

    def of(axis: FreeAxis) -> Any:
        return dims[axis.name] if axis.multiple == 1 else axis.multiple * dims[axis.name]

    return {name: {position: of(axis) for position, axis in axes.items()} for name, axes in graph.free_axes.items()}


def _on_device_of(module: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    device = next(module.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while, then each part's mode as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
