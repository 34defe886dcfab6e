"""Prepares a folder of CT scans, DICOM series and NIfTI files mixed, as a paired data set of volumes and radiographs.

    python scripts/prepare_scans.py --input_dir scans --output_dir data --num_workers 4
    python scripts/prepare_scans.py --input_dir scans --output_dir data64 --size 64 64 64 --spacing 5 \\
        --splits data/splits.csv

Each scan is brought to RAS+ axes and to one grid in millimetres; its radiographs are rendered, or taken from the files
that --views_csv names. Patients, never scans, are divided into train, validation and test. A scan that cannot be used
is skipped; report.csv and report.md say why. A run that was stopped, even killed, goes on when the same command is run
again, and so does a finished one when scans have been added. One run at a time may write to a folder.

--splits is a CSV file with the columns patient and split, and optionally name, which is what the patient is called in
the output. A patient is known by its PatientID (DICOM), by the name of the file without suffix (NIfTI), or by the
outermost folder (--patient_from folder); or by the name in the splits.csv of an earlier run with the same --salt and no
names of its own. --views_csv is a CSV file with the columns patient and one per view, which hold paths of images.
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_vq.data.cohort import SPLITS
from hf_vq.data.paired_sources import unique_subjects
from hf_vq.data.patient_splits import assign_splits, check_splits, read_patient_table
from hf_vq.data.preparation import CENTERS, PreparationConfig
from hf_vq.data.preparation_jobs import PreparationJob, run_jobs
from hf_vq.data.prepared_folder import REPORT_FILE, PreparedFolder
from hf_vq.data.scan_search import PATIENT_FROM, ScanSource, by_patient, find_scans, rename_patients
from hf_vq.locking import exclusive
from hf_vq.processors.geometry import find_view
from hf_vq.training.arguments import run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    defaults = PreparationConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder with scans, at any depth")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make or to go on with")
    parser.add_argument("--size", type=int, nargs="+", default=defaults.size, help="voxels along D H W, or one for all")
    parser.add_argument("--spacing", type=float, nargs="+", default=defaults.spacing, help="mm along D H W, or one")
    parser.add_argument("--center", choices=CENTERS, default=defaults.center, help="what the grid lies about")
    parser.add_argument("--remove_table", action="store_true", help="make everything outside the body air")
    parser.add_argument("--hu_window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="clip the volumes")
    parser.add_argument("--views", nargs="+", default=defaults.views, help="views to render, such as azimuth_30")
    parser.add_argument(
        "--image_size", type=int, nargs="+", default=defaults.image_size, help="rows and columns, or one"
    )
    parser.add_argument("--views_csv", type=Path, help="real radiographs to take in place of rendered ones")
    parser.add_argument("--modalities", nargs="+", default=defaults.modalities, help="DICOM modalities to accept")
    parser.add_argument("--nifti_pattern", default="*", help="path of the NIfTI files to take, such as '*/ct.nii.gz'")
    parser.add_argument("--patient_from", choices=PATIENT_FROM, default="id", help="PatientID or file name, or folder")
    parser.add_argument("--salt", default="", help="secret text that goes into anonymous names")
    parser.add_argument("--splits", type=Path, help="CSV file with the split of each patient; others are skipped")
    parser.add_argument("--fractions", type=float, nargs=3, default=(0.8, 0.1, 0.1), metavar=("TRAIN", "VAL", "TEST"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the division without --splits")
    parser.add_argument("--num_workers", type=int, default=0, help="processes beside this one")
    parser.add_argument("--on_error", choices=("skip", "stop"), default="skip", help="what to do with a bad scan")
    parser.add_argument("--overwrite", action="store_true", help="begin anew in output_dir")
    return parser.parse_args(arguments)


def repeated(values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """The values, one being repeated."""
    return tuple(values) * count if len(values) == 1 else tuple(values)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that cannot be met, before any work is done."""
    if args.num_workers < 0:
        raise ValueError(f"--num_workers: found {args.num_workers}, expected 0 or more; correct it")
    scans, output = args.input_dir.resolve(), args.output_dir.resolve()
    if scans == output or scans in output.parents or output in scans.parents:
        raise ValueError(
            f"--output_dir: found {args.output_dir}, expected a folder beside {args.input_dir}, neither in it nor "
            "around it; choose another path"
        )
    for flag, path in (("--splits", args.splits), ("--views_csv", args.views_csv)):
        if path is not None and not path.is_file():
            raise ValueError(f"{flag}: found no file {path}, expected a CSV file; check the path")
    for view in args.views if args.views_csv is None else ():
        find_view(view)


