"""Radiographs of a CT volume after the Beer-Lambert law, parallel or cone beam, from any direction, differentiable.

A detector behind the patient counts I = I0 * exp(-p), p being the integral of the linear attenuation
mu = water_attenuation * max(0, 1 + HU / 1000) along the ray. Parallel beams at right angles are sums of voxels. Every
other ray is followed in steps of half a voxel through the trilinearly interpolated attenuation, which for rays along an
axis gives the same sums.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .geometry import VOLUME_AXES, RadiographView, find_view, view_layout

WATER_ATTENUATION = 0.02
"""Attenuation of water, 1/mm, near the mean energy of a chest radiograph."""

MAX_LINE_INTEGRAL = 10.0
"""Line integral shown as 1: 500 mm of water, more than a chest holds along any ray. Air is shown as 0."""

VALUES_AT_ONCE = 2**24
"""Numbers that one step of the ray march holds: three coordinates and B samples at each point of some detector rows."""

_STEPS_PER_VOXEL = 2


@dataclass(frozen=True)
class BeamGeometry:
    """Rays from the source, through the isocentre in the middle of the volume, to the middle of a flat detector.

    All that lies in the volume attenuates, also beyond the detector, which therefore may stand anywhere behind the
    source: at the isocentre it shows the volume's middle in its true size.

    Attributes:
        source_detector_distance: from the source to the detector along the central ray, mm; None for parallel rays.
        source_isocentre_distance: from the source to the isocentre, mm; None for parallel rays.
        detector_size: (rows, columns) extent of the detector, mm; the smallest that shows the whole volume when None.

    Raises:
        ValueError: only one distance is given, or a length is not positive and finite.
    """

    source_detector_distance: float | None = None
    source_isocentre_distance: float | None = None
    detector_size: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("source_detector_distance", "source_isocentre_distance"):
            distance = getattr(self, name)
            if (distance is None) == self.is_cone or not _is_length(1.0 if distance is None else distance):
                raise ValueError(
                    f"{name}: found {distance}, expected mm above 0, given together with the other distance; give "
                    "both for a cone beam, neither for parallel rays"
                )
        if self.detector_size is not None:
            if len(self.detector_size) != 2 or not all(map(_is_length, self.detector_size)):
                raise ValueError(
                    f"detector_size: found {self.detector_size}, expected (rows, columns) in mm above 0; correct it"
                )
            object.__setattr__(self, "detector_size", tuple(self.detector_size))

    @property
    def is_cone(self) -> bool:
        """Whether the rays come from a point."""
        return not (self.source_detector_distance is None and self.source_isocentre_distance is None)

    def magnification(self, depth: npt.ArrayLike = 0.0) -> npt.NDArray[np.float64]:
        """How much larger things appear on the detector, at depths beyond the isocentre as seen from the source, mm."""
        depth = np.asarray(depth, dtype=np.float64)
        if self.source_detector_distance is None or self.source_isocentre_distance is None:
            return np.ones_like(depth)
        return self.source_detector_distance / (self.source_isocentre_distance + depth)


def line_integrals(
    volume_hu: torch.Tensor,
    spacing: Sequence[float],
    view: str,
    water_attenuation: float = WATER_ATTENUATION,
    beam: BeamGeometry | None = None,
    detector_shape: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Integrates the attenuation along the rays of one view.

    Args:
        volume_hu: (B, 1, D, H, W) Hounsfield units, on any device.
        spacing: voxel size in (D, H, W) order, mm.
        view: a name that `hf_vq.processors.geometry.find_view` knows, such as `frontal` or `azimuth_30`.
        water_attenuation: attenuation of water, 1/mm.
        beam: geometry of the rays; parallel rays over the whole volume when absent.
        detector_shape: (rows, columns) of rays; one for each voxel width at the isocentre when absent.

    Returns:
        (B, rows, columns) dimensionless line integrals, row 0 superior.

    Raises:
        ValueError: the volume is not (B, 1, D, H, W), a spacing is not positive, the view is unknown, or the source
            stands within the volume.
    """
    if volume_hu.ndim != 5 or volume_hu.shape[1] != 1:
        raise ValueError(f"found a volume of shape {tuple(volume_hu.shape)}, expected (B, 1, D, H, W); add the axes")
    if len(spacing) != 3 or not all(0 < step < float("inf") for step in spacing):
        raise ValueError(f"found spacing {list(spacing)}, expected three positive sizes in mm for {VOLUME_AXES}")
    angles = find_view(view)
    attenuation = water_attenuation * (1 + volume_hu[:, 0] / 1000).clamp_min(0)
    if beam in (None, BeamGeometry()) and detector_shape is None and angles.is_axis_aligned:
        return _sum_along_axis(attenuation, spacing, view)
    return march_rays(attenuation, spacing, angles, beam or BeamGeometry(), detector_shape)


