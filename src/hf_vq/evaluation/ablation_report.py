"""Report of an ablation of quantizers: Markdown tables and plots."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_file
from .ablation import (
    ANY_SIZE,
    MIN_ACTIVE_FRACTION,
    AblationRun,
    Weights,
    arm_runs,
    figures,
    paired_difference,
    ranked_arms,
    search_errors,
    select_weights,
)
from .optional import import_extra

STAGE_TITLES = {"main": "Main setting", "stress": "Stress setting"}
COLOURS = ("#1f6f8b", "#d9822b", "#6b8f3c")
DOTS_PER_INCH = 150
_ROW_HEIGHT = 0.3

# Settings that all runs of a results file share.
_SHARED = ("data", "batch_size", "learning_rate", "validation_images", "test_images")

# Title, field of a run, factor and decimals of each column of figures.
_COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("test MSE ×10³ ↓", "test_mse", 1e3, 2),
    ("PSNR (dB) ↑", "test_psnr", 1, 2),
    ("active codes (%) ↑", "active_fraction", 100, 1),
    ("perplexity ↑", "perplexity", 1, 0),
    ("quantisation error / variance ↓", "relative_quantization_error", 1, 3),
    ("CPU (s) ↓", "cpu_seconds", 1, 1),
)


def ablation_markdown(
    runs: Sequence[AblationRun],
    arms: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str],
    notes: Sequence[str] = (),
) -> str:
    """Tables of all stages that have been run.

    Args:
        runs: rows of the results file.
        arms: names of the arms, in the order of the tables.
        candidates: arms among which a winner is named.
        references: arms to which every arm is compared, seed by seed.
        notes: sentences about the protocol.

    Returns:
        Markdown with a line at the end; one table for each stage and codebook size, the search, and what the arms are.

    Raises:
        ValueError: there are no runs, or the search is incomplete.
    """
    if not runs:
        raise ValueError("the results file holds no runs; run a stage first")
    lines = [*_provenance(runs), *(f"- {note}" for note in notes), ""]
    for stage, title in STAGE_TITLES.items():
        for size in _sizes(runs, stage):
            lines += [f"### {title}, K = {size}", ""]
            lines += _stage_table(arm_runs(runs, stage, size), arms, references)
            lines += ["", _winner_sentence(runs, candidates, size, stage), ""]
    return "\n".join([*lines, *_search_table(runs, arms), *_arm_table(runs, arms)]).rstrip("\n") + "\n"


def plot_errors(runs: Sequence[AblationRun], arms: Sequence[str], path: str | Path, stage: str = "main") -> Path:
    """Test error of every arm with its standard deviation over seeds, one colour for each codebook size.

    Args:
        runs: rows of the results file.
        arms: names of the arms, from top to bottom.
        path: PNG file.
        stage: which runs are shown.

    Returns:
        The path.

    Raises:
        ValueError: the stage has no finished runs.
    """
    series = {f"K = {size}": arm_runs(runs, stage, size) for size in _sizes(runs, stage)}
    return _dot_plot(series, arms, path, f"{STAGE_TITLES[stage]}: held-out error")


def plot_stress(runs: Sequence[AblationRun], arms: Sequence[str], path: str | Path, codebook_size: int) -> Path:
    """Test error of every arm in the main and in the stress setting; arguments and errors as for `plot_errors`."""
    series = {title: arm_runs(runs, stage, codebook_size) for stage, title in STAGE_TITLES.items()}
    return _dot_plot(series, arms, path, f"Main and stress setting, K = {codebook_size}: held-out error")


def _sizes(runs: Iterable[AblationRun], stage: str) -> list[int]:
    return sorted({run.codebook_size for run in runs if run.stage == stage} - {ANY_SIZE})


def _provenance(runs: Sequence[AblationRun]) -> list[str]:
    def values(name: str) -> str:
        return ", ".join(sorted({str(getattr(run, name)) or "unknown" for run in runs}))

    stages = {stage: sum(run.stage == stage for run in runs) for stage in ("search", *STAGE_TITLES)}
    settings = {name: value for run in runs for name, value in json.loads(run.settings).items() if name in _SHARED}
    hours = sum(run.cpu_seconds for run in runs) / 3600
    return [
        f"- {len(runs)} trainings ({', '.join(f'{stage} {count}' for stage, count in stages.items())}), "
        f"{values('steps')} steps each, {hours:.1f} hours of one processor core.",
        f"- {', '.join(f'{name} {value}' for name, value in settings.items())}.",
        f"- Code revision {values('revision')}, hf_vq {values('hf_vq_version')}, PyTorch {values('torch_version')}.",
        "- Cells are mean ± standard deviation over the seeds; Δ is the mean of the paired differences in MSE ×10³ ± "
        "its standard error [95 % interval after Student's t], negative where the arm is better.",
    ]


def _stage_table(rows: dict[str, list[AblationRun]], arms: Sequence[str], references: Sequence[str]) -> list[str]:
    references = [reference for reference in references if reference in rows]
    titles = ["arm", "seeds", "commitment / codebook weight", *(title for title, *_ in _COLUMNS)]
    table = [[*titles, *(f"Δ to {reference}" for reference in references)]]
    for arm in arms:
        if arm not in rows:
            continue
        weights = sorted({_weights_text(run.weights) for run in rows[arm]})
        cells = [arm, str(len(rows[arm])), ", ".join(weights)]
        cells += [_spread(figures(rows[arm], name), factor, digits) for _, name, factor, digits in _COLUMNS]
        cells += [_difference(rows[arm], rows[reference]) for reference in references]
        table.append(cells)
    return _markdown_table(table)


def _winner_sentence(runs: Sequence[AblationRun], candidates: Sequence[str], size: int, stage: str) -> str:
    share = f"{100 * MIN_ACTIVE_FRACTION:g} % of its codes active"
    ranking = ranked_arms(runs, candidates, size, stage)
    if not ranking:
        return f"No arm of `VectorQuantizerConfig` has at least {share}."
    winner, *others = ranking
    errors = {arm: _by_seed(rows) for arm, rows in arm_runs(runs, stage, size).items()}
    ties = [arm for arm in others if not _is_worse(errors[arm], errors[winner])]
    told_apart = (
        f"By the 95 % interval of the paired difference it cannot be told from: {', '.join(ties)}."
        if ties
        else "The 95 % interval of the paired difference to each of the others leaves out 0."
    )
    return (
        f"Of the arms of `VectorQuantizerConfig` with at least {share}, **{winner}** has the least error. {told_apart}"
    )


def _is_worse(errors: dict[int, float], best: dict[int, float]) -> bool:
    """Whether the interval of the paired difference lies above 0; without one it is not known to be worse."""
    interval = paired_difference(errors, best).interval if set(errors) == set(best) else None
    return interval is not None and interval[0] > 0


def _search_table(runs: Sequence[AblationRun], arms: Sequence[str]) -> list[str]:
    errors, chosen = search_errors(runs), select_weights(runs)
    if not errors:
        return []
    table = [["arm", "K", "validation MSE ×10³ by commitment / codebook weight (chosen in bold)"]]
    for arm, size in sorted(errors, key=lambda key: (arms.index(key[0]) if key[0] in arms else len(arms), key[1])):
        points = []
        for weights, by_seed in errors[arm, size].items():
            text = f"{_weights_text(weights)}: {_spread(list(by_seed.values()), 1e3, 2)}"
            points.append(f"**{text}**" if weights == chosen[arm, size] else text)
        table.append([arm, str(size or "–"), "; ".join(points)])
    return ["### Search of the loss weights", "", *_markdown_table(table), ""]


def _arm_table(runs: Sequence[AblationRun], arms: Sequence[str]) -> list[str]:
    table = [["arm", "K", "fields of its quantizer that differ from plain VQ"]]
    found: dict[tuple[str, int], str] = {}
    for run in runs:
        fields = json.loads(run.settings).get("quantizer", {})
        found[run.arm, run.codebook_size] = ", ".join(f"`{name}={value}`" for name, value in fields.items()) or "–"
    for arm in arms:
        sizes = sorted(size for name, size in found if name == arm)
        texts = {found[arm, size] for size in sizes}
        shown = sizes if len(texts) > 1 else sizes[:1]
        table += [[arm, str(size or "–") if len(texts) > 1 else "all", found[arm, size]] for size in shown]
    return ["### Arms", "", *_markdown_table(table)]


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|" + " --- |" * len(rows[0]), *body]


def _weights_text(weights: Weights) -> str:
    return " / ".join("–" if weight is None else f"{weight:g}" for weight in weights)


def _spread(values: Sequence[float], factor: float, digits: int) -> str:
    if not values:
        return "–"
    diverged = sum(not math.isfinite(value) for value in values)
    if diverged:
        return f"diverged ({diverged} of {len(values)})"
    scaled = factor * np.asarray(values)
    spread = f" ± {scaled.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{scaled.mean():.{digits}f}{spread}"


def _by_seed(rows: Iterable[AblationRun]) -> dict[int, float]:
    return {run.seed: math.nan if run.test_mse is None else run.test_mse for run in rows}


def _difference(rows: Sequence[AblationRun], reference: Sequence[AblationRun]) -> str:
    first, second = _by_seed(rows), _by_seed(reference)
    if first == second:
        return "–"
    if set(first) != set(second) or not np.isfinite([*first.values(), *second.values()]).all():
        return "incomplete"
    difference = paired_difference(first, second)
    text = f"{1e3 * difference.mean:+.2f}"
    if difference.interval is None or difference.standard_error is None:
        return text
    low, high = (1e3 * bound for bound in difference.interval)
    return f"{text} ± {1e3 * difference.standard_error:.2f} [{low:+.2f}, {high:+.2f}]"


def _dot_plot(
    series: dict[str, dict[str, list[AblationRun]]], arms: Sequence[str], path: str | Path, title: str
) -> Path:
    """One row for each arm, one dot for each series in it, mean and standard deviation of the test error."""
    shown = [arm for arm in arms if any(arm in rows for rows in series.values())]
    if not shown:
        raise ValueError(f"{title}: there are no runs to plot; run the stage first")
    figure = import_extra("matplotlib.figure").Figure(figsize=(7, 1.2 + _ROW_HEIGHT * len(shown)), dpi=DOTS_PER_INCH)
    import_extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (label, rows) in enumerate(series.items()):
        position = _positions(shown, number, len(series))
        _draw_series(axes, label, COLOURS[number % len(COLOURS)], [(position(arm), rows.get(arm, [])) for arm in shown])
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = import_extra("matplotlib.ticker")
    axes.xaxis.set_major_locator(ticks.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.xaxis.set_major_formatter(ticks.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(ticks.NullFormatter())
    axes.set_xlabel("test MSE × 10³ (mean ± std. over seeds, log scale)")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _positions(shown: Sequence[str], number: int, count: int) -> Callable[[str], float]:
    return lambda arm: shown.index(arm) + 0.25 * (number - (count - 1) / 2)


def _draw_series(axes: Any, label: str, colour: str, points: Sequence[tuple[float, list[AblationRun]]]) -> None:
    drawn = [(position, 1e3 * np.asarray(figures(rows, "test_mse"))) for position, rows in points if rows]
    drawn = [(position, values) for position, values in drawn if values.size and np.isfinite(values).all()]
    means = [values.mean() for _, values in drawn]
    spreads = [values.std(ddof=1) if values.size > 1 else 0.0 for _, values in drawn]
    positions = [position for position, _ in drawn]
    axes.errorbar(means, positions, xerr=spreads, fmt="o", markersize=4, capsize=2, color=colour, label=label)
