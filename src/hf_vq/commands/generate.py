"""Generates CT volumes from X-ray views with a trained pipeline, for one subject or for every subject of a data set.

    hf-vq generate --pipeline user/repo --views frontal=frontal.png lateral=lateral.dcm --output ct.nii.gz
    hf-vq generate --pipeline pipeline --views frontal=frontal.png lateral=lateral.png --output ct.nii.gz \\
        --num_volumes_per_prompt 8 --uncertainty
    hf-vq generate --pipeline pipeline --data cohort --split test --num_volumes_per_prompt 8 --output_dir generated

One subject: `--views NAME=FILE` names a grey PNG or a DICOM radiograph (CR, DX) for each view, and `--output` the NIfTI
file. Several volumes are numbered, `ct_0.nii.gz`, `ct_1.nii.gz`, ...; `--uncertainty` adds `ct_mean.nii.gz` and
`ct_std.nii.gz`, mean and standard deviation over the volumes in HU.

A data set: writes `<subject>_<sample>.nii.gz` and `metadata.csv` (file_name, subject, sample). With `--shuffle_views`
each subject gets the views of the next one: the control that tells whether a model reads its views. `--uncertainty`
adds `<subject>_mean.nii.gz` and `<subject>_std.nii.gz`, which metadata.csv does not list, since they are no samples. A
model with classes gets those of the data's column `label`.

`--select_by_reprojection` draws all volumes and keeps the one of each subject whose views, rendered from it, agree best
with the given ones: with the data set's rays, those of `--cone_beam`, or else parallel ones.
"""

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data import BeamGeometry, PairedDataset
from ..evaluation.sampling_record import write_sampling
from ..files import atomic_directory, atomic_file
from ..pipelines import ViewsToVolumePipeline, open_pipeline
from ..schedulers import AbsorbingScheduler
from ..schedulers.checks import SAMPLINGS
from .outputs import check_new, split_suffix

