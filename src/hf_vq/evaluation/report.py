"""Summary of per-subject scores: mean, standard deviation and standard error, as JSON and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .metrics import DEFAULT_NEAREST_K, SSIM_SIGMA, SSIM_WINDOW_SIZE

ROW_ONE_SAMPLE = "one sample"
ROW_AVERAGE_SAMPLE = "one sample, scores averaged over {count} samples"
ROW_MEAN_OF_SAMPLES = "mean of {count} samples"
ROW_SHUFFLED = "shuffled views, one sample"
ROW_MEAN_VOLUME = "mean volume"
ROW_NEAREST = "nearest subject"
ROW_RIDGE = "ridge regression"
ROW_CEILING = "tokenizer reconstruction (ceiling)"
ROW_TRUE_VOLUME = "true volume (floor of the re-projection error)"

METRIC_LABELS: dict[str, tuple[str, int]] = {
    "psnr_3d": ("PSNR 3D (dB) ↑", 2),
    "psnr_slices": ("PSNR slices (dB) ↑", 2),
    "ssim_3d": ("SSIM 3D ↑", 3),
    "ssim_slices": ("SSIM slices ↑", 3),
    "mae_hu": ("MAE (HU) ↓", 1),
    "mse": ("MSE (window = 1) ↓", 5),
    "reprojection": ("re-projection ↓", 4),
}
"""Column title and decimals of each metric, in the order of the table; the arrow points to the better values."""

FEW_SUBJECTS_WARNING = (
    "Density, coverage, precision and recall estimate the overlap of two distributions from neighbours: with few "
    "subjects they say little, and samples of one subject aren't independent. Read them beside the trivial baselines."
)


@dataclass(frozen=True)
class EvaluationSettings:
    """What the numbers of a report depend on.

    Attributes:
        data: data set, folder or Hub id.
        split: split that was evaluated.
        window: HU window to which both volumes are clipped.
        num_subjects: number of subjects evaluated.
        num_samples: generated volumes per subject.
        seed: seed of the evaluation's own random choices (which subjects the picture shows).
        generated: folder of the generated volumes.
        ssim_window_size: side of the Gaussian window of SSIM, voxels.
        ssim_sigma: its standard deviation, voxels.
        nearest_k: neighbour that sets the radius in density, coverage, precision and recall.
    """

    data: str
    split: str
    window: tuple[float, float]
    num_subjects: int
    num_samples: int
    seed: int
    generated: str
    ssim_window_size: int = SSIM_WINDOW_SIZE
    ssim_sigma: float = SSIM_SIGMA
    nearest_k: int = DEFAULT_NEAREST_K


def summarize(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation and standard error of one score over the subjects.

    Args:
        values: one finite number per subject.

    Returns:
        `mean`, `std` (with n - 1), `standard_error` (`std / sqrt(n)`) and `count`; spread is None for one subject.

    Raises:
        ValueError: no values, or values that are not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"scores are {list(values)}; expected one finite number per subject")
    count = int(numbers.size)
    std = float(numbers.std(ddof=1)) if count > 1 else None
    error = None if std is None else std / math.sqrt(count)
    return {"mean": float(numbers.mean()), "std": std, "standard_error": error, "count": count}


def build_report(
    settings: EvaluationSettings,
    subjects: Sequence[str],
    rows: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    distribution: Mapping[str, Any] | None = None,
    codebook: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Assemble a report from the scores of every subject.

    Args:
        settings: what the numbers depend on.
        subjects: names of the subjects, in the order of the scores.
        rows: for each row of the table one mapping of metric to score per subject.
        distribution: `features` (their name), `real_set` (which volumes are the real ones), `num_real`, and `rows`: for
            each set of generated volumes `num_generated`, `precision`, `recall`, `density`, `coverage`; and `left_out`,
            a sentence for each set too small to be judged.
        codebook: usage of the volume tokenizer's codebook, per name of the held-out splits.
        notes: sentences about what was left out or changed.

    Returns:
        A dictionary of JSON types: `settings`, `subjects`, `summary`, `paired_differences` (of `one sample` to every
        other row), `per_subject`, `distribution`, `codebook`, `notes`.

    Raises:
        ValueError: a row whose length isn't the number of subjects.
    """
    for name, scores in rows.items():
        if len(scores) != len(subjects):
            raise ValueError(
                f"row {name!r} has {len(scores)} scores; expected one for each of {len(subjects)} subjects"
            )
    return {
        "settings": asdict(settings) | {"window": list(settings.window)},
        "subjects": list(subjects),
        "summary": {name: _summary(scores) for name, scores in rows.items()},
        "paired_differences": _paired_differences(rows),
        "per_subject": {name: [dict(score) for score in scores] for name, scores in rows.items()},
        "distribution": None if distribution is None else dict(distribution),
        "codebook": None if codebook is None else dict(codebook),
        "notes": list(notes),
    }


