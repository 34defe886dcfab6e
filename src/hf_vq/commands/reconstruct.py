"""Sends a scan or an image through a trained tokenizer, and writes what comes back.

    hf-vq reconstruct --tokenizer user/repo --input scan.nii.gz --output reconstruction.nii.gz
    hf-vq reconstruct --tokenizer volume-tokenizer --input dicom-folder --output reconstruction.nii.gz --codes codes.npz
    hf-vq reconstruct --tokenizer pipeline --input frontal.png --output reconstruction.png

`--tokenizer` is a tokenizer with its processor, or a ViewsToVolumePipeline, whose tokenizer for this kind of input is
taken. A volume is a NIfTI file or a folder with one DICOM series; its reconstruction is written in HU on the grid of
the input, with its affine. An image is whatever the processor reads; its reconstruction has the size of the input.

Prints the codes in use, and PSNR, SSIM and the mean absolute error against the input, in the range that the processor
keeps (of HU, its window): on the model's grid, where only the tokenizer's loss counts, and of volumes also on the
input's own grid, where what the processor loses counts too: resolution, and what lies outside the model's field of
view, which comes back as air.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save
from torch.nn import functional
from transformers import AutoImageProcessor

from ..data import find_series, read_series
from ..data.images import DEEP_MODES
from ..evaluation.metrics import SSIM_SIGMA, SSIM_WINDOW_SIZE, mae_hu, psnr_3d, ssim_3d
from ..evaluation.optional import import_extra
from ..files import atomic_file
from ..models import load_tokenizer, read_config
from ..processors import CTVolumeProcessor, XrayImageProcessor
from ..processors.image_files import open_image
from ..processors.scans import read_scan
from .outputs import check_new, split_suffix
from .sources import local_folder, read_json

NIFTI_SUFFIXES = (".nii.gz", ".nii")
CODES_SUFFIXES = (".npz", ".safetensors")
PIPELINE_CLASS = "ViewsToVolumePipeline"
# What reconstruction needs of a repository.
WANTED_FILES, UNWANTED_FILES = ["*.json", "*.safetensors"], ["transformer/*", "checkpoint-*"]


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id of a tokenizer or ViewsToVolumePipeline")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--input", required=True, type=Path, help="NIfTI file, folder of a DICOM series, or image")
    parser.add_argument("--output", required=True, type=Path, help=".nii.gz or .nii for a volume, .png for an image")
    parser.add_argument("--codes", type=Path, metavar="FILE", help="also write the codes, .npz or .safetensors")
    parser.add_argument("--tile", type=int, metavar="N", help="in tiles of N voxels (pixels) a side, to save memory")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Reconstruction:
    """What a tokenizer made of one input.

    Attributes:
        codes: `(*grid)` int64; with several codebooks `(num_codebooks, *grid)`.
        result: NIfTI image in HU on the input's grid, or PIL image of the input's size.
        figures: lines about its agreement with the input.
    """

    codes: torch.Tensor
    result: Any
    figures: list[str]


def is_volume(source: Path) -> bool:
    """Whether an input is read as a volume: a NIfTI file or a folder."""
    return source.is_dir() or source.name.endswith(NIFTI_SUFFIXES)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that cannot be met, before anything is loaded."""
    if not args.input.exists():
        raise ValueError(f"--input {args.input}: found no such file or folder, expected a scan or an image; check it")
    split_suffix("--output", args.output, NIFTI_SUFFIXES if is_volume(args.input) else (".png",))
    if args.codes is not None:
        split_suffix("--codes", args.codes, CODES_SUFFIXES)
    check_new([path for path in (args.output, args.codes) if path is not None], args.overwrite)


