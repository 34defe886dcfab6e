"""Scores generated volumes against the true ones, beside trivial baselines and a control with shuffled views.

    hf-vq evaluate --data cohort --split test --generated generated --output_dir evaluation
    hf-vq evaluate --data cohort --split test --generated generated --shuffled generated-shuffled \\
        --pipeline pipeline --output_dir evaluation
    hf-vq evaluate --data cohort --generated ours=generated --generated other=elsewhere/volumes \\
        --value_range other=0,2500,-1000,1500 --output_dir comparison

A folder of any other program's volumes will do: NIfTI files named by subject, in any orientation and voxel size. Writes
metrics.json, metrics.md, subjects.csv and a sheet.png for each program, and prints the tables. With --pipeline it also
scores the volume tokenizer's own reconstruction, reports how much of its codebook held-out data use, and computes
density, coverage, precision and recall in its features. docs/evaluation.md defines every figure.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data import BeamGeometry, PairedDataset, describe_data
from ..evaluation.baseline_volumes import BaselineVolumes
from ..evaluation.bootstrap import DEFAULT_NUM_RESAMPLES
from ..evaluation.distribution import (
    SET_TRAINING,
    distribution_scores,
    encode_held_out,
    feature_sets,
    training_set,
)
from ..evaluation.metrics import DEFAULT_NEAREST_K, DEFAULT_WINDOW
from ..evaluation.programs import GeneratedVolumes, Program, parse_value_range, split_name
from ..evaluation.protocol import RowMaker, Scorer, Scores, Subject, SubjectSet, can_be_rendered, score_subjects
from ..evaluation.report import (
    BASELINE_ROWS,
    ROW_CEILING,
    ROW_ONE_SAMPLE,
    ROW_TRUE_VOLUME,
    EvaluationSettings,
    build_report,
    row_of,
)
from ..evaluation.report_text import per_subject_csv, report_markdown
from ..evaluation.sheets import SheetSubject, save_evaluation_sheet
from ..evaluation.tokenizer import EncodedVolumes, VolumeTokenizer, pipeline_views
from ..evaluation.volumes import Alignment
from ..files import move_files_into


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="paired folder or data set id")
    add("--split", default="test", help="split whose subjects were generated")
    add("--generated", required=True, action="append", metavar="[NAME=]FOLDER", help="may be given several times")
    add("--shuffled", default=[], action="append", metavar="[NAME=]FOLDER", help="generated from views shuffled")
    add("--value_range", default=[], action="append", metavar="[NAME=]LOW,HIGH[,LOW_HU,HIGH_HU]", help="if not HU")
    add("--alignment", choices=[one.value for one in Alignment], default="centre", help="of generated and true volume")
    add("--allow_missing", action="store_true", help="score the subjects that all programs made volumes of")
    add("--pipeline", help="folder or Hub id of the ViewsToVolumePipeline")
    add("--features", help="folder or Hub id of a 3D VQTokenizer for density, coverage, ...; the pipeline's by default")
    add("--views", nargs="+", help="views for baselines and re-projection; all that the data have by default")
    add(
        "--cone_beam",
        type=float,
        nargs=2,
        metavar=("DETECTOR", "ISOCENTRE"),
        help="mm from the source; by default as the data say",
    )
    add("--output_dir", required=True, type=Path)
    add("--scratch_dir", type=Path, help="for 4 bytes per voxel of all splits; beside output_dir by default")
    add("--num_sheet_subjects", type=int, default=4, help="subjects drawn, chosen at random by --seed")
    add("--window", type=float, nargs=2, default=DEFAULT_WINDOW, metavar=("LOW", "HIGH"), help="HU")
    add("--nearest_k", type=int, default=DEFAULT_NEAREST_K, help="for density, coverage, ...")
    add("--num_resamples", type=int, default=DEFAULT_NUM_RESAMPLES, help="of the subjects, for 95 %% intervals")
    add("--batch_size", type=int, default=8, help="volumes encoded at once")
    add("--num_workers", type=int, default=min(8, os.cpu_count() or 1), help="subjects scored at once")
    add("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    args.window = tuple(args.window)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that can't be met, before any work is done."""
    low, high = args.window
    if not low < high:
        raise ValueError(f"--window: found {low:g} {high:g}, expected LOW below HIGH in HU, such as -1000 1000")
    for name in ("num_sheet_subjects", "nearest_k", "num_resamples", "batch_size", "num_workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least 1")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir: found a file at {args.output_dir}, expected a folder; choose another path")


