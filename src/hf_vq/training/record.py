"""`training.json`, which a training leaves beside its model: what a model card says about how the model came to be."""

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import hf_hub_download

from ..data.description import describe_data
from ..files import looks_like_path
from .arguments import TrainingArguments

TRAINING_FILE = "training.json"
PACKAGES = ("torch", "transformers", "diffusers", "accelerate")
# Flags that say where something lies or how it is watched, not what is trained.
LEFT_OUT = ("output_dir", "overwrite", "resume_from_checkpoint", "report_to", "data_source", "data_license")
VALIDATION = "validation_"


class TrainingRecord:
    """What is noted of a training while it runs.

    Args:
        accelerator: of the run.
        args: the script's flags.

    Attributes:
        validation: the figures of the last validation, with its step; None before the first.
    """

    def __init__(self, accelerator: Accelerator, args: TrainingArguments) -> None:
        self._accelerator, self._args = accelerator, args
        self._started, self._parts = time.monotonic(), 1
        self._seconds_before: float | None = 0.0
        self._hardware = [describe_hardware(accelerator.device)]
        self._data: dict[str, Any] = {}
        self._num_samples: int | None = None
        self.validation: dict[str, float] | None = None

    @property
    def seconds(self) -> float | None:
        """Wall-clock time from the start to now, of a resumed training without what an interruption lost: each part
        counts up to the checkpoint that the next one began with. None after a checkpoint that did not note it."""
        return None if self._seconds_before is None else self._seconds_before + time.monotonic() - self._started

    def note_data(self, num_samples: int) -> None:
        """Notes how many samples are trained on, and what is known of the data set while it is there.

        Raises:
            ValueError: a record of the data set is damaged.
        """
        stated = {"source": self._args.data_source, "license": self._args.data_license}
        given = {name: value for name, value in stated.items() if value is not None}
        self._num_samples, self._data = num_samples, {**describe_data(self._args.data), **given}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds, "parts": self._parts, "hardware": self._hardware}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from what a checkpoint kept; an older one kept nothing."""
        state = state or {"seconds": None, "parts": 1, "hardware": []}
        self._seconds_before, self._parts = state["seconds"], state["parts"] + 1
        self._hardware = list(dict.fromkeys([*state["hardware"], *self._hardware]))

    def note_figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Keeps logged figures if they are those of a validation."""
        if any(name.startswith(VALIDATION) for name in figures):
            found = {k.removeprefix(VALIDATION): v for k, v in figures.items() if k.startswith(VALIDATION)}
            self.validation = {"step": step, **found}

    def describe(self, model: Any, steps: int) -> dict[str, Any]:
        """All of it as JSON types; no path, only names of folders.

        Args:
            model: what was trained.
            steps: optimizer steps made.
        """
        return {
            "model": type(model).__name__,
            "steps": steps,
            "num_samples": self._num_samples,
            "num_processes": self._accelerator.num_processes,
            "precision": self._accelerator.mixed_precision,
            "seconds": self.seconds,
            "parts": self._parts,
            "hardware": self._hardware,
            "versions": package_versions(),
            "data": self._data,
            "validation": self.validation,
            "arguments": public_arguments(self._args),
        }


def describe_hardware(device: torch.device) -> str:
    """Name of the device that a process computes on; of a CPU also the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type.upper()
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'' if threads == 1 else 's'}"


def _cpu_name() -> str:
    """As Linux names the processor, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or "CPU"


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that it computes with."""
    own = sys.modules[__name__.partition(".")[0]]
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "hf_vq": own.__version__, **found}


def public_arguments(args: TrainingArguments) -> dict[str, Any]:
    """The flags of a training, without paths: of a folder only its name is left."""
    values = {name: value for name, value in asdict(args).items() if name not in LEFT_OUT}
    return {name: _without_path(value) for name, value in values.items()}


def _without_path(value: Any) -> Any:
    if isinstance(value, str) and value and ("/" in value or "\\" in value):
        is_path = looks_like_path(value) or Path(value).exists()
        return Path(value).resolve().name if is_path else value
    return value


def read_record(source: str | Path) -> dict[str, Any] | None:
    """The record beside a model, None where its training left none.

    Args:
        source: folder or Hub id of the model.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(source) / TRAINING_FILE
    if not path.parent.is_dir() and not looks_like_path(source):
        try:
            path = Path(hf_hub_download(str(source), TRAINING_FILE))
        except (OSError, ValueError):
            return None
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no JSON ({error}), expected the record of a training; remove it") from error
    return record


def write_record(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Writes `training.json` into a folder."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (Path(folder) / TRAINING_FILE).write_text(text, encoding="utf-8")
