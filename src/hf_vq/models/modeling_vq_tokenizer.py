"""VQ tokenizer for images and volumes: a residual convolutional autoencoder around a vector quantizer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from ..quantizers import build_quantizer
from ..quantizers.codebook import Codebook
from ..sharing import PushedWithCard
from .configuration_vq_tokenizer import VQTokenizerConfig
from .pretrained import InputConvolution, float_state
from .tiling import TiledCoding, codes_in_tiles, decoded_in_tiles, latents_in_tiles
from .vq_tokenizer_blocks import VQTokenizerAttention, VQTokenizerChannelNorm, VQTokenizerDecoder, VQTokenizerEncoder

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


def charbonnier_loss(sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scalar mean of `sqrt(d^2 + epsilon^2)`, d the difference of two tensors of one shape, epsilon 0.001."""
    return ((sample - target).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "charbonnier": charbonnier_loss,
}


class VQTokenizer(PushedWithCard, InputConvolution, TiledCoding, PreTrainedModel):
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
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values have dtype {pixel_values.dtype}; expected floating point, as the processors return them"
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
            ValueError: if the shape does not fit, or pixels are no floats or give latents that are NaN or infinite.
        """
        latents = self.encode_latents(pixel_values)
        tiling = self._tiling_now
        codes = self.quantizer.encode(latents) if tiling is None else codes_in_tiles(self, tiling, latents)
        output = VQTokenizerEncoderOutput(codes=codes, latents=latents)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    @apply_forward_hook
    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the quantizer gets: `(B, in_channels, *spatial)` -> `(B, codebook_dim, *grid)`.

        Raises:
            ValueError: if the shape does not fit, or pixels are no floats.
        """
        self._check_input(pixel_values)
        tiling = self._tiling_now
        return self.encoder(pixel_values) if tiling is None else latents_in_tiles(self, tiling, pixel_values)

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
        self._check_code_axes(codes)
        tiling = self._tiling_now
        if tiling is None:
            sample = self.decoder(self.quantizer.decode(codes).to(self.dtype))
        else:
            sample = decoded_in_tiles(self, tiling, codes)
        output = VQTokenizerDecoderOutput(sample=sample)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    @apply_forward_hook
    @torch.no_grad()
    def decode_into(self, codes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Writes the reconstruction from codes into a given tensor, mapped from a file for example; no gradient.

        Args:
            codes: as for `decode`.
            out: `(B, in_channels, *spatial)` floating point, on any device.

        Returns:
            `out`.

        Raises:
            ValueError: if codes are not as `decode` expects them, or `out` has another shape or holds integers.
        """
        self._check_code_axes(codes)
        sides = [side * self.config.downsampling_factor for side in codes.shape[-self.config.spatial_dims :]]
        shape = (len(codes), self.config.in_channels, *sides)
        if out.shape != shape or not out.is_floating_point():
            raise ValueError(
                f"out must be a floating-point tensor of shape {shape} for these codes; got {tuple(out.shape)} of "
                f"{out.dtype}"
            )
        tiling = self._tiling_now
        if tiling is None:
            return out.copy_(self.decode(codes, return_dict=False)[0])
        return decoded_in_tiles(self, tiling, codes, out)

    def _check_code_axes(self, codes: torch.Tensor) -> None:
        books = self.config.num_codebooks
        axes = "(B, *grid)" if books == 1 else f"(B, {books} codebooks, *grid)"
        dims = self.config.spatial_dims
        if codes.ndim != (1 if books == 1 else 2) + dims or 0 in codes.shape[-dims:]:
            raise ValueError(
                f"codes must be {axes} with {dims} grid axes of at least 1; got shape {tuple(codes.shape)}"
            )

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
            ValueError: if the shape does not fit, or pixels are no floats.
        """
        self._check_input(pixel_values)
        quantized = self.quantizer(self.encoder(pixel_values))
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
