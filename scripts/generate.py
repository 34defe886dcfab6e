"""Generates volumes for every subject of a split with a trained pipeline.

    python scripts/generate.py --pipeline pipeline --data cohort --split test --num_volumes_per_prompt 8 \\
        --output_dir generated

Writes `<subject>_<sample>.nii.gz` and `metadata.csv` (file_name, subject, sample). With `--shuffle_views` each subject
gets the views of the next one: the control that tells whether a model reads its views. `--uncertainty` adds
`<subject>_mean.nii.gz` and `<subject>_std.nii.gz`, mean and standard deviation over a subject's volumes in HU, which
metadata.csv does not list, since they are no samples. `--select_by_reprojection` draws all volumes and keeps the one of
each subject whose views, rendered from it with the data set's rays (parallel where it names none), agree best with the
given ones. A model with classes gets those of the data's column `label`.
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

from hf_vq import AbsorbingScheduler, ViewsToVolumePipeline
from hf_vq.data import PairedDataset
from hf_vq.files import atomic_directory
from hf_vq.pipelines import open_pipeline
from hf_vq.schedulers.scheduling_absorbing import SAMPLINGS
from hf_vq.training.arguments import run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub id of a ViewsToVolumePipeline")
    parser.add_argument("--data", required=True, help="paired folder or data set id")
    parser.add_argument("--split", default="test")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_volumes_per_prompt", type=int, default=1, help="volumes for each subject")
    parser.add_argument("--num_inference_steps", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument(
        "--sampling", choices=SAMPLINGS, help="order of the codes; as the pipeline was saved by default"
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="needs a model with context_dropout if not 1")
    parser.add_argument("--views", nargs="+", help="some of the model's views (view_dropout); all by default")
    parser.add_argument("--select_by_reprojection", action="store_true", help="keep one volume per subject")
    parser.add_argument("--uncertainty", action="store_true", help="also write mean and standard deviation")
    parser.add_argument("--batch_size", type=int, default=4, help="subjects at a time")
    parser.add_argument("--shuffle_views", action="store_true", help="give each subject the next one's views")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    return parser.parse_args(arguments)


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


def generator_of(seed: int, subject: int, sample: int) -> torch.Generator:
    """Source of one volume's randomness: it depends on nothing else, such as the batch or the number of samples."""
    state = np.random.SeedSequence([seed, subject, sample]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def open_data(args: argparse.Namespace) -> PairedDataset:
    """The split; raises ValueError when it lacks views asked for, or they cannot be shuffled as asked."""
    dataset = PairedDataset(args.data, args.split, views=args.views)
    if args.shuffle_views and len(dataset) < 2:
        raise ValueError(
            f"--shuffle_views: found {len(dataset)} subject in {args.data} ({args.split}), expected at least 2; choose "
            "another split or leave the flag out"
        )
    return dataset


def load_pipeline(args: argparse.Namespace) -> ViewsToVolumePipeline:
    """The pipeline, on a GPU when there is one, without its own progress bar."""
    pipeline = open_pipeline(args.pipeline, ViewsToVolumePipeline)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    if args.sampling:
        pipeline.scheduler = AbsorbingScheduler.from_config(pipeline.scheduler.config, sampling=args.sampling)
    return pipeline


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
    samples = range(args.num_volumes_per_prompt)
    names = args.views or pipeline.transformer.view_names
    output: Any = pipeline(
        {name: [dataset.view_image(index, name) for index in shown] for name in names},
        num_inference_steps=args.num_inference_steps,
        num_volumes_per_prompt=args.num_volumes_per_prompt,
        temperature=args.temperature,
        top_p=args.top_p,
        generator=[generator_of(args.seed, index, sample) for index in subjects for sample in samples],
        output_type="nifti",
        guidance_scale=args.guidance_scale,
        return_uncertainty=args.uncertainty,
        select_by_reprojection=args.select_by_reprojection,
        beam=dataset.beam,
        class_labels=labels_of(pipeline, dataset, subjects),
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
    with atomic_directory(args.output_dir, overwrite=args.overwrite, marker="*_0.nii.gz") as folder:
        dataset = open_data(args)
        write_volumes(load_pipeline(args), dataset, args, folder)


if __name__ == "__main__":
    run(main)
