"""Checks and messages that the processors share."""

import math
from typing import Any

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
    numbers = list(values) if isinstance(values, list | tuple) else [values]
    if len(numbers) != 2 or not all(math.isfinite(value) for value in numbers) or not numbers[0] < numbers[1]:
        raise ValueError(f"{name}: found {values!r}, expected [low, high] with low below high; correct the config")
    return [float(value) for value in numbers]


def one_line(error: BaseException) -> str:
    """Returns the message of another library's error on one line, cut where it is long, its type where it has none."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]} ..."
