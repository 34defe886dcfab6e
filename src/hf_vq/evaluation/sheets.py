"""Pictures: X-rays, true CT, generated CT and error side by side; reconstructions of a tokenizer; generated images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..files import atomic_file
from ..processors.geometry import OPPOSITES, VIEW_AXES, VOLUME_AXES
from .metrics import DEFAULT_WINDOW, Window
from .optional import import_extra

PLANES: dict[str, tuple[str, str]] = {
    "axial": ("posterior", VIEW_AXES["frontal"][1]),
    "coronal": VIEW_AXES["frontal"],
    "sagittal": VIEW_AXES["lateral"],
}
"""Directions in which rows and columns of a displayed slice grow: the radiological convention, as in the views."""

BACKGROUND = "#101014"
FOREGROUND = "#e6e6ea"
MUTED = "#9a9aa6"
DOTS_PER_INCH = 160
_TILE = 1.15
_GAP = 0.05
_GROUP_GAP = 0.3
_ERROR_SCALE = (0.0, 25.0, "inferno")


@dataclass(frozen=True)
class SheetSubject:
    """One row of the evaluation sheet.

    Attributes:
        name: subject's name.
        views: image of each named view, shape (rows, cols), display units 0 to 1.
        true_hu: true volume, shape (D, H, W), in HU.
        generated_hu: one generated volume on the same grid, in HU.
        spacing: voxel size in mm along D, H and W.
        caption: short text under the name, such as a score.
    """

    name: str
    views: Mapping[str, npt.NDArray[Any]]
    true_hu: npt.NDArray[Any]
    generated_hu: npt.NDArray[Any]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    caption: str = ""


def oriented_slice(volume: npt.NDArray[Any], plane: str, index: int | None = None) -> npt.NDArray[Any]:
    """Slice of a volume as radiologists look at it: superior or anterior up, the patient's right on the left.

    A sagittal slice has anterior on the left, as the lateral view.

    Args:
        volume: shape (D, H, W), axes growing towards superior, anterior, right.
        plane: `axial`, `coronal` or `sagittal`.
        index: position along the perpendicular axis; the middle by default.

    Returns:
        Shape (rows, cols).

    Raises:
        ValueError: unknown plane or a volume with other than three axes.
    """
    if volume.ndim != 3:
        raise ValueError(f"volume has shape {volume.shape}; expected (D, H, W)")
    rows, columns, through = _plane_axes(plane)
    position = volume.shape[through] // 2 if index is None else index
    image = np.moveaxis(volume, (rows, columns, through), (0, 1, 2))[:, :, position]
    flips = tuple(slice(None, None, 1 if direction in VOLUME_AXES else -1) for direction in PLANES[plane])
    return np.asarray(image[flips])


def save_evaluation_sheet(
    path: str | Path,
    subjects: Sequence[SheetSubject],
    window: Window = DEFAULT_WINDOW,
    generated_title: str = "Generated CT (one sample)",
) -> Path:
    """Draw the views, three true slices, three generated slices and the absolute error of a few subjects.

    Args:
        path: PNG file to write; it appears only when it is whole.
        subjects: one row each, all with the same views.
        window: HU shown as black and as white; the error's colours end at a quarter of its width.
        generated_title: title of the generated slices.

    Returns:
        The path.

    Raises:
        ValueError: no subjects, or subjects with other views than the first.
        ImportError: matplotlib isn't installed.
    """
    if not subjects:
        raise ValueError("no subjects to draw; expected at least one")
    view_names = list(subjects[0].views)
    for subject in subjects:
        if list(subject.views) != view_names:
            raise ValueError(f"{subject.name} has the views {list(subject.views)}; expected {view_names} as the first")
    layout = _Layout(groups=(len(view_names), len(PLANES), len(PLANES), len(PLANES)), num_rows=len(subjects))
    figure = layout.new_figure()
    for group, title in enumerate(("Input X-rays", "True CT", generated_title, "Absolute error")):
        layout.group_title(figure, group, title)
    for row, subject in enumerate(subjects):
        _draw_subject(figure, layout, row, subject, window)
    low, high = window
    span = layout.group_span(1)[0], layout.group_span(2)[1]
    layout.colour_bar(figure, span, (low, high, "gray"), f"HU, window [{low:g}, {high:g}]")
    layout.colour_bar(figure, layout.group_span(3), (0.0, (high - low) / 4, "inferno"), "absolute error, HU")
    return _save(figure, path)


def save_reconstruction_sheet(
    inputs: torch.Tensor,
    reconstructions: torch.Tensor,
    path: str | Path,
    *,
    max_items: int | None = None,
    title: str = "",
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Path:
    """Draw inputs, reconstructions and absolute errors in three rows, for images or for the mid slices of volumes.

    Args:
        inputs: shape (B, 1, H, W), (B, 3, H, W) or (B, 1, D, H, W), values in `value_range`.
        reconstructions: same shape; clipped to `value_range`.
        path: PNG file to write; it appears only when it is whole.
        max_items: items drawn; by default 8 images or 3 volumes (three slices each).
        title: text above the picture, such as the training step.
        value_range: values shown as black and as white; errors are shown in percent of its width.

    Returns:
        The path.

    Raises:
        ValueError: unequal shapes, other axes or channels, an empty batch, or an empty value range.
        ImportError: matplotlib isn't installed.
    """
    _check_pair(inputs, reconstructions, value_range)
    is_volume = inputs.ndim == 5
    count = min(len(inputs), max_items or (3 if is_volume else 8))
    header = 0.25 + (0.25 if title else 0.0) + (0.2 if is_volume else 0.0)
    groups = (len(PLANES),) * count if is_volume else (count,)
    layout = _Layout(groups, num_rows=3, header=header, label_width=0.35)
    figure = layout.new_figure()
    if title:
        layout.text(figure, layout.width / 2, 0.16, title, size=9, color=FOREGROUND, weight="bold")
    for row, name in enumerate(("input", "reconstruction", "error")):
        layout.row_label(figure, row, name)
    for item in range(count):
        group, first_column = (item, 0) if is_volume else (0, item)
        if is_volume:
            layout.group_title(figure, group, f"volume {item + 1}", top=header - 0.3)
        pair = (_unit_range(tensor[item], value_range) for tensor in (inputs, reconstructions))
        _draw_reconstruction(figure, layout, group, first_column, *pair)
    span = layout.group_span(0)[0], layout.group_span(len(groups) - 1)[1]
    layout.colour_bar(figure, span, _ERROR_SCALE, "error, % of the range")
    return _save(figure, path)


def save_sample_sheet(path: str | Path, rows: Mapping[str, torch.Tensor], title: str = "") -> Path:
    """Draw generated images, one row for each class.

    Args:
        path: PNG file to write; it appears only when it is whole.
        rows: for the label of each row its images, shape (n, 1, H, W) or (n, 3, H, W), values in [0, 1], which they
            are clipped to.
        title: text above the picture.

    Returns:
        The path.

    Raises:
        ValueError: no rows, or rows that are empty or not of images.
        ImportError: matplotlib isn't installed.
    """
    for name, images in rows.items():
        if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
            raise ValueError(f"row {name!r} has shape {tuple(images.shape)}; expected (n, 1 or 3, H, W), n at least 1")
    if not rows:
        raise ValueError("no images to draw; expected at least one row")
    columns = max(len(images) for images in rows.values())
    layout = _Layout((columns,), len(rows), header=0.45 if title else 0.1, footer=0.05, label_width=0.35)
    figure = layout.new_figure()
    layout.text(figure, layout.width / 2, 0.2, title, size=9, color=FOREGROUND, weight="bold")
    for row, (name, images) in enumerate(rows.items()):
        layout.row_label(figure, row, name)
        for column, image in enumerate(images):
            array = _displayed(_unit_range(image, (0.0, 1.0)))
            _show(layout.tile(figure, row, 0, column, ""), array, (0.0, 1.0, "gray"))
    return _save(figure, path)


@dataclass(frozen=True)
class _Layout:
    """Positions in inches, from the upper left corner, of a grid of square tiles whose columns stand in groups."""

    groups: tuple[int, ...]
    num_rows: int
    header: float = 0.5
    footer: float = 0.62
    label_width: float = 0.5

    @property
    def width(self) -> float:
        return self.group_span(len(self.groups) - 1)[1] + 0.2

    @property
    def height(self) -> float:
        return self.header + self.num_rows * (_TILE + _GAP) + self.footer

    def group_span(self, group: int) -> tuple[float, float]:
        """Left and right edge of a group of tiles."""
        left = self.label_width + sum(self.groups[:group]) * (_TILE + _GAP) + group * (_GROUP_GAP - _GAP)
        return left, left + self.groups[group] * (_TILE + _GAP) - _GAP

    def new_figure(self) -> Any:
        """A figure with its own Agg canvas: no display, no state shared with the caller's pyplot."""
        create = import_extra("matplotlib.figure").Figure
        figure = create(figsize=(self.width, self.height), dpi=DOTS_PER_INCH, facecolor=BACKGROUND)
        import_extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
        return figure

    def axes(self, figure: Any, left: float, top: float, width: float, height: float) -> Any:
        """Axes at a position in inches."""
        bottom = self.height - top - height
        return figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def tile(self, figure: Any, row: int, group: int, column: int, title: str) -> Any:
        """Axes of one image; the title stands above the first row only."""
        left = self.group_span(group)[0] + column * (_TILE + _GAP)
        axes = self.axes(figure, left, self.header + row * (_TILE + _GAP), _TILE, _TILE)
        axes.set_axis_off()
        if row == 0:
            axes.set_title(title, fontsize=7, color=MUTED, pad=3)
        return axes

    def text(self, figure: Any, x: float, y: float, text: str, **style: Any) -> None:
        """Text centred on a position in inches."""
        figure.text(x / self.width, 1 - y / self.height, text, ha="center", va="center", **style)

    def group_title(self, figure: Any, group: int, title: str, top: float = 0.2) -> None:
        """Title above a group of tiles."""
        left, right = self.group_span(group)
        self.text(figure, (left + right) / 2, top, title, size=9, color=FOREGROUND, weight="bold")

    def row_label(self, figure: Any, row: int, label: str) -> None:
        """Upright text left of a row."""
        middle = self.header + row * (_TILE + _GAP) + _TILE / 2
        style = {"rotation": 90, "size": 6.5, "color": FOREGROUND, "linespacing": 1.5}
        self.text(figure, self.label_width / 2, middle, label, **style)

    def colour_bar(self, figure: Any, span: tuple[float, float], scale: tuple[float, float, str], label: str) -> None:
        """A horizontal bar in the footer, between two edges; `scale` is lowest value, highest value, colour map."""
        low, high, colour_map = scale
        length = min(3.2, 0.75 * (span[1] - span[0]))
        left = (span[0] + span[1] - length) / 2
        axes = self.axes(figure, left, self.height - self.footer + 0.12, length, 0.08)
        norm = import_extra("matplotlib.colors").Normalize(low, high)
        mappable = import_extra("matplotlib.cm").ScalarMappable(norm=norm, cmap=colour_map)
        ticks = np.linspace(low, high, 2 if length < 2 else 6 if low == 0 else 5)
        extend = "max" if low == 0 else "neither"
        bar = figure.colorbar(mappable, cax=axes, orientation="horizontal", extend=extend, ticks=ticks)
        bar.set_label(label, color=FOREGROUND, fontsize=6.5)
        bar.ax.tick_params(colors=MUTED, labelsize=6, length=2, width=0.5)
        bar.outline.set_edgecolor(MUTED)
        bar.outline.set_linewidth(0.5)


