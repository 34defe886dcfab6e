"""Many plausible subjects out of one CT scan: random poses, smooth deformations, tissue jitter and nodules.

Every subject is a function of (seed, split, index) alone, so enlarging a cohort keeps the subjects it had.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from ..processors.geometry import (
    field_of_view,
    find_view,
    grid_affine,
    import_nibabel,
    to_canonical,
    to_tensor_axes,
)
from ..processors.limits import check_voxels
from ..processors.radiographs import BeamGeometry, render_views
from ..processors.resampling import resample
from ..processors.scans import read_scan
from .body import body_mask

SPLITS = ("train", "validation", "test")
"""Names of the splits, in the order of their random streams."""

AIR_HU = -1000.0
LUNG_RANGE_HU = (-960.0, -600.0)


@dataclass(frozen=True)
class CohortConfig:
    """How subjects are made. Every random magnitude is the standard deviation of a normal cut at two deviations.

    Attributes:
        size: voxels along each side of a subject's cube.
        image_size: pixels along each side of a view.
        field_of_view: side of the cube, mm.
        oversampling: working voxels per final voxel along each axis, while deforming and rendering.
        seed: seed of the cohort.
        translation: shift along each axis, mm.
        rotation: turn about each axis, degrees.
        scale: relative change of size, common to the three axes.
        axis_scale: further relative change of size along each axis.
        deformation: displacement of each control point along each axis, mm.
        deformation_spacing: distance between the control points of the smooth deformation, mm.
        lung_jitter: change of the lungs' HU.
        soft_jitter: change of soft tissue's HU.
        bone_jitter: relative change of the contrast of bone and contrast medium.
        max_nodules: most nodules in the lungs; their number is uniform from 0.
        nodule_radius: smallest and largest radius of a nodule, mm.
        views: names of the views, as `hf_vq.processors.geometry.find_view` knows them.
        beam: rays with which the views are rendered.
    """

    size: int = 32
    image_size: int = 64
    field_of_view: float = 352.0
    oversampling: int = 2
    seed: int = 0
    translation: float = 7.0
    rotation: float = 3.0
    scale: float = 0.035
    axis_scale: float = 0.03
    deformation: float = 22.0
    deformation_spacing: float = 50.0
    lung_jitter: float = 30.0
    soft_jitter: float = 12.0
    bone_jitter: float = 0.1
    max_nodules: int = 3
    nodule_radius: tuple[float, float] = (6.0, 16.0)
    views: tuple[str, ...] = ("frontal", "lateral")
    beam: BeamGeometry = field(default_factory=BeamGeometry)

    def __post_init__(self) -> None:
        for name in ("size", "image_size", "oversampling", "field_of_view", "deformation_spacing"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected more than 0; choose a positive value")
        if self.seed < 0:
            raise ValueError(f"seed: found {self.seed}, expected 0 or more; choose a non-negative seed")
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f"views: found {list(self.views)}, expected at least one and each once; correct them")
        for view in self.views:
            find_view(view)

    @property
    def working_size(self) -> int:
        """Voxels along each side of the grid on which subjects are deformed and rendered."""
        return self.size * self.oversampling


@dataclass(frozen=True)
class PreparedScan:
    """A scan ready to be deformed.

    Attributes:
        volume_hu: (1, 1, D, H, W) float32 HU of the body, air elsewhere.
        extent: (3,) size of the grid in (D, H, W) order, mm.
        lungs: (1, 1, D, H, W) float32, 1 inside the lungs.
    """

    volume_hu: torch.Tensor
    extent: torch.Tensor
    lungs: torch.Tensor


@dataclass(frozen=True)
class Subject:
    """One member of a cohort.

    Attributes:
        name: unique name, the split and the index.
        volume_hu: (D, H, W) int16 HU.
        views: image of each view, (rows, columns) uint16, 65535 being `MAX_LINE_INTEGRAL`.
    """

    name: str
    volume_hu: np.ndarray
    views: dict[str, np.ndarray] = field(default_factory=dict)


def load_scan(path: str | Path, config: CohortConfig) -> PreparedScan:
    """Reads a CT scan, resamples it to a cubic grid and removes the table.

    Args:
        path: NIfTI file in HU.
        config: cohort settings.

    Returns:
        The prepared scan.

    Raises:
        ValueError: the file is not a 3D NIfTI with a valid affine and finite voxels, or holds no body.
        ImportError: nibabel or scikit-image is missing.
    """
    stored, affine = read_scan(path)
    array, affine = to_canonical(stored, affine)
    return prepare_scan(array, affine, config)


def prepare_scan(array: np.ndarray, affine: np.ndarray, config: CohortConfig) -> PreparedScan:
    """Resamples a canonical (x, y, z) HU array with its affine (mm) to a cubic grid; see `load_scan`."""
    # half the working voxel keeps the later interpolation sharp; the scan has no detail finer than its own voxels
    own_step = float(np.cbrt(np.abs(np.linalg.det(affine[:3, :3]))))
    step = max(config.field_of_view / config.working_size / 2, own_step)
    center, extent = field_of_view(affine, array.shape)
    x, y, z = (max(1, int(size / step + 1e-6)) for size in extent)
    check_voxels((x, y, z), "the scan on cubic voxels")
    target = grid_affine((z, y, x), (step, step, step), center)
    volume = resample(to_tensor_axes(array.clip(AIR_HU, 3071))[0, 0], affine, target, (z, y, x), AIR_HU)
    body = torch.from_numpy(body_mask(volume.numpy()))
    volume = torch.where(body, volume, torch.full_like(volume, AIR_HU))[None, None]
    padded = functional.pad(volume, (1,) * 6, mode="replicate")
    lowest, highest = LUNG_RANGE_HU
    is_lung = (functional.max_pool3d(padded, 3, stride=1) < highest) & (
        -functional.max_pool3d(-padded, 3, stride=1) > lowest
    )
    return PreparedScan(volume, torch.tensor([z * step, y * step, x * step]), is_lung.float())


def _normal(random: np.random.Generator, size: tuple[int, ...], deviation: float) -> torch.Tensor:
    """Draws normal values cut at two deviations, float32."""
    return torch.as_tensor(deviation * random.normal(size=size).clip(-2, 2), dtype=torch.float32)


def cubic_spline_weights(num_points: int, num_controls: int) -> torch.Tensor:
    """Returns the (num_points, num_controls) values of a uniform cubic B-spline at the cell centres of an axis.

    The controls span the axis with one control beyond each end, so every row sums to 1.
    """
    positions = (torch.arange(num_points) + 0.5) / num_points * (num_controls - 3) + 1
    distance = (positions[:, None] - torch.arange(num_controls)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def random_displacement(random: np.random.Generator, config: CohortConfig) -> torch.Tensor:
    """Draws a smooth displacement field on the working grid, (n, n, n, 3), components in (D, H, W) order, mm."""
    num_controls = max(2, round(config.field_of_view / config.deformation_spacing) + 1) + 2
    controls = _normal(random, (num_controls,) * 3 + (3,), config.deformation)
    weights = cubic_spline_weights(config.working_size, num_controls)
    for axis in range(3):
        controls = torch.tensordot(controls, weights, dims=([axis], [1])).movedim(-1, axis)
    return controls


def random_affine(random: np.random.Generator, config: CohortConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws the matrix (3, 3) and the shift (3,) in (D, H, W) order, mm, that map a subject's points into the scan."""
    angles = _normal(random, (3,), float(np.deg2rad(config.rotation)))
    scales = torch.exp(_normal(random, (1,), config.scale) + _normal(random, (3,), config.axis_scale))
    skew = torch.zeros(3, 3)
    for axis, (row, column) in enumerate(((1, 2), (0, 2), (0, 1))):
        skew[row, column] = angles[axis]
        skew[column, row] = -angles[axis]
    return torch.linalg.matrix_exp(skew) @ torch.diag(scales), _normal(random, (3,), config.translation)