def load_parts(source: str, wants_volume: bool, revision: str | None = None) -> tuple[Any, Any]:
    """A tokenizer for volumes or for images with its processor, on a GPU when there is one.

    Args:
        source: folder or Hub id of a tokenizer or of a `ViewsToVolumePipeline`.
        wants_volume: which of the two.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: there is no such thing, it is a tokenizer of the other kind, or it has no processor.
    """
    folder = local_folder(source, WANTED_FILES, UNWANTED_FILES, revision)
    model, processor = _find_parts(source, folder, wants_volume)
    read_config(model)  # says what is wrong with a folder that holds no model
    if not (processor / "preprocessor_config.json").is_file():
        raise ValueError(
            f"{source}: found no preprocessor_config.json beside the tokenizer, expected that of the processor it was "
            "trained with; save the processor to the same folder"
        )
    tokenizer: Any = load_tokenizer(model, device="cuda" if torch.cuda.is_available() else "cpu")
    if (tokenizer.config.spatial_dims == 3) != wants_volume:
        kinds = ("a volume", "an image") if wants_volume else ("an image", "a volume")
        raise ValueError(
            f"{source}: found a {tokenizer.config.spatial_dims}D tokenizer and {kinds[0]} as --input, expected "
            f"{kinds[1]} for it; give another input or another tokenizer"
        )
    if wants_volume:
        return tokenizer, CTVolumeProcessor.from_pretrained(processor)
    return tokenizer, AutoImageProcessor.from_pretrained(processor, backend="pil")


def _find_parts(source: str, folder: Path, wants_volume: bool) -> tuple[Path, Path]:
    """Folders of the tokenizer and of the processor."""
    index = read_json(folder / "model_index.json")
    if index is None:
        return folder, folder
    found = index.get("_class_name")
    if found != PIPELINE_CLASS:
        raise ValueError(f"{source}: found a {found}, expected a tokenizer with its processor or a {PIPELINE_CLASS}")
    kind = "volume" if wants_volume else "view"
    return folder / f"{kind}_tokenizer", folder / f"{kind}_processor"


