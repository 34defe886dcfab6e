"""Usage of codes over many training steps, which a checkpoint keeps."""

from typing import Any

import torch

from ..quantizers import CodebookUsage
from ..quantizers.distributed import all_reduce_sum


class RunningUsage:
    """A count of codes that goes on where an interrupted training left off.

    Args:
        usage: an empty count.
        device: device of the communication.
    """

    def __init__(self, usage: CodebookUsage, device: torch.device) -> None:
        self._usage, self._device = usage, device

    def update(self, codes: torch.Tensor) -> None:
        """Adds codes, see `CodebookUsage.update`."""
        self._usage.update(codes)

    def compute(self) -> dict[str, float]:
        """Figures over all processes, see `CodebookUsage.compute`."""
        return self._usage.compute(self._device)

    def restart(self) -> None:
        """Forgets all codes."""
        self._usage.counts.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Counts of all processes together; all processes ask for them."""
        return {"counts": all_reduce_sum(self._usage.counts.to(self._device)).cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`: the main process takes over what all had counted."""
        is_main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        self._usage.counts.copy_(state_dict["counts"] if is_main else torch.zeros_like(state_dict["counts"]))
