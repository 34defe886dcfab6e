"""Distance of images or volumes in the features of a pretrained vision model."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, ImageProcessingMixin
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


class PerceptualLoss(nn.Module):
    """Mean squared distance of unit-length features, over all stages of a pretrained network that is never trained.

    As LPIPS (Zhang et al., 2018) without its learned weights of the channels. Volumes are compared by random slices
    along each of their three axes. Grey images are shown as three equal channels.

    Args:
        source: folder or Hub id of a vision model with safetensors weights that transformers can load as a backbone,
            such as a ResNet; no code from there is run. Mean and standard deviation of its input are read from its
            `preprocessor_config.json`, and are those of ImageNet where there is none.
        value_range: lowest and highest value of the images.
        slices_per_axis: slices of every volume along each axis.

    Raises:
        ValueError: if `source` is not such a model or lacks weights, or `slices_per_axis` is below 1.
        OSError: if it cannot be found.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, source: str, value_range: tuple[float, float], slices_per_axis: int = 4) -> None:
        super().__init__()
        if slices_per_axis < 1:
            raise ValueError(f"perceptual_slices={slices_per_axis} is out of range; it must be at least 1")
        self.value_range, self.slices_per_axis = value_range, slices_per_axis
        self.backbone = _load_backbone(source).eval().requires_grad_(False)
        mean, std = _statistics(source)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, sample: torch.Tensor, target: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Distance of two tensors of one shape, scalar; gradients flow into `sample`.

        Args:
            sample: `(B, C, *spatial)` with 1 or 3 channels and 2 or 3 spatial axes.
            target: same shape.
            generator: on the CPU; draws the slices of volumes, the same of both.

        Raises:
            ValueError: if there are other than 1 or 3 channels.
        """
        if sample.shape[1] not in (1, 3):
            raise ValueError(f"the perceptual loss needs images of 1 or 3 channels; got {sample.shape[1]}")
        if sample.ndim == 4:
            return self._distance(sample, target)
        axes = []
        for axis in (2, 3, 4):
            drawn = torch.randperm(sample.shape[axis], generator=generator)[: self.slices_per_axis].to(sample.device)
            axes.append(self._distance(*(_slices(volume, axis, drawn) for volume in (sample, target))))
        return torch.stack(axes).mean()

    def _distance(self, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self._features(target)
        stages = [(a - b).square().sum(dim=1).mean() for a, b in zip(self._features(sample), wanted, strict=True)]
        return torch.stack(stages).mean()

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        low, high = self.value_range
        colours = (images - low) / (high - low)
        maps = self.backbone((colours - self.mean) / self.std).feature_maps  # one grey channel broadcasts to three
        return [F.normalize(features.float(), dim=1) for features in maps]


def _slices(volumes: torch.Tensor, axis: int, indices: torch.Tensor) -> torch.Tensor:
    """`(B, C, D, H, W)` -> `(B * slices, C, rows, columns)`."""
    return volumes.index_select(axis, indices).movedim(axis, 1).flatten(0, 1)


def _load_backbone(source: str) -> nn.Module:
    config = AutoConfig.from_pretrained(source)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"--perceptual_model {source}: a model of type {config.model_type!r} is no backbone of transformers; "
            "choose one that is, such as a ResNet"
        )
    # Not through AutoBackbone, which asks the Hub for any name, that of a local folder too.
    backbone, info = MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(
        source, out_indices=list(range(1, len(config.stage_names))), use_safetensors=True, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"--perceptual_model {source} lacks weights: {sorted(info['missing_keys'])[:3]} ...")
    return backbone


def _statistics(source: str) -> tuple[list[float], list[float]]:
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        values = {}
    return values.get("image_mean", IMAGENET_DEFAULT_MEAN), values.get("image_std", IMAGENET_DEFAULT_STD)
