"""Says what a folder or a repository on the Hub holds, from its configs and the headers of its weight files alone.

    hf-vq info user/repo
    hf-vq info pipeline --json

Tokenizers, classifiers and pipelines: class, size of the input, codes, codebook, views, number of parameters, size on
disk, the versions of the libraries that wrote it, and the record of its training if there is one (`training.json`).
No weights are loaded, and of a repository none are fetched. The parameters are the floating-point values of the weight
files, a quantizer's running averages included.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import PurePosixPath
from typing import Any

from ..hub.weights import FLOATS, WEIGHT_FILE
from ..models import VQImageClassifierConfig, VQTokenizerConfig
from ..models.loading import MODEL_FILE, PIPELINE_FILE, check_folder
from ..quantizers.build import quantizer_config
from .sources import Contents

TRAINING_FILE = "training.json"
PROCESSOR_FILE = "preprocessor_config.json"
CONFIG_FILES = (MODEL_FILE, "scheduler_config.json", PROCESSOR_FILE)
# Folders of complete training states, which are no part of the model.
CHECKPOINTS = "checkpoint-"
WRITERS = {"transformers_version": "transformers", "_diffusers_version": "diffusers"}
# Items of a list that are printed; JSON has them all.
LONGEST_LIST = 12
LABELS = {
    "bytes": "size on disk",
    "cached_bytes": "in the cache",
    "weight_bytes": "weights",
    "checkpoint_bytes": "training states",
}
QUANTIZER_FIELDS = ("quantizer_type", "parameterization", "update", "estimator", "distance", "structure")

Facts = dict[str, Any]


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or Hub id of a tokenizer, a classifier or a pipeline")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def describe(contents: Contents) -> Facts:
    """All facts by name, those of parts as mappings of their own.

    Raises:
        ValueError: the folder or repository holds no model or pipeline of this package, or a damaged one.
    """
    facts: Facts = {"source": contents.source}
    if contents.commit is not None:
        facts["commit"] = contents.commit
    index = contents.json(PIPELINE_FILE)
    if index is not None:
        facts |= _pipeline(contents, index)
    elif (config := contents.json(MODEL_FILE)) is not None:
        if _kind(config) not in MODELS:
            raise ValueError(
                f"{contents.source}: found a model of type {_kind(config)!r}, expected one of {list(MODELS)}; this "
                "command knows no others"
            )
        facts |= _part(contents, "")
    else:
        check_folder(contents.source, MODEL_FILE)
        raise ValueError(f"{contents.source}: found neither {MODEL_FILE} nor {PIPELINE_FILE}, expected one; check it")
    return facts | _disk(contents)


def _pipeline(contents: Contents, index: Facts) -> Facts:
    """What its parts say together, and each of them."""
    parts = {
        name: _part(contents, f"{name}/") or {"class": entry[1]}
        for name, entry in index.items()
        if isinstance(entry, list) and entry[1]
    }
    counts = [part["parameters"] for part in parts.values() if "parameters" in part]
    return {"class": index.get("_class_name"), "parameters": sum(counts), **_written_by(index), **parts}


def _part(contents: Contents, folder: str) -> Facts:
    """What one config in a folder (with a slash at its end, or empty) says of what lies there."""
    config = next(filter(None, (contents.json(folder + name) for name in CONFIG_FILES)), None)
    if config is None:
        return {}
    kind = _kind(config)
    if kind not in MODELS:
        return {"class": kind, **_settings(config), **_written_by(config)}
    facts = MODELS[kind](config, contents.json(folder + PROCESSOR_FILE) or {})
    training = contents.json(folder + TRAINING_FILE)
    recorded = {} if training is None else {"training": training}
    return {**facts, **_weights(contents, folder), **_written_by(config), **recorded}


def _kind(config: Facts) -> str | None:
    return config.get("model_type") or config.get("_class_name") or config.get("image_processor_type")


def _settings(config: Facts) -> Facts:
    """Fields of a scheduler's or processor's config that are set."""
    named = {"_class_name", "image_processor_type", *WRITERS}
    return {name: value for name, value in config.items() if name not in named and value is not None}


def _tokenizer(config: Facts, processor: Facts) -> Facts:
    model = VQTokenizerConfig.from_dict(config)
    facts: Facts = {"class": "VQTokenizer", "spatial_dims": model.spatial_dims, "in_channels": model.in_channels}
    size = processor.get("size")
    if size:
        sides = list(size.values()) if isinstance(size, dict) else size
        grid = [side // model.downsampling_factor for side in sides]
        facts |= {"input_size": sides, "code_grid": grid, "codes_per_input": prod(grid) * model.num_codebooks}
    facts |= {name: processor[name] for name in ("spacing", "hu_window") if processor.get(name)}
    return {**facts, "downsampling_factor": model.downsampling_factor, **_quantizer(model.quantizer or {})}


def _classifier(config: Facts, processor: Facts) -> Facts:
    model = VQImageClassifierConfig.from_dict(config)
    return {
        "class": "VQForImageClassification",
        "backbone": model.backbone,
        "in_channels": model.num_channels,
        "input_size": [model.image_size, model.image_size],
        "classes": list(model.id2label.values()),
        "quantizer_position": model.quantizer_position if model.quantizer else None,
        **(_quantizer(model.quantizer) if model.quantizer else {}),
    }


def _transformer(config: Facts, processor: Facts) -> Facts:
    views = config.get("view_axes") if config.get("context_dim") else None
    names = list((config.get("id2label") or {}).values())
    facts = {"class": "CodeTransformer", "num_codes": config.get("num_codes"), "code_grid": config.get("code_grid")}
    if views:
        facts |= {
            "views": list(views),
            "views_may_be_missing": bool(config.get("view_dropout")),
            "guidance": bool(config.get("context_dropout")),
        }
    if config.get("num_classes"):
        facts |= {"num_classes": config["num_classes"], "classes": names}
    sizes = ("hidden_size", "num_layers", "num_heads", "position_embedding", "context_attention")
    return facts | {name: config[name] for name in sizes if name in config}


MODELS: dict[str | None, Callable[[Facts, Facts], Facts]] = {
    VQTokenizerConfig.model_type: _tokenizer,
    VQImageClassifierConfig.model_type: _classifier,
    "CodeTransformer": _transformer,
}


def _quantizer(fields: Facts) -> Facts:
    """Codebook and kind of a quantizer."""
    config = quantizer_config(fields)
    described = {name: value for name, value in config.to_dict().items() if name in QUANTIZER_FIELDS}
    facts = {"codebook_size": config.codebook_size, "codebook_dim": config.codebook_dim}
    return {**facts, "num_codebooks": getattr(config, "num_codebooks", 1), "quantizer": described}


def _weights(contents: Contents, folder: str) -> Facts:
    """Parameters, types and bytes of a model's weights, of the default variant if there are several."""
    variants: dict[str, list[str]] = {}
    for path in sorted(contents.sizes):
        found = WEIGHT_FILE.fullmatch(path.removeprefix(folder)) if path.startswith(folder) else None
        if found:
            variants.setdefault(found["variant"] or "", []).append(path)
    if not variants:
        return {"weights": "none found" if contents.is_complete else "unknown: not in the cache, and no Hub to ask"}
    chosen = min(variants)
    values = sum((contents.values(path) for path in variants[chosen]), Counter[str]())
    facts: Facts = {
        "parameters": sum(values[dtype] for dtype in FLOATS),
        "dtype": [name for dtype, name in FLOATS.items() if values[dtype]],
        "weight_bytes": sum(contents.sizes[path] for path in variants[chosen]),
    }
    return facts | ({"variants": [name or "default" for name in variants]} if set(variants) != {""} else {})


