"""Order of the training data."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import Sampler

MAX_SEED = 2**42
"""Largest seed, of either sign: torch's own is one number of 64 bits, in which seed and epoch share the room."""


class ResumableSampler(Sampler[int]):
    """Endless reshuffled epochs, cut to a range of draws; an interruption does not change what draw number i is.

    Args:
        num_samples: size of the data set, at least 1.
        start: number of the first draw, i.e. samples consumed so far.
        stop: number after the last draw.
        seed: seed of the shuffling, -`MAX_SEED` to `MAX_SEED`.

    Raises:
        ValueError: if the data set is empty, or the seed out of range.
    """

    def __init__(self, num_samples: int, start: int, stop: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError("the data set to train on is empty; expected at least one sample")
        if not -MAX_SEED <= seed <= MAX_SEED:
            raise ValueError(f"seed={seed} is out of range; expected a whole number from -{MAX_SEED} to {MAX_SEED}")
        self.num_samples, self.start, self.stop, self.seed = num_samples, start, stop, seed

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[int]:
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for draw in range(self.start, self.stop):
            if draw // self.num_samples != epoch:
                epoch = draw // self.num_samples
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.num_samples, generator=generator)
            yield int(order[draw % self.num_samples])


class PartsTogether(Sampler[int]):
    """Hands out the batches of each optimizer step so that every process gets a stretch of the step's samples.

    Accelerate gives the batches to the processes in turn. What a process joins from the parts of a step are then rows
    that follow each other, in the order in which one process would see them.

    Args:
        sampler: the samples, in order.
        batch_size: of a process and part.
        num_parts: batches of a process to a step.
        num_processes: processes.
    """

    def __init__(self, sampler: ResumableSampler, batch_size: int, num_parts: int, num_processes: int) -> None:
        self._sampler, self._batch_size = sampler, batch_size
        self._num_parts, self._num_processes = num_parts, num_processes

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        samples = iter(self._sampler)
        while step := list(islice(samples, self._batch_size * self._num_parts * self._num_processes)):
            for part in range(self._num_parts):
                for process in range(self._num_processes):
                    first = self._batch_size * (process * self._num_parts + part)
                    yield from step[first : first + self._batch_size]
