"""Measures samplers and numbers of steps: quality, seconds and network evaluations of a pipeline, or cost alone.

    python scripts/benchmark_sampling.py --pipeline pipeline --data cohort --output_dir sampling \\
        --samplers ancestral --steps 512
    python scripts/benchmark_sampling.py --pipeline pipeline --data cohort --output_dir sampling \\
        --samplers exact_count halton confidence --steps 4 8 16 32 64
    python scripts/benchmark_sampling.py --cost --check --output_dir sampling-cost

With `--cost` it measures untrained transformers and needs neither pipeline nor data: seconds of sampling at the paper's
size beside those of evaluating the full sequence of 512 context and 512 code tokens 512 times, then against batch,
tokens and width. Both take turns, `--evaluations` each, and their medians are multiplied by the number of steps.
`--check` ends with exit status 1 if a ratio of this run breaks its limit. Written to cost.md in the output folder.

Otherwise every combination of `--samplers` and `--steps` becomes a row of sampling.json and sampling.md in the output
folder. Rows that are there already are kept and not measured again, so that a run can be stopped and continued, and
further runs add to the table; data, seed and machine must stay the same.

- One sample: PSNR and SSIM against the true volume, averaged over a subject's samples; and of their voxel-wise mean.
- Density and coverage (Naeem et al., 2020) of all samples in the volume tokenizer's features. The real volumes are
  those of the subjects and of the split `validation`.
- Seconds per volume: the pipeline's whole call, from images to HU, on batches of `--batch_size` subjects.
- Network evaluations: calls of the transformer in one call of the pipeline, mean over batches. Steps that change no
  code of the batch need none.

Errors are standard errors over subjects, of density and coverage by the jackknife. A second table holds the differences
to `--reference`, paired by subject. A volume's randomness depends on seed, subject and sample only.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AmusedScheduler
from tqdm.auto import tqdm

import hf_vq
from hf_vq import AbsorbingScheduler, ViewsToVolumePipeline
from hf_vq.data import PairedDataset
from hf_vq.evaluation.metrics import DEFAULT_NEAREST_K, DEFAULT_WINDOW, prdc, psnr_3d, ssim_3d
from hf_vq.evaluation.report import summarize
from hf_vq.evaluation.report_text import markdown_table, save_report, versions_text
from hf_vq.evaluation.sampling_cost import cost_cases, machine, report_costs
from hf_vq.evaluation.tokenizer import VolumeTokenizer
from hf_vq.evaluation.volumes import GridVolume, onto_grid, read_volume
from hf_vq.schedulers.checks import SAMPLINGS, SCHEDULES
from hf_vq.training.arguments import run

AMUSED = "amused"
KEY = ("sampler", "steps", "schedule", "temperature", "top_p", "guidance_scale", "choice_temperature")
COLUMNS = {
    ("one_sample", "psnr_3d"): ("PSNR 3D (dB)", 2),
    ("one_sample", "ssim_3d"): ("SSIM 3D", 3),
    ("mean_of_samples", "psnr_3d"): ("PSNR, mean of {count}", 2),
    ("mean_of_samples", "ssim_3d"): ("SSIM, mean of {count}", 3),
    ("distribution", "density"): ("density", 3),
    ("distribution", "coverage"): ("coverage", 3),
}

Row = dict[str, Any]


def make_parser() -> argparse.ArgumentParser:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true", help="measure cost alone, of untrained transformers")
    parser.add_argument("--check", action="store_true", help="with --cost: fail where a ratio breaks its limit")
    parser.add_argument("--evaluations", type=int, default=8, help="with --cost: turns for each size")
    parser.add_argument("--pipeline", help="folder or Hub id of a ViewsToVolumePipeline")
    parser.add_argument("--data", help="paired folder or data set id")
    parser.add_argument("--split", default="test")
    parser.add_argument("--output_dir", required=True, type=Path)
    names = [*SAMPLINGS, AMUSED]
    parser.add_argument(
        "--samplers", nargs="+", choices=names, default=list(SAMPLINGS), metavar="NAME", help=str(names)
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 8, 16, 32, 64])
    parser.add_argument("--schedule", choices=SCHEDULES, default="linear")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument(
        "--choice_temperature", type=float, help="of the sampler confidence; by default the scheduler's"
    )
    parser.add_argument("--reference", default="ancestral:512", help="SAMPLER:STEPS that the others are compared with")
    parser.add_argument("--num_subjects", type=int, help="the first ones of the split; all by default")
    parser.add_argument("--num_samples", type=int, default=2, help="volumes for each subject")
    parser.add_argument("--batch_size", type=int, default=8, help="subjects at a time")
    parser.add_argument("--window", type=float, nargs=2, default=DEFAULT_WINDOW, metavar=("LOW", "HIGH"), help="HU")
    parser.add_argument("--nearest_k", type=int, default=DEFAULT_NEAREST_K, help="for density and coverage")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that cannot be met, before anything is loaded."""
    if args.cost == bool(args.pipeline or args.data) or (not args.cost and not (args.pipeline and args.data)):
        raise ValueError("found no full request, expected --pipeline and --data, or --cost and neither of them")
    lowest = {"evaluations": 1, "num_subjects": 1, "num_samples": 1, "batch_size": 1, "nearest_k": 1, "seed": 0}
    for name, least in lowest.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name}: found {value}, expected at least {least}")
    if min(args.steps) < 1:
        raise ValueError(f"--steps: found {min(args.steps)}, expected at least 1")
    if not re.fullmatch(r"[a-z_]+:[0-9]+", args.reference):
        raise ValueError(f"--reference: found {args.reference!r}, expected SAMPLER:STEPS, such as ancestral:512")
    if AMUSED in args.samplers and (args.temperature, args.top_p) != (1.0, 1.0):
        raise ValueError(f"--samplers {AMUSED} has no --temperature and no --top_p; leave them out")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all rows of a table must have in common."""
    names = ("pipeline", "data", "split", "num_subjects", "num_samples", "batch_size", "nearest_k", "seed")
    return {
        **{name: getattr(args, name) for name in names},
        "window": list(args.window),
        **machine(hf_vq.__version__),
    }


def read_rows(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Rows measured before; raises ValueError if they were measured under other settings."""
    if not path.exists():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if report["settings"].get(name) != value:
            raise ValueError(
                f"{path} was measured with {name}={report['settings'].get(name)!r}, now it is {value!r}; choose "
                "another --output_dir"
            )
    rows: list[Row] = report["rows"]
    return rows


