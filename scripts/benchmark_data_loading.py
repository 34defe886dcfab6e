"""How fast a data loader gives prepared volumes: from a folder of NIfTI files, and from memory-mapped shards.

    python scripts/benchmark_data_loading.py --output_dir data-loading
    python scripts/benchmark_data_loading.py --data cohort --output_dir data-loading --num_workers 0 8

Without --data it makes noise of the sizes that --sizes names, smoothed so that it compresses about as scans do. Each
arrangement is read once before it is timed: what is measured is reading from the memory of the operating system,
decompressing and processing, not the disk. The table counts samples, and bytes of the float32 tensors, per second.
"""

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch.utils.data import DataLoader

from hf_vq import CTVolumeProcessor, __version__
from hf_vq.data import PairedDataset
from hf_vq.evaluation.report_text import processor_name
from hf_vq.files import atomic_file
from hf_vq.training.arguments import run

TABLE_FILE = "data-loading.md"
SHARDING = Path(__file__).with_name("shard_volumes.py")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="prepared folder to read, split train, instead of made-up volumes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides of the volumes to make")
    parser.add_argument("--num_volumes", type=int, default=64, help="to make")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 1, 2, 8])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="that each figure is measured for, at least")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the table")
    args = parser.parse_args(arguments)
    for name, least in (("num_volumes", 1), ("batch_size", 1), ("seconds", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least {least}")
    return args


def write_volumes(folder: Path, size: int, count: int) -> None:
    """A paired folder of made-up volumes without views."""
    random = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    rows = []
    for number in range(count):
        coarse = random.normal(0, 400, (size // 8,) * 3).repeat(8, 0).repeat(8, 1).repeat(8, 2)
        volume = (coarse + random.normal(0, 15, coarse.shape)).clip(-1000, 3000).astype(np.int16)
        row = {"file_name": f"{number}.nii.gz", "subject": str(number)}
        nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(folder / "train" / row["file_name"])
        rows.append(row)
    with (folder / "train" / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def shard(folder: Path, output: Path) -> None:
    """Has `shard_volumes.py` make shards of a folder."""
    command = [sys.executable, str(SHARDING), "--data", str(folder), "--output_dir", str(output)]
    if subprocess.run(command, check=False).returncode:
        raise ValueError(f"{folder}: shard_volumes.py did not succeed; its message is above")


def batches_of(dataset: PairedDataset, batch_size: int, num_workers: int) -> Iterator[torch.Tensor]:
    """Shuffled batches, epoch after epoch, without an end."""
    loader = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0, drop_last=False
    )
    while True:
        for batch in loader:
            yield batch["pixel_values"]


def measure(dataset: PairedDataset, batch_size: int, num_workers: int, seconds: float) -> tuple[float, float]:
    """Samples, and bytes of their tensors, per second, after one epoch that is not counted."""
    batches = batches_of(dataset, batch_size, num_workers)
    for _ in range(0, len(dataset), batch_size):
        next(batches)
    samples, num_bytes, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds or not samples:
        batch = next(batches)
        samples, num_bytes = samples + len(batch), num_bytes + batch.nbytes
    elapsed = time.perf_counter() - start
    return samples / elapsed, num_bytes / elapsed


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_folder(folder: Path, work: Path, args: argparse.Namespace) -> Iterator[str]:
    """Rows of the table for one prepared folder."""
    shards = work / f"{folder.name}-shards"
    shard(folder, shards)
    for name, source in (("NIfTI folder", folder), ("shards", shards)):
        dataset = PairedDataset(source, "train", CTVolumeProcessor())
        sides = " x ".join(str(side) for side in dataset[0]["pixel_values"].shape[1:])
        megabytes = size_on_disk(source) / 1e6
        for num_workers in args.num_workers:
            samples, num_bytes = measure(dataset, args.batch_size, num_workers, args.seconds)
            yield (f"| {sides} | {name} | {megabytes:,.0f} | {num_workers} | {samples:,.0f} | {num_bytes / 1e6:,.0f} |")


def machine() -> str:
    """Hardware and versions, for the line below the table."""
    versions = f"hf_vq {__version__}, torch {torch.__version__}, nibabel {nibabel.__version__}"
    return f"{len(os.sched_getaffinity(0))} cores of {processor_name()}; {versions}, Python {platform.python_version()}"


def main() -> None:
    """Make or take the data, measure, print and save the table."""
    args = parse_args()
    lines = [
        "| volume | source | MB on disk | workers | samples/s | MB/s |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory(prefix="hf_vq_") as temporary:
        work = Path(temporary)
        folders = [Path(args.data)] if args.data else [work / f"volumes-{size}" for size in args.sizes]
        for folder, size in zip(folders, args.sizes, strict=False):
            if not args.data:
                write_volumes(folder, size, args.num_volumes)
            lines.extend(measure_folder(folder, work, args))
    lines += ["", f"{machine()}; {time.strftime('%Y-%m-%d')}; batches of {args.batch_size}."]
    text = "\n".join(lines) + "\n"
    print(text)
    with atomic_file(args.output_dir / TABLE_FILE) as path:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
