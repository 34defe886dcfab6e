"""Image classifier with a vector quantizer inside: AlexNet, ResNet or ViT."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.vit.modeling_vit import ViTAttention
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from ..quantizers import build_quantizer
from ..quantizers.codebook import Codebook
from ..sharing import PushedWithCard
from .backbones import BACKBONES
from .configuration_vq_image_classifier import VQImageClassifierConfig
from .pretrained import InputConvolution, float_state


@dataclass
class VQImageClassifierOutput(ModelOutput):
    """What `VQForImageClassification.forward` returns; without a quantizer what it gives is `None`.

    Args:
        loss: scalar, the loss that the config's `problem_type` names plus `quantizer_loss`, if labels were given.
        logits: `(B, num_labels)`.
        quantizer_loss: scalar, weighted sum of commitment and codebook loss.
        commitment_loss: scalar, unweighted.
        codebook_loss: scalar, unweighted.
        codes: int64, `(B, H, W)`, or `(B, tokens)` in a ViT; with several codebooks their axis comes second.
        perplexity: scalar, of this batch.
        active_fraction: scalar, share of the codes that this batch uses.
        hidden_states: if asked for, outputs of all blocks before anything is quantised: `(B, C, H, W)` behind each
            convolution of AlexNet or the embedder and each stage of ResNet; in a ViT `(B, 1 + tokens, C)`, first what
            goes into the first layer.
        attentions: if asked for and attention is `"eager"`, the maps `(B, heads, 1 + tokens, 1 + tokens)` of all layers
            of a ViT; of the other networks none.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    quantizer_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    active_fraction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VQForImageClassification(PushedWithCard, InputConvolution, PreTrainedModel):
    """AlexNet, ResNet or ViT with a quantizer between two of its blocks and a linear classifier on top.

    The classification networks of Huh et al., 2023, section 5. See `VQImageClassifierConfig`. Loaded in half precision,
    the codes and their averages stay in float32.
    """

    config_class = VQImageClassifierConfig
    base_model_prefix = "vq_image_classifier"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    # What can be asked for; which modules of the backbone it is recorded from, the backbone's own attribute says.
    _can_record_outputs = {"hidden_states": GradientCheckpointingLayer, "attentions": ViTAttention}  # noqa: RUF012

    def __init__(self, config: VQImageClassifierConfig) -> None:
        super().__init__(config)
        # Recomputing a ResNet's stage would update the statistics of its batch normalisation twice.
        self.supports_gradient_checkpointing = config.backbone != "resnet"
        self.depth = config.quantizer_depth
        network_config = config.network_config
        if config.backbone == "vit":
            network_config._attn_implementation = config._attn_implementation
        self.backbone = BACKBONES[config.backbone](network_config)
        self.input_convolution = f"backbone.{self.backbone.input_convolution}"
        quantizer_config, width = config.quantizer_config, config.quantizer_width
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        self.quantizer = None if quantizer_config is None else build_quantizer(quantizer_config)
        if quantizer_config is not None and quantizer_config.codebook_dim != width:
            self.project_in = _linear_map(width, quantizer_config.codebook_dim, quantizer_config.channel_last)
            self.project_out = _linear_map(quantizer_config.codebook_dim, width, quantizer_config.channel_last)
        self.classifier = nn.Linear(self.backbone.feature_size, config.num_labels)
        self._keep_in_fp32_modules_strict = float_state(self.quantizer, "quantizer")
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Codebook):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @apply_forward_hook
    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the quantizer gets, `(B, C, H, W)` or, in a ViT, `(B, tokens, C)`; changes no state.

        In training mode batch normalisation uses the batch's statistics, as in `forward`, but keeps its running ones.

        Args:
            pixel_values: `(B, num_channels, image_size, image_size)`.

        Raises:
            ValueError: if the shape does not fit.
        """
        with _running_statistics_kept(self.backbone):
            return self._lower(pixel_values)[0]

    @apply_forward_hook
    def extract_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pooled features in front of the classifier: `(B, num_channels, image_size, image_size)` -> `(B, D)`.

        Raises:
            ValueError: if the shape does not fit.
        """
        return self._features(pixel_values)[0]

    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> VQImageClassifierOutput | tuple[torch.Tensor, ...]:
        """Classifies images, with all parts of the training loss.

        Args:
            pixel_values: `(B, num_channels, image_size, image_size)`.
            labels: `(B,)` int64 in `[0, num_labels)`; for several labels at once `(B, num_labels)` floats 0 and 1, and
                for regression, with `num_labels=1`, `(B,)` floats. Without them there is no `loss`.
            output_hidden_states: `True` for `hidden_states`, or indices of those that are wanted.
            output_attentions: `True` for `attentions`.
            return_dict: `False` for a plain tuple.

        Returns:
            `VQImageClassifierOutput`.

        Raises:
            ValueError: if the shape does not fit.
        """
        features, quantized = self._features(pixel_values)
        logits = self.classifier(features)
        loss = None if labels is None else classification_loss(logits.float(), labels, self.config.problem_type)
        if quantized is None:
            return VQImageClassifierOutput(loss=loss, logits=logits)
        return VQImageClassifierOutput(
            loss=None if loss is None else loss + quantized.loss,
            logits=logits,
            quantizer_loss=quantized.loss,
            commitment_loss=quantized.commitment_loss,
            codebook_loss=quantized.codebook_loss,
            codes=quantized.codes,
            perplexity=quantized.perplexity,
            active_fraction=quantized.active_fraction,
        )

    def _features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Pooled features `(B, D)`, and what the quantizer returned on the way, if there is one."""
        latents, class_token = self._lower(pixel_values)
        quantized = None if self.quantizer is None else self.quantizer(latents)
        hidden_states = latents if quantized is None else self.project_out(quantized.quantized)
        return self.backbone.upper(hidden_states, class_token, self.depth), quantized

    def _lower(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        channels, size = self.config.num_channels, self.config.image_size
        if pixel_values.shape[1:] != (channels, size, size):
            raise ValueError(
                f"pixel_values must be (B, {channels}, {size}, {size}); got shape {tuple(pixel_values.shape)}. "
                "Use the image processor saved with the model."
            )
        hidden_states, class_token = self.backbone.lower(pixel_values, self.depth)
        return self.project_in(hidden_states), class_token


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None = None) -> torch.Tensor:
    """Scalar mean over a batch, as transformers' classifiers have it, but the config stays as it is.

    Args:
        logits: `(B, num_labels)`.
        labels: `(B,)` int64 for cross-entropy; floats for squared errors, `(B,)` or `(B, num_labels)`, or for the
            cross-entropy of each label by itself, `(B, num_labels)`.
        problem_type: `"single_label_classification"`, `"regression"` or `"multi_label_classification"`; by default the
            first for integers, the second for one float, the third for several.
    """
    if problem_type is None:
        floats = "regression" if logits.shape[1] == 1 else "multi_label_classification"
        problem_type = floats if labels.is_floating_point() else "single_label_classification"
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels)
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    return loss(logits, labels.to(logits).view_as(logits))


def _linear_map(in_channels: int, out_channels: int, channel_last: bool) -> nn.Module:
    """A linear map of the channels at every position."""
    return nn.Linear(in_channels, out_channels) if channel_last else nn.Conv2d(in_channels, out_channels, 1)


@contextmanager
def _running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Lets batch normalisation in training mode see a batch without taking note of it."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, value in zip(norms, tracked, strict=True):
            norm.track_running_stats = value