def render_views(
    volume_hu: torch.Tensor,
    spacing: Sequence[float],
    views: Sequence[str] = ("frontal", "lateral"),
    image_size: tuple[int, int] | None = None,
    water_attenuation: float = WATER_ATTENUATION,
    beam: BeamGeometry | None = None,
) -> torch.Tensor:
    """Renders radiographs: the log-attenuation on the fixed range 0 ... `MAX_LINE_INTEGRAL`, brighter being denser.

    Args:
        volume_hu: (B, 1, D, H, W) Hounsfield units, on any device.
        spacing: voxel size in (D, H, W) order, mm.
        views: names that `hf_vq.processors.geometry.find_view` knows.
        image_size: (rows, columns) of each image; one pixel per ray when absent.
        water_attenuation: attenuation of water, 1/mm.
        beam: geometry of the rays; parallel rays over the whole volume when absent.

    Returns:
        (B, V, 1, rows, columns) float32 in [0, 1].

    Raises:
        ValueError: as `line_integrals`; no view is named; without `image_size`, views of different shapes.
    """
    if not views:
        raise ValueError("found no views, expected at least one name in `views`; pass for example ['frontal']")
    images = []
    for view in views:
        image = line_integrals(volume_hu.float(), spacing, view, water_attenuation, beam)[:, None] / MAX_LINE_INTEGRAL
        if image_size is not None and tuple(image.shape[-2:]) != tuple(image_size):
            image = functional.interpolate(image, size=tuple(image_size), mode="bilinear", antialias=True)
        images.append(image.clamp(0, 1))
    shapes = {tuple(image.shape[-2:]) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"found views of shapes {sorted(shapes)}, expected one shape; pass `image_size`")
    return torch.stack(images, dim=1)


