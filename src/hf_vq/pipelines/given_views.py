"""The views that a call is given: which there are, of which subjects, and whether the model can do without the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models import CodeTransformer
from ..processors import XrayImageProcessor


@dataclass(frozen=True)
class GivenViews:
    """Views of a batch of subjects, normalised by the view processor.

    Attributes:
        names: views that at least one subject has, in the order of the transformer's.
        pixel_values: for each of them `(subjects that have it, 1, rows, columns)`.
        present: `(subjects, V)` bool, whether a subject has the view.
    """

    names: list[str]
    pixel_values: list[torch.Tensor]
    present: torch.Tensor

    @property
    def num_subjects(self) -> int:
        """Subjects, those without any view included."""
        return len(self.present)


def read_views(
    views: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    transformer: CodeTransformer,
    view_processor: XrayImageProcessor,
) -> GivenViews:
    """Checks the views and reads their images.

    Args:
        views: for each name an image, or a list with an image or `None` for each subject; or for each subject a dict of
            its images by name, in a list.
        transformer: knows the names and whether views may be missing.
        view_processor: normalises the images.

    Raises:
        ValueError: if the views are malformed, differ in number, or are fewer than the model was trained for.
    """
    images = _images_by_name(views, transformer.view_names)
    none = [None] * len(next(iter(images.values())))
    columns = [[image is not None for image in images.get(name, none)] for name in transformer.view_names]
    present = torch.tensor(columns).T
    _check_missing(present, transformer)
    shown = present.any(dim=0)
    names = [name for name, is_shown in zip(transformer.view_names, shown, strict=True) if is_shown]
    read = ([image for image in images[name] if image is not None] for name in names)
    return GivenViews(
        names, [view_processor(each, return_tensors="pt")["pixel_values"] for each in read], present[:, shown]
    )


def _images_by_name(views: Any, known: list[str]) -> dict[str, list[Any]]:
    """Equally long lists of images."""
    if isinstance(views, list | tuple) and all(isinstance(subject, Mapping) for subject in views):
        names = dict.fromkeys((*known, *(name for subject in views for name in subject)))
        views = {name: [subject.get(name) for subject in views] for name in names}
    if not isinstance(views, Mapping):
        raise ValueError(
            f"views must be a dict of images by view name, of {known}, or a list of such dicts, one for each subject; "
            f"got {type(views).__name__}"
        )
    unknown = sorted(set(views) - set(known))
    if unknown:
        raise ValueError(f"this model takes the views {known}; unknown: {unknown}")
    images = {name: list(each) if isinstance(each, list | tuple) else [each] for name, each in views.items()}
    counts = {name: len(each) for name, each in images.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"every view needs the same number of images, one per subject and at least one; got {counts}")
    return images


def _check_missing(present: torch.Tensor, transformer: CodeTransformer) -> None:
    """Some views of a subject can be missing after training with `view_dropout`, all after one with
    `context_dropout`."""
    names, counts = transformer.view_names, present.sum(dim=1)
    some, none = (counts > 0) & (counts < len(names)), counts == 0
    for rows, dropout in ((some, "view_dropout"), (none, "context_dropout")):
        if bool(rows.any()) and not transformer.config[dropout]:
            missing = [name for name, found in zip(names, present[rows].all(dim=0), strict=True) if not found]
            raise ValueError(
                f"this model takes the views {names}; missing: {missing}, for {int(rows.sum())} of {len(counts)} "
                f"subjects, and it was trained with {dropout}=0: give them, or train with {dropout} above 0"
            )
