"""Flags that live on an accelerator and that the host must know, read without making it wait for the device.

torch counts what is written into a tensor, but not the buffers that `DistributedDataParallel` broadcasts before a
forward. They bring what is there already, as long as every process loads, freezes and trains the same.
"""

import torch


class _OfOneModel:
    """Knows nothing in a copy, whose tensors count their writes anew; events cannot be copied at all."""

    def __getstate__(self) -> dict[str, None]:
        return {}

    def __setstate__(self, state: dict[str, None]) -> None:
        self.__init__()  # type: ignore[misc]


class RememberedFlag(_OfOneModel):
    """A scalar bool buffer, read from its device only when it has been written to since it was last read."""

    def __init__(self) -> None:
        self._seen: tuple[torch.Tensor, int, bool] | None = None

    def read(self, flag: torch.Tensor) -> bool:
        """The flag's value.

        Args:
            flag: the buffer, which need not be the same tensor each time.
        """
        if not _counts_writes(flag):
            return bool(flag)
        if self._seen is None or self._seen[0] is not flag or self._seen[1] != flag._version:
            self._seen = (flag, flag._version, bool(flag))
        return self._seen[2]


class ForetoldFlag(_OfOneModel):
    """A flag computed from a state when that is written, and needed at the next step, by when it has long arrived."""

    def __init__(self) -> None:
        self._state: tuple[torch.Tensor, int] | None = None
        self._flag = torch.zeros((), dtype=torch.bool)
        self._arrival: torch.cuda.Event | None = None

    def send(self, flag: torch.Tensor, state: torch.Tensor) -> None:
        """Starts the way of a flag to the host.

        Args:
            flag: scalar bool.
            state: what it was computed from; once that has changed, the flag is worth nothing.
        """
        if not _counts_writes(state):
            self._state = None
            return
        self._state = (state, state._version)
        if flag.device.type == "cuda":
            self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(flag.device))
        else:
            self._flag, self._arrival = flag, None

    def read(self, state: torch.Tensor) -> bool | None:
        """The flag that was computed from this state, or None if there is none."""
        if self._state is None or self._state[0] is not state or self._state[1] != state._version:
            return None
        if self._arrival is not None:
            self._arrival.synchronize()
        return bool(self._flag)


def _counts_writes(tensor: torch.Tensor) -> bool:
    """False where torch does not keep count of what is written into a tensor."""
    return not (torch.compiler.is_compiling() or tensor.is_inference())
