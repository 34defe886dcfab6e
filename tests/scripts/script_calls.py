"""Scripts run in this process, as the command line would run them, in two of their own, or loaded as modules."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(path):
    """A script, or another file that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(script, *flags):
    """Runs a script in this process, as the command line would."""
    argv, sys.argv = sys.argv, [str(SCRIPTS / script), *map(str, flags)]
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    finally:
        sys.argv = argv


def fails(capsys, script, *flags):
    """The one line that a script ends with; asserts exit status 2 and that there is no stack trace."""
    with pytest.raises(SystemExit) as exit_info:
        call(script, *flags)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def run_in_two_processes(script, *flags):
    """Runs a script in two processes on the CPU; asserts that it succeeds."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(SCRIPTS / script), *map(str, flags)]
    subprocess.run(command, check=True, timeout=200, env=environment)
