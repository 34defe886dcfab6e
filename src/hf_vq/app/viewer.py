"""Pictures of volumes as radiologists look at them: slices under a window, colours over them, codes, X-rays.

Every picture is an RGB array with letters at its sides that say where in the patient they lie: R and L, A and P, S and
I. Axial and coronal slices have the patient's right at the left, sagittal ones the front.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from ..evaluation.metrics import Window
from ..evaluation.rendering import Camera, limit_resolution, render, turntable_angles
from ..evaluation.rendering_pictures import save_gif
from ..evaluation.sheets import BACKGROUND, FOREGROUND, PLANES, oriented_slice
from ..evaluation.volumes import GridVolume
from ..processors.geometry import OPPOSITES, VOLUME_AXES
from ..processors.image_processing_xray import read_image

Picture: TypeAlias = npt.NDArray[np.uint8]

WINDOWS: dict[str, Window] = {
    "lung": (-1350.0, 150.0),
    "soft tissue": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
    "full": (-1000.0, 1000.0),
}
"""HU shown as black and as white: width 1500 about -600, width 400 about 40, width 1800 about 400, and all of it."""

PICTURE_SIZE = 384
"""Pixels of the longest side of a volume's field of view."""

DEVIATION_LIMIT_HU = 300.0
"""Standard deviation, and absolute error, at which the colours over a slice end."""

_BAR_HEIGHT = 22
_TURNTABLE_VOXELS = 128
_ANGLES_AT_ONCE = 2
_VIEW_SIZE = 256
# black, violet, red, orange, pale yellow: brightness grows evenly, so that it reads in grey too
_HEAT = np.array([(0, 0, 4), (70, 15, 105), (165, 44, 96), (235, 105, 35), (250, 190, 40), (252, 255, 164)]) / 255
_GOLDEN = 0.6180339887498949


def through_axis(plane: str) -> int:
    """Index of the volume axis (D, H, W) that a plane's slices are counted along."""
    return ({0, 1, 2} - {_axis(direction) for direction in PLANES[plane]}).pop()


def slice_counts(volume: GridVolume) -> dict[str, int]:
    """Number of slices in each plane."""
    return {plane: volume.hu.shape[through_axis(plane)] for plane in PLANES}


def slice_direction(plane: str) -> str:
    """From where to where a plane's slices are counted, such as `inferior to superior`."""
    towards = VOLUME_AXES[through_axis(plane)]
    return f"{OPPOSITES[towards]} to {towards}"


def slice_picture(
    volume: GridVolume,
    plane: str,
    number: int,
    window: Window,
    deviation: npt.NDArray[Any] | None = None,
    size: int = PICTURE_SIZE,
) -> Picture:
    """One slice under a window, true to scale, with colours over it where the deviation is large.

    HU are interpolated between voxels before the window is applied.

    Args:
        volume: in HU.
        plane: `axial`, `coronal` or `sagittal`.
        number: slice, from 1 on, counted as `slice_direction` says; clipped to those there are.
        window: HU shown as black and as white.
        deviation: (D, H, W) in HU on the volume's grid; a scale of its colours then stands below.
        size: pixels of the longest side of the field of view; the picture is a square of that size.

    Returns:
        RGB, uint8 (size, size, 3), higher by the scale when there is one.

    Raises:
        ValueError: unknown plane or an empty window.
    """
    low, high = _checked(plane, window)
    index = _index(volume, plane, number)
    grey = (_enlarged(oriented_slice(volume.hu, plane, index), volume, plane, size) - low) / (high - low)
    image = np.repeat(grey.clip(0, 1)[..., None], 3, axis=2)
    if deviation is not None:
        over = _enlarged(oriented_slice(deviation, plane, index), volume, plane, size) / DEVIATION_LIMIT_HU
        colours, opacity = _heat(over), 0.85 * over.clip(0, 1)[..., None]
        image = image * (1 - opacity) + colours * opacity
    caption = f"{plane} {index + 1} of {volume.hu.shape[through_axis(plane)]}"
    drawn = _lettered(image, PLANES[plane], size, caption)
    return drawn if deviation is None else _with_scale(drawn, f"{DEVIATION_LIMIT_HU:g} HU")


