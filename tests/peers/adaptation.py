"""How a test of a library that was changed here says so: `docs/conformance.md` lists it with its reason."""

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., None])


def adapted(reason: str) -> Callable[[Test], Test]:
    """Marks a test that stands in the place of the library's test of that name and checks the same law otherwise."""

    def mark(test: Test) -> Test:
        test.adapted = reason  # type: ignore[attr-defined]
        return test

    return mark
