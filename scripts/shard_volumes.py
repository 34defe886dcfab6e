"""Turns a paired data set into memory-mapped shards, from which a training reads without decompressing anything.

    python scripts/shard_volumes.py --data cohort --output_dir cohort-shards
    python scripts/shard_volumes.py --data data --output_dir data-shards --shard_size 64 --on_error skip

The result is a `datasets` data set of voxels in HU, affines and views, and stands wherever the folder did: `--data
cohort-shards` gives the same tensors to the bit. All volumes must have one shape, and so must the views, as
prepare_cohort.py and prepare_scans.py make them. Volumes take 2 bytes for each voxel (`--voxel_type float32`: 4).

A run that was stopped, even killed, goes on behind its last finished shard when the same command is run again.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from hf_vq import __version__
from hf_vq.data import PairedDataset
from hf_vq.data.checking import ON_ERROR, Skipped, stop_message, tell_skipped
from hf_vq.data.cohort import SPLITS
from hf_vq.data.locating import local_folder
from hf_vq.data.rendered_views import RECORD_FILES
from hf_vq.data.sharded_volumes import VOXEL_TYPES, VolumeRows
from hf_vq.data.sharding import SKIPPED_FILE, Shard, ShardedOutput, list_skipped
from hf_vq.data.splits import MissingSplitError
from hf_vq.training.arguments import run
from hf_vq.training.encoding import files_digest


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="paired folder or data set id")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--voxel_type", choices=VOXEL_TYPES, default="int16")
    parser.add_argument("--shard_size", type=int, default=128, help="subjects of a file; what a kill can cost")
    parser.add_argument("--on_error", choices=ON_ERROR, default="stop", help="what to do with files that are bad")
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    return parser.parse_args(arguments)


def open_datasets(source: str, allow_missing: bool) -> dict[str, PairedDataset]:
    """All splits that there are."""
    found = {}
    for split in SPLITS:
        try:
            found[split] = PairedDataset(source, split, allow_missing=allow_missing)
        except MissingSplitError:
            continue
    if not found:
        raise ValueError(f"--data {source}: found no split, expected at least one of {list(SPLITS)}; check the path")
    return found


def rows_of(
    shard: Shard, rows: VolumeRows, subjects: Sequence[str], skipped: list[Skipped], skip: bool
) -> Iterator[tuple[Any, dict[str, list[Any]]]]:
    """The rows of a shard, without those that cannot be read where they are to be skipped."""
    for index in shard.items:
        try:
            yield rows.row(shard.split, index)
        except (ValueError, OSError) as error:
            bad = Skipped(shard.split, subjects[index], " ".join(str(error).split()))
            if not skip:
                raise ValueError(stop_message([bad])) from error
            tell_skipped([bad])
            skipped.append(bad)


def main() -> None:
    """Parse, open, write shard by shard, put together."""
    args = parse_args()
    datasets = open_datasets(args.data, args.on_error == "skip")
    rows = VolumeRows(datasets, args.voxel_type)
    settings = {
        "data": files_digest(args.data, args.output_dir),
        "voxel_type": args.voxel_type,
        "version": __version__,
    }
    sizes = {split: len(dataset) for split, dataset in datasets.items()}
    output = ShardedOutput(args.output_dir, settings, sizes, args.shard_size)
    with output.writing(args.overwrite):
        for split, dataset in datasets.items():
            for shard in tqdm(output.missing(split), desc=split, unit="shard"):
                skipped: list[Skipped] = []
                output.write(shard, rows_of(shard, rows, dataset.subjects, skipped, args.on_error == "skip"), skipped)
        folder = local_folder(args.data)
        texts = {name: (folder / name).read_text("utf-8") for name in RECORD_FILES if (folder / name).is_file()}
        if output.skipped():
            texts[SKIPPED_FILE] = list_skipped(output.skipped())
        output.finish(texts)


if __name__ == "__main__":
    run(main)