def error_picture(
    volume: GridVolume, other: npt.NDArray[Any], plane: str, number: int, size: int = PICTURE_SIZE
) -> Picture:
    """Absolute difference of two volumes in one slice, in colours whose scale stands below.

    Args:
        volume: in HU; its grid is that of both.
        other: (D, H, W) HU.
        plane: as for `slice_picture`.
        number: as for `slice_picture`.
        size: as for `slice_picture`.
    """
    index = _index(volume, plane, number)
    difference = oriented_slice(np.abs(volume.hu - other), plane, index)
    over = _enlarged(difference, volume, plane, size) / DEVIATION_LIMIT_HU
    return _with_scale(_lettered(_heat(over), PLANES[plane], size, "absolute error"), f"{DEVIATION_LIMIT_HU:g} HU")


def code_picture(
    codes: npt.NDArray[np.int64], volume: GridVolume, plane: str, number: int, size: int = PICTURE_SIZE
) -> Picture:
    """The codes behind a slice, each code in a colour of its own.

    Args:
        codes: (d, h, w) that cover the volume's field of view.
        volume: gives the scale and the slice that is meant.
        plane: as for `slice_picture`.
        number: slice of the volume, as for `slice_picture`.
        size: as for `slice_picture`.
    """
    axis = through_axis(plane)
    layer = _index(volume, plane, number) * codes.shape[axis] // volume.hu.shape[axis]
    colours = code_colours(oriented_slice(codes, plane, layer))
    height, width = _drawn_size(volume, plane, size)
    enlarged = Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)
    caption = f"codes, layer {layer + 1} of {codes.shape[axis]}"
    return _lettered(np.asarray(enlarged) / 255, PLANES[plane], size, caption)


def code_colours(codes: npt.NDArray[np.int64]) -> Picture:
    """RGB of codes, uint8 `(*codes.shape, 3)`: hues a golden section apart, so that neighbouring numbers differ."""
    hue = (codes * _GOLDEN) % 1
    channels = [(hue * 6 + shift) % 6 for shift in (0, 4, 2)]
    pure = np.stack([np.clip(np.abs(channel - 3) - 1, 0, 1) for channel in channels], axis=-1)
    brightness = 0.55 + 0.45 * ((codes * _GOLDEN**2) % 1)
    return np.asarray((255 * brightness[..., None] * (0.25 + 0.75 * pure)).round(), dtype=np.uint8)


def view_picture(image: Image.Image, directions: tuple[str, str], caption: str = "", size: int = _VIEW_SIZE) -> Picture:
    """An X-ray as the model gets it, with letters at its sides.

    Args:
        image: whatever the view processor takes as an image.
        directions: in which its rows and its columns grow, such as `("inferior", "left")`.
        caption: text at its lower left corner.
        size: pixels of its longer side.

    Returns:
        RGB, uint8 (size, size, 3).
    """
    values = read_image(image)
    scale = size / max(values.shape)
    shape = [max(1, round(side * scale)) for side in values.shape]
    resized = Image.fromarray(values).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return _lettered(np.repeat(np.asarray(resized).clip(0, 1)[..., None], 3, axis=2), directions, size, caption)


def save_turntable(
    path: Path,
    volume: GridVolume,
    mode: str,
    on_progress: Callable[[int, int], None] | None = None,
    frames: int = 24,
    size: int = 192,
) -> Path:
    """Renders a volume from all sides as a GIF that starts with the frontal view.

    Args:
        path: file to write.
        volume: in HU.
        mode: `mip`, `bone`, `lung` or `soft`.
        on_progress: called with the number of frames done and of all frames.
        frames: of one turn, at least 1.
        size: pixels along each side.

    Raises:
        ValueError: unknown mode, no frames, or no pixels.
    """
    volume = limit_resolution(volume, _TURNTABLE_VOXELS)
    camera, angles = Camera.around([volume], size), turntable_angles(frames)
    pictures: list[torch.Tensor] = []
    for start in range(0, frames, _ANGLES_AT_ONCE):
        pictures.extend(render(volume, mode, angles[start : start + _ANGLES_AT_ONCE], camera))
        if on_progress is not None:
            on_progress(len(pictures), frames)
    return save_gif(path, [Image.fromarray(picture.numpy()) for picture in pictures])


