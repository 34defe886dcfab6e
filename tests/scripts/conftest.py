"""The chain of scripts on a tiny cohort, run once; makes the modules beside the tests importable."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from paired_chain import run_chain


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """Folder with the outputs of the whole chain; a test changes nothing there that another one reads."""
    return run_chain(tmp_path_factory.mktemp("chain"))
