"""From CT scans in Hounsfield units to model tensors, and back to NIfTI."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from ..scalars import is_whole
from ..sharing import PushedWithCard
from .fields import finite_numbers, interval
from .geometry import (
    SPACING_LIMITS,
    VolumeGeometry,
    canonical_grid,
    field_of_view,
    from_canonical,
    grid_affine,
    import_nibabel,
    to_array_axes,
    to_canonical,
    to_tensor_axes,
)
from .limits import check_voxels
from .resampling import resample
from .scans import read_scan

OUTPUT_TYPES = ("nifti", "hu", "pt")
LOWEST_HU = -1024.0
HIGHEST_HU = 32767.0
"""Most HU that 16 bits hold; what lies above is clipped before it is averaged, as what lies below `LOWEST_HU` is."""


class CTVolumeProcessorKwargs(TypedDict, total=False):
    """Fields of the processor that `from_pretrained` lets the caller override."""

    size: list[int] | None
    spacing: list[float] | None
    hu_window: list[float]
    output_range: list[float]


class CTVolumeProcessor(PushedWithCard, BaseImageProcessor):
    """Brings CT scans onto one axis-aligned RAS+ grid and one intensity range, and brings model output back.

    The model grid lies about the centre of the scan's field of view. `spacing` and `size` both given: voxels of that
    spacing, cropped or padded with air to that size. Only `spacing`: as many voxels as the field of view holds. Only
    `size`: the field of view divided into that many voxels. Neither: the scan's own grid, axes reordered only.

    Args:
        size: number of voxels along D, H, W (superior, anterior, right).
        spacing: voxel size along D, H, W, mm.
        hu_window: lowest and highest HU; what lies outside is clipped.
        output_range: values that the ends of the window become.

    Raises:
        ValueError: a field is malformed.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  (transformers reads this class attribute as it stands)
    valid_kwargs = CTVolumeProcessorKwargs

    def __init__(
        self,
        size: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        output_range: Sequence[float] = (-1.0, 1.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = None if size is None else _size(size)
        self.spacing = None if spacing is None else _spacing(spacing)
        self.hu_window = interval("hu_window", hu_window)
        self.output_range = interval("output_range", output_range)

    def preprocess(
        self, volumes: Any, affines: Any = None, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Turns scans into a batch of model tensors.

        Args:
            volumes: path of a NIfTI file, nibabel image, (x, y, z) array or tensor in storage order, or a list of
                these.
            affines: (4, 4) voxel index to RAS+ world matrix in mm of an array or tensor, or a list of these.
            return_tensors: "pt" or "np".
            **kwargs: none is known; a misspelt argument is an error.

        Returns:
            `pixel_values` (B, 1, D, H, W) float32 within `output_range`, and `geometry`, a list of `VolumeGeometry`
            to give to `postprocess`.

        Raises:
            ValueError: a volume is unreadable, not 3D, not finite or has no valid affine, or it, or its model grid, has
                more voxels than `limits.max_voxels`; volumes of one batch come out in different sizes; an argument is
                unknown.
        """
        if kwargs:
            raise ValueError(f"found argument {sorted(kwargs)}, expected volumes, affines, return_tensors; remove it")
        scans = list(volumes) if isinstance(volumes, list | tuple) else [volumes]
        matrices = _affine_list(affines, len(scans))
        processed = [self._preprocess_one(*scan, index) for index, scan in enumerate(zip(scans, matrices, strict=True))]
        shapes = {geometry.shape for _, geometry in processed}
        if len(shapes) != 1:
            raise ValueError(
                f"found volumes of sizes {sorted(shapes)} in one batch, expected exactly one size; "
                "set `size` in the processor"
            )
        data = {
            "pixel_values": torch.stack([pixels for pixels, _ in processed]),
            "geometry": [geometry for _, geometry in processed],
        }
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["geometry"])

    def postprocess(
        self,
        pixel_values: torch.Tensor | npt.NDArray[Any],
        output_type: str = "nifti",
        geometry: Sequence[VolumeGeometry] | None = None,
    ) -> Any:
        """Turns model output back into volumes.

        Args:
            pixel_values: (B, 1, D, H, W) within `output_range`.
            output_type: "nifti", a list of int16 `nibabel.Nifti1Image` in HU; "hu", a float32 array (B, D, H, W) in HU
                on the model grid; "pt", a tensor (B, 1, D, H, W) as given.
            geometry: from `preprocess`, one for each volume; with it, NIfTI images are resampled onto the grid of
                their input and carry its affine. Without it they lie on a canonical grid about the world's origin.

        Returns:
            The volumes in the form asked for.

        Raises:
            ValueError: unknown output type, wrong shape, values that are not finite where HU are wanted, a geometry
                that does not fit, or neither geometry nor `spacing` to write NIfTI with.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: found {output_type!r}, expected one of {list(OUTPUT_TYPES)}; choose one")
        pixels = torch.as_tensor(pixel_values).detach().float().cpu()
        if pixels.ndim != 5 or pixels.shape[1] != 1:
            raise ValueError(f"pixel_values: found shape {tuple(pixels.shape)}, expected (B, 1, D, H, W); add the axes")
        if output_type == "pt":
            return pixels
        if not bool(pixels.isfinite().all()):
            raise ValueError(
                f"pixel_values: found {int((~pixels.isfinite()).sum())} NaN or infinite values, expected finite model "
                "output; compute in a wider dtype"
            )
        volumes = self._to_hu(pixels[:, 0])
        if output_type == "hu":
            return volumes.numpy()
        geometries = self._default_geometry(volumes) if geometry is None else list(geometry)
        shapes = [one.shape for one in geometries]
        if shapes != [tuple(volume.shape) for volume in volumes]:
            raise ValueError(
                f"geometry: found grids {shapes} for volumes {tuple(volumes.shape)}, "
                "expected one of the same shape for each volume; pass what preprocess returned"
            )
        return [self._to_nifti(volume, one) for volume, one in zip(volumes, geometries, strict=True)]

    def _preprocess_one(self, source: Any, affine: Any, index: int) -> tuple[torch.Tensor, VolumeGeometry]:
        """One scan as (1, D, H, W) pixel values with its geometry."""
        stored, input_affine = read_scan(source, affine, label=f"volumes[{index}]")
        canonical, canonical_affine = to_canonical(stored, input_affine)
        # scanners fill what they did not see with values far below air, which averaging would smear into the body
        lowest, highest = min(LOWEST_HU, self.hu_window[0]), max(HIGHEST_HU, self.hu_window[1])
        volume = to_tensor_axes(canonical)[0, 0].clamp(lowest, highest)
        model_affine, shape = self._model_grid(canonical_affine, canonical.shape)
        check_voxels(shape, f"volumes[{index}] on the model's grid")
        volume = resample(volume, canonical_affine, model_affine, shape, self.hu_window[0])
        x, y, z = stored.shape
        return self._to_pixels(volume)[None], VolumeGeometry(input_affine, (x, y, z), model_affine, shape)

    def _model_grid(
        self, affine: npt.NDArray[np.float64], array_shape: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.float64], tuple[int, int, int]]:
        """Affine and (D, H, W) shape of the model grid of a canonical scan."""
        x, y, z = array_shape
        if self.size is None and self.spacing is None:
            return affine, (z, y, x)
        center, extent = field_of_view(affine, (x, y, z))
        extents = [float(length) for length in extent[::-1]]
        spacing = self.spacing
        if spacing is None:
            spacing = [length / n for length, n in zip(extents, self.size or (), strict=True)]
        size = self.size or [max(1, round(length / step)) for length, step in zip(extents, spacing, strict=True)]
        shape = (size[0], size[1], size[2])
        return grid_affine(shape, (spacing[0], spacing[1], spacing[2]), center), shape

    def _to_pixels(self, volume: torch.Tensor) -> torch.Tensor:
        """Maps HU to the output range, clipped."""
        (lowest, highest), (low, high) = self.hu_window, self.output_range
        fraction = (volume.clamp(lowest, highest) - lowest) / (highest - lowest)
        return low + fraction * (high - low)

    def _to_hu(self, pixels: torch.Tensor) -> torch.Tensor:
        """Maps the output range to HU, clipped."""
        (lowest, highest), (low, high) = self.hu_window, self.output_range
        fraction = (pixels.clamp(low, high) - low) / (high - low)
        return lowest + fraction * (highest - lowest)

    def _default_geometry(self, volumes: torch.Tensor) -> list[VolumeGeometry]:
        """A canonical grid of the processor's spacing about the world's origin for each volume (B, D, H, W)."""
        if self.spacing is None:
            raise ValueError(
                "spacing: found none, expected mm to write NIfTI; pass `geometry` or set it in the processor"
            )
        depth, height, width = volumes.shape[1:]
        affine = grid_affine((depth, height, width), (self.spacing[0], self.spacing[1], self.spacing[2]))
        geometry = VolumeGeometry(affine, (width, height, depth), affine, (depth, height, width))
        return [geometry] * len(volumes)

    def _to_nifti(self, volume: torch.Tensor, geometry: VolumeGeometry) -> Any:
        """A (D, H, W) volume on the model grid as an int16 NIfTI image on the input grid."""
        input_grid = canonical_grid(geometry.input_affine, geometry.input_shape)
        restored = resample(volume, geometry.affine, *input_grid, self.hu_window[0])
        array = from_canonical(to_array_axes(restored), geometry.input_affine)
        rounded = np.ascontiguousarray(array.round().clip(-32768, 32767).astype(np.int16))
        image = import_nibabel().Nifti1Image(rounded, geometry.input_affine)
        image.header.set_xyzt_units("mm")
        return image


def _size(values: Any) -> list[int]:
    """Three whole positive numbers, one for each axis, of voxels that fit the memory."""
    numbers = list(values) if isinstance(values, list | tuple) else [values]
    if len(numbers) != 3 or not all(is_whole(number) and number > 0 for number in numbers):
        raise ValueError(
            f"size: found {values!r}, expected three positive whole numbers of voxels for (D, H, W); correct the config"
        )
    check_voxels(numbers, "size")
    return [int(number) for number in numbers]


def _spacing(values: Any) -> list[float]:
    """Three voxel sizes in mm, one for each axis."""
    numbers, (smallest, largest) = finite_numbers(values), SPACING_LIMITS
    if len(numbers) != 3 or not all(smallest <= number <= largest for number in numbers):
        raise ValueError(
            f"spacing: found {values!r}, expected three positive voxel sizes in mm for (D, H, W), from {smallest:g} to "
            f"{largest:g}; correct the config"
        )
    return numbers


def _affine_list(affines: Any, count: int) -> list[Any]:
    """One affine, or None, for each of `count` scans."""
    if affines is None:
        return [None] * count
    matrices = list(affines) if isinstance(affines, list | tuple) or np.ndim(affines) == 3 else [affines]
    if len(matrices) != count:
        raise ValueError(f"affines: found {len(matrices)} for {count} volumes, expected one each; pass a list")
    return matrices
