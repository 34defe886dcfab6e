"""Command lines of the scripts: a dataclass of flags, a YAML file for their values, and overrides for both."""

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser

from .failures import message_of

Arguments = TypeVar("Arguments")


@dataclass
class TrainingArguments:
    """Flags that all training scripts share, under the names that diffusers' training scripts use."""

    data: str = field(metadata={"help": "Data to train on: a folder, or the id of a data set, owner/name[@revision]."})
    output_dir: str = field(metadata={"help": "Where the model and the checkpoints go."})
    max_train_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    train_batch_size: int = field(default=8, metadata={"help": "Samples per process and step."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches per optimizer step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler: str = field(default="cosine", metadata={"help": "diffusers' name of the schedule."})
    lr_warmup_steps: int = field(default=20, metadata={"help": "Steps of linear warm-up."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's first decay."})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW's second decay; lower suits short trainings."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Added to the root of AdamW's second moment."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    ema_decay: float = field(
        default=0.99, metadata={"help": "Decay of the averaged weights, which are the ones saved."}
    )
    codebook_learning_rate: float | None = field(
        default=None, metadata={"help": "With alternating optimisation, the codebook's own; learning_rate by default."}
    )
    codebook_inner_steps: int = field(
        default=1, metadata={"help": "With alternating optimisation, the codebook's steps per batch."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order and noise."})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    report_to: str = field(
        default="none", metadata={"help": "Tracker of Accelerate (tensorboard, wandb, ...) or none."}
    )
    logging_steps: int = field(default=20, metadata={"help": "Steps between logged training figures."})
    validation_steps: int = field(
        default=500, metadata={"help": "Steps between validations; one follows the last step too."}
    )
    checkpointing_steps: int = field(default=500, metadata={"help": "Steps between checkpoints; 0 for none."})
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Checkpoints kept."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "A checkpoint folder, or 'latest'."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that load data."})
    compile: bool = field(
        default=False, metadata={"help": "Compile the model's parts with torch.compile; needs a C++ compiler or a GPU."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations twice instead of keeping them: slower, in less memory."}
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Keep convolutions' weights and activations with the channels last."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what output_dir holds."})
    data_source: str | None = field(
        default=None, metadata={"help": "Where the data come from, in words, for the model card."}
    )
    data_license: str | None = field(
        default=None, metadata={"help": "The data's licence, such as cc-by-3.0, for the model card."}
    )
    model: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of the model's config."})


def parse_arguments(
    arguments_class: type[Arguments], description: str | None, argv: Sequence[str] | None = None
) -> Arguments:
    """Flags from `--config file.yaml` and the command line, the command line winning.

    Each field of `arguments_class` is a flag. A field that is a dict is a mapping in the YAML file, and its entries are
    flags with dots: `--model.quantizer.codebook_size 1024`.

    Raises:
        SystemExit: with a one-line message, for an unknown flag or YAML key, or a value of the wrong type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    fields = {f.name: f for f in dataclasses.fields(arguments_class)}  # type: ignore[arg-type]
    nested = {name for name, f in fields.items() if f.type is dict or str(f.type).startswith("dict")}
    flat = dataclasses.make_dataclass(
        arguments_class.__name__,
        [(f.name, f.type, _copy_field(f)) for f in fields.values() if f.name not in nested],
    )
    parser = HfArgumentParser(flat, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", help="YAML file with values for the flags below.")
    values, problem = _read_config(argv, set(fields))
    if problem:
        parser.error(problem)
    trees = {name: _with_numbers(values.pop(name, None) or {}) for name in nested}
    _apply_defaults(parser, values)
    known, rest = parser.parse_known_args(argv)
    try:
        _apply_dotted(trees, rest)
    except ValueError as error:
        parser.error(str(error))
    options = {name: value for name, value in vars(known).items() if name != "config"}
    return arguments_class(**options, **trees)


def check_fields(values: dict[str, Any], target: Callable[..., Any], flag: str) -> None:
    """Refuses keys that `target`, a config or component class, takes no notice of.

    Raises:
        ValueError: naming the keys and the fields there are.
    """
    known = [name for name, kind in inspect.signature(target).parameters.items() if kind.kind is not kind.VAR_KEYWORD]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{flag}.{unknown[0]}: unknown field of {getattr(target, '__name__', target)}; the fields are {known}"
        )


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; bad input, a full disk and the like end it with one line on stderr and exit status 2,
    without a stack trace."""
    try:
        main()
    except (ValueError, OSError, ImportError, StrictDataclassError, RuntimeError, SafetensorError) as error:
        message = message_of(error)
        if message is None:
            raise
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _copy_field(source: dataclasses.Field) -> Any:
    if source.default_factory is not dataclasses.MISSING:
        return field(default_factory=source.default_factory, metadata=source.metadata)
    return field(default=source.default, metadata=source.metadata)


def _read_config(argv: list[str], known: set[str]) -> tuple[dict[str, Any], str | None]:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return {}, None
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        return {}, f"--config {path}: cannot be read as YAML: {' '.join(str(error).split())}"
    if not isinstance(values, dict):
        return {}, f"--config {path}: expected a mapping of flags to values; got {type(values).__name__}"
    unknown = sorted(set(values) - known)
    if unknown:
        return {}, f"--config {path}: unknown key(s) {unknown}; the keys are {sorted(known)}"
    return values, None


def _apply_defaults(parser: argparse.ArgumentParser, values: dict[str, Any]) -> None:
    for action in parser._actions:
        if action.dest not in values:
            continue
        value = values[action.dest]
        action.required = False
        # argparse converts defaults only if they are text, so a YAML value passes the same check as a flag's.
        action.default = (
            str(value) if action.type is not None and value is not None and not isinstance(value, list) else value
        )


def _with_numbers(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; here it is a number, at any depth."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _apply_dotted(trees: dict[str, dict[str, Any]], rest: list[str]) -> None:
    pairs = [piece for item in rest for piece in (item.split("=", 1) if item.startswith("--") else [item])]
    if len(pairs) % 2:
        raise ValueError(f"unrecognized arguments: {' '.join(rest)}")
    for flag, text in zip(pairs[::2], pairs[1::2], strict=True):
        *parents, leaf = flag.removeprefix("--").split(".")
        if not flag.startswith("--") or not parents or parents[0] not in trees:
            raise ValueError(
                f"unrecognized argument {flag!r}; fields of {sorted(trees)} are given with dots, as in "
                "--model.name value"
            )
        tree = trees[parents[0]]
        for parent in parents[1:]:
            tree = tree.setdefault(parent, {})
            if not isinstance(tree, dict):
                raise ValueError(f"{flag}: {parent!r} is {tree!r}, not a mapping; give either it or its fields")
        tree[leaf] = _with_numbers(yaml.safe_load(text))
