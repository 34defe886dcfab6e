"""What the pipelines' conditions share: class labels by number or name, and classifier-free guidance."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..models import CodeTransformer
from ..scalars import is_finite


def class_numbers(transformer: CodeTransformer, class_labels: Sequence[int | str | None]) -> list[int]:
    """Numbers of classes given by number or name; -1 and `None`, for no label, give -1.

    Raises:
        ValueError: if there is no such class.
    """
    label2id, num_classes = transformer.label2id, transformer.config.num_classes or 0
    ids: list[Any] = [label2id.get(label) if isinstance(label, str) else _number(label) for label in class_labels]
    unknown = [label for label, number in zip(class_labels, ids, strict=True) if number not in range(-1, num_classes)]
    if unknown:
        raise ValueError(
            f"class_labels {unknown} are unknown; this model has {num_classes} classes, numbered from 0, with the "
            f"names {list(label2id)}"
        )
    return ids


def prompt_labels(transformer: CodeTransformer, class_labels: Any, count: int | None, prompts: str) -> list[int]:
    """Class of each prompt, -1 for none.

    Args:
        transformer: knows the classes.
        class_labels: number or name of a class, which serves all prompts, or a list, an array or a tensor of them, one
            for each prompt; -1 or `None` for no label.
        count: number of prompts; by default one, or one for each label of a list.
        prompts: what the prompts are called in an error.

    Raises:
        ValueError: if a label is unknown, or their number is another.
    """
    if isinstance(class_labels, torch.Tensor | np.ndarray | np.generic):
        class_labels = class_labels.tolist()
    if isinstance(class_labels, str) or not hasattr(class_labels, "__len__"):
        class_labels = [-1 if class_labels is None else class_labels] * (count or 1)
    if len(class_labels) == 0 or len(class_labels) != (count or len(class_labels)):
        raise ValueError(
            f"class_labels must hold a label for each of {prompts}, and at least one; got {len(class_labels)}"
        )
    return class_numbers(transformer, class_labels)


def check_label_dropout(transformer: CodeTransformer, unlabelled: bool) -> None:
    """Raises ValueError if samples without a label are wanted of a class-conditional model that never saw any."""
    if unlabelled and transformer.config.num_classes and not transformer.config.label_dropout:
        raise ValueError(
            "this model was trained with label_dropout=0 and does not know samples without a label; give class_labels "
            "for all of them and no guidance by class, or train with label_dropout"
        )


def check_guidance_scale(guidance_scale: float) -> None:
    """Raises ValueError unless the scale is finite and at least 0."""
    if not is_finite(guidance_scale) or guidance_scale < 0:
        raise ValueError(f"guidance_scale must be finite and at least 0; got {guidance_scale!r}")


def guided_logits(conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    r"""Classifier-free guidance (Ho & Salimans, 2022) of logits: \(l_\text{none} + s\,(l_\text{all} - l_\text{none})\).

    In float32, since the scale magnifies what half precision has rounded away.
    """
    conditional, unconditional = conditional.float(), unconditional.float()
    return unconditional + guidance_scale * (conditional - unconditional)


def _number(label: Any) -> int | None:
    """The whole number that a label is, -1 for no label, nothing for any other value."""
    try:
        return -1 if label is None else operator.index(label)
    except TypeError:
        return None
