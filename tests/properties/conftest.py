"""How many examples hypothesis tries, and a record of those that ran: a few in `make test`, thousands with `-m ""`."""

import functools

import pytest
from hypothesis import HealthCheck, settings

QUICK, FULL = 4, 70
# A failure must come again wherever the tests run, so examples follow from the code alone and no database is kept.
COMMON = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}
settings.register_profile("quick", max_examples=QUICK, **COMMON)
settings.register_profile("full", max_examples=FULL, **COMMON)


def pytest_configure(config):
    settings.load_profile("quick" if config.option.markexpr == "not slow" else "full")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Counts the examples that a property was tried on; reports carry it from workers to `tests/conftest.py`."""
    handle = getattr(item.obj, "hypothesis", None)
    if handle is None:
        return (yield)
    original, cases = handle.inner_test, []

    @functools.wraps(original)
    def counted(*arguments, **keywords):
        cases.append(None)
        return original(*arguments, **keywords)

    handle.inner_test = counted
    try:
        return (yield)
    finally:
        handle.inner_test = original
        item.user_properties.append(("property_cases", len(cases)))
