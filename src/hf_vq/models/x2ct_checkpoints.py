"""Checkpoints of the code that Corona-Figueroa et al., 2023, published, as models of this package.

Their autoencoders list their modules in one flat sequence; `VQTokenizer` with `resampling="nearest"` has the same
modules in the same order, so that the architecture can be read off the keys and shapes of a state dict. Every key is
either taken, known to be without effect on the forward pass, or an error.
"""

import math
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from .configuration_vq_tokenizer import VQTokenizerConfig
from .modeling_code_transformer import DEFAULT_VIEW_AXES, CodeTransformer
from .modeling_vq_tokenizer import VQTokenizer
from .vq_tokenizer_blocks import (
    VQTokenizerAttentionBlock,
    VQTokenizerDepthwiseBlock,
    VQTokenizerNearestUpsample,
    VQTokenizerPaddedDownsample,
    VQTokenizerResidualBlock,
)

StateDict = Mapping[str, torch.Tensor]
Model = TypeVar("Model", VQTokenizer, CodeTransformer)

KINDS = {
    VQTokenizerResidualBlock: "residual",
    VQTokenizerDepthwiseBlock: "depthwise",
    VQTokenizerAttentionBlock: "attention",
    VQTokenizerPaddedDownsample: "resampling",
    VQTokenizerNearestUpsample: "resampling",
}
# The first part of a parameter's name within a module tells the module's kind; convolutions and norms stand alone.
KIND_OF_PART = {
    **dict.fromkeys(("norm1", "conv1", "norm2", "conv2", "conv_out"), "residual"),
    **dict.fromkeys(("norm", "qkv", "q", "k", "v", "proj_out"), "attention"),
    "conv": "resampling",
}
RESIDUAL_KINDS = ("residual", "depthwise")
UNUSED_IN_TOKENIZER = r"disc\..*|(ae\.)?generator\.logsigma\..*"
UNUSED_IN_TRANSFORMER = r"Lt_history|Lt_count|loss_history|_denoise_fn\.start_tok"
TRANSFORMER = "_denoise_fn."
# Directions of a view for which this package knows none. Free positions make no use of them.
UNKNOWN_VIEW_AXES = ("inferior", "left")


