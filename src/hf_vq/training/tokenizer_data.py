"""The kinds of data that a tokenizer is trained on, behind one interface."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from ..data import ImageDataset, PairedDataset, make_image_processor
from ..data.checking import usable
from ..models import VQTokenizerConfig
from ..processors import CTVolumeProcessor, XrayImageProcessor
from .arguments import check_fields

DATA_TYPES = ("paired", "images")
SPLITS = ("train", "validation")
DEFAULT_IMAGE_SIZE = 32


@dataclass(frozen=True)
class TokenizerData:
    """What a tokenizer is trained on.

    Attributes:
        train: items with `pixel_values` or, for the views of paired data, `view_pixel_values`.
        validation: the same of other subjects or images.
        processor: makes these items, and is saved beside the tokenizer.
        value_range: lowest and highest value of the processor's output.
    """

    train: Dataset
    validation: Dataset
    processor: Any
    value_range: tuple[float, float]

    @staticmethod
    def pixels_of(batch: dict[str, Any]) -> torch.Tensor:
        """Images `(B, C, H, W)`, volumes `(B, 1, D, H, W)`, or all views of all subjects in one batch `(B * V, 1, H,
        W)`."""
        return batch["view_pixel_values"].flatten(0, 1) if "view_pixel_values" in batch else batch["pixel_values"]

    @staticmethod
    def per_image(batch: dict[str, Any], generators: Sequence[torch.Generator]) -> list[torch.Generator]:
        """For each of `pixels_of(batch)` the generator of its sample; all views of a subject share one."""
        views = batch["view_pixel_values"].shape[1] if "view_pixel_values" in batch else 1
        return [generator for generator in generators for _ in range(views)]


def open_tokenizer_data(
    data_type: str,
    source: str,
    config: VQTokenizerConfig,
    processor_fields: dict[str, Any],
    cache: bool = False,
    columns: Mapping[str, str | None] | None = None,
    on_error: str = "stop",
) -> TokenizerData:
    """The data that a tokenizer of this config can be trained on, and the processor for them.

    Args:
        data_type: `"paired"`: volumes or, with `spatial_dims=2`, their views; `"images"`: an image data set.
        source: folder or data set id.
        config: of the tokenizer; its `spatial_dims` and `in_channels` choose the processor.
        processor_fields: fields of the `CTVolumeProcessor`, of the `XrayImageProcessor`, or `size` of square images.
        cache: keep all processed items in memory.
        columns: `image_column` and `label_column` of an image data set, see `ImageDataset`.
        on_error: of paired data: stop where files cannot be used, or skip their subjects; see `data.checking.usable`.

    Raises:
        ValueError: if `data_type`, `on_error` or a field is unknown, or the data cannot be read.
    """
    if data_type not in DATA_TYPES:
        raise ValueError(f"--data_type {data_type} is unknown; choose one of {DATA_TYPES}")
    if data_type == "images":
        return _image_data(source, config, processor_fields, {"cache": cache, **(columns or {})})
    is_volume = config.spatial_dims == 3
    processor_class = CTVolumeProcessor if is_volume else XrayImageProcessor
    check_fields(processor_fields, processor_class, "--processor")
    processor = processor_class(**processor_fields)
    skip = on_error == "skip"
    loads: dict[str, Any] = {"volume_processor" if is_volume else "view_processor": processor, "cache": cache}
    train, validation = (PairedDataset(source, split, **loads, allow_missing=skip) for split in SPLITS)
    if isinstance(processor, XrayImageProcessor) and "views_rendered" not in processor_fields:
        processor.views_rendered = train.beam is not None
    low, high = processor.output_range
    chosen = {
        split: usable(dataset, split, on_error) for split, dataset in zip(SPLITS, (train, validation), strict=True)
    }
    if skip:
        return TokenizerData(
            Subset(train, chosen["train"]), Subset(validation, chosen["validation"]), processor, (low, high)
        )
    return TokenizerData(train, validation, processor, (low, high))


def _image_data(
    source: str, config: VQTokenizerConfig, fields: dict[str, Any], options: dict[str, Any]
) -> TokenizerData:
    if config.spatial_dims != 2:
        raise ValueError(f"--data_type images needs a tokenizer with spatial_dims=2; got {config.spatial_dims}")

    def image_processor(size: int = DEFAULT_IMAGE_SIZE) -> Any:
        return make_image_processor(size, channels=config.in_channels)

    check_fields(fields, image_processor, "--processor")
    processor = image_processor(**fields)
    train, validation = (ImageDataset(source, split, processor, **options) for split in ("train", "validation"))
    return TokenizerData(train, validation, processor, (-1.0, 1.0))
