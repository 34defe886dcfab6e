"""Trainings on a disk that is full or cannot be written to, with workers that die, and two of them in one folder."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_vq.training.checkpoints import list_checkpoints, read_info

SCRIPTS = Path(__file__).parents[2] / "scripts"
SECONDS = 240

pytestmark = pytest.mark.slow


def can_mount():
    """Whether this user can have a file system of its own, which only Linux gives, and not inside every container."""
    unshare = shutil.which("unshare")
    command = [unshare, "-rm", "mount", "-t", "tmpfs", "none", "/tmp"] if unshare else ["false"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="a small disk needs a user who may mount one (unshare -rm)")


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The command of a short training on tiny data, without its output folder."""
    root = tmp_path_factory.mktemp("faults")
    targets = runpy.run_path(str(SCRIPTS / "run_fault_tests.py"))["make_targets"](root)
    target = next(target for target in targets if target.name == "tokenizer training")
    return [sys.executable, str(SCRIPTS / target.script), *target.flags]


def run_in_namespace(script):
    """A shell script in a namespace of its own, in which it may mount a small disk."""
    command = ["unshare", "-rm", "sh", "-ec", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def start(command, **options):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for(condition, process):
    """Until the condition holds; fails if the process ends before."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def error_in(text):
    """The one line with which a script says what is wrong; there is no stack trace. Progress bars may follow it."""
    assert "Traceback" not in text
    return next(line for line in text.splitlines() if "train_tokenizer.py: error:" in line)


def quoted(command):
    return " ".join(f"'{text}'" for text in command)


@needs_mount
def test_full_disk_ends_the_training_and_loses_no_checkpoint(training, tmp_path):
    """The disk has room for some checkpoints only; with more room the training goes on from the last of them."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    command = [*training, "--checkpoints_total_limit", "9", "--output_dir", str(disk / "model")]
    done = run_in_namespace(
        f"mount -t tmpfs -o size=1m tmpfs '{disk}'\n"
        f'{quoted(command)} && exit 90 || echo "status $?"\n'
        f"cp -r '{disk}/model' '{kept}'\n"
        f"mount -o remount,size=100m '{disk}'\n"
        f"{quoted([*command, '--resume_from_checkpoint', 'latest'])}\n"
        f"cp '{disk}/model/config.json' '{tmp_path}'\n"
    )
    assert done.returncode == 0, done.stderr
    assert "status 2" in done.stdout
    assert "the disk is full" in error_in(done.stderr)
    checkpoints = list_checkpoints(kept)
    assert checkpoints
    for checkpoint in checkpoints:
        read_info(checkpoint)
    assert f"resumed from {checkpoints[-1].name}" in done.stdout + done.stderr
    assert (tmp_path / "config.json").is_file()


@needs_mount
def test_read_only_disk_is_an_error_of_one_line(training, tmp_path):
    command = quoted([*training, "--output_dir", str(tmp_path / "disk" / "model")])
    (tmp_path / "disk").mkdir()
    done = run_in_namespace(f"mount -t tmpfs -o ro tmpfs '{tmp_path / 'disk'}'\n{command} || echo \"status $?\"\n")
    assert "status 2" in done.stdout
    assert "Read-only file system" in error_in(done.stderr)


def test_training_whose_worker_dies_ends_and_goes_on(training, tmp_path):
    output = tmp_path / "model"
    command = [*training, "--dataloader_num_workers", "1", "--max_train_steps", "400", "--output_dir", str(output)]
    process = start(command)
    wait_for(lambda: output.is_dir() and len(list_checkpoints(output)) > 0, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    for child in map(int, children.split()):
        os.kill(child, signal.SIGKILL)
    text = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 2, text
    assert "worker" in error_in(text)
    for checkpoint in list_checkpoints(output):
        read_info(checkpoint)
    again = [*command, "--resume_from_checkpoint", "latest"]
    again[again.index("400")] = str(read_info(list_checkpoints(output)[-1])["step"] + 4)
    done = subprocess.run(again, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert (output / "config.json").is_file()


def test_second_training_in_a_folder_is_refused_and_the_first_goes_on(training, tmp_path):
    output = tmp_path / "model"
    command = [*training, "--output_dir", str(output)]
    first = start([*command, "--max_train_steps", "60"])
    wait_for(lambda: output.is_dir() and len(list_checkpoints(output)) > 0, first)
    first.send_signal(signal.SIGSTOP)  # however slow the machine, it is still running when the second one comes
    second = subprocess.run(
        [*command, "--resume_from_checkpoint", "latest"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"is being written to by process {first.pid}" in error_in(second.stderr)
    text = first.communicate(timeout=SECONDS)[0]
    assert first.returncode == 0, text
    assert (output / "config.json").is_file()