NIFTI_SUFFIXES = (".nii.gz", ".nii")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub id of a ViewsToVolumePipeline")
    parser.add_argument("--revision", help="branch, tag or commit of the pipeline's Hub id")
    parser.add_argument(
        "--views",
        nargs="+",
        metavar="NAME[=FILE]",
        help="one subject: NAME=FILE for each view; with --data: names of some of the model's views (view_dropout)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    _add_sampling(parser.add_argument_group("sampling"))
    subject = parser.add_argument_group("one subject")
    subject.add_argument("--output", type=Path, metavar="FILE", help="NIfTI file to write")
    subject.add_argument("--class_label", help="name or number of its class, for a model with classes")
    data = parser.add_argument_group("a data set")
    data.add_argument("--data", help="paired folder or data set id")
    data.add_argument("--split", default="test")
    data.add_argument("--output_dir", metavar="FOLDER", help="folder to write")
    data.add_argument("--batch_size", type=int, default=4, help="subjects at a time")
    data.add_argument("--shuffle_views", action="store_true", help="give each subject the next one's views")
    return parser.parse_args(arguments)


def _add_sampling(group: Any) -> None:
    add = group.add_argument
    add("--num_volumes_per_prompt", type=int, default=1, help="volumes for each subject")
    add("--num_inference_steps", type=int, default=16)
    add("--temperature", type=float, default=1.0)
    add("--top_p", type=float, default=1.0)
    add("--sampling", choices=SAMPLINGS, help="order of the codes; as the pipeline was saved by default")
    add("--guidance_scale", type=float, default=1.0, help="needs a model with context_dropout if not 1")
    add("--uncertainty", action="store_true", help="also write mean and standard deviation")
    add("--select_by_reprojection", action="store_true", help="keep one volume per subject")
    add(
        "--cone_beam",
        type=float,
        nargs=2,
        metavar=("DETECTOR", "ISOCENTRE"),
        help="mm from the source, for --select_by_reprojection; by default as the data say, parallel for files",
    )
    add("--seed", type=int, default=0)


def view_files(views: Sequence[str] | None) -> dict[str, str]:
    """File of each view by its name, of `NAME=FILE`; none where names stand alone.

    Raises:
        ValueError: names with and without a file, without a name, or twice.
    """
    pairs = [text.partition("=") for text in views or ()]
    files = {name: file for name, _, file in pairs if name and file}
    if any(mark for _, mark, _ in pairs) and len(files) < len(pairs):
        raise ValueError(
            f"--views: found {' '.join(views or ())}, expected NAME=FILE for each and every name once, such as "
            "frontal=frontal.png lateral=lateral.png; correct them"
        )
    return files


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that cannot be met, before anything is loaded."""
    for name, lowest in (("num_volumes_per_prompt", 1), ("num_inference_steps", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < lowest:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least {lowest}; give a larger number")
    if not (math.isfinite(args.guidance_scale) and args.guidance_scale >= 0):
        raise ValueError(f"--guidance_scale: found {args.guidance_scale}, expected a finite number of at least 0")
    for name in ("select_by_reprojection", "uncertainty"):
        if getattr(args, name) and args.num_volumes_per_prompt < 2:
            raise ValueError(
                f"--{name} needs several volumes per subject: found --num_volumes_per_prompt 1, expected at least 2"
            )
    _check_form(args)


def _check_form(args: argparse.Namespace) -> None:
    """Raises ValueError unless the flags are those of one subject or those of a data set."""
    of_subject = {"--views NAME=FILE": view_files(args.views), "--output": args.output}
    if args.output and args.views and not of_subject["--views NAME=FILE"]:
        raise ValueError(f"--views: found {' '.join(args.views)}, expected NAME=FILE for each, such as frontal=a.png")
    of_data = {"--data": args.data, "--output_dir": args.output_dir}
    given = [flag for flag, value in {**of_subject, **of_data}.items() if value]
    if given not in (list(of_subject), list(of_data)):
        raise ValueError(
            f"found {given or 'none of the flags that say for whom'}, expected --views NAME=FILE ... and --output for "
            "one subject, or --data and --output_dir for a data set; give one of the two pairs"
        )
    misplaced = [("class_label", "its column `label` has them")] if args.data else [("shuffle_views", "give --data")]
    for name, remedy in misplaced:
        if getattr(args, name):
            raise ValueError(f"--{name}: found it beside {given[0]}, where it has no use; {remedy}")


def generator_of(seed: int, subject: int, sample: int) -> torch.Generator:
    """Source of one volume's randomness: it depends on nothing else, such as the batch or the number of samples."""
    state = np.random.SeedSequence([seed, subject, sample]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def load_pipeline(args: argparse.Namespace) -> ViewsToVolumePipeline:
    """The pipeline, on a GPU when there is one; the bar of its steps is shown for one subject only."""
    pipeline = open_pipeline(args.pipeline, ViewsToVolumePipeline, args.revision)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=bool(args.data), desc="generate")
    if args.sampling:
        pipeline.scheduler = AbsorbingScheduler.from_config(pipeline.scheduler.config, sampling=args.sampling)
    return pipeline


def sampling_arguments(args: argparse.Namespace, generators: list[torch.Generator]) -> dict[str, Any]:
    """What the pipeline is asked for, whoever the subjects are."""
    return {
        "num_inference_steps": args.num_inference_steps,
        "num_volumes_per_prompt": args.num_volumes_per_prompt,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "generator": generators,
        "output_type": "nifti",
        "guidance_scale": args.guidance_scale,
        "return_uncertainty": args.uncertainty,
        "select_by_reprojection": args.select_by_reprojection,
    }


def generate_subject(args: argparse.Namespace) -> list[Path]:
    """Generates one subject's volumes from image files and returns the files written."""
    stem, suffix = split_suffix("--output", args.output, NIFTI_SUFFIXES)
    count = 1 if args.select_by_reprojection else args.num_volumes_per_prompt
    paths = [args.output] if count == 1 else [Path(f"{stem}_{sample}{suffix}") for sample in range(count)]
    if args.uncertainty:
        paths += [Path(f"{stem}_{kind}{suffix}") for kind in ("mean", "std")]
    check_new(paths, args.overwrite)
    files = view_files(args.views)
    for name, file in files.items():
        if not Path(file).is_file():
            raise ValueError(f"--views {name}={file}: found no such file, expected a PNG or a DICOM radiograph")
    pipeline = load_pipeline(args)
    beam = BeamGeometry(*args.cone_beam) if args.cone_beam else None
    label = label_of(pipeline, args.class_label)
    # Volume k is that of a call of the pipeline with the seed + k, as on the page.
    generators = [torch.Generator().manual_seed(args.seed + sample) for sample in range(args.num_volumes_per_prompt)]
    output: Any = pipeline(files, beam=beam, class_labels=label, **sampling_arguments(args, generators))
    images = [*output.volumes, *((output.mean[0], output.std[0]) if args.uncertainty else ())]
    for path, image in zip(paths, images, strict=True):
        with atomic_file(path) as temporary:
            image.to_filename(temporary)
    return paths


def label_of(pipeline: ViewsToVolumePipeline, text: str | None) -> int | str | None:
    """The class that a flag names by name or number."""
    if text is None or text in pipeline.transformer.label2id or not text.isdecimal():
        return text
    return int(text)


def open_data(args: argparse.Namespace) -> PairedDataset:
    """The split; raises ValueError when it lacks views asked for, or they cannot be shuffled as asked."""
    dataset = PairedDataset(args.data, args.split, views=args.views)
    if args.shuffle_views and len(dataset) < 2:
        raise ValueError(
            f"--shuffle_views: found {len(dataset)} subject in {args.data} ({args.split}), expected at least 2; choose "
            "another split or leave the flag out"
        )
    return dataset


def labels_of(pipeline: ViewsToVolumePipeline, dataset: PairedDataset, subjects: range) -> list[str | None] | None:
    """Classes of a few subjects, as the data name them, for a model with classes."""
    if pipeline.transformer.config.num_classes is None:
        return None
    return [(dataset.labels[index] or None) if dataset.labels else None for index in subjects]


def generate_batch(
    pipeline: ViewsToVolumePipeline, dataset: PairedDataset, subjects: range, args: argparse.Namespace
) -> Iterator[tuple[str, str, Any]]:
    """Name of the subject, number of the sample, `mean` or `std`, and nibabel image for a few subjects."""
    shown = [(index + args.shuffle_views) % len(dataset) for index in subjects]
    names = args.views or pipeline.transformer.view_names
    samples = range(args.num_volumes_per_prompt)
    generators = [generator_of(args.seed, index, sample) for index in subjects for sample in samples]
    output: Any = pipeline(
        {name: [dataset.view_image(index, name) for index in shown] for name in names},
        beam=BeamGeometry(*args.cone_beam) if args.cone_beam else dataset.beam,
        class_labels=labels_of(pipeline, dataset, subjects),
        **sampling_arguments(args, generators),
    )
    count = len(output.volumes) // len(subjects)
    for place, index in enumerate(subjects):
        subject = dataset.subjects[index]
        for sample in range(count):
            yield subject, str(sample), output.volumes[place * count + sample]
        if args.uncertainty:
            yield subject, "mean", output.mean[place]
            yield subject, "std", output.std[place]


def write_volumes(
    pipeline: ViewsToVolumePipeline, dataset: PairedDataset, args: argparse.Namespace, folder: Path
) -> None:
    """Writes the volumes of all subjects and metadata.csv into an existing folder."""
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", "subject", "sample"])
        writer.writeheader()
        for start in tqdm(range(0, len(dataset), args.batch_size), desc="generate"):
            batch = range(start, min(start + args.batch_size, len(dataset)))
            for subject, kind, volume in generate_batch(pipeline, dataset, batch, args):
                name = f"{subject}_{kind}.nii.gz"
                volume.to_filename(folder / name)
                if kind.isdecimal():
                    writer.writerow({"file_name": name, "subject": subject, "sample": kind})


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, generate, save."""
    args = parse_args(arguments)
    check_args(args)
    if not args.data:
        for path in generate_subject(args):
            print(f"wrote {path}")
        return
    with atomic_directory(args.output_dir, overwrite=args.overwrite, marker="*_0.nii.gz") as folder:
        dataset = open_data(args)
        pipeline = load_pipeline(args)
        write_volumes(pipeline, dataset, args, folder)
        write_sampling(folder, pipeline, args)