def _plane_axes(plane: str) -> tuple[int, int, int]:
    """Volume axes of a plane's rows, its columns and the direction through it."""
    if plane not in PLANES:
        raise ValueError(f"plane is {plane!r}; expected one of {sorted(PLANES)}")
    axes = [VOLUME_AXES.index(name if name in VOLUME_AXES else OPPOSITES[name]) for name in PLANES[plane]]
    (through,) = {0, 1, 2} - set(axes)
    return axes[0], axes[1], through


def _draw_subject(figure: Any, layout: _Layout, row: int, subject: SheetSubject, window: Window) -> None:
    """One row of tiles: views, true slices, generated slices, errors."""
    low, high = window
    layout.row_label(figure, row, f"{subject.name}\n{subject.caption}".strip())
    for column, (name, image) in enumerate(subject.views.items()):
        _show(layout.tile(figure, row, 0, column, name), image, (0.0, 1.0, "gray"))
    true, generated = (np.clip(volume, low, high) for volume in (subject.true_hu, subject.generated_hu))
    for column, plane in enumerate(PLANES):
        rows, columns, _ = _plane_axes(plane)
        aspect = subject.spacing[rows] / subject.spacing[columns]
        for group, volume in enumerate((true, generated, np.abs(true - generated)), start=1):
            axes = layout.tile(figure, row, group, column, plane)
            scale = (0.0, (high - low) / 4, "inferno") if group == 3 else (low, high, "gray")
            _show(axes, oriented_slice(volume, plane), scale, aspect)
            if group == 1 and PLANES[plane][1] == "left":
                shade = {"facecolor": BACKGROUND, "alpha": 0.6, "pad": 0.8, "linewidth": 0}
                axes.text(0.04, 0.95, "R", transform=axes.transAxes, color=FOREGROUND, size=6, va="top", bbox=shade)


