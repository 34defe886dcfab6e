"""Scores generated volumes against the true ones, beside trivial baselines and a control with shuffled views.

    python scripts/evaluate.py --data cohort --split test --generated generated --output_dir evaluation
    python scripts/evaluate.py --data cohort --split test --generated generated --shuffled generated-shuffled \\
        --pipeline pipeline --output_dir evaluation

Writes metrics.json, metrics.md and sheet.png and prints the table. With --pipeline it also scores the volume
tokenizer's own reconstruction, reports how much of its codebook held-out data use, and computes density, coverage,
precision and recall in its features.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_vq.data import PairedDataset
from hf_vq.evaluation.metrics import DEFAULT_NEAREST_K, DEFAULT_WINDOW
from hf_vq.evaluation.protocol import (
    Scores,
    Subject,
    Volumes,
    baseline_volumes,
    can_be_rendered,
    read_subjects,
    reprojection_row,
    sample_rows,
    score_row,
)
from hf_vq.evaluation.report import (
    ROW_CEILING,
    ROW_ONE_SAMPLE,
    ROW_SHUFFLED,
    ROW_TRUE_VOLUME,
    EvaluationSettings,
    build_report,
    report_markdown,
)
from hf_vq.evaluation.sheets import SheetSubject, save_evaluation_sheet
from hf_vq.evaluation.tokenizer import EncodedVolumes, VolumeTokenizer, distribution_scores
from hf_vq.evaluation.volumes import find_generated, onto_grid, read_volume, same_grid
from hf_vq.files import move_files_into
from hf_vq.training.arguments import run

ALL_SAMPLES = "generated, all samples"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="paired folder or data set id")
    parser.add_argument("--split", default="test", help="split whose subjects were generated")
    parser.add_argument("--generated", required=True, help="folder of generated volumes")
    parser.add_argument("--shuffled", help="folder of volumes generated from views shuffled between subjects")
    parser.add_argument("--pipeline", help="folder or Hub id of the ViewsToVolumePipeline")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--num_sheet_subjects", type=int, default=4, help="subjects drawn, chosen at random by --seed")
    parser.add_argument("--window", type=float, nargs=2, default=DEFAULT_WINDOW, metavar=("LOW", "HIGH"), help="HU")
    parser.add_argument("--nearest_k", type=int, default=DEFAULT_NEAREST_K, help="for density, coverage, ...")
    parser.add_argument("--batch_size", type=int, default=8, help="volumes encoded at once")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    args.window = tuple(args.window)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that can't be met, before any work is done."""
    low, high = args.window
    if not low < high:
        raise ValueError(f"--window: found {low:g} {high:g}, expected LOW below HIGH in HU, such as -1000 1000")
    for name in ("num_sheet_subjects", "nearest_k", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least 1")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir: found a file at {args.output_dir}, expected a folder; choose another path")


def load_split(data: str, split: str, image_size: tuple[int, int] | None = None) -> list[Subject]:
    """All subjects of one split; the views of all splits must have one size for the baselines."""
    dataset = PairedDataset(data, split)
    return list(tqdm(read_subjects(dataset, image_size), total=len(dataset.subjects), desc=f"read {split}"))


def load_generated(folder: str, subjects: Sequence[Subject]) -> tuple[list[list[np.ndarray]], int]:
    """For each subject its samples on the grid of its true volume, and how many had to be resampled."""
    files = find_generated(folder, [subject.name for subject in subjects])
    samples: list[list[np.ndarray]] = []
    resampled = 0
    for subject in tqdm(subjects, desc=f"read {Path(folder).name}"):
        volumes = [read_volume(path) for path in files[subject.name]]
        resampled += sum(not same_grid(volume, subject.truth) for volume in volumes)
        samples.append([onto_grid(volume, subject.truth) for volume in volumes])
    return samples, resampled


def score_all(args: argparse.Namespace) -> tuple[dict[str, Any], list[SheetSubject]]:
    """The report and the rows of the sheet."""
    subjects = load_split(args.data, args.split)
    samples, resampled = load_generated(args.generated, subjects)
    shuffled = load_generated(args.shuffled, subjects)[0] if args.shuffled else None
    rows, cols = subjects[0].views.shape[1:]
    others = [name for name in ("train", "validation") if name != args.split]
    splits = {args.split: subjects} | {name: load_split(args.data, name, (rows, cols)) for name in others}

    table = sample_rows(subjects, samples, args.window)
    if shuffled is not None:
        table[ROW_SHUFFLED] = score_row(subjects, [volumes[0] for volumes in shuffled], args.window)
    baselines, penalty = baseline_volumes(splits["train"], splits["validation"], subjects, args.window)
    table |= {name: score_row(subjects, volumes, args.window) for name, volumes in baselines.items()}
    distribution = codebook = None
    if args.pipeline:
        tokenizer = VolumeTokenizer.from_pipeline(args.pipeline, default_device(), args.batch_size)
        held_out = encode_held_out(tokenizer, args.split, splits)
        table[ROW_CEILING] = score_row(subjects, tokenizer.decode(held_out[args.split]), args.window)
        codebook = tokenizer.usage({name: encoded.codes for name, encoded in held_out.items()})
        distribution = compare_distributions(tokenizer, args, held_out, subjects, samples, baselines)
    if can_be_rendered(subjects[0].view_names):
        table[ROW_TRUE_VOLUME] = reprojection_row(subjects, [subject.truth.hu for subject in subjects])

    names = [subject.name for subject in subjects]
    notes = remarks(args, subjects, resampled, penalty)
    settings = settings_of(args, subjects, samples)
    report = build_report(settings, names, table, distribution=distribution, codebook=codebook, notes=notes)
    return report, sheet_rows(args, subjects, samples, table[ROW_ONE_SAMPLE])