def march_rays(
    attenuation: torch.Tensor,
    spacing: Sequence[float],
    view: RadiographView,
    beam: BeamGeometry,
    detector_shape: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Integrates the trilinearly interpolated attenuation along the rays of any view and beam.

    The steps are half a voxel wide along the central ray. As many detector rows are done at once as make
    `VALUES_AT_ONCE` numbers, at least one: in float32 64 MiB of them, and about twice that with temporaries, beside the
    attenuation itself, whatever the number of rays. When a gradient is asked for, the samples are computed again in the
    backward pass instead of being kept.

    Args:
        attenuation: (B, D, H, W) linear attenuation, 1/mm; half precision is computed in float32.
        spacing: voxel size in (D, H, W) order, mm.
        view: where the detector stands.
        beam: geometry of the rays.
        detector_shape: (rows, columns) of rays; one for each voxel width at the isocentre when absent.

    Returns:
        (B, rows, columns) dimensionless line integrals.

    Raises:
        ValueError: the source stands within the volume.
    """
    extent = np.asarray(spacing, dtype=np.float64) * attenuation.shape[1:]
    directions = view.directions()
    _check_source(extent, directions[0], beam)
    size = beam.detector_size or _covering_size(extent, directions, beam)
    shape = detector_shape or _natural_shape(size, spacing, directions, beam)
    depths, step = _sample_depths(extent, spacing, directions[0])
    rows, columns = ((np.arange(n) + 0.5 - n / 2) * (side / n) for n, side in zip(shape, size, strict=True))

    dtype = torch.promote_types(attenuation.dtype, torch.float32)
    # normalised coordinates of grid_sample: (W, H, D) order, -1 ... 1 from edge to edge
    basis = (2 * directions / extent)[:, ::-1].copy()
    distance = beam.source_detector_distance or math.inf
    lengths = step * np.sqrt(1 + (rows[:, None] ** 2 + columns**2) / distance**2)
    numbers = (lengths, basis, depths, 1 / beam.magnification(depths), rows, columns)
    step_lengths, *geometry = (torch.as_tensor(array, dtype=dtype, device=attenuation.device) for array in numbers)
    return (step_lengths * _sum_samples(attenuation.to(dtype), *geometry)).to(attenuation.dtype)


def _sum_along_axis(attenuation: torch.Tensor, spacing: Sequence[float], view: str) -> torch.Tensor:
    """Line integrals of parallel rays along an axis, one for each column of voxels."""
    ray_axis, (row_axis, column_axis), flipped = view_layout(view)
    attenuation = attenuation.flip([axis + 1 for axis in flipped])
    ordered = attenuation.permute(0, row_axis + 1, column_axis + 1, ray_axis + 1)
    return ordered.sum(dim=-1) * spacing[ray_axis]


def _check_source(extent: npt.NDArray[np.float64], towards: npt.NDArray[np.float64], beam: BeamGeometry) -> None:
    """Raises ValueError unless the whole volume lies before the source."""
    begin = float(np.abs(towards) @ extent) / 2
    if beam.source_isocentre_distance is not None and beam.source_isocentre_distance <= begin:
        raise ValueError(
            f"source_isocentre_distance: found {beam.source_isocentre_distance} mm, expected more than {begin:g} mm, "
            "where the volume begins; move the source away"
        )


def _covering_size(
    extent: npt.NDArray[np.float64], directions: npt.NDArray[np.float64], beam: BeamGeometry
) -> tuple[float, float]:
    """(rows, columns) extent of the smallest detector about the central ray that shows all of the volume, mm."""
    signs = np.stack(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5]), axis=-1).reshape(8, 3)
    corners = (signs * extent) @ directions.T
    rows, columns = 2 * np.abs(corners[:, 1:] * beam.magnification(corners[:, :1])).max(axis=0)
    return float(rows), float(columns)


def _natural_shape(
    size: tuple[float, float], spacing: Sequence[float], directions: npt.NDArray[np.float64], beam: BeamGeometry
) -> tuple[int, int]:
    """(rows, columns) of a detector whose pixels are as wide as a voxel at the isocentre."""
    voxel = np.linalg.norm(directions[1:] * np.asarray(spacing), axis=1) * beam.magnification()
    rows, columns = (max(1, round(side / width)) for side, width in zip(size, voxel, strict=True))
    return rows, columns


def _sample_depths(
    extent: npt.NDArray[np.float64], spacing: Sequence[float], towards: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """Depths of the samples along the central ray, mm, and their distance.

    They reach half a voxel beyond the volume, where interpolation fades into air.
    """
    step = float(1 / np.linalg.norm(towards / np.asarray(spacing))) / _STEPS_PER_VOXEL
    reach = float(np.abs(towards) @ (extent + np.asarray(spacing)))
    count = math.ceil(reach / step - 1e-6)
    return np.asarray((np.arange(count) + 0.5 - count / 2) * step, dtype=np.float64), step


def _sum_samples(
    attenuation: torch.Tensor,
    basis: torch.Tensor,
    depths: torch.Tensor,
    scales: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    """Sums the samples of each ray, some detector rows at a time, (B, rows, columns)."""
    volume = attenuation[None]  # the batch as channels: all of it is read at the same points
    values_per_row = len(columns) * len(depths) * (len(attenuation) + 3)
    recompute = torch.is_grad_enabled() and attenuation.requires_grad
    sums = []
    for part in rows.split(max(1, VALUES_AT_ONCE // values_per_row)):
        arguments = (volume, basis, depths, scales, part, columns)
        sums.append(
            checkpoint(_sum_rows, *arguments, use_reentrant=False, preserve_rng_state=False)
            if recompute
            else _sum_rows(*arguments)
        )
    return torch.cat(sums, dim=1)


def _sum_rows(
    volume: torch.Tensor,
    basis: torch.Tensor,
    depths: torch.Tensor,
    scales: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    """Sums the samples of the rays of some detector rows.

    Args:
        volume: (1, B, D, H, W) attenuation.
        basis: (3, 3) towards the detector, along the rows and along the columns, in normalised coordinates per mm.
        depths: (K,) depths of the samples, mm.
        scales: (K,) size at each depth of what is 1 mm wide on the detector.
        rows: (R,) coordinates on the detector, mm.
        columns: (C,) coordinates on the detector, mm.

    Returns:
        (B, R, C) sums.
    """
    towards, down, across = basis
    lateral = rows[:, None, None] * down + columns[:, None] * across
    points = depths[:, None] * towards + lateral[:, :, None] * scales[:, None]
    samples = functional.grid_sample(volume, points[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return samples[0].sum(dim=-1)


def _is_length(value: float) -> bool:
    return 0 < value < math.inf
