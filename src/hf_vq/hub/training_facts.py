"""What the record of a training (`training.json`) says, for a model card."""

from collections.abc import Callable, Mapping
from typing import Any

from .architecture import CODE_GENERATION, VIEWS_TO_VOLUME
from .text import MISSING, Row, listed, one_cell, or_missing, plain_table, sides

Record = Mapping[str, Any]
TOKENIZERS_OF = {VIEWS_TO_VOLUME: ("volume_tokenizer", "view_tokenizer"), CODE_GENERATION: ("tokenizer",)}


def training_table(kind: str, record: Record | None) -> str:
    """A Markdown table with a column for each training: of a pipeline those of its tokenizers first.

    Args:
        kind: of the model, as `find_kind` tells.
        record: of its training; None where there is none.
    """
    inner = (record or {}).get("tokenizers") or {}
    trainings = {name.replace("_", " "): inner.get(name) for name in TOKENIZERS_OF.get(kind, ())}
    trainings["transformer" if trainings else "training"] = record
    rows = [[label, *(_told(tell, one) for one in trainings.values())] for label, tell in _TRAINING.items()]
    return plain_table(["", *trainings], rows)


def _told(tell: Callable[[Record], str], record: Record | None) -> str:
    """A fact of a record, or that it is not recorded: older records lack some."""
    try:
        return MISSING if record is None else tell(record)
    except (KeyError, TypeError):
        return MISSING


def _batch(record: Record) -> str:
    flags, processes = record["arguments"], record["num_processes"]
    factors = [flags["train_batch_size"]]
    factors += [f"{processes} processes"] if processes > 1 else []
    accumulated = flags["gradient_accumulation_steps"]
    factors += [f"{accumulated} batches per step"] if accumulated > 1 else []
    return " × ".join(map(str, factors))


def _rate(record: Record) -> str:
    flags = record["arguments"]
    return f"{flags['learning_rate']:g}, {one_cell(flags['lr_scheduler'])}, {flags['lr_warmup_steps']} warm-up steps"


def _precision(record: Record) -> str:
    return "float32" if record["precision"] == "no" else f"{one_cell(record['precision'])} (mixed)"


def _seconds(record: Record) -> str:
    parts = f", in {record['parts']} parts" if record["parts"] > 1 else ""
    return f"{record['seconds']:.0f}{parts}"


_TRAINING: dict[str, Callable[[Record], str]] = {
    "Optimizer steps": lambda record: one_cell(record["steps"]),
    "Training samples": lambda record: or_missing(record["num_samples"]),
    "Batch size": _batch,
    "Learning rate": _rate,
    "Averaged weights": lambda record: f"decay {record['arguments']['ema_decay']:g}",
    "Precision": _precision,
    "Seed": lambda record: one_cell(record["arguments"]["seed"]),
    "Seconds": _seconds,
    "Hardware": lambda record: listed(record["hardware"]),
    "Versions": lambda record: listed(f"{name} {version}" for name, version in record["versions"].items()),
}


def data_rows(data: Mapping[str, Any], medical: bool) -> list[Row]:
    """The facts about the data that a model was trained on.

    Args:
        data: as `describe_data` returns it; empty where no training was recorded.
        medical: whether its samples are of subjects, whose number then matters.
    """
    subjects = data.get("subjects") or {}
    rows = [
        ("Data set", or_missing(data.get("name"))),
        ("Source", or_missing(data.get("source"))),
        ("Licence of the data", _license_text(data)),
    ]
    if medical or subjects:
        rows.append(("Subjects", listed(f"{count} in {split}" for split, count in subjects.items())))
    if data.get("deformed_from_one_scan"):
        rows.append(("How it was made", f"random deformations of one scan, seed {or_missing(data.get('seed'))}"))
    if data.get("size"):
        rows.append(("Volumes", f"{sides(data['size'], 'voxels')} of {sides(data.get('spacing'), 'mm')}"))
    if data.get("views"):
        image_size = sides(data.get("image_size"), "pixels")
        rows.append(("Views", f"{listed(data['views'])}; {image_size}; {_origin_of_views(data)}"))
    if data.get("codes"):
        rows.append(("Codes", _codes_text(data["codes"])))
    return rows


def _origin_of_views(data: Mapping[str, Any]) -> str:
    if data.get("rendered") is None:
        return MISSING
    return f"rendered from the volumes with {data.get('rays')} rays" if data["rendered"] else "not rendered"


def _license_text(data: Mapping[str, Any]) -> str:
    if data.get("license"):
        return one_cell(data["license"])
    page = f"; see https://huggingface.co/datasets/{one_cell(data['hub_id'])}" if data.get("hub_id") else ""
    return f"{MISSING}{page}"


def _codes_text(codes: Mapping[str, Any]) -> str:
    rows = listed(f"{count} rows in {split}" for split, count in (codes.get("rows") or {}).items())
    if not codes.get("num_shifts"):
        return rows
    return (
        f"{rows}; each training pair also in {codes['num_shifts']} copies moved by up to {codes['max_shift']} voxel(s) "
        f"along each axis, seed {codes['seed']}"
    )
