"""Signals that ask a training to stop: noted when they come, obeyed when nothing is lost by it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Launchers hand a signal on to processes that have it already, from the terminal or the scheduler.
SAME_SIGNAL_SECONDS = 3.0


class Interrupted(Exception):
    """A signal came within `Interruption.raised`."""


class Interruption:
    """Notes SIGINT and SIGTERM instead of dying of them.

    The first one is for whoever reads `number`; another, `SAME_SIGNAL_SECONDS` later or more, ends the process at once
    with the status 128 + its number. A signal that was ignored before stays ignored, as that of a job started in the
    background. Only the main thread of a process can watch signals; in another one nothing is watched.

    Args:
        announce: write a line to stderr when the first signal comes.

    Attributes:
        number: of the first signal, 0 as long as there was none.
    """

    def __init__(self, announce: bool = True) -> None:
        self.number = 0
        self._announce, self._raises, self._noted_at = announce, False, 0.0
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Begins to note signals."""
        if threading.current_thread() is threading.main_thread():
            watched = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in watched}

    def release(self) -> None:
        """Puts back what handled the signals before."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    @contextmanager
    def raised(self, wanted: bool = True) -> Iterator[None]:
        """Within the block, a signal that has come or comes raises `Interrupted`, if that is wanted."""
        self._raises = wanted
        try:
            if wanted and self.number:
                raise Interrupted
            yield
        finally:
            self._raises = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if time.monotonic() - self._noted_at >= SAME_SIGNAL_SECONDS:
                os._exit(128 + number)
            return
        self.number, self._noted_at = number, time.monotonic()
        if self._announce:  # past Python's buffers, which the signal may have interrupted
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: stopping as soon as a checkpoint is written; once more stops at once\n".encode())
        if self._raises:
            self._raises = False
            raise Interrupted


def ignore_signals(worker_id: int = 0) -> None:
    """Lets a process that loads data outlive a signal to the whole group, for as long as the training needs it.

    Args:
        worker_id: as `torch.utils.data.DataLoader` gives it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
