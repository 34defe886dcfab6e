"""What kind of model a folder holds, and what its configs say about it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models import VQImageClassifierConfig, VQTokenizerConfig
from ..models.loading import MODEL_FILE, PIPELINE_FILE, check_folder
from .text import MISSING, Row, counted, listed, one_cell, or_missing, sides
from .weights import read_weights

VOLUME_TOKENIZER, VIEW_TOKENIZER, IMAGE_TOKENIZER = "volume_tokenizer", "view_tokenizer", "image_tokenizer"
CLASSIFIER, VIEWS_TO_VOLUME, CODE_GENERATION = "classifier", "views_to_volume", "code_generation"
TOKENIZERS = (VOLUME_TOKENIZER, VIEW_TOKENIZER, IMAGE_TOKENIZER)
PIPELINES = {"ViewsToVolumePipeline": VIEWS_TO_VOLUME, "CodeGenerationPipeline": CODE_GENERATION}
PROCESSOR_FILE = "preprocessor_config.json"
# Fields of a quantizer that are told elsewhere, or that say nothing about the finished model.
_TOLD = ("quantizer_type", "codebook_size", "codebook_dim", "num_codebooks", "channel_last", "seed")


@dataclass(frozen=True)
class Section:
    """One component of a model: what it is called, and a table of facts."""

    title: str
    rows: list[Row]


def find_kind(folder: Path) -> str:
    """What a folder holds: one of the constants above.

    Raises:
        ValueError: if it is nothing that there are cards for.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: found no such folder, expected that of a trained model; check the path")
    if (folder / PIPELINE_FILE).is_file():
        name = read_json(folder / PIPELINE_FILE).get("_class_name")
        if name not in PIPELINES:
            raise ValueError(
                f"{folder}: found a pipeline {name!r}, expected one of {sorted(PIPELINES)}; choose another"
            )
        return PIPELINES[str(name)]
    check_folder(folder, MODEL_FILE)
    config = read_json(folder / MODEL_FILE)
    model_type = config.get("model_type")
    if model_type == VQImageClassifierConfig.model_type:
        return CLASSIFIER
    if model_type != VQTokenizerConfig.model_type:
        known = [VQTokenizerConfig.model_type, VQImageClassifierConfig.model_type]
        raise ValueError(
            f"{folder}: found a model of type {model_type or config.get('_class_name')!r}, expected a pipeline or one "
            f"of {known}; choose another folder"
        )
    if config.get("spatial_dims", 3) == 3:
        return VOLUME_TOKENIZER
    of_views = read_processor(folder).get("image_processor_type") == "XrayImageProcessor"
    return VIEW_TOKENIZER if of_views else IMAGE_TOKENIZER


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        ValueError: if it holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no JSON ({error}), expected some; write the file again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found {type(found).__name__}, expected a mapping; write the file again")
    return found


def read_processor(folder: Path) -> dict[str, Any]:
    """The fields of a processor; none where it is missing."""
    path = folder / PROCESSOR_FILE
    return read_json(path) if path.is_file() else {}


def sections(folder: Path, kind: str) -> list[Section]:
    """The facts about a model, component by component.

    Raises:
        ValueError: if a component has no weights, or a config is damaged.
    """
    if kind == VIEWS_TO_VOLUME:
        return [
            _tokenizer_section(folder / "volume_tokenizer", read_processor(folder / "volume_processor"), "Volume"),
            _tokenizer_section(folder / "view_tokenizer", read_processor(folder / "view_processor"), "View"),
            *_generator_sections(folder),
        ]
    if kind == CODE_GENERATION:
        generated = {"size": generated_size(folder)}
        return [_tokenizer_section(folder / "tokenizer", generated, "Image"), *_generator_sections(folder)]
    if kind == CLASSIFIER:
        return [_classifier_section(folder)]
    return [_tokenizer_section(folder, read_processor(folder), kind.partition("_")[0].capitalize())]


def generated_size(pipeline: Path) -> list[int]:
    """Sides of the images that a code generation pipeline makes."""
    factor = VQTokenizerConfig.from_pretrained(pipeline / "tokenizer").downsampling_factor
    return [side * factor for side in read_json(pipeline / "transformer" / MODEL_FILE)["code_grid"]]


def input_size(config: VQTokenizerConfig, processor: Mapping[str, Any]) -> list[int] | None:
    """Sides of a tokenizer's input; None where its processor leaves them open."""
    size = processor.get("size")
    if isinstance(size, Mapping):
        return [size["height"], size["width"]] if {"height", "width"} <= set(size) else None
    return list(size) if size and len(size) == config.spatial_dims else None


