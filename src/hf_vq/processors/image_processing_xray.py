"""From X-ray images of any usual grey format to model tensors."""

import warnings
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from ..scalars import is_whole
from ..sharing import PushedWithCard
from .dicom_radiographs import is_real_radiograph
from .fields import interval
from .image_files import load_pixels, open_image
from .limits import check_pixels

WHITE_OF_DTYPE = {"uint8": 255.0, "uint16": 65535.0}
GREY_MODES = ("L", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")

RENDERED_VIEWS_ONLY = (
    "This model was trained only on views rendered from CT volumes, and this image is a real radiograph: how well the "
    "model does on those has not been measured, so do not rely on its output."
)
"""Warning of a processor whose model has seen no real radiograph."""


class XrayImageProcessorKwargs(TypedDict, total=False):
    """Fields of the processor that `from_pretrained` lets the caller override."""

    size: dict[str, int] | None
    output_range: list[float]
    views_rendered: bool


class XrayImageProcessor(PushedWithCard, BaseImageProcessor):
    """Brings X-ray images to one size and one intensity range; a file's full scale is kept, never stretched.

    Args:
        size: {"height": rows, "width": columns}; the images' own size when absent.
        output_range: values that black and white become.
        views_rendered: whether the model was trained on views rendered from CT volumes only; a DICOM radiograph, which
            is a real one, then gives a warning.

    Raises:
        ValueError: a field is malformed.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  (transformers reads this class attribute as it stands)
    valid_kwargs = XrayImageProcessorKwargs

    def __init__(
        self,
        size: dict[str, int] | None = None,
        output_range: list[float] | tuple[float, float] = (-1.0, 1.0),
        views_rendered: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = None if size is None else _checked_size(size)
        self.output_range = interval("output_range", output_range)
        if not isinstance(views_rendered, bool):
            raise ValueError(f"views_rendered: found {views_rendered!r}, expected true or false; correct the config")
        self.views_rendered = views_rendered

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Turns images into a batch of model tensors.

        Args:
            images: path of an image file or of a DICOM radiograph (CR, DX), PIL image (L, 16-bit, I with 0 ... 65535,
                F in [0, 1], RGB with three equal channels), array or tensor (rows, columns), which an axis of length 1
                may precede or follow, of uint8, uint16 or float in [0, 1], or a list of these.
            return_tensors: "pt" or "np".
            **kwargs: none is known; a misspelt argument is an error.

        Returns:
            `pixel_values` (B, 1, H, W) float32 within `output_range`.

        Raises:
            ValueError: an image is unreadable, of another mode or out of range; images of one batch differ in size
                while the processor has none; an argument is unknown.
        """
        if kwargs:
            raise ValueError(f"found argument {sorted(kwargs)}, expected images, return_tensors; remove it")
        sources = list(images) if isinstance(images, list | tuple) else [images]
        opened = [open_image(source) if isinstance(source, str | Path) else source for source in sources]
        if self.views_rendered and any(map(is_real_radiograph, opened)):
            warnings.warn(RENDERED_VIEWS_ONLY, stacklevel=3)
        pixels = [self._resize(torch.from_numpy(read_image(image))) for image in opened]
        shapes = {tuple(image.shape) for image in pixels}
        if len(shapes) != 1:
            raise ValueError(
                f"found images of sizes {sorted(shapes)} in one batch, expected exactly one size; "
                "set `size` in the processor"
            )
        low, high = self.output_range
        stacked = low + torch.stack(pixels)[:, None] * (high - low)
        return BatchFeature({"pixel_values": stacked}, tensor_type=return_tensors)

    def _resize(self, image: torch.Tensor) -> torch.Tensor:
        """Resamples a (rows, columns) image to the processor's size, averaging when it shrinks."""
        if self.size is None:
            return image
        target = (self.size["height"], self.size["width"])
        if tuple(image.shape) == target:
            return image
        resized = functional.interpolate(image[None, None], size=target, mode="bilinear", antialias=True)
        return resized[0, 0].clamp(0, 1)


def read_image(source: Any) -> npt.NDArray[np.float32]:
    """Reads an image as (rows, columns) float32 in [0, 1], 0 being black and 1 the white of its format.

    Args:
        source: path, PIL image, or array or tensor as `XrayImageProcessor.preprocess` takes them.

    Raises:
        ValueError: the image is unreadable, not grey, or its values are out of range.
    """
    if isinstance(source, str | Path):
        return _from_pil(open_image(source), str(source))
    if isinstance(source, Image.Image):
        return _from_pil(source, str(getattr(source, "filename", "") or "image"))
    if isinstance(source, torch.Tensor):
        return _from_array(source.detach().cpu().numpy(), "image")
    if isinstance(source, np.ndarray):
        return _from_array(source, "image")
    raise ValueError(
        f"image: found {type(source).__name__}, expected a path, a PIL image, an array or a tensor; convert it to one"
    )


def _from_pil(image: Image.Image, name: str) -> npt.NDArray[np.float32]:
    """A PIL image of a grey mode, or of mode RGB with equal channels, in [0, 1]."""
    check_pixels(image.height, image.width, name)
    load_pixels(image, name)
    if image.mode == "RGB":
        channels = np.asarray(image)
        if (channels != channels[..., :1]).any():
            raise ValueError(
                f"{name}: found a colour image, expected grey; convert it first, for example with image.convert('L')"
            )
        return _from_array(channels[..., 0], name)
    if image.mode not in GREY_MODES:
        raise ValueError(
            f"{name}: found image mode {image.mode}, expected L, I;16, I, F or grey RGB; "
            "convert it first, for example with image.convert('L')"
        )
    array = np.asarray(image)
    if image.mode == "I":
        if array.min() < 0 or array.max() > 65535:
            raise ValueError(
                f"{name}: found values {array.min()} ... {array.max()}, expected 0 ... 65535; rescale them"
            )
        array = array.astype(np.uint16)
    return _from_array(array, name)


def _from_array(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    """An array of a known type and range in [0, 1]; an axis for its one channel may stand first or last."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{name}: found an array of shape {array.shape}, expected (rows, columns); pass one grey image"
        )
    native = array.dtype.newbyteorder("=")
    if native.name in WHITE_OF_DTYPE:
        return (array / WHITE_OF_DTYPE[native.name]).astype(np.float32)
    if native.kind != "f":
        raise ValueError(f"{name}: found values of type {array.dtype}, expected uint8, uint16 or float; convert them")
    # written so that NaN fails it too
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(
            f"{name}: found values {array.min():g} ... {array.max():g}, expected floats in [0, 1]; rescale them"
        )
    return array.astype(np.float32)


def _checked_size(size: Any) -> dict[str, int]:
    """Height and width, both whole and positive."""
    fields = dict(size) if hasattr(size, "keys") else {}
    if set(fields) != {"height", "width"} or not all(is_whole(n) and n > 0 for n in fields.values()):
        raise ValueError(f"size: found {size!r}, expected {{'height': rows, 'width': columns}}; correct the config")
    check_pixels(fields["height"], fields["width"], "size")
    return {"height": fields["height"], "width": fields["width"]}