def _checked(plane: str, window: Window) -> Window:
    if plane not in PLANES:
        raise ValueError(f"plane: found {plane!r}, expected one of {list(PLANES)}; choose one")
    if not window[0] < window[1]:
        raise ValueError(f"window: found {tuple(window)}, expected the lower HU first, such as (-1000, 1000)")
    return window


def _axis(direction: str) -> int:
    """Index of the volume axis along which an anatomical direction goes."""
    return VOLUME_AXES.index(direction if direction in VOLUME_AXES else OPPOSITES[direction])


def _index(volume: GridVolume, plane: str, number: int) -> int:
    """Index of a slice from its number, which may lie outside after another volume has come."""
    return int(np.clip(int(number) - 1, 0, volume.hu.shape[through_axis(plane)] - 1))


def _drawn_size(volume: GridVolume, plane: str, size: int) -> tuple[int, int]:
    """Height and width in pixels of a plane's slices, on a scale on which the longest side has `size`."""
    sides = [count * step for count, step in zip(volume.hu.shape, volume.spacing, strict=True)]
    height, width = (max(1, round(size * sides[_axis(direction)] / max(sides))) for direction in PLANES[plane])
    return height, width


def _enlarged(image: npt.NDArray[Any], volume: GridVolume, plane: str, size: int) -> npt.NDArray[np.float32]:
    """A slice's values, interpolated to its size in pixels, averaged where that has fewer."""
    height, width = _drawn_size(volume, plane, size)
    values = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    return np.asarray(values.resize((width, height), Image.Resampling.BILINEAR))


def _heat(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Colours in [0, 1] of values in [0, 1], clipped: black, violet, red, orange, pale yellow."""
    points = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, points, channel) for channel in _HEAT.T], axis=-1)


def _lettered(image: npt.NDArray[Any], directions: Sequence[str], size: int, caption: str) -> Picture:
    """An image with values in [0, 1] in the middle of a dark square, letters at its sides and a caption below."""
    square = Image.new("RGB", (size, size), BACKGROUND)
    content = Image.fromarray((255 * image).round().astype(np.uint8))
    square.paste(content, ((size - content.width) // 2, (size - content.height) // 2))
    draw, font = ImageDraw.Draw(square), ImageFont.load_default(max(11, size // 17))
    down, across = directions
    middle, margin = size / 2, size / 64
    style: dict[str, Any] = {"fill": FOREGROUND, "font": font, "stroke_width": 1, "stroke_fill": BACKGROUND}
    for place, anchor, direction in (
        ((middle, margin), "ma", OPPOSITES[down]),
        ((middle, size - margin), "md", down),
        ((margin, middle), "lm", OPPOSITES[across]),
        ((size - margin, middle), "rm", across),
    ):
        draw.text(place, direction[0].upper(), anchor=anchor, **style)
    draw.text((margin, size - margin), caption, anchor="ld", **style)
    return np.asarray(square)


def _with_scale(picture: Picture, limit: str) -> Picture:
    """The picture above a bar of the colours from 0 to a limit."""
    width = picture.shape[1]
    colours = _heat(np.tile(np.linspace(0, 1, width), (_BAR_HEIGHT, 1)))
    bar = Image.fromarray((255 * colours).round().astype(np.uint8))
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(13)
    draw.text((6, _BAR_HEIGHT / 2), "0 HU", FOREGROUND, font, anchor="lm")
    draw.text((width - 6, _BAR_HEIGHT / 2), f"{limit} or more", BACKGROUND, font, anchor="rm")
    return np.concatenate([picture, np.asarray(bar)])
