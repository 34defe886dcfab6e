"""Pictures of volumes with Pillow alone: sheets of slices and of maxima, and turntables as animated GIF."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from ..files import atomic_file
from ..processors.geometry import OPPOSITES, VOLUME_AXES
from .metrics import DEFAULT_WINDOW, Window
from .rendering import MIP_WINDOW
from .sheets import BACKGROUND, FOREGROUND, PLANES, oriented_slice
from .volumes import GridVolume

_GAP = 4
_CAPTION = 16
_PALETTE_FRAMES = 12

Tile = tuple[Image.Image, str]


def slice_sheet(
    volumes: Sequence[GridVolume],
    labels: Sequence[str],
    count: int = 5,
    *,
    window: Window = DEFAULT_WINDOW,
    size: int = 256,
) -> Image.Image:
    """Axial, coronal and sagittal slices of one or several volumes, a row for each plane and volume.

    Slices go from superior, anterior and right on, at equal steps over the first volume's field of view. The other
    volumes are cut at the same distances from the middle of theirs, and all are drawn to one scale.

    Args:
        volumes: at least one, in HU.
        labels: one for each volume; it stands before the plane's name.
        count: slices of each plane.
        window: HU shown as black and as white.
        size: pixels of the longest side of a field of view.

    Returns:
        An RGB picture.

    Raises:
        ValueError: no volumes, unequal numbers of volumes and labels, fewer than one slice, or an empty window.
    """
    _check(volumes, labels, window)
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1 slice")
    scale = _scale(volumes, size)
    fractions = 0.5 - np.arange(1, count + 1) / (count + 1)
    rows = []
    for plane in PLANES:
        through = _axes(plane)[2]
        offsets = fractions * volumes[0].hu.shape[through] * volumes[0].spacing[through]
        for volume, label in zip(volumes, labels, strict=True):
            rows.append([_slice_tile(volume, plane, offset, window, scale, label) for offset in offsets])
    return _grid(rows)


def mip_sheet(
    volumes: Sequence[GridVolume], labels: Sequence[str], *, window: Window = MIP_WINDOW, size: int = 256
) -> Image.Image:
    """Largest HU along each of the three axes, a row for each volume; arguments as for `slice_sheet`.

    Raises:
        ValueError: no volumes, unequal numbers of volumes and labels, or an empty window.
    """
    _check(volumes, labels, window)
    scale = _scale(volumes, size)
    rows = []
    for volume, label in zip(volumes, labels, strict=True):
        projections = {plane: volume.hu.max(axis=_axes(plane)[2], keepdims=True) for plane in PLANES}
        rows.append(
            [
                (_drawn(oriented_slice(hu, plane), volume.spacing, plane, window, scale), f"{label} {plane}".strip())
                for plane, hu in projections.items()
            ]
        )
    return _grid(rows)


def turntable_frames(
    images: Sequence[torch.Tensor], labels: Sequence[str], background: str = "black"
) -> list[Image.Image]:
    """Frames of one or several turntables side by side, each under its label.

    Args:
        images: for each volume uint8 frames (angles, rows, columns, 3), as `render` returns them.
        labels: one for each volume; a frame has no line of text when all are empty.
        background: colour between and above the images, as Pillow names it.

    Raises:
        ValueError: no volumes, other labels than volumes, or turntables of unequal shapes.
    """
    shapes = {tuple(frames.shape) for frames in images}
    if len(shapes) != 1 or len(images) != len(labels):
        raise ValueError(
            f"found {len(images)} turntables of shapes {sorted(shapes)} and {len(labels)} labels; expected one label "
            "for each turntable, all of one shape"
        )
    return [
        _grid(
            [[(Image.fromarray(image.numpy()), label) for image, label in zip(frame, labels, strict=True)]], background
        )
        for frame in zip(*images, strict=True)
    ]


def save_gif(path: str | Path, frames: Sequence[Image.Image], milliseconds: int = 80) -> Path:
    """Write an animated GIF that loops for ever.

    All frames share one palette of the colours of up to twelve of them and are not dithered: nothing flickers, and
    what stays the same takes no space. Frames equal to the one before become a longer showing of that one.

    Args:
        path: file to write; it appears only when it is whole.
        frames: RGB pictures of one size, at least one.
        milliseconds: how long each is shown; GIF counts in steps of ten.

    Raises:
        ValueError: no frames, or less than ten milliseconds.
    """
    if not frames or milliseconds < 10:
        raise ValueError(f"found {len(frames)} frames of {milliseconds} ms; expected at least one, of 10 ms or more")
    chosen = [frames[index * len(frames) // _PALETTE_FRAMES] for index in range(min(_PALETTE_FRAMES, len(frames)))]
    colours = Image.fromarray(np.concatenate([np.asarray(frame) for frame in chosen]))
    palette = colours.quantize(256, Image.Quantize.MEDIANCUT)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    with atomic_file(path) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=True
        )
    return Path(path)


def save_png(path: str | Path, picture: Image.Image) -> Path:
    """Write a PNG file that appears only when it is whole."""
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    return Path(path)


def _axes(plane: str) -> tuple[int, int, int]:
    """Volume axes of a plane's rows, of its columns and through it."""
    rows, columns = (VOLUME_AXES.index(way if way in VOLUME_AXES else OPPOSITES[way]) for way in PLANES[plane])
    return rows, columns, 3 - rows - columns