def report_markdown(report: Mapping[str, Any]) -> str:
    """Write a report as Markdown: settings, table of scores, distribution scores, codebook usage, notes.

    Args:
        report: as `build_report` returns it.

    Returns:
        Markdown text that ends with a newline.
    """
    parts = [_settings_text(report["settings"]), _score_table(report["summary"])]
    shuffled = report["paired_differences"].get(ROW_SHUFFLED, {}).get("psnr_3d")
    if shuffled is not None:
        parts.append(f"Right views minus shuffled views, PSNR 3D, paired by subject: {_cell(shuffled, 2)} dB.")
    if report["distribution"] is not None:
        parts.append(_distribution_text(report["distribution"], report["settings"]["nearest_k"]))
    if report["codebook"] is not None:
        parts.append(_codebook_text(report["codebook"]))
    if report["notes"]:
        parts.append("\n".join(f"- {note}" for note in report["notes"]))
    return "\n\n".join(parts) + "\n"


def _summary(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Summary of every metric that all subjects of a row have."""
    shared = [metric for metric in METRIC_LABELS if all(metric in score for score in scores)]
    return {metric: summarize([score[metric] for score in scores]) for metric in shared}


def _paired_differences(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Differences of `one sample` to every other row, subject by subject: their spread leaves out hard subjects."""
    reference = rows.get(ROW_ONE_SAMPLE)
    if reference is None:
        return {}
    differences = {
        name: [
            {metric: first[metric] - second[metric] for metric in first if metric in second}
            for first, second in zip(reference, scores, strict=True)
        ]
        for name, scores in rows.items()
        if name != ROW_ONE_SAMPLE
    }
    return {name: _summary(values) for name, values in differences.items()}


def _cell(summary: Mapping[str, Any] | None, decimals: int) -> str:
    """`mean ± standard error (standard deviation)` of one cell."""
    if summary is None:
        return ""
    if summary["std"] is None:
        return f"{summary['mean']:.{decimals}f}"
    return f"{summary['mean']:.{decimals}f} ± {summary['standard_error']:.{decimals}f} ({summary['std']:.{decimals}f})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with the first column left-aligned and the others right-aligned, padded for plain text.

    Args:
        header: titles of the columns.
        rows: cells of each row, as many as titles.
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def _settings_text(settings: Mapping[str, Any]) -> str:
    """The sentences that must stand beside the numbers."""
    low, high = settings["window"]
    size = settings["ssim_window_size"]
    return (
        f"Data `{settings['data']}`, split `{settings['split']}`, {settings['num_subjects']} subjects, "
        f"{settings['num_samples']} sample(s) per subject, seed {settings['seed']}. "
        f"Window [{low:g}, {high:g}] HU: both volumes clipped to it, data range {high - low:g} HU. "
        f"Every score is against the true HU volume. SSIM: Gaussian window of {size} voxels, sigma "
        f"{settings['ssim_sigma']:g}. Slices: mean over the slices of each axis, then over the axes (X2CT-GAN). "
        "Re-projection: mean absolute difference to the input views, display units 0 to 1. "
        "Cells: mean ± standard error (standard deviation) over subjects."
    )


def _score_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The main table: one line per row, one column per metric that any row has."""
    metrics = [metric for metric in METRIC_LABELS if any(metric in row for row in summary.values())]
    header = ["", *(METRIC_LABELS[metric][0] for metric in metrics)]
    rows = [
        [name, *(_cell(row.get(metric), METRIC_LABELS[metric][1]) for metric in metrics)]
        for name, row in summary.items()
    ]
    return markdown_table(header, rows)


def _distribution_text(distribution: Mapping[str, Any], nearest_k: int) -> str:
    """Table of density, coverage, precision and recall with the features and set sizes they depend on."""
    names = ("density", "coverage", "precision", "recall")
    rows = [
        [name, str(row["num_generated"]), *(f"{row[metric]:.3f}" for metric in names)]
        for name, row in distribution["rows"].items()
    ]
    introduction = (
        f"Distribution of whole sets, {distribution['num_real']} real volumes ({distribution['real_set']}), "
        f"nearest_k = {nearest_k}; features: {distribution['features']}. {FEW_SUBJECTS_WARNING}"
    )
    table = [markdown_table(["", "generated", *names], rows)] if rows else []
    return "\n\n".join([introduction, *table, *distribution["left_out"]])


def _codebook_text(codebook: Mapping[str, Any]) -> str:
    """Table of the codebook's usage on held-out data."""
    rows = [
        [
            name,
            f"{use['codes_used']} / {use['codebook_size']}",
            f"{use['used_fraction']:.1%}",
            f"{use['perplexity']:.1f}",
        ]
        for name, use in codebook.items()
    ]
    return "Codebook of the volume tokenizer on held-out data.\n\n" + markdown_table(
        ["", "codes used", "fraction", "perplexity"], rows
    )
