"""What a training run asks of the things that it saves, restores and trains beside its model."""

from collections.abc import Mapping
from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn


class Stateful(Protocol):
    """Something with a state of tensors and plain values. All processes ask for it; what the main one has is saved."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""


class Companion(Protocol):
    """A second network with an optimizer of its own that is trained beside the model, such as a discriminator.

    Attributes:
        model: the network; its gradients are exchanged between processes when the model's are.
    """

    model: nn.Module

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values that a checkpoint and the training that resumes from it must agree on."""

    def prepare(self, accelerator: Accelerator) -> None:
        """Hands the network and its optimizer to `accelerator.prepare`, which also has them saved and restored."""

    def states(self) -> Mapping[str, Stateful]:
        """What else is to be saved and restored, under names."""
