"""Flags that trade time for memory, or one layout of the memory for another."""

import torch
from torch import nn

from .arguments import TrainingArguments

# transformers' and diffusers' names
SWITCHES = ("gradient_checkpointing_enable", "enable_gradient_checkpointing")


def apply_memory_flags(model: nn.Module, args: TrainingArguments) -> None:
    """Makes a model obey `gradient_checkpointing` and `channels_last`.

    Args:
        model: with `gradient_checkpointing`, a model of transformers or diffusers that supports it. With
            `channels_last`, its convolutions take and give tensors whose channels lie next to each other.

    Raises:
        ValueError: naming the model, if it has no gradient checkpointing or no convolutions.
    """
    if args.gradient_checkpointing:
        _checkpoint_gradients(model)
    if args.channels_last:
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        weights = [parameter for parameter in model.parameters() if parameter.dim() in layouts]
        if not weights:
            raise ValueError(f"--channels_last true: {type(model).__name__} has no convolutions; leave it out")
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=layouts[weight.dim()])


def _checkpoint_gradients(model: nn.Module) -> None:
    switch = next((getattr(model, name) for name in SWITCHES if hasattr(model, name)), None)
    try:
        if switch is None:
            raise ValueError("it has no such switch")
        switch()
    except ValueError as error:
        raise ValueError(
            f"--gradient_checkpointing true: {type(model).__name__} does not support it ({error}); leave it out"
        ) from None
