"""Set-up of every test: no network, caches in a temporary folder, one thread for each worker."""

import os
import tempfile
from pathlib import Path

import pytest

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ

# The Hugging Face libraries read these when they are first imported, so this stands before any of them. Workers of
# pytest-xdist and the commands that tests start inherit them.
if not IS_WORKER:
    CACHE = tempfile.TemporaryDirectory(prefix="hf_vq_tests_")
    os.environ.update(
        HF_HOME=os.path.join(CACHE.name, "home"),
        HF_MODULES_CACHE=os.path.join(CACHE.name, "modules"),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
    )
else:
    os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

if IS_WORKER:
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported


# The test-suites of other libraries: make test-peers.
collect_ignore = ["peers"]


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers on the CPU."""
    return torch.Generator().manual_seed(0)


PROPERTIES = Path(__file__).parent / "properties"
FEWEST_EXAMPLES = 3000
"""Fewest examples that `make test-all` must try the properties on; a run that leaves tests out may try fewer."""


def pytest_terminal_summary(terminalreporter):
    """Says on how many examples the properties of `tests/properties` were tried, over all workers."""
    count = examples_tried(terminalreporter)
    if count:
        terminalreporter.write_line(f"properties tried on {count} examples")
    if count < FEWEST_EXAMPLES and runs_all_properties(terminalreporter.config):
        expected = f"expected at least {FEWEST_EXAMPLES}: were tests lost, or FULL lowered?"
        terminalreporter.write_line(f"FAILED properties: tried on {count} examples, {expected}", red=True)


def pytest_sessionfinish(session):
    """Fails a full run that tried its properties on too few examples, though every test passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_worker = hasattr(session.config, "workerinput")
    if is_worker or reporter is None or session.exitstatus != pytest.ExitCode.OK:
        return
    if examples_tried(reporter) < FEWEST_EXAMPLES and runs_all_properties(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def examples_tried(reporter) -> int:
    """Sum of what the reports of `tests/properties/conftest.py` say; those of workers come to the first process."""
    reports = (report for each in reporter.stats.values() for report in each)
    calls = (report for report in reports if getattr(report, "when", None) == "call")  # teardown repeats the number
    return sum(dict(report.user_properties).get("property_cases", 0) for report in calls)


def runs_all_properties(config) -> bool:
    """Whether nothing but files outside `tests/properties` was left out, by its place, its mark or its name."""
    option = config.option
    if option.markexpr or option.keyword or option.deselect or option.collectonly or getattr(option, "lf", False):
        return False
    return any(PROPERTIES.is_relative_to(config.invocation_params.dir / each) for each in config.args)