def random_grid(random: np.random.Generator, config: CohortConfig) -> torch.Tensor:
    """Draws where in the scan each working voxel of a subject comes from, (n, n, n, 3) in (D, H, W) order, mm."""
    n = config.working_size
    axis = ((torch.arange(n) + 0.5) / n - 0.5) * config.field_of_view
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    matrix, shift = random_affine(random, config)
    return points @ matrix.T + shift + random_displacement(random, config)


def _sample(volume: torch.Tensor, extent: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Reads a (1, 1, D, H, W) volume at points in mm about its centre; beyond its edge the edge goes on."""
    grid = (2 * points / extent).flip(-1)
    return functional.grid_sample(volume, grid[None], mode="bilinear", padding_mode="border", align_corners=False)


def jitter_tissue(volume_hu: torch.Tensor, random: np.random.Generator, config: CohortConfig) -> torch.Tensor:
    """Shifts lungs and soft tissue and rescales what is denser, continuously in HU; air stays air."""
    lung, soft, bone = (
        float(_normal(random, (), deviation))
        for deviation in (config.lung_jitter, config.soft_jitter, config.bone_jitter)
    )
    before = np.array([-1000.0, -960.0, -800.0, -150.0, 120.0, 3071.0])
    after = before + np.array([0.0, 0.0, lung, soft, soft, soft + bone * (3071.0 - 120.0)])
    return torch.from_numpy(np.interp(volume_hu.numpy(), before, after)).float()


def add_nodules(
    volume_hu: torch.Tensor, lungs: torch.Tensor, random: np.random.Generator, config: CohortConfig
) -> torch.Tensor:
    """Puts soft-edged spheres of soft-tissue density at random places of the lungs.

    Args:
        volume_hu: (1, 1, n, n, n) HU on the working grid.
        lungs: (1, 1, n, n, n), more than 0.5 inside the lungs.
        random: source of randomness.
        config: cohort settings.

    Returns:
        (1, 1, n, n, n) HU.
    """
    places = torch.nonzero(lungs[0, 0] > 0.5)
    count = int(random.integers(0, config.max_nodules + 1)) if len(places) else 0
    step = config.field_of_view / config.working_size
    axis = torch.arange(config.working_size)
    indices = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    for place, radius, density in random.random((count, 3)):
        center = places[int(place * len(places))]
        size = config.nodule_radius[0] + radius * (config.nodule_radius[1] - config.nodule_radius[0])
        distance = step * (indices - center).float().norm(dim=-1)
        inside = ((size - distance) / step + 0.5).clamp(0, 1)
        volume_hu = volume_hu + inside * ((density * 80 - 20) - volume_hu).clamp_min(0)
    return volume_hu


def make_subject(scan: PreparedScan, split: str, index: int, config: CohortConfig) -> Subject:
    """Makes one subject, determined by (config.seed, split, index).

    Args:
        scan: the scan all subjects derive from.
        split: a name in `SPLITS`.
        index: index of the subject within the split, >= 0.
        config: cohort settings.

    Returns:
        The subject with its volume and its views.
    """
    random = np.random.default_rng([config.seed, SPLITS.index(split), index])
    points = random_grid(random, config)
    volume = jitter_tissue(_sample(scan.volume_hu, scan.extent, points), random, config)
    volume = add_nodules(volume, _sample(scan.lungs, scan.extent, points), random, config)
    step = config.field_of_view / config.working_size
    image_size = (config.image_size, config.image_size)
    images = render_views(volume, (step, step, step), config.views, image_size, beam=config.beam)[0, :, 0]
    pixels = (images * 65535).round().numpy().astype(np.uint16)
    reduced = functional.avg_pool3d(volume, config.oversampling)[0, 0]
    voxels = reduced.round().clamp(-1024, 3071).numpy().astype(np.int16)
    return Subject(f"{split}_{index:04d}", voxels, dict(zip(config.views, pixels, strict=True)))


def write_subject(subject: Subject, folder: Path, config: CohortConfig) -> dict[str, Any]:
    """Writes a subject's volume and views into a split's folder and returns its row of `metadata.csv`."""
    nibabel = import_nibabel()
    step = config.field_of_view / config.size
    affine = grid_affine((config.size,) * 3, (step, step, step))
    row = {"file_name": f"{subject.name}.nii.gz"}
    image = nibabel.Nifti1Image(subject.volume_hu.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(folder / row["file_name"])
    for view, pixels in subject.views.items():
        row[view] = f"{subject.name}_{view}.png"
        Image.fromarray(pixels).save(folder / row[view])
    return {**row, "subject": subject.name}
