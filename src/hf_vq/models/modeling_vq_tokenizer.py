"""VQ tokenizer for images and volumes: a residual convolutional autoencoder around a vector quantizer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from ..quantizers import build_quantizer
from ..quantizers.codebook import Codebook
from .configuration_vq_tokenizer import VQTokenizerConfig

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


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
        reconstruction_loss: scalar mean over all elements, L1 or L2 as configured.
        quantizer_loss: scalar, weighted sum of commitment and codebook loss.
        commitment_loss: scalar, unweighted.
        codebook_loss: scalar, unweighted.
        sample: `(B, in_channels, *spatial)` reconstruction.
        codes: `(B, *grid)` int64.
        perplexity: scalar, of this batch.
        active_fraction: scalar, share of the codes that this batch uses.
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


class VQTokenizerResidualBlock(GradientCheckpointingLayer):
    """Pre-activation residual block: twice GroupNorm, SiLU and a 3-kernel convolution."""

    def __init__(self, config: VQTokenizerConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[config.spatial_dims]
        self.norm1 = nn.GroupNorm(config.num_norm_groups, in_channels, eps=1e-6)
        self.conv1 = convolution(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(config.num_norm_groups, out_channels, eps=1e-6)
        self.conv2 = convolution(out_channels, out_channels, 3, padding=1)
        self.skip = convolution(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.skip(hidden_states)
        hidden_states = self.conv1(F.silu(self.norm1(hidden_states)))
        return residual + self.conv2(F.silu(self.norm2(hidden_states)))


class VQTokenizerAttentionBlock(GradientCheckpointingLayer):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, config: VQTokenizerConfig, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.num_norm_groups, channels, eps=1e-6)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(hidden_states).flatten(2).transpose(1, 2)
        query, key, value = self.to_qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        attended = self.to_out(F.scaled_dot_product_attention(query, key, value).squeeze(1))
        return hidden_states + attended.transpose(1, 2).reshape(hidden_states.shape)


class VQTokenizerDownsample(nn.Module):
    """Convolution whose kernel is its stride: every input element is read once."""

    def __init__(self, config: VQTokenizerConfig, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[config.spatial_dims](in_channels, out_channels, stride, stride=stride)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(hidden_states)


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


def depth_to_space(tensor: torch.Tensor, stride: int, spatial_dims: int) -> torch.Tensor:
    """`(B, C * stride^n, *s)` -> `(B, C, *(stride * s))`: the n-dimensional pixel shuffle."""
    if stride == 1:
        return tensor
    batch, channels, *sides = tensor.shape
    tensor = tensor.reshape(batch, channels // stride**spatial_dims, *[stride] * spatial_dims, *sides)
    interleaved = [axis for i in range(spatial_dims) for axis in (2 + spatial_dims + i, 2 + i)]
    return tensor.permute(0, 1, *interleaved).reshape(batch, -1, *[side * stride for side in sides])


def _level(config: VQTokenizerConfig, level: int, in_channels: int) -> list[nn.Module]:
    width = config.level_channels[level]
    modules: list[nn.Module] = []
    for block in range(config.num_res_blocks):
        modules.append(VQTokenizerResidualBlock(config, in_channels if block == 0 else width, width))
        if level in config.attention_levels:
            modules.append(VQTokenizerAttentionBlock(config, width))
    return modules


def _middle(config: VQTokenizerConfig) -> list[nn.Module]:
    width = config.level_channels[-1]
    attention = [VQTokenizerAttentionBlock(config, width)] if config.mid_attention else []
    return [
        VQTokenizerResidualBlock(config, width, width),
        *attention,
        VQTokenizerResidualBlock(config, width, width),
    ]


class VQTokenizerEncoder(nn.Module):
    """`(B, in_channels, *spatial)` -> `(B, codebook_dim, *grid)`."""

    def __init__(self, config: VQTokenizerConfig) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[config.spatial_dims]
        widths = config.level_channels
        if config.stem_stride > 1:
            blocks: list[nn.Module] = [VQTokenizerDownsample(config, config.in_channels, widths[0], config.stem_stride)]
        else:
            blocks = [convolution(config.in_channels, widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            if level > 0:
                blocks.append(VQTokenizerDownsample(config, widths[level - 1], width, config.strides[level]))
            blocks.extend(_level(config, level, width))
        self.blocks = nn.ModuleList([*blocks, *_middle(config)])
        self.norm_out = nn.GroupNorm(config.num_norm_groups, widths[-1], eps=1e-6)
        self.conv_out = convolution(widths[-1], config.quantizer_config.codebook_dim, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


class VQTokenizerDecoder(nn.Module):
    """`(B, codebook_dim, *grid)` -> `(B, in_channels, *spatial)`."""

    def __init__(self, config: VQTokenizerConfig) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[config.spatial_dims]
        widths = config.level_channels
        blocks = [convolution(config.quantizer_config.codebook_dim, widths[-1], 3, padding=1), *_middle(config)]
        for level in reversed(range(len(widths))):
            blocks.extend(_level(config, level, widths[level]))
            if level > 0:
                blocks.append(VQTokenizerUpsample(config, widths[level], widths[level - 1], config.strides[level]))
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.GroupNorm(config.num_norm_groups, widths[0], eps=1e-6)
        self.conv_out = VQTokenizerUpsample(config, widths[0], config.in_channels, config.stem_stride)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


class VQTokenizer(PreTrainedModel):
    """Turns images or volumes into a grid of discrete codes and back.

    The 2D and the 3D tokenizer of Corona-Figueroa et al., 2023 are this class with `spatial_dims` 2 and 3; the
    quantizer is that of Huh et al., 2023. See `VQTokenizerConfig`.
    """

    config_class = VQTokenizerConfig
    base_model_prefix = "vq_tokenizer"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VQTokenizerResidualBlock", "VQTokenizerAttentionBlock"]  # noqa: RUF012  (read by the base class as it stands)

    def __init__(self, config: VQTokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = VQTokenizerEncoder(config)
        self.quantizer = build_quantizer(config.quantizer_config)
        self.decoder = VQTokenizerDecoder(config)
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
        return self.quantizer.decode(codes).flatten(2).transpose(1, 2)

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
        """Scalar mean over all elements of two tensors of one shape, L1 or L2 as configured."""
        distance = F.l1_loss if self.config.reconstruction_loss == "l1" else F.mse_loss
        return distance(sample.float(), pixel_values.float())

    def forward(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None
    ) -> VQTokenizerOutput | tuple[torch.Tensor, ...]:
        """Encodes, quantises and decodes, with all parts of the training loss.

        Args:
            pixel_values: `(B, in_channels, *spatial)`, each side a multiple of `config.downsampling_factor`.
            return_dict: `False` for a plain tuple.

        Returns:
            `VQTokenizerOutput`.

        Raises:
            ValueError: if the shape does not fit.
        """
        quantized = self.quantizer(self.encode_latents(pixel_values))
        sample = self.decoder(quantized.quantized)
        reconstruction_loss = self.reconstruction_loss(sample, pixel_values)
        output = VQTokenizerOutput(
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
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict
