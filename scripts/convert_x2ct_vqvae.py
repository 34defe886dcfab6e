"""Converts checkpoints of the code that Corona-Figueroa et al. (ICCV 2023) published into folders of this package.

    python scripts/convert_x2ct_vqvae.py --volume_checkpoint ct/vqgan_ema_100000.th \\
        --view_checkpoint xray/vqgan_ema_100000.th --sampler_checkpoint absorbing_ema_100000.th --output_dir converted

Each checkpoint is optional. Writes `volume-tokenizer`, `view-tokenizer` and `transformer` into the output folder, with
all three also `pipeline`, a complete ViewsToVolumePipeline; and `conversion.json` with what became of every key. The
files are read as plain tensors; nothing in them is executed. docs/x2ct_vqvae.md says what is exact and what is not.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_vq import AbsorbingScheduler, CTVolumeProcessor, ViewsToVolumePipeline, XrayImageProcessor
from hf_vq.files import atomic_directory
from hf_vq.models.x2ct_checkpoints import Conversion, convert_tokenizer, convert_transformer, read_state_dict
from hf_vq.training.arguments import run

CHECKPOINTS = {"volume-tokenizer": "volume_checkpoint", "view-tokenizer": "view_checkpoint"}
SPATIAL_DIMS = {"volume-tokenizer": 3, "view-tokenizer": 2}
DEFAULT_CODE_GRID, DEFAULT_CONTEXT_GRID = (8, 8, 8), (16, 16)
DIFFERENCES = (
    "Intensities: the authors scale each volume by its own minimum and maximum to [0, 1]; CTVolumeProcessor maps a "
    "fixed window of HU to [0, 1]. Values that the pipeline writes as HU rest on that window, not on the checkpoint.",
    "Axes: the authors read volumes with all three axes flipped, in a file order that their checkpoints do not tell. "
    "CTVolumeProcessor gives (superior, anterior, right). volume_axes and view_axes in the transformer's config are "
    "unverified; its free positions make no use of them.",
    "Views: the authors show the views by file order, and in training in random order. Check that the names given "
    "with --view_names belong to the files.",
    "Sizes: the checkpoints hold no voxel spacing and no image side; sides follow from the code grids.",
    "Further training: dropout, loss weights and learning rates are not in the checkpoints; the quantizer has the "
    "authors' default weights (commitment 1, codebook 0.25), the transformer no dropout.",
)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume_checkpoint", help="state dict of the 3D autoencoder or VQGAN (.th)")
    parser.add_argument("--view_checkpoint", help="state dict of the 2D autoencoder or VQGAN (.th)")
    parser.add_argument("--sampler_checkpoint", help="state dict of the sampler (.th)")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_heads", type=int, default=4, help="attention heads of the sampler")
    parser.add_argument(
        "--view_names", nargs="+", default=["frontal", "lateral"], help="names of the views in the sampler's order"
    )
    parser.add_argument("--code_grid", type=int, nargs=3, help="sides of a volume's code grid; a cube by default")
    parser.add_argument("--context_grid", type=int, nargs=2, help="sides of a view's code grid; a square by default")
    parser.add_argument("--spacing", type=float, nargs=3, help="voxel size along D, H, W, mm; needed to write NIfTI")
    parser.add_argument(
        "--hu_window", type=float, nargs=2, default=[-1000.0, 1000.0], help="HU that become 0 and 1 (an assumption)"
    )
    parser.add_argument(
        "--unused", nargs="+", default=[], metavar="PREFIX", help="beginnings of further keys to leave aside"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    return parser.parse_args(arguments)


def convert(args: argparse.Namespace) -> dict[str, Conversion]:
    """A model by folder name for each checkpoint given; raises ValueError if there is none, or one does not fit."""
    conversions: dict[str, Conversion] = {}
    if args.sampler_checkpoint:
        conversions["transformer"] = convert_transformer(
            read_state_dict(args.sampler_checkpoint),
            num_heads=args.num_heads,
            view_names=args.view_names,
            code_grid=args.code_grid,
            context_grid=args.context_grid,
            unused_prefixes=args.unused,
        )
    for name, flag in CHECKPOINTS.items():
        if getattr(args, flag):
            conversions[name] = convert_tokenizer(read_state_dict(getattr(args, flag)), args.unused)
            found = conversions[name].model.config.spatial_dims
            if found != SPATIAL_DIMS[name]:
                raise ValueError(
                    f"--{flag}: found a {found}D autoencoder, expected a {SPATIAL_DIMS[name]}D one; are the volume and "
                    "the view checkpoint swapped?"
                )
    if not conversions:
        raise ValueError("found no checkpoint; give --volume_checkpoint, --view_checkpoint or --sampler_checkpoint")
    return conversions


def make_processors(args: argparse.Namespace, conversions: dict[str, Conversion]) -> dict[str, Any]:
    """The processor of each tokenizer: [0, 1], sides from the code grids."""
    grids = {
        "volume-tokenizer": args.code_grid or DEFAULT_CODE_GRID,
        "view-tokenizer": args.context_grid or DEFAULT_CONTEXT_GRID,
    }
    if "transformer" in conversions:
        config = conversions["transformer"].model.config
        grids = {"volume-tokenizer": config.code_grid, "view-tokenizer": config.context_grid}
    processors: dict[str, Any] = {}
    for name in grids.keys() & conversions.keys():
        sides = [side * conversions[name].model.config.downsampling_factor for side in grids[name]]
        if name == "volume-tokenizer":
            processors[name] = CTVolumeProcessor(
                size=sides, spacing=args.spacing, hu_window=args.hu_window, output_range=(0.0, 1.0)
            )
        else:
            size = dict(zip(("height", "width"), sides, strict=True))
            processors[name] = XrayImageProcessor(size=size, output_range=(0.0, 1.0))
    return processors


def make_pipeline(conversions: dict[str, Conversion], processors: dict[str, Any]) -> ViewsToVolumePipeline:
    """All parts together, sampled as the authors do: each masked code settles by a coin."""
    transformer = conversions["transformer"].model
    return ViewsToVolumePipeline(
        volume_tokenizer=conversions["volume-tokenizer"].model,
        view_tokenizer=conversions["view-tokenizer"].model,
        transformer=transformer,
        scheduler=AbsorbingScheduler(mask_token_id=transformer.mask_token_id, sampling="ancestral"),
        volume_processor=processors["volume-tokenizer"],
        view_processor=processors["view-tokenizer"],
    )


def describe(args: argparse.Namespace, conversions: dict[str, Conversion]) -> dict[str, Any]:
    """What became of every checkpoint, for conversion.json."""
    checkpoints = {}
    for name, conversion in conversions.items():
        path = getattr(args, CHECKPOINTS.get(name, "sampler_checkpoint"))
        checkpoints[name] = {
            "file": Path(path).name,
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "used_keys": list(conversion.used),
            "unused_keys": list(conversion.unused),
            "parameters": sum(parameter.numel() for parameter in conversion.model.parameters()),
        }
    return {"checkpoints": checkpoints, "differences": list(DIFFERENCES)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, convert, save, say what differs."""
    args = parse_args(arguments)
    with atomic_directory(args.output_dir, overwrite=args.overwrite, marker="conversion.json") as folder:
        conversions = convert(args)
        processors = make_processors(args, conversions)
        for name, conversion in conversions.items():
            conversion.model.save_pretrained(folder / name)
            if name in processors:
                processors[name].save_pretrained(folder / name)
        if len(conversions) == 3:
            make_pipeline(conversions, processors).save_pretrained(folder / "pipeline")
        report = describe(args, conversions)
        (folder / "conversion.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, entry in report["checkpoints"].items():
        print(
            f"{name}: {entry['parameters']:,} parameters from {len(entry['used_keys'])} keys of {entry['file']}; "
            f"{len(entry['unused_keys'])} keys without effect left aside"
        )
    print("What differs from the authors' code:", *(f"- {line}" for line in DIFFERENCES), sep="\n")


if __name__ == "__main__":
    run(main)
