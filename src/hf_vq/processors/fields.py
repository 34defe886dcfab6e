"""Checks and messages that the processors share."""

import math
from typing import Any

from ..scalars import is_finite

# Some libraries quote what they read, which may be as long as a file.
_LONGEST_MESSAGE = 1000


def interval(name: str, values: Any) -> list[float]:
    """Returns [low, high] as floats.

    Args:
        name: field that errors name.
        values: two finite numbers, the first below the second.

    Raises:
        ValueError: they are not.
    """
    numbers = finite_numbers(values)
    if len(numbers) != 2 or not numbers[0] < numbers[1] or not math.isfinite(numbers[1] - numbers[0]):
        raise ValueError(f"{name}: found {values!r}, expected [low, high] with low below high; correct the config")
    return numbers


def finite_numbers(values: Any) -> list[float]:
    """Returns the numbers of a list as floats; none if one of them is no finite real number."""
    numbers = list(values) if isinstance(values, list | tuple) else [values]
    return [float(value) for value in numbers] if all(map(is_finite, numbers)) else []


def one_line(error: BaseException) -> str:
    """Returns the message of another library's error on one line, cut where it is long, its type where it has none."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]} ..."
