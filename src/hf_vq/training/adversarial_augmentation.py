"""Differentiable augmentation of what a discriminator sees (Zhao et al., 2020), for images and volumes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

TRANSLATION_FRACTION = 1 / 8
CUTOUT_FRACTION = 1 / 2

Boxes = list[tuple[slice, ...]]


class DifferentiableAugmentation:
    """Shifts images or volumes and cuts a box out of each, the same way in all tensors of one call.

    A discriminator of few samples learns them by heart unless they are augmented; and unless gradients flow through the
    same augmentation of the generated ones, the generator learns to make augmented samples (Zhao et al.,
    *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS 2020).

    Args:
        names: what is done, in this order: `"translation"`: each sample is shifted by up to 1/8 of every side, whole
            elements; `"cutout"`: a box of half of every side, whose centre is anywhere in the sample, is blanked.
        fill: value of what is shifted in and of the box: that of air, or black.

    Raises:
        ValueError: if a name is unknown.
    """

    def __init__(self, names: Sequence[str] = ("translation", "cutout"), fill: float = 0.0) -> None:
        unknown = [name for name in names if name not in AUGMENTATIONS]
        if unknown:
            raise ValueError(f"augmentation {unknown[0]!r} is unknown; choose among {tuple(AUGMENTATIONS)}")
        self.names, self.fill = tuple(names), fill

    def __call__(
        self, generator: torch.Generator | Sequence[torch.Generator], *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Augments tensors of one shape, sample i of each alike.

        Args:
            generator: on the CPU; all randomness comes from it, or from a list of one per sample.
            tensors: each `(B, C, *spatial)`, with 2 or 3 spatial axes.

        Returns:
            As many tensors of the same shape; the tensors themselves if there is nothing to do.
        """
        if isinstance(generator, Sequence):
            samples = zip(generator, *(tensor.split(1) for tensor in tensors), strict=True)
            augmented = [self(own, *sample) for own, *sample in samples]
            return tuple(torch.cat(column) for column in zip(*augmented, strict=True))
        for name in self.names:
            tensors = AUGMENTATIONS[name](generator, tensors, self.fill)
        return tensors


def translate(generator: torch.Generator, tensors: tuple[torch.Tensor, ...], fill: float) -> tuple[torch.Tensor, ...]:
    """Shifts sample i of every tensor by the same whole number of elements along each axis."""
    batch, _, *sides = tensors[0].shape
    furthest = [round(side * TRANSLATION_FRACTION) for side in sides]
    shifts = [torch.randint(-far, far + 1, (batch,), generator=generator).tolist() for far in furthest]
    # Padding with a negative number crops; `F.pad` counts the axes from the last one.
    pads = [
        [amount for shift in reversed(sample) for amount in (shift, -shift)] for sample in zip(*shifts, strict=True)
    ]
    return tuple(
        torch.stack([F.pad(sample, pad, value=fill) for sample, pad in zip(tensor, pads, strict=True)])
        for tensor in tensors
    )


def cut_out(generator: torch.Generator, tensors: tuple[torch.Tensor, ...], fill: float) -> tuple[torch.Tensor, ...]:
    """Blanks the same box in sample i of every tensor."""
    batch, _, *sides = tensors[0].shape
    hidden = torch.zeros(batch, 1, *sides, dtype=torch.bool, device=tensors[0].device)
    for sample, box in zip(hidden, _draw_boxes(generator, batch, sides), strict=True):
        sample[(slice(None), *box)] = True
    return tuple(tensor.masked_fill(hidden, fill) for tensor in tensors)


def _draw_boxes(generator: torch.Generator, batch: int, sides: Sequence[int]) -> Boxes:
    extents = [max(1, round(side * CUTOUT_FRACTION)) for side in sides]
    centres = [torch.randint(side, (batch,), generator=generator).tolist() for side in sides]
    return [
        tuple(
            slice(max(0, centre - extent // 2), centre - extent // 2 + extent)
            for centre, extent in zip(sample, extents, strict=True)
        )
        for sample in zip(*centres, strict=True)
    ]


AUGMENTATIONS = {"translation": translate, "cutout": cut_out}
