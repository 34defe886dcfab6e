"""What a metrics file says about a model, as tables and as entries of a card's model-index."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult

from ..evaluation.generation import SCORES
from ..evaluation.report import METRIC_LABELS, ROW_CEILING, ROW_MEAN_OF_SAMPLES, ROW_ONE_SAMPLE, row_of
from ..evaluation.report_text import markdown_table
from .architecture import (
    CLASSIFIER,
    CODE_GENERATION,
    IMAGE_TOKENIZER,
    TOKENIZERS,
    VIEW_TOKENIZER,
    VIEWS_TO_VOLUME,
    VOLUME_TOKENIZER,
    codebook_size,
    read_json,
)
from .text import MISSING, counted, listed, one_cell, or_missing

VOLUME_REPORT, IMAGE_REPORT, TEST_FIGURES = "volume report", "image report", "test figures"
# Which entry tells what a metrics file is, and who writes such a file.
MARKS = {"summary": VOLUME_REPORT, "rows": IMAGE_REPORT, "test": TEST_FIGURES}
WRITERS = {VOLUME_REPORT: "evaluate.py", IMAGE_REPORT: "evaluate_images.py", TEST_FIGURES: "train_classifier.py"}
READ_BY = {
    VIEWS_TO_VOLUME: VOLUME_REPORT,
    VOLUME_TOKENIZER: VOLUME_REPORT,
    VIEW_TOKENIZER: VOLUME_REPORT,
    IMAGE_TOKENIZER: IMAGE_REPORT,
    CODE_GENERATION: IMAGE_REPORT,
    CLASSIFIER: TEST_FIGURES,
}
# Metric of the model-index, by score of a report; names as the Hub's pages of metrics have them where there is one.
METRIC_TYPES = {"psnr_3d": "psnr", "psnr_slices": "psnr", "ssim_3d": "ssim", "ssim_slices": "ssim", "mae_hu": "mae"}
RECONSTRUCTED = "reconstructed "
PATH_ENTRIES = ("data", "generated", "folder", "shuffled", "tokenizer")
PRIVATE_ENTRIES = ("subjects", "per_subject")


@dataclass
class Results:
    """Figures of a model.

    Attributes:
        blocks: Markdown, in order.
        entries: of the model-index; every value is a number of the file that the figures were read from.
    """

    blocks: list[str] = field(default_factory=list)
    entries: list[EvalResult] = field(default_factory=list)

    def add(self, other: "Results") -> None:
        """Appends what others say."""
        self.blocks += other.blocks
        self.entries += other.entries


def read_results(path: Path, folder: Path, kind: str, task: str, data: Mapping[str, Any]) -> Results:
    """What a metrics file says about a model.

    Args:
        path: the file.
        folder: of the model.
        kind: what the folder holds, as `find_kind` tells.
        task: the model's pipeline tag.
        data: what is known of the data that it was trained on, as `describe_data` returns it.

    Raises:
        ValueError: if there is no such file, or it is about models of another kind or with another codebook.
    """
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected the metrics of a model; check the path")
    metrics = read_json(path)
    found = next((name for mark, name in MARKS.items() if mark in metrics), None)
    if found != READ_BY[kind]:
        raise ValueError(
            f"{path}: found {f'a {found}' if found else 'no metrics'}, expected what {WRITERS[READ_BY[kind]]} writes "
            f"about a {kind.replace('_', ' ')}; choose another file"
        )
    _check_codebook(path, metrics, folder, kind)
    if kind == VIEW_TOKENIZER:  # a volume report says nothing about the views' tokenizer
        return Results()
    if kind == CLASSIFIER:
        return _test_results(metrics, task, data)
    facts = metrics["settings"].get("data_facts") or {"name": PurePath(metrics["settings"]["data"]).name}
    writer = _Entries(task, facts, metrics["settings"]["split"])
    if kind in (VIEWS_TO_VOLUME, VOLUME_TOKENIZER):
        return _volume_results(metrics, kind, writer)
    return _image_results(metrics, kind, writer)


def _check_codebook(path: Path, metrics: Mapping[str, Any], folder: Path, kind: str) -> None:
    """Refuses figures about a codebook of another size, which are another model's."""
    usage = metrics.get("codebook") or {}
    sizes = {one["codebook_size"] for one in usage.values()}
    own = codebook_size(folder, kind)
    if kind != VIEW_TOKENIZER and sizes - {own}:
        raise ValueError(
            f"{path}: found figures of a codebook of {sorted(sizes)[0]} codes, but {folder} has one of {own}; choose "
            "the metrics of this model"
        )


@dataclass(frozen=True)
class _Entries:
    """Makes entries of the model-index for one data set and split."""

    task: str
    data: Mapping[str, Any]
    split: str

    def entry(self, metric: str, name: str, value: float) -> EvalResult:
        data_name = str(self.data.get("name") or MISSING)
        return EvalResult(
            task_type=self.task,
            dataset_type=re.sub(r"[^\w./-]+", "-", data_name),
            dataset_name=data_name,
            dataset_split=self.split,
            metric_type=metric,
            metric_name=name,
            metric_value=value,
        )