def generator_of(seed: int, subject: int, sample: int) -> torch.Generator:
    """Source of one volume's randomness: it depends on nothing else, such as the batch or the number of samples."""
    state = np.random.SeedSequence([seed, subject, sample]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def make_scheduler(saved: AbsorbingScheduler, row: Row) -> AbsorbingScheduler | AmusedScheduler:
    """The pipeline's own scheduler with the row's sampler."""
    if row["sampler"] == AMUSED:
        return AmusedScheduler(mask_token_id=saved.config.mask_token_id, masking_schedule=row["schedule"])
    changed = {"sampling": row["sampler"], "schedule": row["schedule"]}
    if row["choice_temperature"] is not None:
        changed["choice_temperature"] = row["choice_temperature"]
    return AbsorbingScheduler.from_config(saved.config, **changed)


def truth_of(dataset: PairedDataset, index: int) -> GridVolume:
    """A subject's true volume."""
    return read_volume(dataset.volume(index), f"volume of {dataset.subjects[index]}")


def generate(
    pipeline: ViewsToVolumePipeline, dataset: PairedDataset, subjects: range, row: Row, args: argparse.Namespace
) -> tuple[list[Any], float]:
    """Volumes of some subjects, those of one after another, as nibabel images; and the seconds that they took."""
    one_each = [generator_of(args.seed, index, sample) for index in subjects for sample in range(args.num_samples)]
    views = {name: [dataset.view_image(index, name) for index in subjects] for name in pipeline.transformer.view_names}
    began = time.perf_counter()
    output: Any = pipeline(
        views,
        num_inference_steps=row["steps"],
        num_volumes_per_prompt=args.num_samples,
        temperature=row["temperature"],
        top_p=row["top_p"],
        guidance_scale=row["guidance_scale"],
        generator=one_each[0] if row["sampler"] == AMUSED else one_each,
    )
    return output.volumes, time.perf_counter() - began


def scores_of(truth: GridVolume, volume: np.ndarray, window: Sequence[float]) -> dict[str, float]:
    """Scores of one volume on the grid of the true one."""
    pair = truth.hu, volume, (window[0], window[1])
    return {"psnr_3d": psnr_3d(*pair), "ssim_3d": ssim_3d(*pair)}


def measure(
    pipeline: ViewsToVolumePipeline,
    dataset: PairedDataset,
    tokenizer: VolumeTokenizer,
    real: np.ndarray,
    row: Row,
    args: argparse.Namespace,
) -> Row:
    """The row with its figures."""
    count, features, evaluations, seconds = args.num_subjects, [], [], 0.0
    scores: dict[str, list[dict[str, float]]] = {"one_sample": [], "mean_of_samples": []}
    for start in tqdm(range(0, count, args.batch_size), desc=f"{label(row)}, {row['steps']} steps", disable=None):
        subjects = range(start, min(start + args.batch_size, count))
        images, taken = generate(pipeline, dataset, subjects, row, args)
        seconds += taken
        evaluations.append(pipeline.num_network_evaluations)
        for index in subjects:
            truth = truth_of(dataset, index)
            first = (index - start) * args.num_samples
            volumes = [onto_grid(read_volume(one), truth.grid) for one in images[first : first + args.num_samples]]
            features.append(tokenizer.encode([truth.with_hu(volume) for volume in volumes]).features)
            every = [scores_of(truth, volume, args.window) for volume in volumes]
            scores["one_sample"].append({name: float(np.mean([one[name] for one in every])) for name in every[0]})
            mean = np.mean([np.clip(volume, *args.window) for volume in volumes], axis=0)
            scores["mean_of_samples"].append(scores_of(truth, mean, args.window))
    return row | {
        "seconds_per_volume": seconds / (count * args.num_samples),
        "network_evaluations": float(np.mean(evaluations)),
        "one_sample": scores["one_sample"],
        "mean_of_samples": scores["mean_of_samples"] if args.num_samples > 1 else None,
        "distribution": distribution(real, np.stack(features), args.nearest_k),
    }


def distribution(real: np.ndarray, generated: np.ndarray, nearest_k: int) -> dict[str, dict[str, Any]] | None:
    """Density and coverage, and what they are without each subject in turn.

    Args:
        real: features of the S subjects' true volumes, then of further ones, `(R, F)`.
        generated: features of the subjects' samples, `(S, samples, F)`.
        nearest_k: neighbour that sets the radius of a neighbourhood.

    Returns:
        For each name `value` and `left_out`, one for each subject; nothing where there are too few volumes.
    """
    num_subjects, num_samples, channels = generated.shape
    if min(len(real) - 1, (num_subjects - 1) * num_samples) < nearest_k + 2:
        return None
    whole = prdc(real, generated.reshape(-1, channels), nearest_k)
    parts = [
        prdc(np.delete(real, index, axis=0), np.delete(generated, index, axis=0).reshape(-1, channels), nearest_k)
        for index in range(num_subjects)
    ]
    names = ("density", "coverage")
    return {name: {"value": whole[name], "left_out": [part[name] for part in parts]} for name in names}


def estimate(row: Row, group: str, metric: str, reference: Row | None = None) -> tuple[float, float | None] | None:
    """Value and standard error of a metric, or of its difference to another row; nothing where it was not measured."""
    if row[group] is None:
        return None
    if group != "distribution":
        values = [scores[metric] for scores in row[group]]
        if reference:
            values = [value - other[metric] for value, other in zip(values, reference[group], strict=True)]
        summary: Mapping[str, Any] = summarize(values)
        return summary["mean"], summary["standard_error"]
    value, left_out = row[group][metric]["value"], np.array(row[group][metric]["left_out"])
    if reference:
        value -= reference[group][metric]["value"]
        left_out = left_out - np.array(reference[group][metric]["left_out"])
    count = len(left_out)
    return float(value), math.sqrt((count - 1) / count * float(np.square(left_out - left_out.mean()).sum()))


def cell(found: tuple[float, float | None] | None, decimals: int, sign: str = "") -> str:
    """`value ± standard error`."""
    if found is None:
        return ""
    value, error = found
    return f"{value:{sign}.{decimals}f}" + ("" if error is None else f" ± {error:.{decimals}f}")


def label(row: Row) -> str:
    """The sampler, and whatever of the row's settings is not the default."""
    usual = {"schedule": "linear", "temperature": 1.0, "top_p": 1.0, "guidance_scale": 1.0, "choice_temperature": None}
    return ", ".join([row["sampler"], *(f"{name} {row[name]}" for name in usual if row[name] != usual[name])])


def main_table(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """One line for each row."""
    measured = {key: title for key, title in COLUMNS.items() if rows[0][key[0]] is not None}
    titles = [title.format(count=settings["num_samples"]) for title, _ in measured.values()]
    lines = [
        [
            label(row),
            str(row["steps"]),
            f"{row['network_evaluations']:g}",
            *(cell(estimate(row, *key), decimals) for key, (_, decimals) in measured.items()),
            f"{row['seconds_per_volume']:.3g}",
        ]
        for row in rows
    ]
    return markdown_table(["sampler", "steps", "evaluations", *titles, "s / volume"], lines)


def difference_table(rows: Sequence[Row], reference: Row, settings: Mapping[str, Any]) -> str:
    """Differences of the other rows to the reference, and whether they are all no worse within one standard error."""
    measured = {key: title for key, title in COLUMNS.items() if reference[key[0]] is not None}
    lines = []
    for row in rows:
        if row is not reference:
            found = {key: estimate(row, *key, reference) for key in measured}
            worse = any(each is not None and each[0] < -(each[1] or 0.0) for each in found.values())
            cells = [cell(found[key], decimals, "+") for key, (_, decimals) in measured.items()]
            lines.append([label(row), str(row["steps"]), *cells, "no" if worse else "yes"])
    titles = [title.format(count=settings["num_samples"]) for title, _ in measured.values()]
    return markdown_table(["sampler", "steps", *titles, "none worse"], lines)


def markdown(settings: Mapping[str, Any], rows: Sequence[Row], reference: str) -> str:
    """The report."""
    low, high = settings["window"]
    parts = [
        f"Pipeline `{settings['pipeline']}`, data `{settings['data']}` ({settings['split']}), "
        f"{settings['num_subjects']} subjects, {settings['num_samples']} samples of each, seed {settings['seed']}; "
        f"window [{low:g}, {high:g}] HU; nearest_k = {settings['nearest_k']}; {settings['features']}; "
        f"{settings['hardware']}, {settings['threads']} threads, {settings['batch_size']} subjects at a time; "
        f"{versions_text(settings['versions'])}. Cells: mean ± standard error over subjects.",
        main_table(rows, settings),
    ]
    found = [row for row in rows if f"{row['sampler']}:{row['steps']}" == reference]
    if found and len(rows) > 1:
        parts.append(f"Differences to {label(found[0])} with {found[0]['steps']} steps, paired by subject:")
        parts.append(difference_table(rows, found[0], settings))
    return "\n\n".join(parts) + "\n"


def save(folder: Path, settings: Mapping[str, Any], rows: list[Row], reference: str) -> None:
    """Writes both files, sorted by sampler and steps."""
    rows = sorted(rows, key=lambda row: (label(row), row["steps"]))
    report = {"settings": settings, "rows": rows}
    save_report(folder / "sampling.json", report, markdown(settings, rows, reference))


def wanted_rows(args: argparse.Namespace) -> list[Row]:
    """What identifies each combination that was asked for."""
    rows = []
    for sampler, steps in product(args.samplers, args.steps):
        row = {name: getattr(args, name) for name in KEY[2:]} | {"sampler": sampler, "steps": steps}
        rows.append(row if sampler == "confidence" else row | {"choice_temperature": None})
    return rows


def load_pipeline(path: str) -> ViewsToVolumePipeline:
    """The pipeline, on a GPU when there is one, without its own progress bar."""
    pipeline = ViewsToVolumePipeline.from_pretrained(path).to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def real_features(tokenizer: VolumeTokenizer, dataset: PairedDataset, args: argparse.Namespace) -> np.ndarray:
    """Features of the subjects' true volumes, then of those of the validation split."""
    volumes = [truth_of(dataset, index) for index in range(args.num_subjects)]
    if args.split != "validation":
        further = PairedDataset(args.data, "validation")
        volumes += [truth_of(further, index) for index in range(len(further))]
    return tokenizer.encode(volumes).features


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, measure, save."""
    args = make_parser().parse_args(arguments)
    check_args(args)
    if args.cost:
        broken = report_costs(cost_cases(), args.evaluations, args.output_dir, hf_vq.__version__)
        raise SystemExit(1 if args.check and broken else 0)
    dataset = PairedDataset(args.data, args.split)
    args.num_subjects = min(args.num_subjects or len(dataset), len(dataset))
    pipeline = load_pipeline(args.pipeline)
    saved, tokenizer = pipeline.scheduler, VolumeTokenizer(pipeline.volume_tokenizer, pipeline.volume_processor)
    settings = settings_of(args) | {"features": tokenizer.feature_name}
    rows = read_rows(args.output_dir / "sampling.json", settings)
    real = real_features(tokenizer, dataset, args)
    missing = [
        row for row in wanted_rows(args) if not any(all(row[key] == other[key] for key in KEY) for other in rows)
    ]
    for number, row in enumerate(missing):
        pipeline.scheduler = make_scheduler(saved, row)
        if number == 0:  # what the first call loads and compiles is no sampler's fault
            generate(pipeline, dataset, range(1), row, args)
        rows.append(measure(pipeline, dataset, tokenizer, real, row, args))
        save(args.output_dir, settings, rows, args.reference)
        print(main_table(rows[-1:], settings).splitlines()[-1], flush=True)
    save(args.output_dir, settings, rows, args.reference)
    print((args.output_dir / "sampling.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
