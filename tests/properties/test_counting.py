"""How many examples the properties are tried on is counted, and a full run with too few of them fails."""

from pathlib import Path

import pytest

pytest_plugins = "pytester"
HERE = Path(__file__).parent
PROPERTY = """
from hypothesis import given
from hypothesis import strategies as st

@given(number=st.integers())
def test_it(number):
    assert number == number
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    """A folder with one property and the set-up of this one."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # the run in it is no part of a worker's
    folder = pytester.mkdir("tests")
    (folder / "properties").mkdir()
    (folder / "conftest.py").write_text((HERE.parent / "conftest.py").read_text())
    (folder / "properties" / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (folder / "properties" / "test_one.py").write_text(PROPERTY)
    pytester.makeini("[pytest]\naddopts = --import-mode=importlib\nmarkers = slow: takes long")
    return pytester


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_a_full_run_with_too_few_examples_fails(suite, workers):
    result = suite.runpytest_subprocess("tests", "-m", "", *workers)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["properties tried on 70 examples", "FAILED properties: tried on 70 examples, *3000*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.slow
@pytest.mark.parametrize("choice", [["tests", "-m", "not slow"], ["tests/properties/test_one.py", "-m", ""]])
def test_a_run_of_some_tests_may_try_fewer(suite, choice):
    result = suite.runpytest_subprocess(*choice)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["properties tried on * examples"])
    result.stdout.no_fnmatch_line("FAILED*")
    assert result.ret == pytest.ExitCode.OK