def _volume_results(metrics: Mapping[str, Any], kind: str, writer: _Entries) -> Results:
    program = metrics["settings"]["programs"][0]
    first = [row_of(program["name"], ROW_ONE_SAMPLE)]
    first += [row_of(program["name"], ROW_MEAN_OF_SAMPLES.format(count=program["num_samples"]))]
    summary = metrics["summary"] if kind == VIEWS_TO_VOLUME else _only(metrics["summary"], [ROW_CEILING])
    own = _only(summary, first if kind == VIEWS_TO_VOLUME else [ROW_CEILING])
    blocks = [_volume_settings(metrics["settings"], kind), _summary_table(summary)]
    if kind == VIEWS_TO_VOLUME:
        blocks += _differences(metrics["comparisons"])
    if metrics["codebook"]:
        blocks.append(_codebook_table(metrics["codebook"]))
    if kind == VIEWS_TO_VOLUME and metrics["notes"]:
        blocks.append("\n".join(f"- {without_subjects(note)}" for note in metrics["notes"]))
    entries = [
        writer.entry(METRIC_TYPES.get(score, score), f"{_plain(METRIC_LABELS[score][0])}, {row}", scores[score]["mean"])
        for row, scores in own.items()
        for score in METRIC_LABELS
        if score in scores
    ]
    return Results(blocks if summary else [], entries)


def _only(rows: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: rows[name] for name in names if name in rows}


def _plain(title: str) -> str:
    """A column's title without the arrow that points to the better values."""
    return title.rstrip(" ↑↓")


def _volume_settings(settings: Mapping[str, Any], kind: str) -> str:
    low, high = settings["window"]
    data = settings.get("data_facts") or {"name": PurePath(settings["data"]).name}
    text = (
        f"Data set {one_cell(data['name'])}, split {one_cell(settings['split'])}, {settings['num_subjects']} subjects; "
        f"every figure is against the true volume in HU, both clipped to [{low:g}, {high:g}] HU; mean ± standard error "
        f"over the subjects; SSIM with a Gaussian window of {settings['ssim_window_size']} voxels; re-projection with "
        f"{one_cell(settings['rays'])} rays. "
    )
    if kind != VIEWS_TO_VOLUME:
        return text + "The figures are of reconstructions: encoded, then decoded."
    program = settings["programs"][0]
    return text + (
        f"{counted(program['num_samples'], 'sample')} for each subject; sampler: "
        f"{sampler_text(program.get('sampling'))}; seed of the evaluation {settings['seed']}. The first rows are this "
        "model, followed, as far as they were scored, by the control (another subject's views), the trivial baselines, "
        "the tokenizer's own reconstruction, which is the ceiling, and the true volume."
    )


def sampler_text(sampling: Mapping[str, Any] | None) -> str:
    """How samples were drawn, as `read_sampling` returns it."""
    if not sampling:
        return MISSING
    order = one_cell(sampling.get("sampling") or sampling.get("scheduler"))
    fields = ("temperature", "top_p", "guidance_scale", "seed")
    told = [f"{name} {sampling[name]:g}" for name in fields if sampling.get(name) is not None]
    return f"{order}, {or_missing(sampling.get('num_inference_steps'))} steps, {listed(told)}"


def _summary_table(summary: Mapping[str, Any]) -> str:
    scores = [score for score in METRIC_LABELS if any(score in row for row in summary.values())]
    rows = [
        [one_cell(name), *(_mean_cell(row.get(score), METRIC_LABELS[score][1]) for score in scores)]
        for name, row in summary.items()
    ]
    return markdown_table(["", *(METRIC_LABELS[score][0] for score in scores)], rows)


def _mean_cell(summary: Mapping[str, Any] | None, decimals: int) -> str:
    if summary is None:
        return ""
    error = summary["standard_error"]
    return f"{summary['mean']:.{decimals}f}" + ("" if error is None else f" ± {error:.{decimals}f}")


def _differences(comparisons: list[Mapping[str, Any]]) -> list[str]:
    """The differences in PSNR that tell whether the model is better than control and baselines on these subjects."""
    rows = []
    for one in comparisons:
        psnr = one["scores"].get("psnr_3d")
        interval = psnr and psnr["confidence_interval"]
        if interval:
            cells = [f"{psnr['mean']:.2f}", f"{interval[0]:.2f} to {interval[1]:.2f}"]
            rows.append([f"{one_cell(one['minuend'])} − {one_cell(one['subtrahend'])}", *cells])
    if not rows:
        return []
    table = markdown_table(["", "PSNR 3D (dB)", "95 % interval"], rows)
    return [f"Differences paired by subject; an interval that holds 0 does not tell the two apart:\n\n{table}"]


