"""Set-up of every test: no network, caches in a temporary folder, one thread for each worker."""

import os
import tempfile

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


def pytest_terminal_summary(terminalreporter):
    """Says on how many examples the properties of `tests/properties` were tried, over all workers."""
    reports = (report for each in terminalreporter.stats.values() for report in each)
    calls = (report for report in reports if getattr(report, "when", None) == "call")  # teardown repeats the number
    counts = [dict(report.user_properties).get("property_cases", 0) for report in calls]
    if sum(counts):
        terminalreporter.write_line(f"properties tried on {sum(counts)} examples")
