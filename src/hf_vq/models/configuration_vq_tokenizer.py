"""Configuration of the VQ tokenizer."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..quantizers import QuantizerConfig, quantizer_config

RECONSTRUCTION_LOSSES = ("l1", "l2", "charbonnier")

BLOCK_TYPES = ("residual", "depthwise")
RESAMPLINGS = ("strided", "nearest")
OUTPUT_ACTIVATIONS = ("silu", None)
MAX_MID_BLOCKS = 16
LATENT_KERNEL_SIZES = (1, 3)
# With num_norm_groups=None: so many groups for widths above that number, one group for the others.
AUTOMATIC_NORM_GROUPS = 32
# A width or count beyond it is a slip of the pen, which would fill the memory before anyone saw it.
MAX_NUMBER = 1 << 16


@strict
class VQTokenizerConfig(PreTrainedConfig):
    r"""Architecture of a `VQTokenizer` for images (`spatial_dims=2`) or volumes (`spatial_dims=3`).

    The fields from `encoder_block_type` on, with `num_norm_groups=None`, are there to represent the tokenizers of
    Corona-Figueroa et al., 2023, exactly; `docs/x2ct_vqvae.md` has the values.

    Args:
        spatial_dims (`int`): 2 for images, 3 for volumes.
        in_channels (`int`): channels of the input and of the reconstruction.
        base_channels (`int`): width of the first level.
        channel_multipliers (`list[int]`): width of each level as a multiple of `base_channels`.
        level_strides (`list[int]`, *optional*): downsampling from each level to the next, one entry fewer than there
            are levels; 2 everywhere by default.
        stem_stride (`int`): downsampling in front of the first level: 2 or more saves most of the work at full
            resolution.
        num_res_blocks (`int`): residual blocks per level, in the encoder and in the decoder.
        attention_levels (`list[int]`): levels with an attention block behind each residual block.
        mid_attention (`bool`): attention between the two residual blocks of the middle.
        num_norm_groups (`int`, *optional*): groups of every GroupNorm; divides every width. `None`: 32 groups for
            widths above 32, which they divide, and one group for the others.
        reconstruction_loss (`str`): `"l1"`, `"l2"`, or `"charbonnier"`, the mean of `sqrt(d^2 + 0.001^2)`: L1 that is
            smooth at 0 (Charbonnier et al., 1994).
        initializer_range (`float`): factor on the standard deviation `1 / sqrt(fan_in)` of the convolutions' weights.
        quantizer (`dict`, *optional*): fields of `VectorQuantizerConfig`, or, with `"quantizer_type"`, of another
            quantizer's config (see `build_quantizer`); `codebook_dim` is the width of the latent.
        encoder_block_type (`str`): residual blocks of the encoder. `"residual"`: GroupNorm, SiLU and 3-kernel
            convolutions, as in the decoder; `"depthwise"`: norm over channels, GELU, a 1-kernel and a depthwise
            3-kernel convolution.
        resampling (`str`): how levels are joined. `"strided"`: by convolutions without overlap, to the width of the
            next level, and by depth-to-space; `"nearest"`: by 3-kernel convolutions of stride 2, padded at the end of
            each axis, and by nearest-neighbour upsampling before a 3-kernel convolution, at one width: the first
            residual block of a level changes it, and the first level begins with `base_channels`. It needs
            `stem_stride=1` and strides of 2.
        output_activation (`str`, *optional*): `"silu"` between the last norm and the last convolution of encoder and
            decoder, or `None`.
        latent_kernel_size (`int`): 1 or 3, the kernel of the encoder's last convolution.
        encoder_mid_blocks (`int`): residual blocks behind the encoder's last level, around its attention; the decoder
            has two. An encoder needs fewer than a decoder.

    Example:
        >>> from hf_vq import VQTokenizer, VQTokenizerConfig
        >>> model = VQTokenizer(VQTokenizerConfig(spatial_dims=3, quantizer={"codebook_size": 512, "codebook_dim": 8}))
    """

    model_type = "hf_vq_tokenizer"

    spatial_dims: int = 3
    in_channels: int = 1
    base_channels: int = 32
    channel_multipliers: list[int] | tuple[int, ...] = (1, 4)
    level_strides: list[int] | tuple[int, ...] | None = None
    stem_stride: int = 2
    num_res_blocks: int = 2
    attention_levels: list[int] | tuple[int, ...] = ()
    mid_attention: bool = False
    num_norm_groups: int | None = 8
    reconstruction_loss: str = "l1"
    initializer_range: float | int = 1.0
    quantizer: dict[str, Any] | None = None
    encoder_block_type: str = "residual"
    resampling: str = "strided"
    output_activation: str | None = "silu"
    latent_kernel_size: int = 1
    encoder_mid_blocks: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        if self.level_strides is None:
            self.level_strides = [2] * (len(self.channel_multipliers) - 1)
        self.quantizer = quantizer_config(self.quantizer or {}).to_dict()
        super().__post_init__(**kwargs)

    @property
    def quantizer_config(self) -> QuantizerConfig:
        """The quantizer's fields as their own config."""
        return quantizer_config(self.quantizer or {})

    @property
    def num_codebooks(self) -> int:
        """Codes at each place of the grid: more than one with a grouped or residual quantizer."""
        return (self.quantizer or {}).get("num_codebooks", 1)

    @property
    def downsampling_factor(self) -> int:
        """Voxels (pixels) along one axis of the input for each code along that axis."""
        return math.prod(self.strides)

    @property
    def strides(self) -> list[int]:
        """Downsampling in front of each level, the stem's first."""
        return [self.stem_stride, *(self.level_strides or ())]

    @property
    def level_channels(self) -> list[int]:
        """Width of each level."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def stem_channels(self) -> int:
        """Width in front of the first level."""
        return self.base_channels if self.resampling == "nearest" else self.level_channels[0]

    def norm_groups(self, channels: int) -> int:
        """Groups of a GroupNorm over this many channels."""
        if self.num_norm_groups is not None:
            return self.num_norm_groups
        return AUTOMATIC_NORM_GROUPS if channels > AUTOMATIC_NORM_GROUPS else 1

    def validate_architecture(self) -> None:
        """Part of validation whenever a config is made: fields in range and consistent with each other.

        Raises:
            ValueError: naming the field, its value and what was expected; making a config wraps it into
                `huggingface_hub.errors.StrictDataclassClassValidationError`, as for every transformers config.
        """
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims={self.spatial_dims} is not supported; it must be 2 (images) or 3 (volumes)")
        if self.reconstruction_loss not in RECONSTRUCTION_LOSSES:
            raise ValueError(
                f"reconstruction_loss={self.reconstruction_loss!r} is unknown; choose one of {RECONSTRUCTION_LOSSES}"
            )
        for name, choices in (
            ("encoder_block_type", BLOCK_TYPES),
            ("resampling", RESAMPLINGS),
            ("output_activation", OUTPUT_ACTIVATIONS),
            ("latent_kernel_size", LATENT_KERNEL_SIZES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {choices}")
        if self.quantizer_config.channel_last:
            raise ValueError("quantizer.channel_last=True does not fit convolutional features; leave it at False")
        self._check_numbers()
        self._check_levels()
        self._check_widths()

    def _check_numbers(self) -> None:
        for name in ("in_channels", "base_channels", "stem_stride", "num_res_blocks"):
            if not 1 <= getattr(self, name) <= MAX_NUMBER:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1 and at most {MAX_NUMBER}")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range={self.initializer_range} must be finite and at least 0")

    def _check_levels(self) -> None:
        num_levels = len(self.channel_multipliers)
        if num_levels == 0 or self.num_res_blocks < 1:
            raise ValueError(
                "at least one level and one residual block are needed; got "
                f"channel_multipliers={self.channel_multipliers}, "
                f"num_res_blocks={self.num_res_blocks}"
            )
        if not 0 <= self.encoder_mid_blocks <= MAX_MID_BLOCKS:
            raise ValueError(f"encoder_mid_blocks={self.encoder_mid_blocks} must lie in 0 to {MAX_MID_BLOCKS}")
        if len(self.strides) != num_levels or min(self.strides) < 1:
            raise ValueError(
                f"level_strides must hold {num_levels - 1} integers of at least 1 (one fewer than "
                "channel_multipliers) and stem_stride "
                f"be at least 1; got level_strides={self.level_strides}, stem_stride={self.stem_stride}"
            )
        if self.resampling == "nearest" and (self.stem_stride != 1 or set(self.strides[1:]) - {2}):
            raise ValueError(
                "resampling='nearest' needs stem_stride=1 and level_strides of 2; got "
                f"stem_stride={self.stem_stride}, level_strides={self.level_strides}. Choose resampling='strided' for "
                "other strides."
            )
        outside = [level for level in self.attention_levels if not 0 <= level < num_levels]
        if outside:
            raise ValueError(f"attention_levels {outside} are outside the levels 0 to {num_levels - 1}")

    def _check_widths(self) -> None:
        if self.num_norm_groups is not None and self.num_norm_groups < 1:
            raise ValueError(f"num_norm_groups={self.num_norm_groups} must be at least 1, or None")
        widths = [self.stem_channels, *self.level_channels]
        indivisible = sorted({width for width in widths if width < 1 or width % self.norm_groups(width)})
        if indivisible:
            rule = f"{AUTOMATIC_NORM_GROUPS} groups must" if self.num_norm_groups is None else "must"
            raise ValueError(f"num_norm_groups={self.num_norm_groups}: {rule} divide every width; got {indivisible}")