def _codebook_table(codebook: Mapping[str, Any]) -> str:
    rows = [
        [one_cell(name), f"{use['codes_used']} of {use['codebook_size']}", f"{use['perplexity']:.1f}"]
        for name, use in codebook.items()
    ]
    return f"Use of the codebook of the volume tokenizer:\n\n{markdown_table(['', 'codes used', 'perplexity'], rows)}"


def _image_results(metrics: Mapping[str, Any], kind: str, writer: _Entries) -> Results:
    settings, rows = metrics["settings"], metrics["rows"]
    generated = settings.get("generated") or {}
    own = _only(rows, list(generated)) if kind == CODE_GENERATION else {}
    if kind == IMAGE_TOKENIZER:
        own = rows = {name: row for name, row in rows.items() if name.startswith(RECONSTRUCTED)}
    table = markdown_table(
        ["", *(title for title, _ in SCORES.values())],
        [[one_cell(name), *(_score_cell(row.get(s), d) for s, (_, d) in SCORES.items())] for name, row in rows.items()],
    )
    text = (
        f"Data set {one_cell(writer.data['name'])}, split {one_cell(settings['split'])}: {settings['num_images']} real "
        f"images against as many of each row, in {settings['num_features']} features of a classifier "
        f"({one_cell(without_paths(settings['classifier']))}); seed {settings['seed']}, nearest_k "
        f"{settings['nearest_k']}."
    )
    told = [f"- Sampler of {one_cell(name)}: {sampler_text(generated.get(name))}." for name in own if name in generated]
    notes = [f"- {without_subjects(note)}" for note in metrics["notes"]]
    entries = [
        writer.entry(score, f"{_plain(title)}, {name}", row[score])
        for name, row in own.items()
        for score, (title, _) in SCORES.items()
        if row.get(score) is not None
    ]
    return Results([text, table, *(["\n".join([*told, *notes])] if told or notes else [])], entries)


def _score_cell(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _test_results(metrics: Mapping[str, Any], task: str, data: Mapping[str, Any]) -> Results:
    test, count = metrics["test"], or_missing(metrics.get("test_samples"))
    writer = _Entries(task, data, "test")
    text = f"Data set {or_missing(data.get('name'))}, split test, {count} images, after {metrics['steps']} steps."
    entries = [writer.entry("accuracy", "Accuracy", test["accuracy"])]
    return Results([text, _figures_table(test)], entries)


def _figures_table(figures: Mapping[str, float]) -> str:
    rows = [[one_cell(name.replace("_", " ")), f"{value:.5g}"] for name, value in figures.items()]
    return markdown_table(["figure", "value"], rows)


def validation_results(record: Mapping[str, Any] | None, kind: str, task: str) -> Results:
    """The figures of a training's last validation, from its record.

    Args:
        record: None where there is none.
        kind: of the model, as `find_kind` tells. Only a tokenizer's stand in the model-index: what the others score on
            a few samples while they are trained is no result.
        task: the model's pipeline tag.
    """
    figures = dict((record or {}).get("validation") or {})
    if not figures:
        return Results()
    step = figures.pop("step")
    data = (record or {}).get("data") or {}
    writer, text = _Entries(task, data, "validation"), f"At the end of the training, step {step:g}, split validation"
    own = ["psnr"] if kind in TOKENIZERS and "psnr" in figures else []
    entries = [writer.entry(name, "PSNR (dB), reconstruction", figures[name]) for name in own]
    block = f"{text} of the data set {or_missing(data.get('name'))}:\n\n{_figures_table(figures)}"
    return Results([block], entries)


def public_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A metrics file as it can be published: without subjects, their scores and paths; of a folder its name is left.

    Args:
        metrics: content of the file.
    """
    kept = {name: value for name, value in metrics.items() if name not in PRIVATE_ENTRIES}
    return {name: _public(value) for name, value in kept.items()}


def _public(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _public(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [_public(entry, name) for entry in value]
    if not isinstance(value, str):
        return value
    return _last_part(value) if name in PATH_ENTRIES else without_subjects(value)


def _last_part(path: str) -> str:
    """The name of what a path leads to; PureWindowsPath knows both kinds of slashes."""
    return PureWindowsPath(path).name or path


def without_paths(text: str) -> str:
    """A sentence with paths, in backticks or absolute ones, shortened to their last part."""
    quoted = re.sub(r"`([^`\n]*[/\\][^`\n]*)`", lambda match: f"`{_last_part(match[1])}`", text)
    absolute = r"(?<![\w:/.])((~|\.{1,2})?/|[A-Za-z]:[\\/]|\\\\)[^\s`'\",;)]+"
    return re.sub(absolute, lambda match: _last_part(match[0]), quoted)


def without_subjects(note: str) -> str:
    """A note of a report without the names of subjects and without paths."""
    return without_paths(re.sub(r"(has no volumes of \d+ of \d+ subjects) \([^)]*\)", r"\1", note))
