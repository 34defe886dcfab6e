"""One writer per folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_vq import locking
from hf_vq.locking import exclusive, lock_path

# Imported from there it needs no other module of the package, and starts at once.
IMPORT = (
    f"import os, sys, time; sys.path.insert(0, {str(Path(locking.__file__).parent)!r}); from locking import exclusive"
)
HOLD = f"""{IMPORT}
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
TRY = f"""{IMPORT}
try:
    with exclusive(sys.argv[1]):
        print("free")
except ValueError:
    print("held")
"""
PARENT = f"""{IMPORT}
lock = exclusive(sys.argv[1])
lock.__enter__()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def start(program, folder):
    return subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)


def state(folder):
    """What another process finds."""
    with start(TRY, folder) as process:
        return process.stdout.read().strip()


def test_a_second_process_is_refused_with_the_first_ones_name_until_that_is_killed(tmp_path):
    with start(HOLD, tmp_path / "out") as holder:
        assert holder.stdout.readline() == "held\n"
        for name in ("out", "other/../out", "out/"):
            refused = pytest.raises(ValueError, match=rf"is being written to by process {holder.pid} on .*, since 20")
            with refused, exclusive(tmp_path / name):
                pass
        assert not (tmp_path / "out").exists()
        with exclusive(tmp_path / "another"):
            pass
        holder.kill()
        holder.wait()
        with exclusive(tmp_path / "out"):
            assert lock_path(tmp_path / "out").read_text().startswith(f"process {os.getpid()} on ")


def test_a_process_may_enter_again_and_holds_the_lock_until_it_has_left_as_often(tmp_path):
    with exclusive(tmp_path / "out"):
        with exclusive(tmp_path / "out"):
            pass
        assert state(tmp_path / "out") == "held"
    assert state(tmp_path / "out") == "free"


def test_a_child_process_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    with start(PARENT, tmp_path / "out") as parent:
        child = int(parent.stdout.readline())
        assert state(tmp_path / "out") == "held"
        parent.kill()
        parent.wait()
        found = state(tmp_path / "out")
        os.kill(child, signal.SIGKILL)
    assert found == "free"


def test_where_no_file_can_be_made_the_work_goes_on(tmp_path):
    (tmp_path / "file").touch()
    with exclusive(tmp_path / "file" / "out"):
        pass
