"""Models whose parameters are spread over processes: averaged weights, whole copies, and what cannot be spread."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..quantizers.codebook import codebooks_of
from .arguments import TrainingArguments


class AveragedWeights(EMAModel):
    """diffusers' `EMAModel`, whose averages may be spread over processes as the parameters are.

    All processes ask for the state together, and each gets all of it.
    """

    shadow_params: list[torch.Tensor]

    def state_dict(self) -> dict[str, Any]:
        """The averages, whole, and the counters."""
        state = super().state_dict()
        return {**state, "shadow_params": whole_tensors(state["shadow_params"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`; the averages are spread again where they were."""
        before = self.shadow_params
        super().load_state_dict(state_dict)
        pairs = zip(before, self.shadow_params, strict=True)
        self.shadow_params = [_spread_like(reference, average) for reference, average in pairs]


def is_sharded(model: nn.Module) -> bool:
    """True if parameters of a model are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_tensors(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors without their distribution; all processes come here."""
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole_copy(model: nn.Module, model_class: type, averages: list[torch.Tensor], device: torch.device) -> Any:
    """A new model in eval mode that holds given weights whole, for validating and saving.

    Args:
        model: spread over processes, all of which come here; its config and buffers are taken over.
        model_class: its class before it was spread.
        averages: one tensor for each of its parameters.
        device: of the copy.
    """
    config: Any = model.config
    with torch.random.fork_rng(devices=[]):  # the weights that it begins with are no part of the training
        copy = model_class.from_config(config) if hasattr(model_class, "from_config") else model_class(config)
    with torch.no_grad():
        for target, tensor in zip(copy.parameters(), whole_tensors(averages), strict=True):
            target.copy_(tensor)
        for target, buffer in zip(copy.buffers(), model.buffers(), strict=True):
            target.copy_(buffer)
    return copy.to(device).eval()


def check_distribution(
    accelerator: Accelerator, model: nn.Module, has_companion: bool, args: TrainingArguments
) -> None:
    """Refuses ways to spread a model that would train something else, and tells DeepSpeed what it has to know.

    Args:
        accelerator: of the run, before `prepare`.
        model: the model to train.
        has_companion: whether a second network is trained beside it.
        args: the script's flags.

    Raises:
        ValueError: naming the way and one that works.
    """
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    if codebooks_of(model) or has_companion:
        what = (
            "a second network with its own optimizer" if has_companion else "codebooks, which every process needs whole"
        )
        raise ValueError(
            f"{kind.value} was asked for, but {type(model).__name__} is trained with {what}; launch it with data "
            "parallelism, as scripts/configs/accelerate/multi-gpu.yaml"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("fsdp_version 1 was asked for; set fsdp_version: 2, as scripts/configs/accelerate/fsdp2.yaml")
    if kind == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator.state.deepspeed_plugin, args)


def _configure_deepspeed(plugin: Any, args: TrainingArguments) -> None:
    if plugin.zero_stage == 3:
        raise ValueError(
            "zero_stage 3 spreads the parameters, of which an average is kept; set zero_stage: 2, or use "
            "scripts/configs/accelerate/fsdp2.yaml"
        )
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = args.train_batch_size
    plugin.deepspeed_config["gradient_clipping"] = args.max_grad_norm


def _spread_like(reference: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(reference, DTensor):
        return tensor
    whole = tensor.to(device=reference.device, dtype=reference.dtype)
    return distribute_tensor(whole, reference.device_mesh, reference.placements)
