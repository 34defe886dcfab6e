"""What the models here have in common beside transformers' base class."""

from typing import Any

from torch import nn


class InputConvolution:
    """Gives a module access to its first convolution, which stands where a text model has its token embeddings.

    Adapters and reentrant gradient checkpointing ask for it, to let gradients begin at its output.
    """

    input_convolution: str
    """Name of the module, as `named_modules` has it."""

    def get_input_embeddings(self: Any) -> nn.Module:
        """The first convolution."""
        return self.get_submodule(self.input_convolution)

    def set_input_embeddings(self: Any, value: nn.Module) -> None:
        """Puts another module in the place of the first convolution."""
        owner, _, name = self.input_convolution.rpartition(".")
        setattr(self.get_submodule(owner), name, value)


def float_state(module: nn.Module | None, prefix: str) -> list[str]:
    """Names of a submodule's saved floating-point tensors, as the whole model's state has them.

    `_keep_in_fp32_modules_strict` takes names: with that of the module itself, loading in half precision would turn
    counters and flags into floats too.

    Args:
        module: the submodule, or nothing, which has no names.
        prefix: its name in the model.
    """
    if module is None:
        return []
    return [f"{prefix}.{name}" for name, tensor in module.state_dict().items() if tensor.is_floating_point()]
