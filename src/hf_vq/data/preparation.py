"""From one scan on disk to one subject of a paired data set: its volume on the model's grid, and its views."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from ..files import atomic_file
from ..processors import XrayImageProcessor
from ..processors.geometry import (
    field_of_view,
    grid_affine,
    import_nibabel,
    to_array_axes,
    to_canonical,
    to_tensor_axes,
    voxel_spacing,
)
from ..processors.radiographs import render_views
from ..processors.resampling import resample
from ..processors.scans import read_scan
from .body import body_mask
from .dicom import read_series
from .paired_sources import LABEL_COLUMN
from .scan_search import ScanSource

CENTERS = ("scan", "body")
"""What the prepared grid lies about: the middle of the scan's field of view, or of the body's bounding box."""

AIR_HU = -1000.0
LOWEST_HU = -1024.0
HIGHEST_HU = 32767.0
MASK_VOXEL = 2.0
"""Voxel size in mm on which the body is looked for: fine enough for the skin, and far quicker than the scan's own."""


@dataclass(frozen=True)
class PreparationConfig:
    """How scans are brought onto one grid.

    Attributes:
        size: voxels along D, H, W (superior, anterior, right).
        spacing: voxel size along D, H, W, mm.
        center: one of `CENTERS`.
        remove_table: replace everything outside the body by air, in the volume and in its views.
        hu_window: lowest and highest HU of the volumes; what lies outside is clipped. The views are rendered from
            values that are not clipped.
        views: names of the views; those that are rendered must be known to `hf_vq.processors.geometry.find_view`.
        image_size: rows and columns of each view. A view shows the grid's whole field of view, so pixels are square
            only where the two sides' lengths are as the rows to the columns.
        oversampling: voxels along each axis of the grid that views are rendered from, for each voxel of the volume.
        modalities: values of the DICOM tag Modality that are accepted.
    """

    size: tuple[int, int, int] = (128, 128, 128)
    spacing: tuple[float, float, float] = (2.5, 2.5, 2.5)
    center: str = "scan"
    remove_table: bool = False
    hu_window: tuple[float, float] | None = None
    views: tuple[str, ...] = ("frontal", "lateral")
    image_size: tuple[int, int] = (256, 256)
    oversampling: int = 2
    modalities: tuple[str, ...] = ("CT",)

    def __post_init__(self) -> None:
        for name, count in (("size", 3), ("spacing", 3), ("image_size", 2)):
            values = getattr(self, name)
            if len(values) != count or not all(0 < value < math.inf for value in values):
                raise ValueError(f"{name}: found {values}, expected {count} numbers above 0; correct them")
        if self.oversampling < 1:
            raise ValueError(f"oversampling: found {self.oversampling}, expected 1 or more; raise it")
        if self.center not in CENTERS:
            raise ValueError(f"center: found {self.center!r}, expected one of {list(CENTERS)}; choose one")
        window = self.hu_window
        if window is not None and not LOWEST_HU <= window[0] < window[1] <= HIGHEST_HU:
            raise ValueError(
                f"hu_window: found {window}, expected two numbers from {LOWEST_HU:g} to {HIGHEST_HU:g}, the lower one "
                "first; correct them"
            )
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f"views: found {list(self.views)}, expected at least one and each once; correct them")
        taken = [view for view in self.views if view in ("file_name", "subject", LABEL_COLUMN)]
        if taken:
            raise ValueError(f"views: found {taken}, which metadata.csv calls other columns by; rename them")


@dataclass(frozen=True)
class PreparedVolume:
    """A subject ready to be written.

    Attributes:
        volume_hu: (D, H, W) int16 HU.
        affine: (4, 4) voxel index (x, y, z) to RAS+ world, mm: the volume lies where the scan lay.
        views: image of each view, (rows, columns) uint16.
    """

    volume_hu: npt.NDArray[np.int16]
    affine: npt.NDArray[np.float64]
    views: dict[str, npt.NDArray[np.uint16]]


def load_source(
    source: ScanSource, config: PreparationConfig
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Reads a scan as (x, y, z) HU with its RAS+ affine, mm; raises ValueError when it cannot be used."""
    if source.problem:
        raise ValueError(source.problem)
    return read_scan(source.files[0]) if source.series is None else read_series(source.series, config.modalities)


def prepare_volume(
    array: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    config: PreparationConfig,
    radiographs: Mapping[str, str | Path] | None = None,
) -> PreparedVolume:
    """Brings a scan onto the grid of `config` and renders its views.

    The grid has the axes of the patient; what lies outside the scan becomes air. Volume and views are both resampled
    from the scan itself, each with its own anti-aliasing, and show the same field of view.

    Args:
        array: (x, y, z) HU in storage order.
        affine: (4, 4) voxel index to RAS+ world, mm.
        config: the grid and the views.
        radiographs: image file of each view of `config`, taken in place of rendered ones when there are any.

    Returns:
        The volume and its views.

    Raises:
        ValueError: the body is asked for and there is none; a view is unknown; a radiograph cannot be read.
        ImportError: the body is asked for and scikit-image is missing.
    """
    array, affine = to_canonical(array, affine)
    volume = to_tensor_axes(array)[0, 0].clamp(LOWEST_HU, HIGHEST_HU)
    center, _ = field_of_view(affine, array.shape)
    if config.remove_table or config.center == "body":
        body = find_body(volume, affine)
        if config.center == "body":
            center = _middle(body, affine)
        if config.remove_table:
            volume = volume.masked_fill(~body, AIR_HU)
    target = grid_affine(config.size, config.spacing, center)
    resampled = resample(volume, affine, target, config.size, AIR_HU)
    lowest, highest = config.hu_window or (LOWEST_HU, HIGHEST_HU)
    voxels = resampled.clamp(lowest, highest).round().numpy().astype(np.int16)
    images = _read_radiographs(radiographs, config) if radiographs else _render(volume, affine, center, config)
    return PreparedVolume(voxels, target, dict(zip(config.views, images, strict=True)))


def find_body(volume_hu: torch.Tensor, affine: npt.NDArray[np.float64]) -> torch.Tensor:
    """Finds the body on voxels of about `MASK_VOXEL`; see `body_mask`.

    Args:
        volume_hu: (D, H, W) HU.
        affine: (4, 4) voxel index (x, y, z) to world, mm.

    Returns:
        (D, H, W) bool.
    """
    steps = zip(volume_hu.shape, voxel_spacing(affine)[::-1], strict=True)
    factors = [min(side, max(1, round(MASK_VOXEL / step))) for side, step in steps]
    coarse = functional.avg_pool3d(volume_hu[None, None], factors, ceil_mode=True, count_include_pad=False)[0, 0]
    mask = torch.from_numpy(body_mask(coarse.numpy()))
    for axis, factor in enumerate(factors):
        mask = mask.repeat_interleave(factor, dim=axis)
    depth, height, width = volume_hu.shape
    return mask[:depth, :height, :width]


def _middle(body: torch.Tensor, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """World coordinates of the middle of a mask's bounding box, mm."""
    axes = [torch.nonzero(body.any(dim=first).any(dim=second)) for first, second in ((0, 0), (0, 1), (1, 1))]
    # reducing (D, H, W) twice leaves W, H and D in this order, which is x, y, z
    indices = np.array([(int(axis[0]) + int(axis[-1])) / 2 for axis in axes])
    return np.asarray(affine[:3, :3] @ indices + affine[:3, 3])


def _render(
    volume_hu: torch.Tensor,
    affine: npt.NDArray[np.float64],
    center: npt.NDArray[np.float64],
    config: PreparationConfig,
) -> list[npt.NDArray[np.uint16]]:
    """The views, each (rows, columns), from a grid finer than the volume's and of the same field of view."""
    depth, height, width = (n * config.oversampling for n in config.size)
    steps = config.spacing
    spacing = (steps[0] / config.oversampling, steps[1] / config.oversampling, steps[2] / config.oversampling)
    grid = grid_affine((depth, height, width), spacing, center)
    fine = resample(volume_hu, affine, grid, (depth, height, width), AIR_HU)
    images = render_views(fine[None, None], spacing, config.views, config.image_size)[0, :, 0]
    return _to_uint16(images)


def _read_radiographs(paths: Mapping[str, str | Path], config: PreparationConfig) -> list[npt.NDArray[np.uint16]]:
    """Radiographs on disk as (rows, columns) of the size wanted."""
    rows, columns = config.image_size
    missing = [view for view in config.views if not paths.get(view)]
    if missing:
        raise ValueError(f"found no radiograph for {missing}, expected one of each view; add them or leave it out")
    processor = XrayImageProcessor(size={"height": rows, "width": columns}, output_range=(0.0, 1.0))
    return _to_uint16(processor([str(paths[view]) for view in config.views])["pixel_values"][:, 0])


def _to_uint16(images: torch.Tensor) -> list[npt.NDArray[np.uint16]]:
    """Images in [0, 1] on the full scale of 16 bits."""
    return list((images * 65535).round().numpy().astype(np.uint16))


def metadata_row(subject: str, views: tuple[str, ...]) -> dict[str, str]:
    """Returns the row of metadata.csv of a subject, which names its files."""
    return {
        "file_name": f"{subject}.nii.gz",
        **{view: f"{subject}_{view}.png" for view in views},
        "subject": subject,
    }


def write_prepared(prepared: PreparedVolume, subject: str, folder: Path) -> None:
    """Writes the files of a subject into the folder of its split, each of them atomically."""
    row = metadata_row(subject, tuple(prepared.views))
    array = to_array_axes(torch.from_numpy(prepared.volume_hu))
    image = import_nibabel().Nifti1Image(array, prepared.affine)
    image.header.set_xyzt_units("mm")
    with atomic_file(folder / row["file_name"]) as path:
        image.to_filename(path)
    for view, pixels in prepared.views.items():
        with atomic_file(folder / row[view]) as path:
            Image.fromarray(pixels).save(path)
