"""Direct volume rendering of CT on a CPU or GPU, without a display: maximum intensity, bone, lungs, soft tissue.

The camera turns about the superior-inferior axis and its rays are parallel. Because that axis stands upright in every
frame, trilinear sampling separates: slices are interpolated linearly to the rows of the image once for all angles, and
the plane of each row bilinearly for each angle.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ..processors.geometry import field_of_view, grid_affine, voxel_spacing
from ..processors.resampling import resample
from .metrics import Window
from .optional import import_extra
from .volumes import AIR_HU, GridVolume

Colour = tuple[float, float, float]

MIP_WINDOW: Window = (-200.0, 1000.0)
"""HU shown as the background and as white where maxima along rays are drawn; what fills a body is brighter than air."""

HIGHEST_HU = 3071.0
CLEAR_HU = 1000.0
"""What stands for the air around the body in modes that show low densities; their transfer functions end below it."""

_BODY_HU = -500.0
_WALL_HU = -700.0
_LIGHT = (-0.45, -0.35, -0.82)
"""Towards the light, along the image's rows (down), columns (to the right) and depth (away from the viewer)."""
_FULL_SHADING = 120.0
_LOWEST_TRANSMITTANCE = 2e-3
_MAX_SAMPLES = 1 << 22


@dataclass(frozen=True)
class TransferFunction:
    """Opacity and colour of each density, linear between points.

    Attributes:
        points: for increasing HU its extinction in 1/mm and its colour, red, green and blue in [0, 1]. Below the first
            and above the last point the extinction is theirs.
        ambient: share of the light that reaches a surface whatever its direction, in [0, 1].
        without_air: leave out the air around the body, which lungs could not be told from by density.
    """

    points: tuple[tuple[float, float, Colour], ...]
    ambient: float = 0.35
    without_air: bool = False

    def table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Extinction (N,) and colour (N, 3) of each whole HU from `AIR_HU` to `HIGHEST_HU`."""
        hu = np.arange(AIR_HU, HIGHEST_HU + 1)
        positions = [point[0] for point in self.points]
        columns = [[point[1], *point[2]] for point in self.points]
        values = [np.interp(hu, positions, column) for column in zip(*columns, strict=True)]
        table = torch.from_numpy(np.stack(values, axis=1)).float()
        return table[:, 0].contiguous(), table[:, 1:].contiguous()


_BONE, _BLOOD, _SKIN, _LUNG = (0.98, 0.94, 0.84), (0.62, 0.22, 0.16), (0.90, 0.66, 0.54), (0.52, 0.76, 0.92)

TRANSFER_FUNCTIONS = {
    "bone": TransferFunction(
        ((140.0, 0.0, _BLOOD), (260.0, 0.02, (0.80, 0.52, 0.36)), (420.0, 0.15, _BONE), (1200.0, 0.6, (1.0, 1.0, 0.97)))
    ),
    "lung": TransferFunction(
        (
            (-1000.0, 0.05, (0.15, 0.40, 0.95)),
            (-960.0, 0.03, (0.15, 0.40, 0.95)),
            (-910.0, 0.006, _LUNG),
            (-750.0, 0.008, _LUNG),
            (-500.0, 0.02, (0.95, 0.62, 0.55)),
            (-300.0, 0.0012, _SKIN),
            (150.0, 0.0012, _SKIN),
            (400.0, 0.0, _SKIN),
        ),
        ambient=0.6,
        without_air=True,
    ),
    "soft": TransferFunction(
        ((-500.0, 0.0, _SKIN), (-250.0, 0.03, _SKIN), (-30.0, 0.15, _SKIN), (80.0, 0.3, _BLOOD), (300.0, 0.6, _BONE))
    ),
}
"""Named transfer functions, one for each mode beside `mip`."""

MODES = ("mip", *TRANSFER_FUNCTIONS)


@dataclass(frozen=True)
class Camera:
    """What an image shows: a square about the axis through the middle of the field of view, in parallel projection.

    Attributes:
        extent: side of the image, mm.
        depth: length of the rays, centred on the axis, mm.
        size: pixels along each side.
    """

    extent: float
    depth: float
    size: int = 256

    def __post_init__(self) -> None:
        if not (self.extent > 0 and self.depth > 0):
            raise ValueError(f"extent and depth are {self.extent} and {self.depth} mm; expected more than 0")
        if self.size < 1:
            raise ValueError(f"size is {self.size} pixels; expected at least 1")

    @property
    def pixel(self) -> float:
        """Side of a pixel, mm."""
        return self.extent / self.size

    @classmethod
    def around(cls, volumes: Sequence[GridVolume], size: int = 256) -> "Camera":
        """The camera that shows what is denser than -500 HU in all of these volumes from every side.

        Args:
            volumes: at least one, of any grids.
            size: pixels along each side of the image.
        """
        height = max(volume.hu.shape[0] * volume.spacing[0] for volume in volumes)
        width = 2 * max(_radius(volume) for volume in volumes)
        return cls(1.04 * max(height, width), 1.04 * width, size)


def _radius(volume: GridVolume) -> float:
    """Largest distance from the axis of a voxel denser than -500 HU, or of any voxel if there is none, mm."""
    occupied = (volume.hu > _BODY_HU).any(axis=0)
    rows, columns = np.nonzero(occupied if occupied.any() else np.ones_like(occupied))
    offsets = [
        (np.abs(index - (count - 1) / 2) + 0.5) * step
        for index, count, step in zip((rows, columns), occupied.shape, volume.spacing[1:], strict=True)
    ]
    return float(np.hypot(*offsets).max())


def turntable_angles(frames: int) -> list[float]:
    """Angles of one full turn in equal steps from 0, the frontal view, in degrees.

    Raises:
        ValueError: fewer than one frame.
    """
    if frames < 1:
        raise ValueError(f"frames is {frames}; expected at least 1")
    return [360.0 * frame / frames for frame in range(frames)]


def limit_resolution(volume: GridVolume, max_size: int) -> GridVolume:
    """A volume whose axes are those of the world, with at most `max_size` voxels along each.

    Args:
        volume: any volume; one that fits already comes back with its voxels untouched.
        max_size: most voxels along an axis, each then as long as the longest axis divided by it, or longer.

    Raises:
        ValueError: `max_size` below 1.
    """
    if max_size < 1:
        raise ValueError(f"max_size is {max_size}; expected at least 1 voxel")
    depth, height, width = volume.hu.shape
    centre, extent = field_of_view(volume.affine, (width, height, depth))
    spacing = np.maximum(voxel_spacing(volume.affine), extent.max() / max_size)
    x, y, z = (max(1, math.ceil(count - 1e-6)) for count in extent / spacing)
    target = grid_affine((z, y, x), (spacing[2], spacing[1], spacing[0]), centre)
    moved = resample(torch.from_numpy(np.ascontiguousarray(volume.hu)), volume.affine, target, (z, y, x), AIR_HU)
    return GridVolume(moved.numpy(), target)


def isolate_body(volume: GridVolume, fill_value: float = AIR_HU) -> GridVolume:
    """A volume in which everything but the body has one value: the air around it, the table, clothes.

    Outside is air that reaches a side of the volume (not its top or bottom, where lungs and airways may be cut), and
    what is thinner than -500 HU within two voxels of it; gaps in the body's wall as narrow as two voxels, which coarse
    grids have, let no air through. The body is the largest piece of the rest, its cavities included.

    Args:
        volume: a volume; one without a body is filled altogether.
        fill_value: HU of what isn't the body.

    Raises:
        ImportError: scipy isn't installed.
    """
    ndimage = import_extra("scipy.ndimage")
    wall = ndimage.binary_dilation(volume.hu >= _WALL_HU)
    wall = ndimage.binary_erosion(wall, border_value=1)
    air, _ = ndimage.label(~wall)
    sides = np.concatenate([air[:, [0, -1]].ravel(), air[:, :, [0, -1]].ravel()])
    outside = np.isin(air, np.setdiff1d(sides, [0]))
    if outside.any():
        outside = ndimage.binary_dilation(outside, iterations=2, mask=outside | (volume.hu < _BODY_HU))
    pieces, count = ndimage.label(ndimage.binary_opening(~outside))
    if count == 0:
        return volume.with_hu(np.full_like(volume.hu, fill_value))
    largest = 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    return volume.with_hu(np.where(pieces == largest, volume.hu, fill_value))


@torch.no_grad()
def render(
    volume: GridVolume,
    mode: str,
    angles: Sequence[float],
    camera: Camera,
    *,
    window: Window = MIP_WINDOW,
    background: Colour = (0.0, 0.0, 0.0),
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Render a volume from several sides.

    At angle 0 the viewer stands in front of the patient, whose right is at the image's left, as in the view `frontal`;
    at 90 degrees at the patient's left side, with anterior at the image's left, as in the view `lateral`.
    `mip` shows the largest density along each ray. The other modes integrate emission and absorption from front to
    back (Levoy, Display of Surfaces from Volume Data, 1988): a sample with extinction s over a step d has the opacity
    1 - exp(-s d), and its colour is shaded by the direction of the density's gradient, from both sides.

    Args:
        volume: HU in canonical orientation, voxels of any size.
        mode: one of `MODES`.
        angles: degrees about the superior-inferior axis.
        camera: what is shown; its axis goes through the middle of the volume's field of view.
        window: HU that `mip` shows as the background and as white.
        background: red, green and blue in [0, 1].
        device: where to compute.

    Returns:
        uint8 images (angles, size, size, 3) on the CPU.

    Raises:
        ValueError: unknown mode, no angles, an empty window, or a background outside [0, 1].
    """
    _check_request(mode, angles, window, background)
    function = TRANSFER_FUNCTIONS.get(mode)
    outside = AIR_HU
    if function is not None and function.without_air:
        volume, outside = isolate_body(volume, CLEAR_HU), CLEAR_HU
    rays = _Rays(volume, camera, outside, torch.device(device))
    turns = torch.tensor(angles, dtype=torch.float64).deg2rad()
    images = torch.empty(len(turns), camera.size, camera.size, 3, dtype=torch.uint8)
    behind = torch.tensor(background, device=device)
    for rows, which, block in rays.blocks(turns):
        if function is None:
            image = _maximum(rays.inner(block), window, behind)
        else:
            image = _composite(rays, block, function, behind)
        images[which, rows] = (255 * image).round_().clamp_(0, 255).to(device="cpu", dtype=torch.uint8)
    return images