def _scale(volumes: Sequence[GridVolume], size: int) -> float:
    """Pixels per mm with which the longest side of all fields of view has `size` pixels."""
    sides = [count * step for volume in volumes for count, step in zip(volume.hu.shape, volume.spacing, strict=True)]
    return size / max(sides)


def _slice_tile(volume: GridVolume, plane: str, offset: float, window: Window, scale: float, label: str) -> Tile:
    """The slice at a distance in mm from the middle, black where the volume doesn't reach."""
    through = _axes(plane)[2]
    count = volume.hu.shape[through]
    index = round(offset / volume.spacing[through] + (count - 1) / 2)
    inside = 0 <= index < count
    image = oriented_slice(volume.hu, plane, index if inside else 0)
    if not inside:
        image = np.full_like(image, window[0])
    caption = f"{label} {plane} {index + 1}/{count}" if inside else f"{label} {plane} outside"
    return _drawn(image, volume.spacing, plane, window, scale), caption.strip()


def _drawn(
    image: npt.NDArray[Any], spacing: tuple[float, float, float], plane: str, window: Window, scale: float
) -> Image.Image:
    """A slice as a grey picture of its size in mm: averaged where it shrinks, nearest voxels where it grows."""
    low, high = window
    grey = np.clip((image - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
    height, width = (
        max(1, round(count * spacing[axis] * scale)) for count, axis in zip(image.shape, _axes(plane), strict=False)
    )
    picture = Image.fromarray(grey).resize((width, height), Image.Resampling.BOX).convert("RGB")
    if PLANES[plane][1] == "left":
        style = {"fill": FOREGROUND, "font": _font(), "stroke_width": 1, "stroke_fill": BACKGROUND}
        ImageDraw.Draw(picture).text((3, 1), "R", **style)
    return picture


def _grid(rows: Sequence[Sequence[Tile]], background: str = BACKGROUND) -> Image.Image:
    """Pictures in rows, each under its caption; a picture smaller than its cell stands in the middle of it."""
    caption = _CAPTION if any(text for row in rows for _, text in row) else 0
    widths = [max(row[column][0].width for row in rows) for column in range(len(rows[0]))]
    heights = [max(picture.height for picture, _ in row) for row in rows]
    size = (sum(widths) + _GAP * (len(widths) + 1), sum(heights) + (caption + _GAP) * len(heights) + _GAP)
    sheet = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for (picture, text), width in zip(row, widths, strict=True):
            if text:
                draw.text((left + width / 2, top + caption / 2), text, FOREGROUND, _font(), anchor="mm")
            corner = (left + (width - picture.width) // 2, top + caption + (height - picture.height) // 2)
            sheet.paste(picture, corner)
            left += width + _GAP
        top += height + caption + _GAP
    return sheet


def _font() -> Any:
    return ImageFont.load_default(12)


def _check(volumes: Sequence[GridVolume], labels: Sequence[str], window: Window) -> None:
    """Raises ValueError for what can't be drawn."""
    if not volumes or len(volumes) != len(labels):
        raise ValueError(f"found {len(volumes)} volumes and {len(labels)} labels; expected at least one, one each")
    if not window[0] < window[1]:
        raise ValueError(f"window is {tuple(window)}; expected the lower HU first, such as (-1000, 1000)")
