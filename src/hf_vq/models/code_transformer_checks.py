"""What the fields of a code transformer's config must satisfy; each check raises ValueError naming what does not."""

import math
from collections.abc import Mapping, Sequence

from ..scalars import is_finite, is_whole
from .axial_positions import DIRECTIONS, axis_of

# A number beyond these is a slip of the pen, which would fill the memory before anyone saw it.
MAX_NUMBER = 1 << 24
MAX_MLP_RATIO = 1024


def check_sizes(
    num_codes: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    mlp_ratio: float,
    dropout: float,
    context_dim: int | None,
    num_classes: int | None,
) -> None:
    least = {"num_codes": (num_codes, 1), "hidden_size": (hidden_size, 1), "num_layers": (num_layers, 1)}
    least["num_heads"] = (num_heads, 1)
    optional = {"context_dim": context_dim, "num_classes": num_classes}
    least.update({name: (value, 1) for name, value in optional.items() if value is not None})
    for name, (value, smallest) in least.items():
        if not is_whole(value) or not smallest <= value <= MAX_NUMBER:
            raise ValueError(f"{name} must be a whole number from {smallest} to {MAX_NUMBER}; got {value!r}")
    if not is_finite(mlp_ratio) or not 0 < mlp_ratio <= MAX_MLP_RATIO:
        raise ValueError(f"mlp_ratio must be above 0 and at most {MAX_MLP_RATIO}; got {mlp_ratio!r}")
    if not is_finite(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1); got {dropout!r}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {tuple(choices)}")


def check_grids(
    code_grid: Sequence[int],
    context_dim: int | None,
    context_grid: Sequence[int],
    view_axes: Mapping[str, Sequence[str]],
    volume_axes: Sequence[str],
) -> None:
    if len(code_grid) != len(volume_axes) or len(set(map(axis_of, volume_axes))) != len(volume_axes):
        raise ValueError(
            f"volume_axes must name one axis of its own for each side of code_grid={tuple(code_grid)}; got "
            f"{tuple(volume_axes)}"
        )
    if context_dim is None and view_axes:
        raise ValueError(f"view_axes names the views {sorted(view_axes)} of a model without any; set context_dim")
    known = set(map(axis_of, volume_axes))
    for name, axes in view_axes.items():
        if len(axes) != len(context_grid) or any(axis_of(axis) not in known for axis in axes):
            raise ValueError(
                f"view_axes[{name!r}] must name {len(context_grid)} directions out of {DIRECTIONS} along "
                f"volume_axes={tuple(volume_axes)}; got {tuple(axes)}. A model without views has context_dim=None."
            )


def check_width(hidden_size: int, num_heads: int) -> None:
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(f"num_heads={num_heads} must be at least 1 and divide hidden_size={hidden_size}")


def check_order(
    causal: bool,
    code_order: Sequence[int] | None,
    code_grid: Sequence[int],
    context_dim: int | None,
    context_attention: str,
) -> None:
    if causal and context_dim is not None and context_attention != "prefix":
        raise ValueError(
            f"causal=True needs context_attention='prefix'; with {context_attention!r} views would tell of later codes"
        )
    if code_order is None:
        return
    if not causal:
        raise ValueError("code_order is given to a model that is not causal; leave it out or set causal=True")
    if sorted(code_order) != list(range(math.prod(code_grid))):
        raise ValueError(
            f"code_order must list each place from 0 to {math.prod(code_grid) - 1} of code_grid={tuple(code_grid)} "
            f"once; got {len(code_order)} entries"
        )


def check_view_dropout(context_dim: int | None, view_dropout: float, context_dropout: float) -> None:
    for name, value in (("view_dropout", view_dropout), ("context_dropout", context_dropout)):
        if not is_finite(value) or not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1); got {value!r}")
        if value and context_dim is None:
            raise ValueError(f"{name}={value} is given to a model without views; leave it at 0 or set context_dim")


def check_classes(num_classes: int | None, label_dropout: float, id2label: Mapping[int | str, str] | None) -> None:
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, or None for a model without classes; got {num_classes}")
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout must lie in [0, 1); got {label_dropout}")
    if num_classes is None and (label_dropout or id2label):
        raise ValueError(f"label_dropout={label_dropout} and id2label={id2label} need num_classes; set it")
    if id2label is None:
        return
    if sorted(map(int, id2label)) != list(range(num_classes or 0)) or len(set(id2label.values())) != num_classes:
        raise ValueError(
            f"id2label must name each class from 0 to {(num_classes or 0) - 1} once, by names of their own; got "
            f"{dict(id2label)}"
        )