def find_programs(args: argparse.Namespace, subjects: Sequence[str]) -> list[Program]:
    """The programs in the order of their flags; raises ValueError for names that are missing, unknown or repeated."""
    folders = named("--generated", [split_name(text) for text in args.generated])
    first = next(iter(folders))
    if len(folders) > 1 and "" in folders:
        raise ValueError(f"--generated: found {folders['']!r} beside others, expected a name for each: NAME=FOLDER")
    for name in folders:
        if any(mark in name for mark in "/\\:"):
            raise ValueError(f"--generated: found the name {name!r}, expected one without slash and colon; rename it")
    ranges = [parse_value_range(text, args.window) for text in args.value_range]
    values = named("--value_range", [(name or first, one) for name, one in ranges], folders)
    controls = [split_name(text) for text in args.shuffled]
    shuffled = named("--shuffled", [(name or first, folder) for name, folder in controls], folders)

    def find(folder: str, name: str) -> GeneratedVolumes:
        return GeneratedVolumes.find(
            folder,
            subjects,
            values=values.get(name),
            alignment=Alignment(args.alignment),
            allow_missing=args.allow_missing,
        )

    return [
        Program(name, find(folder, name), find(shuffled[name], name) if name in shuffled else None)
        for name, folder in folders.items()
    ]


