"""Order of the training data."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ResumableSampler(Sampler[int]):
    """Endless reshuffled epochs, cut to a range of draws; an interruption does not change what draw number i is.

    Args:
        num_samples: size of the data set, at least 1.
        start: number of the first draw, i.e. samples consumed so far.
        stop: number after the last draw.
        seed: seed of the shuffling.

    Raises:
        ValueError: if the data set is empty.
    """

    def __init__(self, num_samples: int, start: int, stop: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError("the data set to train on is empty; expected at least one sample")
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
