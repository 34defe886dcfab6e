"""A signal ends a training with a checkpoint, wherever it comes, and what is resumed is the uninterrupted training."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tiny_training import Subjects, digests, make_run, train

from hf_vq.training import interruption

# Imported from there it needs no other module of the package, and starts at once.
FOLDER = Path(interruption.__file__).parent


@pytest.fixture(autouse=True)
def heard():
    """Signals as in a terminal: whoever starts the tests in the background has had SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number, step):
    """Sends a signal to this process when a run is at this step."""
    return lambda run: os.kill(os.getpid(), number) if run.step == step else None


def resumed_equals_whole(folder, **flags):
    train(make_run(folder / "whole", **flags))
    train(make_run(folder / "run", **{**flags, "resume_from_checkpoint": "latest"}))
    last = "checkpoint-0000006"
    assert digests(folder / "run" / last) == digests(folder / "whole" / last)
    assert (folder / "run" / "logs.jsonl").read_text() == (folder / "whole" / "logs.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished_and_saved_and_the_status_is_128_plus_the_signal(tmp_path, capfd, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as leaving:
        train(make_run(tmp_path / "run", checkpointing_steps=6), after_step=send(number, 3))
    assert leaving.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-0000004"]
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(signal.Signals(number).name)]
    assert "stopping as soon as a checkpoint is written" in lines[0]
    assert "stopped after step 4" in lines[1] and "--resume_from_checkpoint latest" in lines[1]
    resumed_equals_whole(tmp_path, checkpointing_steps=6)


@pytest.mark.parametrize("every", [3, 4])
def test_a_validation_is_cut_short_and_made_up_for(tmp_path, every):
    reached = []

    def validate(run):
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(run.step)

    with pytest.raises(SystemExit) as leaving:
        train(make_run(tmp_path / "run", checkpointing_steps=every), validate=validate)
    assert (leaving.value.code, reached) == (128 + signal.SIGTERM, [])
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-0000003"]
    train(make_run(tmp_path / "run", checkpointing_steps=every, resume_from_checkpoint="latest"))
    train(make_run(tmp_path / "whole", checkpointing_steps=every))
    assert (tmp_path / "run" / "logs.jsonl").read_text() == (tmp_path / "whole" / "logs.jsonl").read_text()


def test_processes_that_load_data_outlive_the_signal(tmp_path):
    workers = []

    class Noted(Subjects):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "worker": os.getpid()}

    def signal_all(run):
        if run.step == 1:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            workers.extend(int(child) for child in children if "pt_data" in _name(child) or "python" in _name(child))
            for pid in (*workers, os.getpid()):
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGTERM)

    with pytest.raises(SystemExit) as leaving:
        train(make_run(tmp_path / "run", dataloader_num_workers=2), Noted(), after_step=signal_all)
    assert len(workers) >= 2
    assert leaving.value.code == 128 + signal.SIGINT
    assert (tmp_path / "run" / "checkpoint-0000002").is_dir()


def _name(pid):
    return Path(f"/proc/{pid}/comm").read_text()


WAITING = """
    import signal, sys, time
    sys.path.insert(0, {folder!r})
    import interruption
    interruption.SAME_SIGNAL_SECONDS = {seconds}
    noted = interruption.Interruption()
    noted.watch()
    print("ready", flush=True)
    for _ in range(600):
        time.sleep(0.05)
        if noted.number:
            print("noted", noted.number, flush=True)
            time.sleep(30)
"""


def waiting_process(seconds):
    code = textwrap.dedent(WAITING.format(seconds=seconds, folder=str(FOLDER)))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_signal_ends_the_process_at_once():
    with waiting_process(seconds=0.0) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == f"noted {int(signal.SIGTERM)}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 128 + signal.SIGINT


def test_the_same_signal_handed_on_by_a_launcher_does_not():
    with waiting_process(seconds=1000.0) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == f"noted {int(signal.SIGINT)}\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.kill()


def test_a_signal_that_was_ignored_stays_ignored():
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path.insert(0, {str(FOLDER)!r})
from interruption import Interruption
noted = Interruption()
noted.watch()
signal.raise_signal(signal.SIGINT)
assert noted.number == 0
signal.raise_signal(signal.SIGTERM)
assert noted.number == signal.SIGTERM
noted.release()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