def _check_pair(inputs: torch.Tensor, reconstructions: torch.Tensor, value_range: tuple[float, float]) -> None:
    """Raises ValueError for inputs and reconstructions that can't be drawn beside each other."""
    fits = (inputs.ndim == 4 and inputs.shape[1] in (1, 3)) or (inputs.ndim == 5 and inputs.shape[1] == 1)
    if inputs.shape != reconstructions.shape or not fits or not len(inputs):
        raise ValueError(
            f"inputs have shape {tuple(inputs.shape)} and reconstructions {tuple(reconstructions.shape)}; expected one "
            "shape (B, 1, H, W), (B, 3, H, W) or (B, 1, D, H, W)"
        )
    if not value_range[0] < value_range[1]:
        raise ValueError(f"value_range is {tuple(value_range)}; expected its lower end first, such as (-1, 1)")


def _draw_reconstruction(
    figure: Any, layout: _Layout, group: int, first_column: int, true: npt.NDArray[Any], made: npt.NDArray[Any]
) -> None:
    """Input, reconstruction and error of one image (one column) or of one volume's mid slices (three columns).

    Both have shape (C, H, W) or (1, D, H, W); the error is the mean over the channels.
    """
    is_volume = true.ndim == 4
    error = 100 * np.abs(true - made).mean(axis=0)
    for row, array in enumerate((true, made, error)):
        scale = _ERROR_SCALE if row == 2 else (0.0, 1.0, "gray")
        if not is_volume:
            _show(layout.tile(figure, row, group, first_column, f"{first_column + 1}"), _displayed(array), scale)
            continue
        volume = array if row == 2 else array[0]
        for column, plane in enumerate(PLANES):
            _show(layout.tile(figure, row, group, first_column + column, plane), oriented_slice(volume, plane), scale)


def _displayed(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An image as it is drawn: (H, W) stays, (1, H, W) loses its channel, (3, H, W) gets its channels last."""
    if image.ndim == 2:
        return image
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)


def _unit_range(tensor: torch.Tensor, value_range: tuple[float, float]) -> npt.NDArray[np.float32]:
    """A range of values to [0, 1], clipped, as a float32 array on the CPU."""
    low, high = value_range
    values = tensor.detach().float().cpu().numpy()
    return np.asarray(((values - low) / (high - low)).clip(0, 1), dtype=np.float32)


def _show(axes: Any, image: npt.NDArray[Any], scale: tuple[float, float, str], aspect: float = 1.0) -> None:
    """One image; `scale` is lowest value, highest value, colour map."""
    low, high, colour_map = scale
    axes.imshow(image, cmap=colour_map, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")


def _save(figure: Any, path: str | Path) -> Path:
    """Write the PNG beside its place, then move it there."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=figure.get_facecolor())
    return Path(path)
