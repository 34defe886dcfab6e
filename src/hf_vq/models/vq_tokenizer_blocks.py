"""The networks of the VQ tokenizer: blocks, resampling, encoder and decoder."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_vq_tokenizer import VQTokenizerConfig

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


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
    """`(B, C * stride^n, *s)` -> `(B, C, *(stride * s))`: the n-dimensional pixel shuffle; keeps the memory format."""
    if stride == 1:
        return tensor
    batch, channels, *sides = tensor.shape
    channels //= stride**spatial_dims
    fine, strides = [side * stride for side in sides], [stride] * spatial_dims
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=CHANNELS_LAST[spatial_dims]):
        tensor = tensor.movedim(1, -1).reshape(batch, *sides, channels, *strides)
        interleaved = [axis for i in range(spatial_dims) for axis in (1 + i, 2 + spatial_dims + i)]
        return tensor.permute(0, *interleaved, 1 + spatial_dims).reshape(batch, *fine, channels).movedim(-1, 1)
    tensor = tensor.reshape(batch, channels, *strides, *sides)
    interleaved = [axis for i in range(spatial_dims) for axis in (2 + spatial_dims + i, 2 + i)]
    return tensor.permute(0, 1, *interleaved).reshape(batch, channels, *fine)


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


def _level(config: VQTokenizerConfig, level: int, in_channels: int, block_type: type[nn.Module]) -> list[nn.Module]:
    width = config.level_channels[level]
    modules: list[nn.Module] = []
    for block in range(config.num_res_blocks):
        modules.append(block_type(config, in_channels if block == 0 else width, width))
        if level in config.attention_levels:
            modules.append(VQTokenizerAttentionBlock(config, width))
    return modules


def _middle(config: VQTokenizerConfig, block_type: type[nn.Module], num_blocks: int = 2) -> list[nn.Module]:
    """Residual blocks at the width of the last level, the attention behind the first of them."""
    width = config.level_channels[-1]
    modules: list[nn.Module] = [block_type(config, width, width) for _ in range(num_blocks)]
    if config.mid_attention:
        modules.insert(1, VQTokenizerAttentionBlock(config, width))
    return modules


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
        self.blocks = nn.ModuleList([*blocks, *_middle(config, block_type, config.encoder_mid_blocks)])
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
