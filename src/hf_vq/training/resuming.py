"""What a checkpoint must have in common with the training that goes on from it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .record import package_versions


def describe_run(model: Any, model_class: type, companion: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the training that wrote it, in JSON types.

    Args:
        model: without a distributed wrapper.
        model_class: what it was before a wrapper may have changed its class.
        companion: settings of what is trained beside it.
    """
    config = model.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    fields = {key: value for key, value in values.items() if not key.startswith("_") and not key.endswith("_version")}
    described = {
        "model_class": model_class.__name__,
        "config": fields,
        "companion": dict(companion),
        "versions": package_versions(),
    }
    return json.loads(json.dumps(described, default=str))


def refuse_other_run(info: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises a ValueError with the reason if a training with the description `own` cannot go on from a checkpoint."""
    if "model_class" not in info or "step" not in info:
        raise ValueError("it says nothing of what was trained")
    if info["model_class"] != own["model_class"]:
        raise ValueError(f"it is one of a {info['model_class']}; this script trains a {own['model_class']}")
    # A field that is younger than the checkpoint had no choice then.
    changed = sorted(key for key in info["config"] if own["config"].get(key) != info["config"][key])
    then, now = info["companion"], own["companion"]
    changed += sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if changed:
        raise ValueError(f"it was made with other values of {changed}; resume with the config it was started with")


def warn_of_changes(path: Path, info: Mapping[str, Any], own: Mapping[str, Any], num_processes: int) -> None:
    """Says on stderr what may keep a resumed training from equalling an uninterrupted one, bit for bit.

    Args:
        path: of the checkpoint.
        info: what it says.
        own: `describe_run` of this training.
        num_processes: of this training.
    """
    then, now = info["versions"], own["versions"]
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    differences = [f"{name} {then.get(name)}, now {now.get(name)}" for name in changed]
    if info["num_processes"] != num_processes:
        differences.append(f"{info['num_processes']} process(es), now {num_processes}")
    if differences:
        print(
            f"warning: {path} was written with {'; '.join(differences)}: going on, but not bit for bit as then",
            file=sys.stderr,
        )
