"""Reports as text: Markdown tables with what the numbers depend on, a CSV file of every subject's scores, and files."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_file
from .metrics import FEWEST_FOR_DISTRIBUTIONS
from .report import METRIC_LABELS, ROW_MEAN_VOLUME, ROW_SHUFFLED, row_of

FEW_SUBJECTS_WARNING = (
    "Density, coverage, precision and recall estimate the overlap of two distributions from neighbours: with few "
    "subjects they say little, and samples of one subject aren't independent. Read them beside the trivial baselines."
)
UNRELIABLE_MARK = "†"


def report_markdown(report: Mapping[str, Any]) -> str:
    """Write a report as Markdown: settings, tables of scores and differences, distribution scores, codebook, notes.

    Args:
        report: as `build_report` returns it.

    Returns:
        Markdown text that ends with a newline.
    """
    parts = [_settings_text(report["settings"]), _table(report["summary"])]
    shuffled = report["paired_differences"].get(_first_control(report["settings"]), {}).get("psnr_3d")
    if shuffled is not None:
        parts.append(f"Right views minus shuffled views, PSNR 3D, paired by subject: {_cell(shuffled, 2)} dB.")
    if report["comparisons"]:
        parts.append(_comparison_text(report["comparisons"]))
    if report["distribution"] is not None:
        parts.append(_distribution_text(report["distribution"], report["settings"]["nearest_k"]))
    if report["codebook"] is not None:
        parts.append(_codebook_text(report["codebook"]))
    if report["notes"]:
        parts.append("\n".join(f"- {note}" for note in report["notes"]))
    return "\n\n".join(parts) + "\n"


def per_subject_csv(report: Mapping[str, Any]) -> str:
    """Write the scores of every subject as CSV: one line for each row of the report and subject.

    Args:
        report: as `build_report` returns it.

    Returns:
        CSV text with the columns subject, row and one per metric, empty where a row lacks the metric.
    """
    text = io.StringIO()
    metrics = _metrics_of(report["summary"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["subject", "row", *metrics])
    for row, scores in report["per_subject"].items():
        for subject, score in zip(report["subjects"], scores, strict=True):
            writer.writerow([subject, row, *(score.get(metric, "") for metric in metrics)])
    return text.getvalue()


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


def save_report(path: str | Path, figures: Any, text: str) -> None:
    """Write the figures of a report as JSON and its text beside them as Markdown, each file whole or not at all.

    Args:
        path: of the JSON file; the Markdown has the same name with the suffix `.md`. Parents are made, existing files
            are replaced.
        figures: what JSON can hold.
        text: Markdown that ends with a newline.

    Raises:
        ValueError: if a figure is NaN or infinite; nothing is written then.
    """
    contents = {Path(path): json.dumps(figures, indent=2, allow_nan=False), Path(path).with_suffix(".md"): text}
    for file, content in contents.items():
        with atomic_file(file) as temporary:
            temporary.write_text(content, encoding="utf-8")


def processor_name() -> str:
    """As Linux names the processor, or else as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions_text(versions: Mapping[str, str]) -> str:
    """Names and versions of packages in one line, as the head of a report has them."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _first_control(settings: Mapping[str, Any]) -> str:
    """Row of the first program's control."""
    return row_of(settings["programs"][0]["name"], ROW_SHUFFLED)


def _metrics_of(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Metrics that any row has, in the order of the table."""
    return [metric for metric in METRIC_LABELS if any(metric in row for row in summary.values())]


def _cell(summary: Mapping[str, Any] | None, decimals: int) -> str:
    """`mean ± standard error [confidence interval]` of one cell."""
    if summary is None:
        return ""
    if summary["std"] is None:
        return f"{summary['mean']:.{decimals}f}"
    low, high = summary["confidence_interval"]
    mean, error = (f"{summary[name]:.{decimals}f}" for name in ("mean", "standard_error"))
    return f"{mean} ± {error} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _settings_text(settings: Mapping[str, Any]) -> str:
    """The sentences that must stand beside the numbers."""
    low, high = settings["window"]
    size = settings["ssim_window_size"]
    samples = ", ".join(row_of(one["name"], str(one["num_samples"])) for one in settings["programs"])
    return (
        f"Data `{settings['data']}`, split `{settings['split']}`, {settings['num_subjects']} subjects, "
        f"{samples} sample(s) per subject, seed {settings['seed']}. "
        f"Window [{low:g}, {high:g}] HU: both volumes clipped to it, data range {high - low:g} HU. "
        f"Every score is against the true HU volume. SSIM: Gaussian window of {size} voxels, sigma "
        f"{settings['ssim_sigma']:g}. Slices: mean over the slices of each axis, then over the axes (X2CT-GAN). "
        f"Re-projection: mean absolute difference to the input views, display units 0 to 1, {settings['rays']} rays. "
        f"Cells: mean ± standard error [{settings['confidence']:.0%} interval] over subjects; intervals from "
        f"{settings['num_resamples']} bootstrap resamples of the subjects."
    )


def _table(lines: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per row, one column per metric that any row has."""
    metrics = _metrics_of(lines)
    header = ["", *(METRIC_LABELS[metric][0] for metric in metrics)]
    rows = [
        [name, *(_cell(row.get(metric), METRIC_LABELS[metric][1]) for metric in metrics)] for name, row in lines.items()
    ]
    return markdown_table(header, rows)


def _comparison_text(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Table of paired differences."""
    lines = {f"{one['minuend']} − {one['subtrahend']}": one["scores"] for one in comparisons}
    return (
        "Differences paired by subject, first minus second; an interval without 0 tells them apart on these subjects."
        f"\n\n{_table(lines)}"
    )


def _distribution_text(distribution: Mapping[str, Any], nearest_k: int) -> str:
    """Table of density, coverage, precision and recall with the features and set sizes they depend on."""
    names = ("density", "coverage", "precision", "recall")
    rows = [
        [
            name if row["reliable"] else f"{name} {UNRELIABLE_MARK}",
            str(row["num_generated"]),
            str(row["num_subjects"]),
            *(f"{row[metric]:.3f}" for metric in names),
        ]
        for name, row in distribution["rows"].items()
    ]
    introduction = (
        f"Distribution of whole sets, {distribution['num_real']} real volumes ({distribution['real_set']}), "
        f"nearest_k = {nearest_k}; features: {distribution['features']}. {FEW_SUBJECTS_WARNING}"
    )
    table = [markdown_table(["", "generated", "subjects", *names], rows)] if rows else []
    return "\n\n".join([introduction, *table, *_distribution_remarks(distribution), *distribution["left_out"]])


def _distribution_remarks(distribution: Mapping[str, Any]) -> list[str]:
    """What the marks mean, and what the mean volume scores."""
    remarks = []
    if not all(row["reliable"] for row in distribution["rows"].values()):
        remarks.append(
            f"{UNRELIABLE_MARK} Not reliable: fewer than {FEWEST_FOR_DISTRIBUTIONS} real volumes or subjects, or "
            "features that were not learned."
        )
    mean = distribution["rows"].get(ROW_MEAN_VOLUME)
    if mean is not None:
        remarks.append(
            f"One volume repeated, the mean volume, scores density {mean['density']:.3f} and coverage "
            f"{mean['coverage']:.3f} here: other rows say something only by what they differ from it."
        )
    return remarks


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