def named(flag: str, pairs: Sequence[tuple[str, Any]], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Values of a flag by the name of their program; raises ValueError for repeated or unknown names."""
    for name, _ in pairs:
        if [other for other, _ in pairs].count(name) > 1:
            raise ValueError(f"{flag}: found {name!r} twice, expected each name once; give NAME=... to each")
        if known is not None and name not in known:
            raise ValueError(f"{flag}: found the name {name!r}, expected one of --generated: {sorted(known)}")
    return dict(pairs)


def common_subjects(programs: Sequence[Program], subjects: SubjectSet) -> tuple[SubjectSet, list[str]]:
    """The subjects that all programs made volumes of, and a sentence for each program that lacks some."""
    names = list(subjects.names)
    notes = []
    for program in programs:
        there = program.subjects(subjects.names)
        names = [name for name in names if name in there]
        missing = [name for name in subjects.names if name not in there]
        if missing:
            whose = f"'{program.name}'" if program.name else "The generated folder"
            listed = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
            notes.append(f"{whose} has no volumes of {len(missing)} of {len(subjects)} subjects ({listed}).")
    if not names:
        raise ValueError("--allow_missing: found no subject of which all programs have volumes, expected at least one")
    if notes:
        notes.append(f"All rows are over the {len(names)} subjects that all programs made volumes of.")
    return subjects.subset(names), notes


def score_all(args: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], dict[str, list[SheetSubject]]]:
    """The report, and for each program's name the rows of its sheet."""
    every = SubjectSet(PairedDataset(args.data, args.split, views=args.views))
    programs = find_programs(args, every.names)
    subjects, notes = common_subjects(programs, every)
    splits = {args.split: subjects}
    for name in ("train", "validation"):
        if name != args.split:
            splits[name] = SubjectSet(PairedDataset(args.data, name, views=args.views), every.image_size)
    tokenizers = load_tokenizers(args)

    baselines = BaselineVolumes(splits["train"], splits["validation"], subjects, args.window, scratch)
    scorer = Scorer(args.window, beam_of(args, subjects))
    makers = row_makers(scorer, programs, baselines)
    table = score_subjects(subjects, makers, args.num_workers)
    distribution = codebook = None
    encoded: dict[str, EncodedVolumes] = {}
    if "pipeline" in tokenizers:
        encoded = encode_held_out(tokenizers["pipeline"], args.split, splits)
        table[ROW_CEILING] = ceiling_row(tokenizers["pipeline"], scorer, subjects, encoded[args.split])
        codebook = tokenizers["pipeline"].usage({name: one.codes for name, one in encoded.items()})
    if tokenizers:
        if args.features:
            encoded = encode_held_out(tokenizers["features"], args.split, splits)
        distribution = compare_distributions(args, tokenizers["features"], encoded, splits, programs, baselines)
    if can_be_rendered(subjects.view_names):
        floor = table.pop(ROW_TRUE_VOLUME)
        table[ROW_TRUE_VOLUME] = floor
    for program in programs:
        notes += program.notes()
    notes += remarks(args, subjects, programs, baselines.penalty)
    settings = settings_of(args, subjects, programs)
    report = build_report(settings, subjects.names, table, distribution=distribution, codebook=codebook, notes=notes)
    return report, {one.name: sheet_rows(args, subjects, one, table) for one in programs}


def row_makers(scorer: Scorer, programs: Sequence[Program], baselines: BaselineVolumes) -> list[RowMaker]:
    """What makes the rows of one subject: each program's, the baselines', and the floor of the re-projection error."""

    def program_rows(program: Program) -> RowMaker:
        return lambda _, subject: program.rows(scorer, subject)

    def baseline_rows(index: int, subject: Subject) -> dict[str, Scores]:
        volumes = baselines.volumes(index, subject)
        return {name: scorer.scores(subject, volumes[name]) for name in BASELINE_ROWS}

    def floor_row(_: int, subject: Subject) -> dict[str, Scores]:
        if not can_be_rendered(subject.view_names):
            return {}
        return {ROW_TRUE_VOLUME: scorer.reprojection(subject, subject.truth.hu)}

    return [*map(program_rows, programs), baseline_rows, floor_row]


def load_tokenizers(args: argparse.Namespace) -> dict[str, VolumeTokenizer]:
    """`pipeline`: the pipeline's volume tokenizer; `features`: --features, or else the pipeline's; or neither."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizers = {}
    if args.pipeline:
        tokenizers["pipeline"] = VolumeTokenizer.from_pipeline(args.pipeline, device, args.batch_size)
        tokenizers["features"] = tokenizers["pipeline"]
    if args.features:
        tokenizers["features"] = VolumeTokenizer.from_tokenizer(args.features, device, args.batch_size)
    return tokenizers


def ceiling_row(
    tokenizer: VolumeTokenizer, scorer: Scorer, subjects: Sequence[Subject], encoded: EncodedVolumes
) -> list[Scores]:
    """Scores of the tokenizer's own reconstructions."""
    pairs = zip(subjects, tokenizer.decode(encoded), strict=True)
    return [scorer.scores(subject, volume) for subject, volume in tqdm(pairs, total=len(subjects), desc="ceiling")]


def compare_distributions(
    args: argparse.Namespace,
    tokenizer: VolumeTokenizer,
    held_out: Mapping[str, EncodedVolumes],
    splits: Mapping[str, Sequence[Subject]],
    programs: Sequence[Program],
    baselines: BaselineVolumes,
) -> dict[str, Any]:
    """Density, coverage, precision and recall of the programs and the baselines against all held-out volumes."""
    real_set, real = next(iter(held_out.items()))
    subjects = splits[args.split]
    sets = feature_sets(tokenizer, subjects, programs, baselines)
    if args.split != "train":
        sets[SET_TRAINING] = training_set(tokenizer, splits["train"], len(subjects), args.seed)
    rows, too_few = distribution_scores(real.features, sets, args.nearest_k, tokenizer.is_learned)
    return {
        "features": tokenizer.feature_name + f"; of `{args.features or args.pipeline}`",
        "real_set": real_set,
        "num_real": len(real),
        "rows": rows,
        "left_out": too_few,
    }


def remarks(args: argparse.Namespace, subjects: SubjectSet, programs: Sequence[Program], penalty: float) -> list[str]:
    """Sentences about what was chosen, changed or left out."""
    notes = [
        f"Ridge regression: penalty {penalty:.2g} times the mean eigenvalue of the views' Gram matrix, chosen on the "
        "validation split."
    ]
    if args.split in ("train", "validation"):
        notes.append(f"The evaluated split '{args.split}' also fits the baselines, which therefore score too well.")
    if any(program.shuffled is None for program in programs):
        without = ", ".join(program.name for program in programs if program.shuffled is None and program.name)
        notes.append(f"Control with shuffled views left out{without and f' for {without}'}: no --shuffled.")
    if not args.pipeline:
        left_out = "" if args.features else ", density, coverage, precision and recall"
        notes.append(f"Tokenizer reconstruction (ceiling), codebook usage{left_out} left out: no --pipeline.")
    if not can_be_rendered(subjects.view_names):
        notes.append(f"Re-projection error left out: no renderer for {', '.join(subjects.view_names)}.")
    known = pipeline_views(args.pipeline) if args.pipeline else None
    if known and set(known) != set(subjects.view_names):
        notes.append(
            f"The pipeline knows the views {', '.join(known)}; the baselines and the re-projection error use "
            f"{', '.join(subjects.view_names)}, so they were not given the same. --views chooses them."
        )
    return notes


def beam_of(args: argparse.Namespace, subjects: SubjectSet) -> BeamGeometry | None:
    """Rays with which volumes are rendered again: those asked for, or else the data set's own."""
    return BeamGeometry(*args.cone_beam) if args.cone_beam else subjects.beam


def rays_text(beam: BeamGeometry | None) -> str:
    """What the report says about the rays."""
    if beam is None or not beam.is_cone:
        return "parallel"
    detector, isocentre = beam.source_detector_distance, beam.source_isocentre_distance
    return f"cone-beam, {detector:g} mm to the detector and {isocentre:g} mm to the isocentre,"


def settings_of(args: argparse.Namespace, subjects: SubjectSet, programs: Sequence[Program]) -> EvaluationSettings:
    """What the numbers depend on."""
    return EvaluationSettings(
        data=args.data,
        split=args.split,
        window=args.window,
        num_subjects=len(subjects),
        num_samples=programs[0].generated.num_samples,
        seed=args.seed,
        generated=str(programs[0].generated.folder),
        nearest_k=args.nearest_k,
        num_resamples=args.num_resamples,
        rays=rays_text(beam_of(args, subjects)),
        views=subjects.view_names,
        programs=tuple(program.settings() for program in programs),
        data_facts=describe_data(args.data),
    )


def sheet_rows(
    args: argparse.Namespace, subjects: SubjectSet, program: Program, table: Mapping[str, Sequence[Scores]]
) -> list[SheetSubject]:
    """Subjects for the sheet, chosen at random so that nobody can pick the best."""
    count = min(args.num_sheet_subjects, len(subjects))
    chosen = sorted(np.random.default_rng(args.seed).choice(len(subjects), size=count, replace=False).tolist())
    scores = table[row_of(program.name, ROW_ONE_SAMPLE)]
    return [
        SheetSubject(
            name=subject.name,
            views=dict(zip(subject.view_names, subject.views, strict=True)),
            true_hu=subject.truth.hu,
            generated_hu=program.generated.sample(subject, 0),
            spacing=subject.truth.spacing,
            caption=f"{scores[index]['psnr_3d']:.1f} dB",
        )
        for index, subject in ((index, subjects[index]) for index in chosen)
    ]


def save_sheets(folder: Path, sheets: Mapping[str, Sequence[SheetSubject]], window: tuple[float, float]) -> None:
    """`sheet.png` of the first program, `sheet-<name>.png` of the others."""
    for number, (name, rows) in enumerate(sheets.items()):
        title = f"{name or 'Generated CT'} (one sample)"
        save_evaluation_sheet(folder / (f"sheet-{name}.png" if number else "sheet.png"), rows, window, title)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, score, save."""
    args = parse_args(arguments)
    check_args(args)
    parent = args.output_dir.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{args.output_dir.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=args.scratch_dir or parent) as scratch:
        report, sheets = score_all(args, Path(scratch))
    text = report_markdown(report)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        finished = Path(folder)
        save_sheets(finished, sheets, args.window)
        (finished / "metrics.md").write_text(text, encoding="utf-8")
        (finished / "subjects.csv").write_text(per_subject_csv(report), encoding="utf-8")
        figures = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        (finished / "metrics.json").write_text(figures + "\n", encoding="utf-8")
        move_files_into(finished, args.output_dir, last="metrics.json")
    print(text)