def _tokenizer_section(folder: Path, processor: Mapping[str, Any], content: str) -> Section:
    config = VQTokenizerConfig.from_pretrained(folder)
    size, factor, levels = (
        input_size(config, processor),
        config.downsampling_factor,
        counted(len(config.level_channels), "level"),
    )
    grid = sides([side // factor for side in size]) if size else f"one for {sides([factor] * config.spatial_dims)}"
    unit = "voxels" if config.spatial_dims == 3 else "pixels"
    books = f", from each of {config.num_codebooks} codebooks" if config.num_codebooks > 1 else ""
    rows = [
        ("Input", f"{sides(size, unit) if size else 'any size'}, {counted(config.in_channels, 'channel')}"),
        *(_volume_rows(processor) if config.spatial_dims == 3 else []),
        ("Codes", f"{grid}, each one of {config.quantizer_config.codebook_size}{books}"),
        *_quantizer_rows(config.quantizer),
        (
            "Network",
            f"convolutional encoder and decoder, {levels} of {listed(config.level_channels)} channels, "
            f"{counted(config.num_res_blocks, 'residual block')} each, downsampling {listed(config.strides)}",
        ),
        ("Reconstruction loss", one_cell(config.reconstruction_loss)),
        ("Weights", str(read_weights(folder))),
    ]
    return Section(f"{content} tokenizer", rows)


def _volume_rows(processor: Mapping[str, Any]) -> list[Row]:
    window, spacing = processor.get("hu_window"), processor.get("spacing")
    text = MISSING if not window else f"[{window[0]:g}, {window[1]:g}], what lies outside is clipped"
    open_spacing = "that of the input" if processor else MISSING
    return [("Voxel size", sides(spacing, "mm") if spacing else open_spacing), ("Window in HU", text)]


def _quantizer_rows(quantizer: Mapping[str, Any] | None) -> list[Row]:
    if quantizer is None:
        return [("Quantizer", "none")]
    kind, dim = quantizer.get("quantizer_type", "vector"), quantizer.get("codebook_dim")
    size = quantizer.get("codebook_size")
    book = [("Codebook", f"{size} vectors of {dim} numbers")] if size and dim else []
    fields = [f"{name} {one_cell(value)}" for name, value in quantizer.items() if name not in _TOLD]
    return [*book, ("Quantizer", f"{one_cell(kind)}: {', '.join(fields)}")]


def _generator_sections(folder: Path) -> list[Section]:
    """The transformer of a pipeline, and the scheduler it samples with."""
    config = read_json(folder / "transformer" / MODEL_FILE)
    views, dropped = view_names(config), config.get("context_dropout") or 0
    classes = [name for _, name in sorted((config.get("id2label") or {}).items(), key=lambda item: int(item[0]))]
    rows = [
        ("Codes", f"{sides(config['code_grid'])}, each one of {config['num_codes']}"),
        *([("Views", listed(views))] if views else []),
        *(
            [("Missing views", "trained for them" if config.get("view_dropout") else "not trained for them")]
            if views
            else []
        ),
        *([("Classes", listed(classes or [config["num_classes"]]))] if config.get("num_classes") else []),
        (
            "Network",
            f"{config['num_layers']} layers, width {config['hidden_size']}, {config['num_heads']} heads, "
            f"context attention {one_cell(config['context_attention'])}, positions "
            f"{one_cell(config['position_embedding'])}{', causal' if config.get('causal') else ''}",
        ),
        (
            "Classifier-free guidance",
            "trained for it" if dropped or config.get("label_dropout") else "not trained for it",
        ),
        ("Weights", str(read_weights(folder / "transformer"))),
    ]
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    fields = [f"{name} {one_cell(value)}" for name, value in scheduler.items() if name[0] != "_" and value is not None]
    told = [("Class", or_missing(scheduler.get("_class_name"))), ("Fields", listed(fields))]
    return [Section("Transformer", rows), Section("Scheduler", told)]


def view_names(transformer: Mapping[str, Any]) -> list[str]:
    """The views that a transformer knows, sorted as it numbers them."""
    return sorted(transformer.get("view_axes") or ())


def _classifier_section(folder: Path) -> Section:
    config = VQImageClassifierConfig.from_pretrained(folder)
    book = config.quantizer_config
    names = [config.id2label[number] for number in sorted(config.id2label)]
    rows = [
        ("Input", f"{config.image_size} × {config.image_size} pixels, {counted(config.num_channels, 'channel')}"),
        ("Classes", f"{len(names)}: {listed(names)}"),
        ("Network", f"{one_cell(config.backbone)}, {_fields_text(config.backbone_config or {})}"),
        ("Place of the quantizer", "none" if book is None else one_cell(config.quantizer_position)),
        *_quantizer_rows(config.quantizer),
        ("Weights", str(read_weights(folder))),
    ]
    return Section("Classifier", rows)


def _fields_text(fields: Mapping[str, Any]) -> str:
    return listed(f"{name} {value}" for name, value in fields.items())


def codebook_size(folder: Path, kind: str) -> int | None:
    """Codes in the codebook of the tokenizer that figures of a model are about; None without one."""
    parts = {VIEWS_TO_VOLUME: "volume_tokenizer", CODE_GENERATION: "tokenizer"}
    if kind == CLASSIFIER:
        book = VQImageClassifierConfig.from_pretrained(folder).quantizer_config
        return None if book is None else book.codebook_size
    config = VQTokenizerConfig.from_pretrained(folder / parts.get(kind, ""))
    return int(config.quantizer_config.codebook_size)


def code_shape(folder: Path) -> list[int] | None:
    """Shape of the codes of one input of a tokenizer; None where its processor leaves the size open."""
    config = VQTokenizerConfig.from_pretrained(folder)
    size = input_size(config, read_processor(folder))
    books = [config.num_codebooks] if config.num_codebooks > 1 else []
    return None if size is None else [*books, *(side // config.downsampling_factor for side in size)]