class _Rays:
    """Samples of a volume along the rays of a camera, in blocks (angles, rows, columns, depth) that fit in memory.

    A block has a margin as wide as a voxel along its last three axes, for central differences over whole voxels: they
    are then as smooth as if they had been taken on the grid and interpolated, however coarse the voxels are.
    """

    def __init__(self, volume: GridVolume, camera: Camera, outside: float, device: torch.device) -> None:
        self.field = torch.from_numpy(np.ascontiguousarray(volume.hu)).to(device).clamp(AIR_HU, HIGHEST_HU) - outside
        self.spacing = volume.spacing
        self.camera = camera
        self.outside = outside
        in_plane = min(self.spacing[1:])
        self.step = min(in_plane, max(camera.pixel, in_plane / 8))
        self.num_steps = max(1, math.ceil(camera.depth / self.step))
        self.distances = (camera.pixel, camera.pixel, self.step)
        voxels = (self.spacing[0], in_plane, in_plane)
        self.margins = tuple(max(1, round(voxel / step)) for voxel, step in zip(voxels, self.distances, strict=True))

    def inner(self, block: torch.Tensor) -> torch.Tensor:
        """A block, or images (angles, rows, columns, channels) made from it, without the margin."""
        rows, columns, depth = (slice(margin, -margin) for margin in self.margins)
        return block[:, rows, columns, depth]

    def blocks(self, turns: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Rows of the image, angles, and HU (angles, rows, columns, depth) with its margin, block by block."""
        size = self.camera.size
        plane = (size + 2 * self.margins[1]) * (self.num_steps + 2 * self.margins[2])
        num_rows = min(size, max(8, _MAX_SAMPLES // plane - 2 * self.margins[0]))
        num_angles = max(1, _MAX_SAMPLES // (plane * (num_rows + 2 * self.margins[0])))
        for top in range(0, size, num_rows):
            bottom = min(top + num_rows, size)
            slices = self._slices(top - self.margins[0], bottom + self.margins[0])
            for first in range(0, len(turns), num_angles):
                which = slice(first, min(first + num_angles, len(turns)))
                yield slice(top, bottom), which, self._sample(slices, turns[which])

    def _slices(self, top: int, bottom: int) -> torch.Tensor:
        """Slices (rows, H, W) at rows of the image, linear between voxels and averaged where rows are coarser."""
        depth = len(self.field)
        superior = -self._offsets(self.camera.size, self.camera.pixel, top, bottom)
        positions = superior / self.spacing[0] + (depth - 1) / 2
        width = max(1.0, self.camera.pixel / self.spacing[0])
        weights = (1 - (positions[:, None] - torch.arange(depth)).abs() / width).clamp_min(0) / width
        return torch.tensordot(weights.to(self.field), self.field, dims=1)

    def _sample(self, slices: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """HU of the slices along the rays of some angles, (angles, rows, columns, depth)."""
        size, (_, margin, margin_depth) = self.camera.size, self.margins
        leftward = self._offsets(size, self.camera.pixel, -margin, size + margin)[:, None]
        backward = self._offsets(self.num_steps, self.step, -margin_depth, self.num_steps + margin_depth)
        sine, cosine = turns.sin()[:, None, None], turns.cos()[:, None, None]
        height, width = (count * step for count, step in zip(slices.shape[1:], self.spacing[1:], strict=True))
        anterior = -(sine * leftward + cosine * backward) * (2 / height)
        right = (sine * backward - cosine * leftward) * (2 / width)
        grid = torch.stack([right, anterior], dim=-1).to(slices)
        sampled = functional.grid_sample(slices.expand(len(turns), -1, -1, -1), grid, align_corners=False)
        return sampled.add_(self.outside)

    @staticmethod
    def _offsets(count: int, step: float, first: int, last: int) -> torch.Tensor:
        """Distances of the samples `first` to `last` of a centred row of `count` from its middle, mm."""
        return (torch.arange(first, last, dtype=torch.float64) - (count - 1) / 2) * step


def _maximum(samples: torch.Tensor, window: Window, background: torch.Tensor) -> torch.Tensor:
    """Largest HU along the rays, from the background's colour to white: (angles, rows, columns, 3)."""
    low, high = window
    level = ((samples.amax(dim=3) - low) / (high - low)).clamp(0, 1)[..., None]
    return background + level * (1 - background)


def _composite(rays: _Rays, block: torch.Tensor, function: TransferFunction, background: torch.Tensor) -> torch.Tensor:
    """Emission and absorption along the rays, front to back: (angles, rows, columns, 3).

    Only samples that absorb are gathered. They lie ray by ray and front to back, so that one running sum over all of
    them, less its value at the start of the ray, is the optical depth along each.
    """
    extinctions, colours = (table.to(block.device) for table in function.table())
    where = _absorbing(rays, block, extinctions)
    levels = (block.view(-1)[where] - AIR_HU).round_().long()
    ray = where // block.shape[3]
    absorbed = extinctions[levels].double() * rays.step
    whole = torch.zeros(block.shape[:3].numel(), dtype=torch.float64, device=block.device).index_add_(0, ray, absorbed)
    before = absorbed.cumsum(0) - absorbed - (whole.cumsum(0) - whole)[ray]
    seen = before < -math.log(_LOWEST_TRANSMITTANCE)
    where, levels, ray, before, absorbed = (values[seen] for values in (where, levels, ray, before, absorbed))
    light = (torch.exp(-before) * -torch.expm1(-absorbed)).float() * _lit(rays, block, where, function.ambient)
    image = torch.exp(-whole).float()[:, None] * background
    image.index_add_(0, ray, light[:, None] * colours[levels])
    rows, columns, _ = rays.margins
    return image.view(*block.shape[:3], 3)[:, rows:-rows, columns:-columns]


def _absorbing(rays: _Rays, block: torch.Tensor, extinctions: torch.Tensor) -> torch.Tensor:
    """Positions in the flattened block, margin left out, between the lowest and the highest HU that absorb."""
    absorbing = extinctions.nonzero()
    if not len(absorbing):
        return torch.zeros(0, dtype=torch.long, device=block.device)
    lowest, highest = (float(absorbing[end]) + AIR_HU - 0.5 for end in (0, -1))
    inside = torch.zeros_like(block, dtype=torch.bool)
    samples = rays.inner(block)
    rays.inner(inside).copy_((samples >= lowest) & (samples <= highest + 1))
    return inside.view(-1).nonzero()[:, 0]


def _lit(rays: _Rays, block: torch.Tensor, where: torch.Tensor, ambient: float) -> torch.Tensor:
    """Brightness of samples: Lambert's law where the density changes, full where it doesn't, (samples,)."""
    flat = block.view(-1)
    norm = math.hypot(*_LIGHT)
    along_light, squared = torch.zeros_like(where, dtype=flat.dtype), torch.zeros_like(where, dtype=flat.dtype)
    for axis, direction in enumerate(_LIGHT):
        margin = rays.margins[axis]
        shift = block.stride(axis + 1) * margin
        slope = (flat[where + shift] - flat[where - shift]) / (2 * margin * rays.distances[axis])
        along_light.add_(slope, alpha=direction / norm)
        squared.addcmul_(slope, slope)
    length = squared.sqrt_()
    cosine = along_light.abs_() / length.clamp_min(1e-6)
    surface = (length * (min(rays.spacing) / _FULL_SHADING)).clamp_(max=1)
    return 1 - (1 - ambient) * surface * (1 - cosine)


def _check_request(mode: str, angles: Sequence[float], window: Window, background: Colour) -> None:
    """Raises ValueError for what can't be rendered."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected one of {MODES}")
    if not len(angles):
        raise ValueError("angles is empty; expected at least one angle in degrees")
    if not window[0] < window[1]:
        raise ValueError(f"window is {tuple(window)}; expected the lower HU first, such as (-1000, 1000)")
    if len(background) != 3 or not all(0 <= channel <= 1 for channel in background):
        raise ValueError(f"background is {background}; expected red, green and blue from 0 to 1")
