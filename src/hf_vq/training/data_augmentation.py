"""Augmentation of what a tokenizer is trained on: shifts by whole elements, and reflections."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


class ShiftAndFlip:
    """Shifts each sample by a random number of whole elements along every axis, and reflects some at random.

    Nothing is interpolated, so no detail is lost. A tokenizer of a few hundred volumes learns them by heart otherwise:
    every shift by less than the downsampling factor cuts a volume into other blocks than before.

    Args:
        max_shift: largest shift along an axis, elements; 0 for none. What is shifted in repeats the edge.
        flip_axes: spatial axes, counted from 0, along each of which half of the samples are reflected.

    Raises:
        ValueError: if `max_shift` is negative, or an axis is negative or listed twice.
    """

    def __init__(self, max_shift: int = 0, flip_axes: Sequence[int] = ()) -> None:
        if max_shift < 0:
            raise ValueError(f"max_shift must be at least 0; got {max_shift}")
        if min(flip_axes, default=0) < 0 or len(set(flip_axes)) != len(flip_axes):
            raise ValueError(f"flip_axes must be different spatial axes, the first being 0; got {list(flip_axes)}")
        self.max_shift, self.flip_axes = max_shift, tuple(flip_axes)

    def __call__(self, samples: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> torch.Tensor:
        """Augments a batch, each sample by draws of its own.

        Args:
            samples: `(B, C, *spatial)`.
            generator: on the CPU; all randomness comes from it, or from a list of one per sample. Without augmentation
                it is not used.

        Returns:
            A tensor of the same shape; `samples` itself if there is nothing to do.

        Raises:
            ValueError: if an axis of `flip_axes` is not there, or a side is no longer than `max_shift`.
        """
        num_axes = samples.ndim - 2
        if max(self.flip_axes, default=0) >= num_axes:
            raise ValueError(f"flip_axes={list(self.flip_axes)} must be below {num_axes}, the number of spatial axes")
        if self.max_shift and min(samples.shape[2:], default=0) <= self.max_shift:
            raise ValueError(
                f"max_shift={self.max_shift} must be below every side of the samples; got {tuple(samples.shape[2:])}"
            )
        if not self.max_shift and not self.flip_axes:
            return samples
        if isinstance(generator, Sequence):
            each = zip(samples.split(1), generator, strict=True)
            return torch.cat([self(sample, own) for sample, own in each])
        far, batch = self.max_shift, len(samples)
        starts = torch.randint(0, 2 * far + 1, (batch, num_axes), generator=generator).tolist()
        flips = (torch.rand(batch, num_axes, generator=generator) < 0.5).tolist()
        padded = F.pad(samples, (far,) * (2 * num_axes), mode="replicate")
        return torch.stack(
            [
                self._cut(sample, start, flip, samples.shape[2:])
                for sample, start, flip in zip(padded, starts, flips, strict=True)
            ]
        )

    def _cut(
        self, padded: torch.Tensor, starts: Sequence[int], flips: Sequence[bool], sides: Sequence[int]
    ) -> torch.Tensor:
        window = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        return padded[(slice(None), *window)].flip([1 + axis for axis in self.flip_axes if flips[axis]])
