"""Pieces of text that the parts of a model card share."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

MISSING = "not recorded"
Row = tuple[str, str]
"""What is told, and the fact."""


def one_cell(value: Any) -> str:
    """A value as text that cannot break a table or a list: one line, without the marks of Markdown tables and code."""
    text = re.sub(r"\s+", " ", str(value)).strip().replace("|", "/").replace("`", "'")
    return text or MISSING


def or_missing(value: Any) -> str:
    """A value as text, or that it is not recorded."""
    return MISSING if value is None or value == "" or value == [] or value == {} else one_cell(value)


def sides(values: Sequence[float] | None, unit: str = "") -> str:
    """`32 × 32 × 32 voxels`, or that it is not recorded."""
    if not values:
        return MISSING
    return one_cell(" × ".join(f"{value:g}" for value in values) + (f" {unit}" if unit else ""))


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose cells are not padded, for long ones."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def counted(count: int, noun: str) -> str:
    """`1 channel` or `3 channels`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(values: Iterable[Any]) -> str:
    """`one, two, three`, or that nothing is recorded."""
    return or_missing(", ".join(one_cell(value) for value in values))
