"""Memory that is freed is kept for the next step."""

import os
import platform
import subprocess
import sys

import pytest

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets parameters of glibc's allocator")

COUNT = """
import resource, sys, torch
from hf_vq.training.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
def step():
    tensors = [torch.zeros(1 << 22) for _ in range(8)]  # 16 MiB each
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(which, **variables):
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", COUNT, which]
    done = subprocess.run(command, env={**usual, **variables}, capture_output=True, text=True, check=True, timeout=100)
    answer, faults = done.stdout.split()
    return answer, int(faults)


@needs_glibc
def test_steps_pay_for_their_pages_once():
    assert run("kept") == ("True", pytest.approx(0, abs=100))
    assert run("usual")[1] > 1000


@needs_glibc
def test_the_users_own_settings_stay():
    assert run("kept", MALLOC_TRIM_THRESHOLD_="0")[0] == "False"
