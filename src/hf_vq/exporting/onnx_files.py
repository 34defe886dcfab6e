"""Models and whole pipelines as folders of ONNX files."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..files import atomic_directory
from ..models import CodeTransformer, VQTokenizer, VQTokenizerConfig
from .graphs import Graph, model_graphs
from .optional import import_onnx_extra
from .programs import export_program

# What torch's exporter writes by default.
OPSET = 20
SUMMARY_FILE = "export.json"
SYMBOL = re.compile(r"\bs\d+\b")


def export_onnx(
    model: Any,
    folder: str | Path,
    spatial: Sequence[int] | None = None,
    opset: int = OPSET,
    overwrite: bool = False,
) -> list[Path]:
    """Writes a model, or each part of a pipeline, as ONNX files; docs/export.md describes them.

    A tokenizer gives `encoder.onnx` and `decoder.onnx`, a transformer `transformer.onnx` and, with
    `context_attention="prefix"`, `context_encoder.onnx`; a pipeline gives a folder of these for each of its models, and
    the files of its scheduler and processors beside them. `export.json` has the inputs and outputs of every file. The
    batch size is free. Larger weights than an ONNX file can hold lie in a `.data` file beside it.

    Args:
        model: `VQTokenizer`, `CodeTransformer` or a pipeline, in float32; it stays as it is.
        folder: where to write; its parents are made.
        spatial: sides of a tokenizer's input in voxels or pixels; they stay free by default. Those of a pipeline's
            tokenizers are the pipeline's.
        opset: ONNX operator set, at least 18.
        overwrite: replace an earlier export.

    Returns:
        The ONNX files.

    Raises:
        ValueError: if the model is another one or not in float32, `spatial` does not fit, or the folder is taken.
        ImportError: if the extra `onnx` is not installed.
    """
    for name in ("onnx", "onnxscript"):
        import_onnx_extra(name)
    if opset < 18:
        raise ValueError(f"opset={opset} is older than what torch exports; choose 18 or more, {OPSET} is the default")
    parts = model_parts(model, spatial)
    with atomic_directory(folder, overwrite=overwrite, marker=SUMMARY_FILE) as temporary:
        _save_configs(model, temporary)
        files = {}
        for path, graph in parts.items():
            files[f"{path}.onnx"] = _write(graph, temporary / f"{path}.onnx", opset)
        summary = {**_origin(type(model).__name__), "opset": opset, "files": files}
        (temporary / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return [Path(folder) / file for file in files]


def model_parts(model: Any, spatial: Sequence[int] | None = None) -> dict[str, Graph]:
    """All graphs of a model or a pipeline by the path of their file, without suffix.

    Raises:
        ValueError: if there is none, or `spatial` does not fit.
    """
    components = getattr(model, "components", None)
    if not isinstance(components, Mapping):
        return {graph.name: graph for graph in model_graphs(model, spatial)}
    if spatial is not None:
        raise ValueError(f"spatial={tuple(spatial)} is given for a pipeline, whose sizes are fixed; leave it out")
    if not isinstance(components.get("transformer"), CodeTransformer):
        raise ValueError(
            f"found a {type(model).__name__} without a CodeTransformer; expected a pipeline of this package"
        )
    parts = {}
    for name, component in components.items():
        if isinstance(component, VQTokenizer | CodeTransformer):
            sides = _sides_in_pipeline(name, component, components["transformer"])
            parts.update({f"{name}/{graph.name}": graph for graph in model_graphs(component, sides)})
    return parts


def _sides_in_pipeline(name: str, component: Any, transformer: CodeTransformer) -> list[int] | None:
    """Sides of a tokenizer's input, from the code grids that the transformer knows."""
    if not isinstance(component, VQTokenizer):
        return None
    config: Any = component.config
    grid = transformer.config.context_grid if name == "view_tokenizer" else transformer.config.code_grid
    return [side * config.downsampling_factor for side in grid]


def _save_configs(model: Any, folder: Path) -> None:
    """What tells the models' shapes, and what a pipeline does before and behind them; no weights."""
    components = getattr(model, "components", None)
    parts = {folder / name: part for name, part in components.items()} if components is not None else {folder: model}
    part: Any
    for path, part in parts.items():
        path.mkdir(exist_ok=True)
        if isinstance(part, VQTokenizer):
            VQTokenizerConfig.save_pretrained(part.config, path)
        elif isinstance(part, CodeTransformer):
            part.save_config(path)
        else:
            part.save_pretrained(path)


def _write(graph: Graph, path: Path, opset: int) -> dict[str, Any]:
    """Writes one file; returns its inputs and outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter's, about its own internals
        exported: Any = torch.onnx.export(
            export_program(graph),
            input_names=list(graph.free_axes),
            output_names=list(graph.outputs),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    _name_axes(exported.model, graph)
    exported.model.metadata_props.update({**_origin(type(graph.module).__name__), "graph": graph.name})
    exported.save(path)
    return {
        "inputs": {value.name: _describe(value) for value in exported.model.graph.inputs},
        "outputs": {value.name: _describe(value) for value in exported.model.graph.outputs},
    }


def _name_axes(model: Any, graph: Graph) -> None:
    """Gives the free axes of a model their names instead of the exporter's symbols, in all shapes."""
    shape_class = import_onnx_extra("onnx_ir").Shape
    names = {}
    for value in model.graph.inputs:
        for position, axis in graph.free_axes[value.name].items():
            names.update({symbol: axis.name for symbol in SYMBOL.findall(value.shape[position].value)})
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        if value.shape is not None:
            sides = [side if isinstance(side, int) else side.value for side in value.shape]
            value.shape = shape_class(
                [SYMBOL.sub(lambda match: names[match[0]], side) if isinstance(side, str) else side for side in sides]
            )


def _describe(value: Any) -> dict[str, Any]:
    shape = [side if isinstance(side, int) else str(side.value) for side in value.shape]
    return {"dtype": value.dtype.name.lower(), "shape": shape}


def _origin(name: str) -> dict[str, str]:
    return {"class": name, "hf_vq_version": __version__, "torch_version": torch.__version__}
