"""State of optimizers, schedules and averages as safetensors and JSON, which hold nothing that could be executed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TENSORS_FILE = "states.safetensors"
TREE_FILE = "states.json"
_TENSOR, _ITEMS, _TUPLE = "tensor", "items", "tuple"


def save_states(states: Mapping[str, Any], folder: Path) -> None:
    """Writes `state_dict`s into a folder.

    Args:
        states: dicts, lists and tuples, at any depth, of tensors, numbers, strings, booleans and None.
        folder: existing folder.

    Raises:
        TypeError: naming the type, if there is anything else in it.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _take_tensors(states, tensors)
    save_file(tensors, folder / TENSORS_FILE)
    (folder / TREE_FILE).write_text(json.dumps(tree), encoding="utf-8")


def load_states(folder: Path) -> dict[str, Any]:
    """What `save_states` wrote, its tensors on the CPU."""
    tensors = load_file(folder / TENSORS_FILE)
    return _put_tensors(json.loads((folder / TREE_FILE).read_text(encoding="utf-8")), tensors)


def _take_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON in which a list is a list, a plain value itself, and anything else an object with one key."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {_ITEMS: [[key, _take_tensors(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_take_tensors(item, tensors) for item in value]
        return items if isinstance(value, list) else {_TUPLE: items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"found a {type(value).__name__} in a state, expected tensors and plain values")


def _put_tensors(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_put_tensors(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _TUPLE:
        return tuple(_put_tensors(item, tensors) for item in content)
    return {key: _put_tensors(item, tensors) for key, item in content}
