"""What the processes of one training settle among themselves."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset, Subset

from ..quantizers.distributed import all_reduce_sum, is_distributed

Result = TypeVar("Result")


def decided_by_main(accelerator: Accelerator, decide: Callable[[], Result]) -> Result:
    """What the main process finds, on all processes; they raise together, too.

    Args:
        accelerator: of the run; all processes come here.
        decide: called in the main process only.

    Raises:
        ValueError: with the message of the ValueError or OSError that `decide` raised.
    """
    outcome: list = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def share_of(dataset: Dataset) -> Dataset:
    """The samples of a data set that this process evaluates: every sample goes to one process, in order.

    Args:
        dataset: with a length; shares may differ by one sample, and be empty.
    """
    if not is_distributed():
        return dataset
    rank, world, size = dist.get_rank(), dist.get_world_size(), len(dataset)  # type: ignore[arg-type]
    return Subset(dataset, range(rank * size // world, (rank + 1) * size // world))


def sums_of_all(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value summed over processes, in double precision where the device has it.

    Args:
        values: as many on all processes.
        device: of the communication.
    """
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return all_reduce_sum(torch.tensor(values, dtype=dtype, device=device)).tolist()
