"""Renders CT volumes to pictures, without a display: slices, maxima, and turntables of bone, lungs or soft tissue.

    python scripts/render_volume.py --volume ct.nii.gz --output_dir rendered
    python scripts/render_volume.py --volume true.nii.gz generated.nii.gz --labels true generated \\
        --modes bone lung --frames 24 --size 192 --output_dir rendered

Writes slices.png, mip.png and turntable-<mode>.gif for each mode. Several volumes stand side by side, seen by one
camera that turns about the middle of each field of view. A turntable starts with the frontal view, the patient's right
at the image's left, and comes to the patient's left side after a quarter. Times grow with frames, pixels and, up to
--max_size, voxels: on one CPU core about a second for each frame of 256 x 256 pixels of a whole chest CT.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import ImageColor
from tqdm.auto import tqdm

from hf_vq.evaluation.metrics import DEFAULT_WINDOW
from hf_vq.evaluation.rendering import (
    MIP_WINDOW,
    MODES,
    Camera,
    Colour,
    isolate_body,
    limit_resolution,
    render,
    turntable_angles,
)
from hf_vq.evaluation.rendering_pictures import mip_sheet, save_gif, save_png, slice_sheet, turntable_frames
from hf_vq.evaluation.volumes import GridVolume, read_volume
from hf_vq.training.arguments import run

LOWEST = {"frames": 1, "size": 16, "slices": 1, "max_size": 8, "milliseconds": 10}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", required=True, nargs="+", type=Path, help="NIfTI files in HU, one or several")
    parser.add_argument("--labels", nargs="+", help="a name for each; several volumes have their file names by default")
    parser.add_argument("--output_dir", required=True, type=Path, help="pictures of earlier calls are replaced")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["mip", "bone", "lung"], help="turntables")
    parser.add_argument("--frames", type=int, default=36, help="frames of a full turn")
    parser.add_argument("--milliseconds", type=int, default=80, help="for which a frame is shown")
    parser.add_argument("--size", type=int, default=256, help="pixels along each side of a picture")
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="HU shown as black and as white; by default {:g} {:g} for slices and {:g} {:g} for maxima".format(
            *DEFAULT_WINDOW, *MIP_WINDOW
        ),
    )
    parser.add_argument("--slices", type=int, default=5, help="slices of each plane")
    parser.add_argument("--max_size", type=int, default=256, help="a volume with more voxels along an axis is averaged")
    parser.add_argument("--background", default="black", help="of turntables: a name or #rrggbb")
    parser.add_argument("--body_only", action="store_true", help="hide the table and what else isn't the body")
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that can't be met, before anything is read."""
    for name, lowest in LOWEST.items():
        if getattr(args, name) < lowest:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least {lowest}; give a larger number")
    if args.window is not None and not args.window[0] < args.window[1]:
        low, high = args.window
        raise ValueError(f"--window: found {low:g} {high:g}, expected LOW below HIGH in HU, such as -1000 1000")
    if args.labels is not None and len(args.labels) != len(args.volume):
        raise ValueError(
            f"--labels: found {len(args.labels)} for {len(args.volume)} volumes, expected one for each; give as many"
        )
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir: found a file at {args.output_dir}, expected a folder; choose another path")
    background_of(args)


def background_of(args: argparse.Namespace) -> Colour:
    """Red, green and blue in [0, 1]; raises ValueError for an unknown colour."""
    try:
        red, green, blue = ImageColor.getcolor(args.background, "RGB")
    except ValueError as error:
        raise ValueError(
            f"--background: found {args.background!r}, expected a colour such as black or #101014; correct it"
        ) from error
    return red / 255, green / 255, blue / 255


def labels_of(args: argparse.Namespace) -> list[str]:
    """Names that stand in the pictures."""
    if args.labels is not None:
        return list(args.labels)
    return [""] if len(args.volume) == 1 else [path.name.split(".")[0] for path in args.volume]


def write_turntable(mode: str, volumes: Sequence[GridVolume], args: argparse.Namespace) -> Path:
    """Renders all volumes from all sides with one camera and writes the GIF."""
    camera = Camera.around(volumes, args.size)
    background, angles = background_of(args), turntable_angles(args.frames)
    window = tuple(args.window or MIP_WINDOW)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = [
        render(volume, mode, angles, camera, window=window, background=background, device=device)
        for volume in tqdm(volumes, desc=mode)
    ]
    frames = turntable_frames(images, labels_of(args), args.background)
    return save_gif(args.output_dir / f"turntable-{mode}.gif", frames, args.milliseconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, read, draw, save."""
    args = parse_args(arguments)
    check_args(args)
    labels = labels_of(args)
    volumes = [read_volume(path) for path in args.volume]
    slices = slice_sheet(volumes, labels, args.slices, window=tuple(args.window or DEFAULT_WINDOW), size=args.size)
    print(save_png(args.output_dir / "slices.png", slices))
    volumes = [limit_resolution(volume, args.max_size) for volume in volumes]
    if args.body_only:
        volumes = [isolate_body(volume) for volume in volumes]
    maxima = mip_sheet(volumes, labels, window=tuple(args.window or MIP_WINDOW), size=args.size)
    print(save_png(args.output_dir / "mip.png", maxima))
    for mode in dict.fromkeys(args.modes):
        start = time.perf_counter()
        path = write_turntable(mode, volumes, args)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run(main)
