"""Streams of samples that no process holds whole, divided between processes, machines and workers."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset


class StreamedSamples(IterableDataset[Any]):
    """One process's share of a `datasets` stream; its shares of all processes together are the stream, once.

    Within the process, `datasets` divides the share between the workers of a data loader. Where the stream has as many
    shards as processes, or a multiple, each process reads its own shards only; otherwise all read all and skip what is
    not theirs, and one worker of each does all the work.

    Args:
        stream: a `datasets.IterableDataset`.
        rank: number of this process, counted over all machines.
        world_size: number of processes on all machines.
        process: what makes a sample of a row; rows as they are by default.
        shuffle_seed: the order of shards and rows is drawn from it and the epoch, the same on all processes; in the
            order of the stream by default.
        buffer_size: rows among which the next one is drawn, with `shuffle_seed`.

    Raises:
        ValueError: if `stream` is no stream or `rank` is not below `world_size`.
    """

    def __init__(
        self,
        stream: Any,
        rank: int = 0,
        world_size: int = 1,
        process: Callable[[dict[str, Any]], Any] | None = None,
        shuffle_seed: int | None = None,
        buffer_size: int = 1000,
    ) -> None:
        from datasets import IterableDataset as Stream
        from datasets.distributed import split_dataset_by_node

        if not isinstance(stream, Stream):
            raise ValueError(
                f"stream: found a {type(stream).__name__}, expected a datasets.IterableDataset; open it with "
                "streaming=True, or call to_iterable_dataset()"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: found {rank}, expected 0 to {world_size - 1}, as world_size is {world_size}")
        if shuffle_seed is not None:
            stream = stream.shuffle(seed=shuffle_seed, buffer_size=buffer_size)
        self._share, self._process = split_dataset_by_node(stream, rank=rank, world_size=world_size), process

    def set_epoch(self, epoch: int) -> None:
        """Draws another order for the next pass; tell all processes the same number."""
        self._share.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        for row in self._share:
            yield row if self._process is None else self._process(row)

    def state_dict(self) -> dict[str, Any]:
        """Place in the stream, in a process without workers; with workers use torchdata's `StatefulDataLoader`."""
        return self._share.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on, at the next pass, behind the last sample before `state_dict`."""
        self._share.load_state_dict(state_dict)
