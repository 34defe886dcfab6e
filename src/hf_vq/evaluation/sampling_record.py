"""`sampling.json`, which tells how the volumes or images of a folder were drawn, so that figures of them can say so."""

import argparse
import json
from pathlib import Path
from typing import Any

SAMPLING_FILE = "sampling.json"
FLAGS = (
    *("num_inference_steps", "temperature", "top_p", "guidance_scale", "seed", "views", "shuffle_views"),
    *("select_by_reprojection", "unlabelled"),
)
"""Flags of the commands that generate on which the samples depend."""
SCHEDULER_FIELDS = ("sampling", "schedule", "choice_temperature")


def write_sampling(folder: str | Path, pipeline: Any, args: argparse.Namespace) -> None:
    """Writes down what samples of a pipeline depend on besides its weights.

    Args:
        folder: an existing folder, that of the samples.
        pipeline: what draws them; its scheduler is named.
        args: flags of the command; those in `FLAGS` that it has are written.
    """
    config = pipeline.scheduler.config
    fields = {name: config[name] for name in SCHEDULER_FIELDS if name in config}
    record = {
        "scheduler": type(pipeline.scheduler).__name__,
        **fields,
        **{name: getattr(args, name) for name in FLAGS if hasattr(args, name)},
    }
    (Path(folder) / SAMPLING_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_sampling(folder: str | Path) -> dict[str, Any] | None:
    """What `write_sampling` wrote; None for samples of another program.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder) / SAMPLING_FILE
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no JSON ({error}), expected a record; remove it or generate again") from error
    return record
