"""Configuration of the VQ image classifier and of the AlexNet that it can be built on."""

from dataclasses import field, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, ResNetConfig, ViTConfig

from ..quantizers import QuantizerConfig, VectorQuantizerConfig, quantizer_config

# A size beyond it is a slip of the pen, which would fill the memory before anyone saw it.
MAX_NUMBER = 1 << 16


@strict
class AlexNetConfig(PreTrainedConfig):
    r"""Architecture of AlexNet in its one-column form (Krizhevsky, 2014): five convolutions and two wide linear layers.

    The defaults are for images of about 224 pixels. For small ones lower `stem_stride`: 28 pixels need 1.

    Args:
        num_channels (`int`): channels of the image.
        image_size (`int`): height and width in pixels.
        channels (`list[int]`): widths of the five convolutions.
        stem_kernel_size (`int`): kernel of the first convolution.
        stem_stride (`int`): stride of the first convolution.
        stem_padding (`int`): padding of the first convolution.
        pooled_size (`int`): side of the grid to which the last feature map is averaged in front of the linear layers.
        hidden_size (`int`): width of both linear layers.
        dropout (`float`): of the inputs of both linear layers, in training.
    """

    model_type = "hf_vq_alexnet"

    num_channels: int = 3
    image_size: int = 224
    channels: list[int] | tuple[int, ...] = (64, 192, 384, 256, 256)
    stem_kernel_size: int = 11
    stem_stride: int = 4
    stem_padding: int = 2
    pooled_size: int = 6
    hidden_size: int = 4096
    dropout: float | int = 0.5

    def validate_architecture(self) -> None:
        """Part of validation whenever a config is made: widths in range and an image large enough for every layer.

        Raises:
            ValueError: naming the field, its value and what was expected; making a config wraps it into
                `huggingface_hub.errors.StrictDataclassClassValidationError`, as for every transformers config.
        """
        if len(self.channels) != 5:
            raise ValueError(f"channels={list(self.channels)} must be five widths, one for each convolution")
        for name in (
            "num_channels",
            "image_size",
            "channels",
            "stem_kernel_size",
            "stem_stride",
            "pooled_size",
            "hidden_size",
        ):
            _check_sizes(name, getattr(self, name))
        _check_sizes("stem_padding", self.stem_padding, smallest=0)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is out of range; it must be at least 0 and below 1")
        side = (self.image_size + 2 * self.stem_padding - self.stem_kernel_size) // self.stem_stride + 1
        for _ in range(3):  # poolings, of kernel 3 and stride 2, the only layers behind the stem that shrink
            side = (side - 3) // 2 + 1
        if side < 1:
            raise ValueError(
                f"image_size={self.image_size} leaves nothing of the image after stem_stride={self.stem_stride} and "
                "three poolings; lower stem_stride and stem_kernel_size, or enlarge the image"
            )


BACKBONE_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "alexnet": AlexNetConfig,
    "resnet": ResNetConfig,
    "vit": ViTConfig,
}
# ResNet-18 (He et al., 2016) and ViT-Tiny (Touvron et al., 2021) in the fields of transformers' configs.
BACKBONE_DEFAULTS: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "resnet": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "vit": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
}
# Fields of the other backbones' configs, which transformers does not check, that are a size or one for each stage.
BACKBONE_SIZES: dict[str, tuple[str, ...]] = {
    "alexnet": (),
    "resnet": ("embedding_size", "hidden_sizes", "depths"),
    "vit": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"),
}