@dataclass(frozen=True)
class Conversion(Generic[Model]):
    """A converted model and what became of the checkpoint's keys.

    Args:
        model: in eval mode, float32.
        used: keys whose tensors the model holds, sorted.
        unused: keys known to have no effect on the forward pass, sorted.
    """

    model: Model
    used: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: tensors of one shape, to be put one below the other."""

    keys: tuple[str, ...]
    shape: tuple[int, ...]


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a file that `torch.save` wrote from a state dict. Nothing in the file is executed.

    Raises:
        ValueError: if the file is missing, no checkpoint, or holds anything but tensors by name.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: found no such file, expected a checkpoint; check the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path}: found something else than a state dict saved by torch.save, which is all that is read, without "
            f"executing any of it ({str(error).splitlines()[0]}); save model.state_dict() to a new file"
        ) from error
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{path}: found {type(state).__name__}, expected tensors by name; save model.state_dict()")
    others = sorted(str(key) for key, value in state.items() if not isinstance(value, torch.Tensor))
    if others or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path}: found entries that are no tensors: {others}; save model.state_dict() alone")
    return dict(state)


def convert_tokenizer(state: StateDict, unused_prefixes: Sequence[str] = ()) -> Conversion[VQTokenizer]:
    """The 2D or the 3D autoencoder, its architecture told by names and shapes.

    Args:
        state: of the autoencoder, or of the whole VQGAN (keys `ae.*` and `disc.*`).
        unused_prefixes: beginnings of further keys that may be left aside.

    Raises:
        ValueError: if keys are unknown, missing or of another shape, which are all listed, or the modules stand in
            another order.
    """
    prefix = "ae." if any(key.startswith("ae.") for key in state) else ""
    model = VQTokenizer(_tokenizer_config(state, prefix))
    unused = [UNUSED_IN_TOKENIZER]
    for ours, theirs in ((model.encoder, "encoder"), (model.decoder, "generator")):
        start = f"{prefix}{theirs}.blocks."
        _check_order(_module_kinds(ours.blocks), _kinds(state, start), start)
        equal_widths = [i for i, block in enumerate(ours.blocks) if isinstance(getattr(block, "skip", 0), nn.Identity)]
        unused += [rf"{re.escape(start)}{index}\.conv_out\.(weight|bias)" for index in equal_widths]
    return _transfer(model, _tokenizer_sources(model, prefix), state, unused, unused_prefixes)


def convert_transformer(
    state: StateDict,
    num_heads: int = 4,
    view_names: Sequence[str] = ("frontal", "lateral"),
    code_grid: Sequence[int] | None = None,
    context_grid: Sequence[int] | None = None,
    unused_prefixes: Sequence[str] = (),
) -> Conversion[CodeTransformer]:
    """The denoising transformer of the sampler.

    Args:
        state: of the sampler (keys `_denoise_fn.*` and buffers).
        num_heads: attention heads, which no shape tells.
        view_names: names of the views in the order in which the sampler's context held them.
        code_grid: sides of the volume's code grid; a cube of as many codes as `Lt_history` tells, by default.
        context_grid: sides of a view's code grid; by default the square that the other positions make.
        unused_prefixes: beginnings of further keys that may be left aside.

    Raises:
        ValueError: if keys are unknown, missing or of another shape, which are all listed, or the grids do not fit the
            positions.
    """
    positions = _size(state, f"{TRANSFORMER}pos_emb", 1)
    code_grid = tuple(code_grid or _root(_number_of_codes(state), 3, "code_grid"))
    rest = positions - math.prod(code_grid)
    context_grid = tuple(context_grid or _root(rest // max(1, len(view_names)), 2, "context_grid"))
    if len(view_names) * math.prod(context_grid) != rest or len(set(view_names)) != len(view_names):
        raise ValueError(
            f"{TRANSFORMER}pos_emb holds {positions} positions; code_grid={code_grid} and context_grid={context_grid} "
            f"of the views {list(view_names)}, each named once, do not add up to them. Give all three as they were."
        )
    blocks = {int(key.split(".")[2]) for key in state if re.match(rf"{re.escape(TRANSFORMER)}blocks\.\d+\.", key)}
    hidden_size = _size(state, f"{TRANSFORMER}tok_emb.weight", 1)
    model = CodeTransformer(
        num_codes=_size(state, f"{TRANSFORMER}tok_emb.weight", 0) - 1,
        code_grid=code_grid,
        context_dim=_size(state, f"{TRANSFORMER}context_linear.weight", 1),
        context_grid=context_grid,
        view_axes={name: DEFAULT_VIEW_AXES.get(name, UNKNOWN_VIEW_AXES) for name in view_names},
        hidden_size=hidden_size,
        num_layers=len(blocks),
        num_heads=num_heads,
        mlp_ratio=_size(state, f"{TRANSFORMER}blocks.0.mlp.0.weight", 0) / hidden_size,
        position_embedding="learned",
        context_attention="full",
    )
    sources = _transformer_sources(model, positions)
    conversion = _transfer(model, sources, state, [UNUSED_IN_TRANSFORMER], unused_prefixes)
    _sort_views(model, view_names)
    return conversion


def _tokenizer_config(state: StateDict, prefix: str) -> VQTokenizerConfig:
    start = f"{prefix}encoder.blocks."
    kinds = _kinds(state, start)
    if len(kinds) < 7:
        raise ValueError(
            f"found {len(kinds)} modules under the keys {start}*, expected those of an encoder; the keys begin with "
            f"{sorted({key.split('.')[0] for key in state})}. Is it the checkpoint of another model?"
        )
    levels = _levels(kinds)
    blocks = [[index for index in level if kinds[index] in RESIDUAL_KINDS] for level in levels]
    if not all(blocks):
        raise ValueError(f"{start}*: found a level without residual blocks in the order {' '.join(kinds)}")
    widths = [_width(state, f"{start}{level[-1]}.") for level in blocks]
    base_channels, in_channels = (_size(state, f"{start}0.weight", axis) for axis in (0, 1))
    if any(width % base_channels for width in widths):
        raise ValueError(f"{start}*: found the widths {widths}, expected multiples of the first, {base_channels}")
    return VQTokenizerConfig(
        spatial_dims=state[f"{start}0.weight"].ndim - 2,
        in_channels=in_channels,
        base_channels=base_channels,
        channel_multipliers=[width // base_channels for width in widths],
        stem_stride=1,
        num_res_blocks=len(blocks[0]),
        attention_levels=[number for number, level in enumerate(levels) if any(kinds[i] == "attention" for i in level)],
        mid_attention=True,
        num_norm_groups=None,
        encoder_block_type="depthwise" if "depthwise" in kinds else "residual",
        resampling="nearest",
        output_activation=None,
        latent_kernel_size=3,
        quantizer=_quantizer_fields(state, f"{prefix}quantize.embedding.weight"),
    )


def _levels(kinds: Sequence[str]) -> list[list[int]]:
    """Numbers of the modules of every level of an encoder, resampling left out."""
    levels: list[list[int]] = [[]]
    for index, kind in enumerate(kinds[1:-5], start=1):  # the last five: the middle's three, norm and convolution
        if kind == "resampling":
            levels.append([])
        else:
            levels[-1].append(index)
    return levels


def _quantizer_fields(state: StateDict, key: str) -> dict[str, object]:
    """Their beta = 0.25 multiplies the codebook term, and the commitment term has no weight."""
    return {
        "codebook_size": _size(state, key, 0),
        "codebook_dim": _size(state, key, 1),
        "parameterization": "plain",
        "codebook_lr_scale": 1.0,
        "sync_weight": 0.0,
        "init": "random",
        "replace_after": None,
        "commitment_weight": 1.0,
        "codebook_weight": 0.25,
    }


def _kinds(state: StateDict, start: str) -> list[str]:
    """Kind of every module of a sequence; `"?"` where the numbers have a gap."""
    parts: dict[int, set[str]] = {}
    for key in state:
        match = re.fullmatch(rf"{re.escape(start)}(\d+)\.(.+)", key)
        if match:
            parts.setdefault(int(match[1]), set()).add(match[2])
    return [_kind(parts.get(index, {"?"})) for index in range(max(parts, default=-1) + 1)]


def _kind(names: Collection[str]) -> str:
    if any(name.endswith(".gamma") for name in names):
        return "depthwise"
    if "?" in names:
        return "?"
    return next((KIND_OF_PART[first] for first in (name.split(".")[0] for name in names) if first in KIND_OF_PART), "-")


def _module_kinds(blocks: nn.ModuleList) -> list[str]:
    """The same for a sequence of ours, with the norm and the convolution that follow it."""
    return [*(KINDS.get(type(block), "-") for block in blocks), "-", "-"]


def _check_order(expected: list[str], found: list[str], start: str) -> None:
    if expected != found:
        raise ValueError(
            f"the modules of {start}* stand in an order that is not that of the authors' autoencoder. Expected, after "
            f"what the encoder holds: {' '.join(expected)}; found: {' '.join(found)} ('-' is a convolution or a norm, "
            "'?' one of which no key was found)"
        )


def _tokenizer_sources(model: VQTokenizer, prefix: str) -> dict[str, Source]:
    codebook = model.quantizer.codebook.weight
    sources = {"quantizer.codebook.weight": Source((f"{prefix}quantize.embedding.weight",), tuple(codebook.shape))}
    sequences = (
        ("encoder", model.encoder, "encoder", "conv_out"),
        ("decoder", model.decoder, "generator", "conv_out.conv"),
    )
    for ours, module, theirs, last in sequences:
        for index, block in enumerate(module.blocks):
            for name, parameter in block.named_parameters():
                source = _block_source(block, name, tuple(parameter.shape), model.config.spatial_dims)
                keys = tuple(f"{prefix}{theirs}.blocks.{index}.{key}" for key in source.keys)
                sources[f"{ours}.blocks.{index}.{name}"] = Source(keys, source.shape)
        for index, name in enumerate(("norm_out", last), start=len(module.blocks)):
            for leaf, parameter in module.get_submodule(name).named_parameters():
                key = f"{prefix}{theirs}.blocks.{index}.{leaf}"
                sources[f"{ours}.{name}.{leaf}"] = Source((key,), tuple(parameter.shape))
    return sources


def _block_source(block: nn.Module, name: str, shape: tuple[int, ...], spatial_dims: int) -> Source:
    """Keys within a module, and the shape of their tensors."""
    part, leaf = name.split(".") if "." in name else ("", name)
    ones = (1,) * spatial_dims
    if isinstance(block, VQTokenizerDepthwiseBlock) and part.startswith("norm"):
        return Source((f"{part}.gamma",), (1, *shape, *ones))
    if isinstance(block, VQTokenizerAttentionBlock) and part != "norm":
        if spatial_dims == 3:  # linear layers
            return Source((f"{'qkv' if part == 'to_qkv' else 'proj_out'}.{leaf}",), shape)
        parts = ("q", "k", "v") if part == "to_qkv" else ("proj_out",)
        one_shape = (shape[0] // len(parts), *shape[1:], *(ones if leaf == "weight" else ()))
        return Source(tuple(f"{one}.{leaf}" for one in parts), one_shape)
    return Source((name.replace("skip.", "conv_out."),), shape)


def _transformer_sources(model: CodeTransformer, positions: int) -> dict[str, Source]:
    hidden_size = model.config.hidden_size
    sources = {"position_table": Source((f"{TRANSFORMER}pos_emb",), (1, positions, hidden_size))}
    renamed = {
        "code_embedding": "tok_emb",
        "context_projection": "context_linear",
        "norm_out": "ln_f",
        "norm1": "ln1",
        "norm2": "ln2",
        "to_out": "attn.proj",
    }
    for name, parameter in model.named_parameters():
        if name == "position_table":
            continue
        path = ".".join(renamed.get(part, part) for part in name.split("."))
        keys = (
            [path.replace("to_qkv", f"attn.{part}") for part in ("query", "key", "value")]
            if "to_qkv" in path
            else [path]
        )
        shape = (parameter.shape[0] // len(keys), *parameter.shape[1:])
        sources[name] = Source(tuple(f"{TRANSFORMER}{key}" for key in keys), shape)
    return sources


def _transfer(
    model: Model, sources: dict[str, Source], state: StateDict, unused: Sequence[str], unused_prefixes: Sequence[str]
) -> Conversion[Model]:
    """Fills every parameter of the model, once all keys are accounted for."""
    shapes = {key: source.shape for source in sources.values() for key in source.keys}
    is_unused = re.compile("|".join([*unused, *(f"{re.escape(prefix)}.*" for prefix in unused_prefixes)])).fullmatch
    left = sorted(key for key in state if key not in shapes)
    unknown = [key for key in left if not is_unused(key)]
    missing = sorted(set(shapes) - set(state))
    other_shapes = [
        f"{key}: {tuple(state[key].shape)} instead of {shape}"
        for key, shape in sorted(shapes.items())
        if key in state and tuple(state[key].shape) != shape
    ]
    if unknown or missing or other_shapes:
        raise ValueError(
            f"the checkpoint does not fit. Unknown keys: {unknown}; missing keys: {missing}; other shapes: "
            f"{other_shapes}. Keys that are of no use to the model can be left aside by their prefix (--unused)."
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensors = [state[key] for key in sources[name].keys]
            parameter.copy_(torch.cat(tensors).reshape(parameter.shape))
    return Conversion(model.eval(), tuple(sorted(shapes)), tuple(left))


@torch.no_grad()
def _sort_views(model: CodeTransformer, view_names: Sequence[str]) -> None:
    """Brings the positions of the views from the order of the names into the model's, which is the sorted one."""
    order = [list(view_names).index(name) for name in model.view_names]
    positions = model.position_table[: -math.prod(model.config.code_grid)].unflatten(0, (len(order), -1))
    positions.copy_(positions[order].clone())


def _number_of_codes(state: StateDict) -> int:
    if "Lt_history" not in state:
        raise ValueError("code_grid is not given, and there is no Lt_history to tell the number of codes; give it")
    return len(state["Lt_history"]) - 1


def _root(number: int, power: int, name: str) -> tuple[int, ...]:
    side = round(max(0, number) ** (1 / power))
    if side < 1 or side**power != number:
        raise ValueError(f"{name} is not given, and {number} positions make no {power}D grid of equal sides; give it")
    return (side,) * power


def _size(state: StateDict, key: str, axis: int) -> int:
    if key not in state or state[key].ndim <= axis:
        raise ValueError(
            f"expected a tensor of at least {axis + 1} axes under the key {key}, which tells the architecture; found "
            f"{f'shape {tuple(state[key].shape)}' if key in state else 'none'}. Is it the checkpoint of another model?"
        )
    return state[key].shape[axis]


def _width(state: StateDict, start: str) -> int:
    """Output channels of a residual block, whichever of its keys are there."""
    names = ("conv2.weight", "conv1.weight", "conv2.bias", "conv1.bias")
    return _size(state, next((start + name for name in names if start + name in state), start + names[0]), 0)
