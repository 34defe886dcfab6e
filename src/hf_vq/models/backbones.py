"""Image networks that run in two parts, so that a quantizer fits between any two of their blocks.

Each has `lower`, from pixels to the features behind the first `depth` blocks, and `upper`, from there to one vector per
image. The features between are `(B, C, H, W)`, or `(B, tokens, C)` beside the class token of a ViT.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, ResNetModel, ViTModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.resnet.modeling_resnet import ResNetEmbeddings, ResNetStage
from transformers.utils.output_capturing import OutputRecorder

from .configuration_vq_image_classifier import AlexNetConfig
from .pretrained import InputConvolution

POOLED_BLOCKS = (0, 1, 4)


class AlexNetStem(nn.Module):
    """Convolution, ReLU and, in some blocks, max pooling."""

    def __init__(self, convolution: nn.Conv2d, pooled: bool) -> None:
        super().__init__()
        self.convolution = convolution
        self.pooled = pooled

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = F.relu(self.convolution(hidden_states))
        return F.max_pool2d(hidden_states, kernel_size=3, stride=2) if self.pooled else hidden_states


class AlexNetBlock(AlexNetStem, GradientCheckpointingLayer):
    """A block behind the first, which reentrant checkpointing cannot recompute: images have no gradient."""


class SplitAlexNet(InputConvolution, PreTrainedModel):
    """AlexNet in its one-column form (Krizhevsky, 2014) up to its last linear layer; its blocks are the convolutions.

    `feature_size` is the width of what `upper` returns.
    """

    config_class = AlexNetConfig
    base_model_prefix = "alexnet"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # The base class reads these attributes as they stand.
    _no_split_modules = ["AlexNetStem", "AlexNetBlock"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": OutputRecorder(AlexNetStem, capture_initial_hidden_state=False)
    }
    input_convolution = "blocks.0.convolution"

    def __init__(self, config: AlexNetConfig) -> None:
        super().__init__(config)
        widths = [config.num_channels, *config.channels]
        convolutions = [
            nn.Conv2d(widths[0], widths[1], config.stem_kernel_size, config.stem_stride, config.stem_padding),
            nn.Conv2d(widths[1], widths[2], 5, padding=2),
            *(nn.Conv2d(widths[i], widths[i + 1], 3, padding=1) for i in (2, 3, 4)),
        ]
        self.blocks = nn.ModuleList(
            (AlexNetBlock if i > 0 else AlexNetStem)(convolution, pooled=i in POOLED_BLOCKS)
            for i, convolution in enumerate(convolutions)
        )
        self.pool = nn.AdaptiveAvgPool2d(config.pooled_size)
        self.fc6 = nn.Linear(widths[-1] * config.pooled_size**2, config.hidden_size)
        self.fc7 = nn.Linear(config.hidden_size, config.hidden_size)
        self.feature_size = config.hidden_size
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            init.zeros_(module.bias)

    def lower(self, pixel_values: torch.Tensor, depth: int) -> tuple[torch.Tensor, None]:
        """Features `(B, C, H, W)` behind the first `depth` blocks, and no class token."""
        return _run(self.blocks[:depth], pixel_values), None

    def upper(self, features: torch.Tensor, class_token: None, depth: int) -> torch.Tensor:
        """Outputs `(B, hidden_size)` of the second linear layer."""
        hidden_states = self.pool(_run(self.blocks[depth:], features)).flatten(1)
        for layer in (self.fc6, self.fc7):
            hidden_states = F.relu(layer(F.dropout(hidden_states, self.config.dropout, self.training)))
        return hidden_states


class SplitResNet(InputConvolution, ResNetModel):
    """transformers' ResNet; its blocks are the embedder and the stages.

    `feature_size` is the width of what `upper` returns.
    """

    _can_record_outputs = {  # noqa: RUF012  (read by the base class as it stands)
        "hidden_states": [
            OutputRecorder(block, capture_initial_hidden_state=False) for block in (ResNetEmbeddings, ResNetStage)
        ]
    }
    input_convolution = "embedder.embedder.convolution"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.feature_size = config.hidden_sizes[-1]

    def lower(self, pixel_values: torch.Tensor, depth: int) -> tuple[torch.Tensor, None]:
        """Features `(B, C, H, W)` behind the first `depth` blocks, and no class token."""
        return _run([self.embedder, *self.encoder.stages][:depth], pixel_values), None

    def upper(self, features: torch.Tensor, class_token: None, depth: int) -> torch.Tensor:
        """Averages `(B, hidden_sizes[-1])` of the last feature map."""
        return self.pooler(_run([self.embedder, *self.encoder.stages][depth:], features)).flatten(1)


class SplitViT(InputConvolution, ViTModel):
    """transformers' ViT without its pooler; its blocks are the layers, the embeddings belong to `lower`.

    `feature_size` is the width of what `upper` returns.
    """

    input_convolution = "embeddings.patch_embeddings.projection"

    def __init__(self, config: Any) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.feature_size = config.hidden_size

    def lower(self, pixel_values: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch tokens `(B, N, C)` and class token `(B, 1, C)` behind the first `depth` layers."""
        hidden_states = _run(self.layers[:depth], self.embeddings(pixel_values))
        return hidden_states[:, 1:], hidden_states[:, :1]

    def upper(self, features: torch.Tensor, class_token: torch.Tensor, depth: int) -> torch.Tensor:
        """The normalised class token `(B, hidden_size)` behind the last layer."""
        hidden_states = _run(self.layers[depth:], torch.cat([class_token, features], dim=1))
        return self.layernorm(hidden_states)[:, 0]


BACKBONES: dict[str, Any] = {"alexnet": SplitAlexNet, "resnet": SplitResNet, "vit": SplitViT}


def _run(blocks: Iterable[nn.Module], hidden_states: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        hidden_states = block(hidden_states)
    return hidden_states