@strict
class VQImageClassifierConfig(PreTrainedConfig):
    r"""Architecture of a `VQForImageClassification`: a network, a place in it, and the quantizer at that place.

    Args:
        backbone (`str`): `"alexnet"`, `"resnet"` or `"vit"`.
        backbone_config (`dict`, *optional*): fields of `AlexNetConfig`, or of transformers' `ResNetConfig` or
            `ViTConfig`; the others are those of AlexNet, ResNet-18 or ViT-Tiny. Image size and channels are not among
            them: they stand in this config.
        image_size (`int`): height and width in pixels.
        num_channels (`int`): channels of the image. Pipelines of transformers hand over images as RGB, i.e. 3.
        quantizer_position (`str`, *optional*): after which part of the network the features are quantised: `"conv1"` to
            `"conv5"` of AlexNet (behind its activation and pooling), `"embedder"` or `"stage1"` to `"stage4"` of
            ResNet, `"layer0"` to the last but one of ViT; the middle of the network by default, as Huh et al., 2023,
            section 5, place it. Of a ViT the patch tokens are quantised and the class token is not; behind the last
            layer only the class token is read, so that place does not exist.
        quantizer (`dict`, *optional*): fields of `VectorQuantizerConfig`, or, with `"quantizer_type"`, of another
            quantizer's config (see `build_quantizer`). The codes of a vector quantizer are as wide as the network at
            this place, which need not be said; to the few channels of the other quantizers a learned linear map leads,
            and another one back. `None` for no quantisation.

    `id2label` and `num_labels` are those of every transformers config.

    Raises:
        ValueError: if the backbone, the place or a field is unknown, or the quantizer does not fit the place.

    Example:
        >>> from hf_vq import VQForImageClassification, VQImageClassifierConfig
        >>> config = VQImageClassifierConfig(backbone="resnet", num_labels=10, quantizer={"codebook_size": 1024})
        >>> model = VQForImageClassification(config)
    """

    model_type = "hf_vq_image_classifier"
    # Trainer keeps and joins whatever is not named here over all batches; scalars do not join.
    keys_to_ignore_at_inference = [  # noqa: RUF012  (Trainer adds a list to it)
        "quantizer_loss",
        "commitment_loss",
        "codebook_loss",
        "codes",
        "perplexity",
        "active_fraction",
    ]

    backbone: str = "resnet"
    backbone_config: dict[str, Any] | None = None
    image_size: int = 224
    num_channels: int = 3
    quantizer_position: str | None = None
    quantizer: dict[str, Any] | None = field(default_factory=dict)

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone not in BACKBONE_CONFIGS:
            raise ValueError(f"backbone={self.backbone!r} is unknown; choose one of {tuple(BACKBONE_CONFIGS)}")
        self._check_backbone_fields(self.backbone_config or {})
        self.backbone_config = {**BACKBONE_DEFAULTS[self.backbone], **(self.backbone_config or {})}
        self._check_sizes()
        if self.quantizer_position is None:
            self.quantizer_position = list(self.positions)[(len(self.positions) - 1) // 2]
        if self.quantizer_position not in self.positions:
            raise ValueError(
                f"quantizer_position={self.quantizer_position!r} is no place in {self.backbone!r}; choose one of "
                f"{tuple(self.positions)}"
            )
        if self.quantizer is not None:
            self.quantizer = self._fitted_quantizer(self.quantizer)
        super().__post_init__(**kwargs)

    @property
    def network_config(self) -> PreTrainedConfig:
        """The backbone's own config, complete."""
        config_class = BACKBONE_CONFIGS[self.backbone]
        sizes = {"num_channels": self.num_channels, "image_size": self.image_size}
        known = {each.name for each in fields(config_class)}  # a ResNet's config has no image size: it takes any
        shared = {name: value for name, value in sizes.items() if name in known}
        return config_class(**shared, **(self.backbone_config or {}))

    @property
    def positions(self) -> dict[str, int]:
        """The places a quantizer can have, in the order of the network, each with the width of the features there."""
        network: Any = self.network_config
        if self.backbone == "alexnet":
            return {f"conv{number}": width for number, width in enumerate(network.channels, start=1)}
        if self.backbone == "resnet":
            stages = {f"stage{number}": width for number, width in enumerate(network.hidden_sizes, start=1)}
            return {"embedder": network.embedding_size, **stages}
        return {f"layer{number}": network.hidden_size for number in range(network.num_hidden_layers - 1)}

    @property
    def quantizer_depth(self) -> int:
        """How many blocks of the network (embedder and stages, convolutions, layers) are in front of the quantizer."""
        return 1 + list(self.positions).index(str(self.quantizer_position))

    @property
    def quantizer_width(self) -> int:
        """Channels of the features at the quantizer's place."""
        return self.positions[str(self.quantizer_position)]

    @property
    def quantizer_config(self) -> QuantizerConfig | None:
        """The quantizer's fields as their own config; `None` without one."""
        return None if self.quantizer is None else quantizer_config(self.quantizer)

    def _check_backbone_fields(self, values: dict[str, Any]) -> None:
        base = {each.name for each in fields(PreTrainedConfig)} | {"num_channels", "image_size"}
        known = [each.name for each in fields(BACKBONE_CONFIGS[self.backbone]) if each.name not in base]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"backbone_config has no field {unknown[0]!r} for {self.backbone!r}; the fields are {known}, and "
                "num_channels and image_size stand beside it"
            )

    def _check_sizes(self) -> None:
        for name in ("image_size", "num_channels"):
            _check_sizes(name, getattr(self, name))
        network: Any = self.network_config
        for name in BACKBONE_SIZES[self.backbone]:
            _check_sizes(f"backbone_config.{name}", getattr(network, name))
        if self.backbone == "resnet" and (not network.depths or len(network.depths) != len(network.hidden_sizes)):
            raise ValueError(
                f"backbone_config.depths={list(network.depths)} and hidden_sizes={list(network.hidden_sizes)} must "
                "have one entry for each stage, and at least one"
            )
        if self.backbone == "vit":
            self._check_vit(network)

    def _check_vit(self, network: Any) -> None:
        if network.num_hidden_layers < 2:
            raise ValueError(
                f"num_hidden_layers={network.num_hidden_layers} leaves no place between two layers; take 2 or more"
            )
        size = network.patch_size
        if not isinstance(size, int) or self.image_size % size:
            raise ValueError(f"patch_size={size} must be one integer that divides image_size={self.image_size}")
        if network.hidden_size % network.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={network.num_attention_heads} must divide hidden_size={network.hidden_size}"
            )

    def _fitted_quantizer(self, values: dict[str, Any]) -> dict[str, Any]:
        """All fields of the quantizer, with the width and the layout of the features at its place."""
        width, channel_last = self.quantizer_width, self.backbone == "vit"
        is_vector = values.get("quantizer_type", "vector") == VectorQuantizerConfig.quantizer_type
        derived = {"channel_last": channel_last, **({"codebook_dim": width} if is_vector else {})}
        config = quantizer_config({**derived, **values})
        if is_vector and config.codebook_dim != width:
            raise ValueError(
                f"quantizer.codebook_dim={config.codebook_dim} contradicts the {width} channels at "
                f"quantizer_position={self.quantizer_position!r}; leave it out, or choose another place"
            )
        if config.channel_last != channel_last:
            raise ValueError(
                f"quantizer.channel_last={config.channel_last} does not fit the features of {self.backbone!r}; leave "
                "it out"
            )
        return config.to_dict()


def _check_sizes(name: str, value: Any, smallest: int = 1) -> None:
    """Raises ValueError unless a number, or each number of a list, is at least `smallest` and of this world."""
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    if not all(smallest <= number <= MAX_NUMBER for number in numbers):
        raise ValueError(f"{name}={value} is out of range; it must be at least {smallest} and at most {MAX_NUMBER}")
