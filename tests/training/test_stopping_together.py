"""What one process of several meets, a signal or a bad batch, stops all of them, with one checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_vq

PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from tiny_training import Subjects, make_run, train

kind, folder = sys.argv[1:]
rank = int(os.environ["RANK"])

def after_step(run):
    if kind == "signal" and rank == 1 and run.step == 2:
        signal.raise_signal(signal.SIGTERM)

class Bad(Subjects):
    reads = 0
    def __getitem__(self, index):
        item, self.reads = super().__getitem__(index), self.reads + 1
        bad = kind == "batch" and rank == 1 and self.reads == 6
        return {{**item, "pixel_values": item["pixel_values"] * (float("nan") if bad else 1.0)}}

run = make_run(folder, checkpointing_steps=0)
assert run.accelerator.num_processes == 2
try:
    train(run, Bad(), after_step=after_step)
    left = "at the end"
except SystemExit as error:
    left = f"with {{error.code}}"
except ValueError as error:
    left = f"because {{error}}"
with open(f"{{folder}}-{{rank}}", "w") as file:
    file.write(left)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "checkpoint", "words"),
    [("signal", "checkpoint-0000003", "with 143"), ("batch", "checkpoint-0000002", "the loss became nan at step 3")],
)
def test_one_process_stops_both(tmp_path, kind, checkpoint, words):
    (tmp_path / "program.py").write_text(PROGRAM.format(tests=str(Path(__file__).parent)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        **{"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(hf_vq.__file__).parents[1])},
    }
    command = [*launcher, str(tmp_path / "program.py"), kind, str(tmp_path / "out")]
    subprocess.run(command, check=True, timeout=200, env=environment)
    left = [(tmp_path / f"out-{rank}").read_text() for rank in (0, 1)]
    assert left[0] == left[1]
    assert words in left[0]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [checkpoint]
    assert (tmp_path / "out" / checkpoint / "random_states_1.pkl").is_file()