def make_config(args: argparse.Namespace) -> PreparationConfig:
    return PreparationConfig(
        size=repeated(args.size, 3),
        spacing=repeated(args.spacing, 3),
        center=args.center,
        remove_table=args.remove_table,
        hu_window=None if args.hu_window is None else tuple(args.hu_window),
        views=tuple(args.views),
        image_size=repeated(args.image_size, 2),
        modalities=tuple(args.modalities),
    )


def digest(data: bytes | None) -> str | None:
    """By which a file, or a secret, is compared with an earlier run's without being kept."""
    return hashlib.sha256(data).hexdigest()[:16] if data else None


def settings_of(args: argparse.Namespace, config: PreparationConfig) -> dict[str, Any]:
    """Everything the result depends on besides the scans."""
    drawn = args.splits is None
    return {
        **asdict(config),
        "nifti_pattern": args.nifti_pattern,
        "patient_from": args.patient_from,
        "salt_digest": digest(args.salt.encode()),
        "fractions": list(args.fractions) if drawn else None,
        "seed": args.seed if drawn else None,
        "splits_digest": None if drawn else digest(args.splits.read_bytes()),
        "radiographs": "rendered" if args.views_csv is None else digest(args.views_csv.read_bytes()),
    }


def radiographs_of(args: argparse.Namespace, config: PreparationConfig) -> dict[str, dict[str, str]] | None:
    """Image files of each patient and view; None where views are rendered."""
    if args.views_csv is None:
        return None
    table = read_patient_table(args.views_csv, config.views)
    found = {
        patient: {view: str(args.views_csv.parent / row[view]) for view in config.views if view in row}
        for patient, row in table.items()
    }
    return by_patient(found, args.salt)


def assigned_splits(
    args: argparse.Namespace, known: dict[str, str], sources: list[ScanSource], table: dict[str, dict[str, str]]
) -> dict[str, str]:
    """Split of each patient, by the file or by the seed."""
    if args.splits is not None:
        return by_patient(check_splits(table, args.splits), args.salt)
    patients = {source.patient for source in sources if not source.problem}
    return assign_splits(patients, dict(zip(SPLITS, args.fractions, strict=True)), args.seed, known)


def make_jobs(
    args: argparse.Namespace, config: PreparationConfig, folder: PreparedFolder, sources: list[ScanSource]
) -> list[PreparationJob]:
    """Gives every scan its split, its name and its radiographs."""
    table = {} if args.splits is None else read_patient_table(args.splits, ["split"])
    splits = assigned_splits(args, folder.known_splits, sources, table)
    radiographs = radiographs_of(args, config)
    names = {patient: row["name"] for patient, row in table.items() if "name" in row}
    jobs = []
    for source, renamed in zip(sources, rename_patients(sources, names, args.salt), strict=True):
        images = {} if radiographs is None else radiographs.get(source.patient, {})
        left_out = ""
        if not source.problem and source.patient not in splits:
            left_out = f"found no such patient in {args.splits.name}, so it belongs to no split"
        elif not source.problem and radiographs is not None and not images:
            left_out = f"found no such patient in {args.views_csv.name}, so it has no radiographs"
        jobs.append(PreparationJob(renamed, splits.get(source.patient, ""), folder, config, images, left_out))
    unique_subjects([job.source.subject for job in jobs if not (job.left_out or job.source.problem)], "subjects")
    return jobs


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    check_args(args)
    with exclusive(args.output_dir):
        prepare(args)


def prepare(args: argparse.Namespace) -> None:
    """Prepares all scans of the input folder that are not yet."""
    config = make_config(args)
    folder = PreparedFolder(args.output_dir, settings_of(args, config), args.overwrite)
    progress = partial(tqdm, desc="looking for DICOM", unit="file")
    sources, num_ignored = find_scans(args.input_dir, args.patient_from, args.salt, args.nifti_pattern, progress)
    jobs = make_jobs(args, config, folder, sources)
    folder.start({job.source.patient: job.split for job in jobs if job.split})
    results = run_jobs(jobs, args.num_workers, stop_on_error=args.on_error == "stop")
    rows = list(tqdm(results, total=len(jobs), desc="preparing", unit="scan"))
    folder.finish(rows, num_ignored)
    filled = Counter(row["split"] for row in rows if row["status"] == "prepared")
    empty = sorted({job.split for job in jobs if job.split} - set(filled))
    num_prepared = filled.total()
    if not num_prepared:
        raise ValueError(f"prepared none of {len(rows)} scans; {args.output_dir / REPORT_FILE} says why")
    if empty:
        print(f"No scan of {', '.join(empty)} could be used; --splits divides the patients by hand.", file=sys.stderr)
    print(f"Prepared {num_prepared} of {len(rows)} scans; {args.output_dir / REPORT_FILE} has a row for each.")


if __name__ == "__main__":
    run(main)