def _written_by(config: Facts) -> Facts:
    return {f"{library}_version": config[field] for field, library in WRITERS.items() if config.get(field)}


def _disk(contents: Contents) -> Facts:
    """Bytes of all files, those of training states apart, and whether there is a card."""
    states = {path for path in contents.sizes if PurePosixPath(path).parts[0].startswith(CHECKPOINTS)}
    name = "bytes" if contents.is_complete else "cached_bytes"
    facts: Facts = {name: sum(size for path, size in contents.sizes.items() if path not in states)}
    if states:
        facts["checkpoint_bytes"] = sum(contents.sizes[path] for path in states)
    return {**facts, "model_card": "README.md" in contents.sizes}


def as_text(facts: Facts, indent: int = 0) -> Iterator[str]:
    """Lines of a table, parts indented below their names."""
    labels = {name: LABELS.get(name, name.replace("_", " ")) for name in facts}
    width = max((len(labels[name]) for name, value in facts.items() if not isinstance(value, dict)), default=0)
    for name, value in facts.items():
        if isinstance(value, dict):
            yield " " * indent + labels[name]
            yield from as_text(value, indent + 2)
        else:
            yield f"{'':{indent}}{labels[name]:{width}}  {_value_text(name, value)}"


def _value_text(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return f"{value / 1e6:.2f} MB"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list):
        shown = value if len(value) <= LONGEST_LIST else [*value[: LONGEST_LIST - 1], f"... ({len(value)})"]
        return ", ".join(str(item) for item in shown)
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, look, print."""
    args = parse_args(arguments)
    facts = describe(Contents.open(args.source, args.revision))
    print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else "\n".join(as_text(facts)))
