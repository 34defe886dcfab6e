"""What the processes of one training settle among themselves."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
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


def done_by_all(accelerator: Accelerator, write: Callable[[], object]) -> None:
    """Has every process write its share; where one cannot, all of them raise once the others have written theirs.

    A share in which processes exchange something, as that of a model in parts (FSDP), must fail in all of them or in
    none: one that left such an exchange would meet the others' in here.

    Args:
        accelerator: of the run; all processes come here.
        write: called in every process; it has nothing to write where it returns at once.

    Raises:
        OSError: in all processes, in one line, with the first message of the OSErrors, RuntimeErrors and
            SafetensorErrors, which is how torch and safetensors tell of a full disk.
    """
    failure: Exception | None = None
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:
        failure = error
    reason = None if failure is None else " ".join(str(failure).split()) or type(failure).__name__
    reasons = [found for found in gather_object([reason]) if found is not None]
    if reasons:
        raise OSError(reasons[0]) from failure


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
