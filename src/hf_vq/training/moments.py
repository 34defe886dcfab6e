"""What optimizers and weight averages remember of codes, for codes that were placed anew in the meantime."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from ..quantizers import Codebook

Moved = Sequence[tuple[Codebook, torch.Tensor]]


def forget_moments(optimizer_state: Mapping[Any, Any], moved: Moved) -> None:
    """Clears an optimizer's moments of codes that initialisation or replacement placed anew.

    Args:
        optimizer_state: `optimizer.state`.
        moved: from `PlacementWatch.take`.
    """
    for codebook, mask in moved:
        for moment in optimizer_state.get(codebook.weight, {}).values():
            if isinstance(moment, torch.Tensor) and moment.shape == codebook.weight.shape:
                moment[mask] = 0


def restart_averages(model: nn.Module, ema: EMAModel, moved: Moved) -> None:
    """Restarts the averaged weights of codes that were placed anew at their new place.

    Args:
        model: the model that `ema` averages.
        ema: its averaged weights.
        moved: from `PlacementWatch.take`.
    """
    averages = dict(zip(map(id, model.parameters()), ema.shadow_params, strict=True))
    for codebook, mask in moved:
        average = averages[id(codebook.weight)]
        average.copy_(torch.where(mask[:, None], codebook.weight.detach(), average))
