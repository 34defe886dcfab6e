"""VQ tokenizer for images and volumes: a residual convolutional autoencoder around a vector quantizer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from ..quantizers import build_quantizer
from ..quantizers.codebook import Codebook
from ..sharing import PushedWithCard
from .configuration_vq_tokenizer import VQTokenizerConfig
from .pretrained import InputConvolution, float_state

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
CHARBONNIER_EPSILON = 1e-3


@dataclass
class VQTokenizerEncoderOutput(ModelOutput):
    """What `VQTokenizer.encode` returns.

    Args:
        codes: `(B, *grid)` int64; with several codebooks `(B, num_codebooks, *grid)`.
        latents: `(B, codebook_dim, *grid)`, the encoder's output before quantisation.
    """

    codes: torch.Tensor | None = None
    latents: torch.Tensor | None = None


@dataclass
class VQTokenizerDecoderOutput(ModelOutput):
    """What `VQTokenizer.decode` returns.

    Args:
        sample: `(B, in_channels, *spatial)`.
    """

    sample: torch.Tensor | None = None


@dataclass
class VQTokenizerOutput(ModelOutput):
    """What `VQTokenizer.forward` returns.

    Args:
        loss: scalar, `reconstruction_loss + quantizer_loss`.
        reconstruction_loss: scalar mean over all elements: L1, L2 or Charbonnier as configured.
        quantizer_loss: scalar, weighted sum of commitment and codebook loss.
        commitment_loss: scalar, unweighted.
        codebook_loss: scalar, unweighted.
        sample: `(B, in_channels, *spatial)` reconstruction.
        codes: `(B, *grid)` int64.
        perplexity: scalar, of this batch.
        active_fraction: scalar, share of the codes that this batch uses.
        hidden_states: if asked for, tensors `(B, C, *sides)`: the input of the encoder's first residual block, and the
            outputs of all residual and attention blocks of encoder and decoder.
        attentions: if asked for and attention is `"eager"`, the maps `(B, 1, tokens, tokens)` of all attention blocks.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    quantizer_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    sample: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    active_fraction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VQTokenizerResidualBlock(GradientCheckpointingLayer):
    """Pre-activation residual block: twice GroupNorm, SiLU and a 3-kernel convolution."""

    def __init__(self, config: VQTokenizerConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[config.spatial_dims]
        self.norm1 = _group_norm(config, in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, padding=1)
        self.norm2 = _group_norm(config, out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3, padding=1)
        self.skip = convolution(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.skip(hidden_states)
        hidden_states = self.conv1(F.silu(self.norm1(hidden_states)))
        return residual + self.conv2(F.silu(self.norm2(hidden_states)))


class VQTokenizerChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position of `(B, C, *spatial)`, with a gain and no shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        channels_last = hidden_states.movedim(1, -1)
        return F.layer_norm(channels_last, self.weight.shape, self.weight, eps=1e-5).movedim(-1, 1)


class VQTokenizerDepthwiseBlock(GradientCheckpointingLayer):
    """Pre-activation residual block whose 3-kernel convolution sees each channel alone; a 1-kernel one mixes them."""

    def __init__(self, config: VQTokenizerConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[config.spatial_dims]
        self.norm1 = VQTokenizerChannelNorm(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 1)
        self.norm2 = VQTokenizerChannelNorm(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3, padding=1, groups=out_channels)
        self.skip = convolution(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.skip(hidden_states)
        hidden_states = self.conv1(F.gelu(self.norm1(hidden_states)))
        return residual + self.conv2(F.gelu(self.norm2(hidden_states)))


ENCODER_BLOCKS: dict[str, type[nn.Module]] = {
    "residual": VQTokenizerResidualBlock,
    "depthwise": VQTokenizerDepthwiseBlock,
}


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of `(B, heads, N, C)` step by step, for `attn_implementation="eager"`.

    Returns:
        `(B, N, heads, C)` and the maps `(B, heads, N, N)`.
    """
    maps = (scaling * query @ key.transpose(-2, -1)).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (maps @ value).transpose(1, 2), maps


class VQTokenizerAttention(nn.Module):
    """The attention that `attn_implementation` names; a module of its own, so that its maps can be recorded."""

    is_causal = False

    def __init__(self, config: VQTokenizerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        implementation = self.config._attn_implementation
        if implementation == "sdpa":  # transformers' own asks for the number of tokens, which exports leave free
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        attended, maps = attend(self, query, key, value, None, scaling=query.shape[-1] ** -0.5)
        return attended, maps


class VQTokenizerAttentionBlock(GradientCheckpointingLayer):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, config: VQTokenizerConfig, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(config, channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.attention = VQTokenizerAttention(config)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(hidden_states).flatten(2).transpose(1, 2)
        query, key, value = self.to_qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        attended, _ = self.attention(query, key, value)
        attended = self.to_out(attended.squeeze(2))
        return hidden_states + attended.transpose(1, 2).reshape(hidden_states.shape)


class VQTokenizerDownsample(nn.Module):
    """Convolution whose kernel is its stride: every input element is read once."""

    def __init__(self, config: VQTokenizerConfig, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[config.spatial_dims](in_channels, out_channels, stride, stride=stride)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(hidden_states)


class VQTokenizerPaddedDownsample(nn.Module):
    """Convolution of kernel 3 and stride 2 at one width, with one zero at the end of each axis and none in front."""

    def __init__(self, config: VQTokenizerConfig, channels: int) -> None:
        super().__init__()
        self.padding = (0, 1) * config.spatial_dims
        self.conv = CONVOLUTIONS[config.spatial_dims](channels, channels, 3, stride=2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(hidden_states, self.padding))


class VQTokenizerUpsample(nn.Module):
    """Depth-to-space: a 3-kernel convolution at the coarse resolution predicts all fine elements of its cell."""

    def __init__(self, config: VQTokenizerConfig, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.spatial_dims = config.spatial_dims
        self.conv = CONVOLUTIONS[config.spatial_dims](
            in_channels, out_channels * stride**config.spatial_dims, 3, padding=1
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return depth_to_space(self.conv(hidden_states), self.stride, self.spatial_dims)


class VQTokenizerNearestUpsample(nn.Module):
    """Every element twice along each axis, then a 3-kernel convolution at one width."""

    def __init__(self, config: VQTokenizerConfig, channels: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[config.spatial_dims](channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(hidden_states, scale_factor=2, mode="nearest"))


def depth_to_space(tensor: torch.Tensor, stride: int, spatial_dims: int) -> torch.Tensor:
    """`(B, C * stride^n, *s)` -> `(B, C, *(stride * s))`: the n-dimensional pixel shuffle."""
    if stride == 1:
        return tensor
    batch, channels, *sides = tensor.shape
    tensor = tensor.reshape(batch, channels // stride**spatial_dims, *[stride] * spatial_dims, *sides)
    interleaved = [axis for i in range(spatial_dims) for axis in (2 + spatial_dims + i, 2 + i)]
    return tensor.permute(0, 1, *interleaved).reshape(batch, -1, *[side * stride for side in sides])


def _group_norm(config: VQTokenizerConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups(channels), channels, eps=1e-6)


def _output_activation(config: VQTokenizerConfig) -> nn.Module:
    return nn.Identity() if config.output_activation is None else nn.SiLU()


def _downsample(config: VQTokenizerConfig, level: int, channels: int) -> tuple[nn.Module, int]:
    """What leads from `channels` at the level before down to this level, and the width behind it."""
    if config.resampling == "nearest":
        return VQTokenizerPaddedDownsample(config, channels), channels
    width = config.level_channels[level]
    return VQTokenizerDownsample(config, channels, width, config.strides[level]), width


def _upsample(config: VQTokenizerConfig, level: int, channels: int) -> tuple[nn.Module, int]:
    """What leads from `channels` at this level up to the level before, and the width behind it."""
    if config.resampling == "nearest":
        return VQTokenizerNearestUpsample(config, channels), channels
    width = config.level_channels[level - 1]
    return VQTokenizerUpsample(config, channels, width, config.strides[level]), width


def charbonnier_loss(sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scalar mean of `sqrt(d^2 + epsilon^2)`, d the difference of two tensors of one shape, epsilon 0.001."""
    return ((sample - target).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "charbonnier": charbonnier_loss,
}


def _level(config: VQTokenizerConfig, level: int, in_channels: int, block_type: type[nn.Module]) -> list[nn.Module]:
    width = config.level_channels[level]
    modules: list[nn.Module] = []
    for block in range(config.num_res_blocks):
        modules.append(block_type(config, in_channels if block == 0 else width, width))
        if level in config.attention_levels:
            modules.append(VQTokenizerAttentionBlock(config, width))
    return modules


def _middle(config: VQTokenizerConfig, block_type: type[nn.Module]) -> list[nn.Module]:
    width = config.level_channels[-1]
    attention = [VQTokenizerAttentionBlock(config, width)] if config.mid_attention else []
    return [block_type(config, width, width), *attention, block_type(config, width, width)]


class VQTokenizerEncoder(nn.Module):
    """`(B, in_channels, *spatial)` -> `(B, codebook_dim, *grid)`."""

    def __init__(self, config: VQTokenizerConfig) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[config.spatial_dims]
        block_type, channels = ENCODER_BLOCKS[config.encoder_block_type], config.stem_channels
        if config.stem_stride > 1:
            blocks: list[nn.Module] = [VQTokenizerDownsample(config, config.in_channels, channels, config.stem_stride)]
        else:
            blocks = [convolution(config.in_channels, channels, 3, padding=1)]
        for level, width in enumerate(config.level_channels):
            if level > 0:
                downsample, channels = _downsample(config, level, channels)
                blocks.append(downsample)
            blocks.extend(_level(config, level, channels, block_type))
            channels = width
        self.blocks = nn.ModuleList([*blocks, *_middle(config, block_type)])
        self.norm_out = _group_norm(config, channels)
        self.act_out = _output_activation(config)
        kernel, latent_channels = config.latent_kernel_size, config.quantizer_config.codebook_dim
        self.conv_out = convolution(channels, latent_channels, kernel, padding=kernel // 2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.conv_out(self.act_out(self.norm_out(hidden_states)))


class VQTokenizerDecoder(nn.Module):
    """`(B, codebook_dim, *grid)` -> `(B, in_channels, *spatial)`."""

    def __init__(self, config: VQTokenizerConfig) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[config.spatial_dims]
        channels = config.level_channels[-1]
        stem = convolution(config.quantizer_config.codebook_dim, channels, 3, padding=1)
        blocks = [stem, *_middle(config, VQTokenizerResidualBlock)]
        for level, width in reversed(list(enumerate(config.level_channels))):
            blocks.extend(_level(config, level, channels, VQTokenizerResidualBlock))
            channels = width
            if level > 0:
                upsample, channels = _upsample(config, level, channels)
                blocks.append(upsample)
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = _group_norm(config, channels)
        self.act_out = _output_activation(config)
        self.conv_out = VQTokenizerUpsample(config, channels, config.in_channels, config.stem_stride)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.conv_out(self.act_out(self.norm_out(hidden_states)))


class VQTokenizer(PushedWithCard, InputConvolution, PreTrainedModel):
    """Turns images or volumes into a grid of discrete codes and back.

    The 2D and the 3D tokenizer of Corona-Figueroa et al., 2023 are this class with `spatial_dims` 2 and 3; the
    quantizer is that of Huh et al., 2023. See `VQTokenizerConfig`. Loaded in half precision, the codes and their
    averages stay in float32.
    """

    config_class = VQTokenizerConfig
    base_model_prefix = "vq_tokenizer"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # The base class reads these attributes as they stand.
    _no_split_modules = [  # noqa: RUF012
        "VQTokenizerResidualBlock",
        "VQTokenizerDepthwiseBlock",
        "VQTokenizerAttentionBlock",
    ]
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": GradientCheckpointingLayer,
        "attentions": VQTokenizerAttention,
    }

    def __init__(self, config: VQTokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = VQTokenizerEncoder(config)
        self.quantizer = build_quantizer(config.quantizer_config)
        self.decoder = VQTokenizerDecoder(config)
        self.input_convolution = "encoder.blocks.0.conv" if config.stem_stride > 1 else "encoder.blocks.0"
        self._keep_in_fp32_modules_strict = float_state(self.quantizer, "quantizer")
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            fan_in = module.weight[0].numel()
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range / math.sqrt(fan_in))
            init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, VQTokenizerChannelNorm):
            init.ones_(module.weight)
        elif isinstance(module, Codebook):
            module.reset_parameters()

    def code_grid(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Shape of the code grid of an input with these sides.

        Raises:
            ValueError: if a side is not a multiple of the downsampling factor.
        """
        factor = self.config.downsampling_factor
        if len(spatial) != self.config.spatial_dims or any(side % factor or side == 0 for side in spatial):
            raise ValueError(
                f"pixel_values must have {self.config.spatial_dims} spatial axes whose sides are multiples of "
                f"{factor}; got "
                f"{tuple(spatial)}. Crop, pad or resample the input to such a size."
            )
        return tuple(side // factor for side in spatial)

    def _check_input(self, pixel_values: torch.Tensor) -> None:
        if pixel_values.ndim != 2 + self.config.spatial_dims or pixel_values.shape[1] != self.config.in_channels:
            axes = "D, H, W" if self.config.spatial_dims == 3 else "H, W"
            raise ValueError(
                f"pixel_values must be (B, {self.config.in_channels}, {axes}); got shape {tuple(pixel_values.shape)}"
            )
        self.code_grid(pixel_values.shape[2:])

    @apply_forward_hook
    def encode(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None
    ) -> VQTokenizerEncoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Codes of an input; changes no state, in training mode either.

        Args:
            pixel_values: `(B, in_channels, *spatial)`, each side a multiple of `config.downsampling_factor`.
            return_dict: `False` for a plain tuple.

        Returns:
            `VQTokenizerEncoderOutput` with `codes` `(B, *grid)` and `latents` `(B, codebook_dim, *grid)`.

        Raises:
            ValueError: if the shape does not fit.
        """
        latents = self.encode_latents(pixel_values)
        output = VQTokenizerEncoderOutput(codes=self.quantizer.encode(latents), latents=latents)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    @apply_forward_hook
    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the quantizer gets: `(B, in_channels, *spatial)` -> `(B, codebook_dim, *grid)`.

        Raises:
            ValueError: if the shape does not fit.
        """
        self._check_input(pixel_values)
        return self.encoder(pixel_values)

    @apply_forward_hook
    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors of codes through the effective codebook, as a sequence: `(B, *grid)` -> `(B, tokens, codebook_dim)`.

        Raises:
            ValueError: if a code is out of range.
        """
        return self.quantizer.decode(codes).flatten(2).transpose(1, 2).to(self.dtype)

    @apply_forward_hook
    def decode(
        self, codes: torch.Tensor, return_dict: bool | None = None
    ) -> VQTokenizerDecoderOutput | tuple[torch.Tensor]:
        """Reconstruction from codes.

        Args:
            codes: `(B, *grid)` int64 in `[0, codebook_size)`; with several codebooks `(B, num_codebooks, *grid)`.
            return_dict: `False` for a plain tuple.

        Returns:
            `VQTokenizerDecoderOutput` with `sample` `(B, in_channels, *spatial)`.

        Raises:
            ValueError: if a code is out of range or the number of axes is wrong.
        """
        books = self.config.num_codebooks
        axes = "(B, *grid)" if books == 1 else f"(B, {books} codebooks, *grid)"
        if codes.ndim != (1 if books == 1 else 2) + self.config.spatial_dims:
            raise ValueError(
                f"codes must be {axes} with {self.config.spatial_dims} grid axes; got shape {tuple(codes.shape)}"
            )
        output = VQTokenizerDecoderOutput(sample=self.decoder(self.quantizer.decode(codes).to(self.dtype)))
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def reconstruction_loss(self, sample: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Scalar mean over all elements of two tensors of one shape: L1, L2 or Charbonnier as configured."""
        distance = DISTANCES[self.config.reconstruction_loss]
        return distance(sample.float(), pixel_values.float())

    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> VQTokenizerOutput | tuple[torch.Tensor, ...]:
        """Encodes, quantises and decodes, with all parts of the training loss.

        Args:
            pixel_values: `(B, in_channels, *spatial)`, each side a multiple of `config.downsampling_factor`.
            output_hidden_states: `True` for `hidden_states`, or indices of those that are wanted.
            output_attentions: `True` for `attentions`.
            return_dict: `False` for a plain tuple.

        Returns:
            `VQTokenizerOutput`.

        Raises:
            ValueError: if the shape does not fit.
        """
        quantized = self.quantizer(self.encode_latents(pixel_values))
        sample = self.decoder(quantized.quantized)
        reconstruction_loss = self.reconstruction_loss(sample, pixel_values)
        return VQTokenizerOutput(
            loss=reconstruction_loss + quantized.loss,
            reconstruction_loss=reconstruction_loss,
            quantizer_loss=quantized.loss,
            commitment_loss=quantized.commitment_loss,
            codebook_loss=quantized.codebook_loss,
            sample=sample,
            codes=quantized.codes,
            perplexity=quantized.perplexity,
            active_fraction=quantized.active_fraction,
        )

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict
