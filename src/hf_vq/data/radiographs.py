"""Parallel-beam radiographs of a CT volume after the Beer-Lambert law, differentiable."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from ..processors.geometry import VOLUME_AXES, view_layout

WATER_ATTENUATION = 0.02
"""Attenuation of water, 1/mm, near the mean energy of a chest radiograph."""

MAX_LINE_INTEGRAL = 10.0
"""Line integral shown as 1: 500 mm of water, more than a chest holds along any ray. Air is shown as 0."""


def line_integrals(
    volume_hu: torch.Tensor, spacing: Sequence[float], view: str, water_attenuation: float = WATER_ATTENUATION
) -> torch.Tensor:
    """Integrates the attenuation along the parallel rays of one view.

    A detector behind the patient counts I = I0 * exp(-p), p being the integral returned here, with the linear
    attenuation mu = water_attenuation * max(0, 1 + HU / 1000).

    Args:
        volume_hu: (B, 1, D, H, W) Hounsfield units.
        spacing: voxel size in (D, H, W) order, mm.
        view: a view named in `hf_vq.processors.geometry.VIEW_AXES`.
        water_attenuation: attenuation of water, 1/mm.

    Returns:
        (B, rows, columns) dimensionless line integrals, one ray per voxel column.

    Raises:
        ValueError: the volume is not (B, 1, D, H, W), a spacing is not positive, or the view is unknown.
    """
    if volume_hu.ndim != 5 or volume_hu.shape[1] != 1:
        raise ValueError(f"found a volume of shape {tuple(volume_hu.shape)}, expected (B, 1, D, H, W); add the axes")
    if len(spacing) != 3 or not all(0 < step < float("inf") for step in spacing):
        raise ValueError(f"found spacing {list(spacing)}, expected three positive sizes in mm for {VOLUME_AXES}")
    ray_axis, (row_axis, column_axis), flipped = view_layout(view)
    attenuation = water_attenuation * (1 + volume_hu[:, 0] / 1000).clamp_min(0)
    attenuation = attenuation.flip([axis + 1 for axis in flipped])
    ordered = attenuation.permute(0, row_axis + 1, column_axis + 1, ray_axis + 1)
    return ordered.sum(dim=-1) * spacing[ray_axis]


def render_views(
    volume_hu: torch.Tensor,
    spacing: Sequence[float],
    views: Sequence[str] = ("frontal", "lateral"),
    image_size: tuple[int, int] | None = None,
    water_attenuation: float = WATER_ATTENUATION,
) -> torch.Tensor:
    """Renders radiographs: the log-attenuation on the fixed range 0 ... `MAX_LINE_INTEGRAL`, brighter being denser.

    Args:
        volume_hu: (B, 1, D, H, W) Hounsfield units.
        spacing: voxel size in (D, H, W) order, mm.
        views: names from `hf_vq.processors.geometry.VIEW_AXES`.
        image_size: (rows, columns) of each image; one pixel per ray when absent.
        water_attenuation: attenuation of water, 1/mm.

    Returns:
        (B, V, 1, rows, columns) float32 in [0, 1].

    Raises:
        ValueError: as `line_integrals`; no view is named; without `image_size`, views of different shapes.
    """
    if not views:
        raise ValueError("found no views, expected at least one name in `views`; pass for example ['frontal']")
    images = []
    for view in views:
        image = line_integrals(volume_hu.float(), spacing, view, water_attenuation)[:, None] / MAX_LINE_INTEGRAL
        if image_size is not None and tuple(image.shape[-2:]) != tuple(image_size):
            image = functional.interpolate(image, size=tuple(image_size), mode="bilinear", antialias=True)
        images.append(image.clamp(0, 1))
    shapes = {tuple(image.shape[-2:]) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"found views of shapes {sorted(shapes)}, expected one shape; pass `image_size`")
    return torch.stack(images, dim=1)