def default_device() -> torch.device:
    """A GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encode_held_out(
    tokenizer: VolumeTokenizer, split: str, splits: Mapping[str, Sequence[Subject]]
) -> dict[str, EncodedVolumes]:
    """True volumes of the evaluated split together with the validation split, and of it alone, each encoded once."""
    names = [split] if split == "validation" else [split, "validation"]
    encoded = tokenizer.encode([subject.truth for name in names for subject in splits[name]])
    return {" + ".join(names): encoded, split: encoded.first(len(splits[split]))}


def compare_distributions(
    tokenizer: VolumeTokenizer,
    args: argparse.Namespace,
    held_out: Mapping[str, EncodedVolumes],
    subjects: Sequence[Subject],
    samples: Sequence[Volumes],
    baselines: Mapping[str, Volumes],
) -> dict[str, Any]:
    """Density, coverage, precision and recall of all samples and of the baselines against all held-out volumes."""
    real_set, real = next(iter(held_out.items()))
    pairs = list(zip(subjects, samples, strict=True))
    generated = {ALL_SAMPLES: [subject.truth.with_hu(volume) for subject, volumes in pairs for volume in volumes]}
    for name, volumes in baselines.items():
        generated[name] = [one.truth.with_hu(volume) for one, volume in zip(subjects, volumes, strict=True)]
    features = {name: tokenizer.encode(volumes).features for name, volumes in tqdm(generated.items(), desc="features")}
    rows, too_few = distribution_scores(real.features, features, args.nearest_k)
    return {
        "features": tokenizer.feature_name,
        "real_set": real_set,
        "num_real": len(real.volumes),
        "rows": rows,
        "left_out": too_few,
    }


def remarks(args: argparse.Namespace, subjects: Sequence[Subject], resampled: int, penalty: float) -> list[str]:
    """Sentences about what was chosen, changed or left out."""
    notes = [
        f"Ridge regression: penalty {penalty:.2g} times the mean eigenvalue of the views' Gram matrix, chosen on the "
        "validation split."
    ]
    if args.split in ("train", "validation"):
        notes.append(f"The evaluated split '{args.split}' also fits the baselines, which therefore score too well.")
    if resampled:
        notes.append(f"{resampled} generated volumes lay on another grid and were resampled onto the true one.")
    if not args.shuffled:
        notes.append("Control with shuffled views left out: no --shuffled.")
    if not args.pipeline:
        notes.append(
            "Tokenizer reconstruction (ceiling), codebook usage, density, coverage, precision and recall left out: no "
            "--pipeline."
        )
    if not can_be_rendered(subjects[0].view_names):
        notes.append(f"Re-projection error left out: no renderer for {', '.join(subjects[0].view_names)}.")
    return notes


def settings_of(
    args: argparse.Namespace, subjects: Sequence[Subject], samples: Sequence[Volumes]
) -> EvaluationSettings:
    """What the numbers depend on."""
    return EvaluationSettings(
        data=args.data,
        split=args.split,
        window=args.window,
        num_subjects=len(subjects),
        num_samples=len(samples[0]),
        seed=args.seed,
        generated=args.generated,
        nearest_k=args.nearest_k,
    )


def sheet_rows(
    args: argparse.Namespace, subjects: Sequence[Subject], samples: Sequence[Volumes], scores: Sequence[Scores]
) -> list[SheetSubject]:
    """Subjects for the sheet, chosen at random so that nobody can pick the best."""
    count = min(args.num_sheet_subjects, len(subjects))
    chosen = sorted(np.random.default_rng(args.seed).choice(len(subjects), size=count, replace=False).tolist())
    return [
        SheetSubject(
            name=subjects[index].name,
            views=dict(zip(subjects[index].view_names, subjects[index].views, strict=True)),
            true_hu=subjects[index].truth.hu,
            generated_hu=samples[index][0],
            spacing=subjects[index].truth.spacing,
            caption=f"{scores[index]['psnr_3d']:.1f} dB",
        )
        for index in chosen
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, score, save."""
    args = parse_args(arguments)
    check_args(args)
    report, sheet = score_all(args)
    text = report_markdown(report)
    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.output_dir.name}-", dir=args.output_dir.parent) as folder:
        finished = Path(folder)
        save_evaluation_sheet(finished / "sheet.png", sheet, args.window)
        (finished / "metrics.md").write_text(text, encoding="utf-8")
        figures = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        (finished / "metrics.json").write_text(figures + "\n", encoding="utf-8")
        move_files_into(finished, args.output_dir, last="metrics.json")
    print(text)


if __name__ == "__main__":
    run(main)
