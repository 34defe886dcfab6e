"""What ends a run from outside is one line that says what to do; a fault of the program keeps its stack trace."""

import errno
import os
import signal
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hf_vq.training.arguments import run


class Failing(Dataset):
    """Items that cannot be had."""

    def __init__(self, fail):
        self._fail = fail

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self._fail()
        return torch.zeros(1)


def damaged():
    raise ValueError("a.nii.gz: found no voxels, expected some; copy it again")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "codes/data.arrow")


def read_only():
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "codes")


def message_of_run(main, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as exit_info:
        run(main)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (damaged, "error: a.nii.gz: found no voxels, expected some; copy it again"),
        (killed, "fewer --dataloader_num_workers"),
    ],
)
def test_a_worker_that_fails_ends_the_run_with_one_line(fail, words, capsys, monkeypatch):
    loader = DataLoader(Failing(fail), num_workers=1)
    assert words in message_of_run(lambda: list(loader), capsys, monkeypatch)


@pytest.mark.parametrize(
    ("fail", "words"),
    [(full, "the disk is full"), (full, "codes/data.arrow"), (full, "free some space"), (read_only, "--output_dir")],
)
def test_a_disk_that_takes_nothing_is_named_with_a_remedy(fail, words, capsys, monkeypatch):
    assert words in message_of_run(fail, capsys, monkeypatch)


def test_a_fault_of_the_program_is_not_hidden():
    def fault():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(fault)
