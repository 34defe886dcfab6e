"""What the report needs to know about each test, as properties in the JUnit file."""

import inspect
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        title = getattr(getattr(item, "cls", None), "under_test", None)
        if title is not None:
            item.user_properties.append(("under_test", title))
        test = getattr(item, "obj", None)
        if hasattr(test, "adapted"):
            item.user_properties.append(("adapted", test.adapted))
        if inspect.isroutine(test) and HERE in Path(inspect.unwrap(test).__code__.co_filename).parents:
            item.user_properties.append(("ours", "yes"))