def read_volume(source: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """A scan as (x, y, z) HU with its RAS+ affine, mm.

    Raises:
        ValueError: the file is no readable NIfTI file, or the folder holds no or several DICOM series or one that is
            not usable.
    """
    if not source.is_dir():
        return read_scan(source)
    series, damaged = find_series(source)
    if len(series) != 1:
        problems = [*(one.name for one in series), *(f"{path.name}: {what}" for path, what in damaged.items())]
        listed = f" ({'; '.join(problems[:5])}{'; ...' if len(problems) > 5 else ''})" if problems else ""
        raise ValueError(
            f"{source}: found {len(series)} DICOM series{listed}, expected exactly one; give the folder of one of them"
        )
    return read_series(series[0])


@torch.no_grad()
def reconstruct_volume(tokenizer: Any, processor: CTVolumeProcessor, source: Path) -> Reconstruction:
    """A volume through a tokenizer and back onto its own grid, in HU."""
    array, affine = read_volume(source)
    inputs = processor(array, affines=affine)
    pixel_values = inputs["pixel_values"]
    codes, sample = _through(tokenizer, pixel_values)
    result = processor.postprocess(sample, "nifti", geometry=inputs["geometry"])[0]
    lowest, highest = processor.hu_window
    window = (lowest, highest)
    seen, made = (processor.postprocess(values, "hu")[0] for values in (pixel_values, sample))
    whole = np.asarray(result.dataobj)
    figures = [
        f"against the input, window {lowest:g} to {highest:g} HU:",
        f"  model's grid {_sides(seen.shape)}: PSNR {psnr_3d(seen, made, window):.2f} dB, "
        f"SSIM {_volume_ssim(seen, made, window)}, MAE {mae_hu(seen, made, window):.1f} HU",
        f"  input's grid {_sides(whole.shape)}: PSNR {psnr_3d(array, whole, window):.2f} dB, "
        f"MAE {mae_hu(array, whole, window):.1f} HU",
    ]
    return Reconstruction(codes, result, figures)


@torch.no_grad()
def reconstruct_image(tokenizer: Any, processor: Any, source: Path) -> Reconstruction:
    """An image through a tokenizer and back to its own size."""
    image = open_image(source)
    is_xray = isinstance(processor, XrayImageProcessor)
    if not is_xray and image.mode.startswith(DEEP_MODES):
        raise ValueError(
            f"{source}: found more than 8 bits a channel, expected 8 for this tokenizer; convert the image"
        )
    if not is_xray:
        image = image.convert("L" if tokenizer.config.in_channels == 1 else "RGB")
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    codes, sample = _through(tokenizer, pixel_values)
    low, high = _black_and_white(processor)
    seen, made = (((values[0] - low) / (high - low)).clamp(0, 1).numpy() for values in (pixel_values, sample))
    unit = (0.0, 1.0)  # the functions know no unit: their HU are whatever the window is in
    figures = [
        f"against the input, black 0 and white 1, model's grid {_sides(seen.shape[1:])}: "
        f"PSNR {psnr_3d(seen, made, unit):.2f} dB, SSIM {_image_ssim(seen, made)}, MAE {mae_hu(seen, made, unit):.4f}"
    ]
    size = (image.height, image.width)
    resized = functional.interpolate(torch.from_numpy(made)[None], size=size, mode="bilinear", antialias=True)
    return Reconstruction(codes, _picture(resized[0].clamp(0, 1), is_xray), figures)


def _through(tokenizer: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstruction of one input, on the CPU."""
    # With tiles, it is they that travel to the tokenizer.
    device = tokenizer.device if tokenizer.tiling is None else pixel_values.device
    codes = tokenizer.encode(pixel_values.to(device, tokenizer.dtype)).codes
    return codes[0].cpu(), tokenizer.decode(codes).sample.float().cpu()


def _black_and_white(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a processor makes of black and of white, `(channels, 1, 1)` each."""
    if isinstance(processor, XrayImageProcessor):
        ends = [[end] for end in processor.output_range]
    else:
        pairs = list(zip(processor.image_mean, processor.image_std, strict=True))
        ends = [[(end - mean) / std for mean, std in pairs] for end in (0.0, 1.0)]
    low, high = (torch.tensor(end, dtype=torch.float32)[:, None, None] for end in ends)
    return low, high


def _picture(unit: torch.Tensor, deep: bool) -> Image.Image:
    """A PIL image of `(channels, rows, columns)` in [0, 1]: 16 bits for X-rays, 8 for others."""
    if deep:
        return Image.fromarray((unit[0] * 65535).round().numpy().astype(np.uint16))
    pixels = (unit * 255).round().numpy().astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _volume_ssim(true: npt.NDArray[Any], made: npt.NDArray[Any], window: tuple[float, float]) -> str:
    if min(true.shape) < SSIM_WINDOW_SIZE:
        return f"none below {SSIM_WINDOW_SIZE} voxels a side"
    return f"{ssim_3d(true, made, window):.3f}"


def _image_ssim(true: npt.NDArray[Any], made: npt.NDArray[Any]) -> str:
    """As `ssim_slices` does it for a slice, channels averaged."""
    if min(true.shape[1:]) < SSIM_WINDOW_SIZE:
        return f"none below {SSIM_WINDOW_SIZE} pixels a side"
    similarity = import_extra("skimage.metrics").structural_similarity
    constants = {"gaussian_weights": True, "sigma": SSIM_SIGMA, "use_sample_covariance": False}
    return f"{similarity(true, made, channel_axis=0, data_range=1.0, **constants):.3f}"


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


def codes_in_use(codes: torch.Tensor, num_codebooks: int) -> int:
    """Different codes that one input uses, those of several codebooks counted apart."""
    return sum(len(book.unique()) for book in (codes if num_codebooks > 1 else codes[None]))


def save_codes(path: Path, codes: torch.Tensor, codebook_size: int) -> None:
    """Writes codes, int32, and the number there are of them: two arrays of a .npz file, or a tensor and the metadata of
    a .safetensors file."""
    small = codes.int().contiguous()
    with atomic_file(path) as temporary:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, codes=small.numpy(), codebook_size=codebook_size)
        else:
            temporary.write_bytes(save({"codes": small}, metadata={"codebook_size": str(codebook_size)}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, reconstruct, save."""
    args = parse_args(arguments)
    check_args(args)
    wants_volume = is_volume(args.input)
    tokenizer, processor = load_parts(args.tokenizer, wants_volume, args.revision)
    if args.tile is not None:
        tokenizer.enable_tiling(args.tile)
    reconstruct = reconstruct_volume if wants_volume else reconstruct_image
    made = reconstruct(tokenizer, processor, args.input)
    size, books = int(tokenizer.config.quantizer_config.codebook_size), int(tokenizer.config.num_codebooks)
    with atomic_file(args.output) as temporary:
        (made.result.to_filename if wants_volume else made.result.save)(temporary)
    if args.codes is not None:
        save_codes(args.codes, made.codes, size)
    print(f"{_sides(made.codes.shape)} codes, {codes_in_use(made.codes, books)} of {size * books} in use")
    print("\n".join(made.figures))
    for path in filter(None, (args.output, args.codes)):
        print(f"wrote {path}")
