"""Ablation of quantizers: the table of runs, choice of loss weights, paired differences, Markdown and plots."""

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np

from .optional import import_extra
from .report import summarize

Weights = tuple[float | None, float | None]
"""Commitment weight and codebook weight; `None` where a method has no use for it."""

ANY_SIZE = 0
"""Codebook size of runs without a codebook: they stand in the tables of every size."""

MIN_ACTIVE_FRACTION = 0.9


@dataclass(frozen=True)
class AblationRun:
    """One training with its figures: a row of the results file. `None` is an empty cell.

    Attributes:
        stage: `"search"`, `"main"` or `"stress"`.
        arm: name of the method.
        codebook_size: nominal K, or `ANY_SIZE`.
        seed: of weights, codes and data order.
        commitment_weight: factor of the commitment loss.
        codebook_weight: factor of the codebook loss.
        steps: optimizer steps.
        settings: JSON of everything else that the figures depend on.
        validation_mse: mean squared error on validation images, pixels in [0, 1]; NaN if the training diverged.
        test_mse: the same on test images.
        test_psnr: dB, mean over test images.
        perplexity: of the codes of all held-out images.
        active_fraction: share of the codes that the held-out images use.
        quantization_error: `mean |z - z_q|^2` over held-out images.
        relative_quantization_error: the same divided by the variance of z.
        wall_seconds: duration of the training, evaluation excluded.
        cpu_seconds: processor time of the training.
        revision: of the code, if known.
        hf_vq_version: version of this package.
        torch_version: version of PyTorch.
    """

    stage: str
    arm: str
    codebook_size: int
    seed: int
    commitment_weight: float | None
    codebook_weight: float | None
    steps: int
    settings: str
    validation_mse: float
    test_mse: float | None
    test_psnr: float | None
    perplexity: float | None
    active_fraction: float | None
    quantization_error: float | None
    relative_quantization_error: float | None
    wall_seconds: float
    cpu_seconds: float
    revision: str
    hf_vq_version: str
    torch_version: str

    @property
    def weights(self) -> Weights:
        """Commitment weight and codebook weight."""
        return self.commitment_weight, self.codebook_weight

    @property
    def key(self) -> tuple[str, str, int, int, Weights]:
        """What no two rows of a file share."""
        return self.stage, self.arm, self.codebook_size, self.seed, self.weights


COLUMNS = [field.name for field in fields(AblationRun)]
HEADER = ",".join(COLUMNS)


def read_runs(path: str | Path) -> list[AblationRun]:
    """Rows of a results file.

    A last line without its end, which an interruption can leave behind, is no row; `append_run` takes it out.

    Args:
        path: CSV file; one that does not exist holds no rows.

    Raises:
        ValueError: the columns are others, a cell has no valid value, or two rows are of the same run.
    """
    path = Path(path)
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    header, end, _ = text.partition("\n")
    if header != HEADER and (end or not HEADER.startswith(header)):
        raise ValueError(f"{path}: found the columns {header!r}, expected {HEADER!r}; choose another file")
    rows = csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:])
    runs = [_parse_row(row, f"{path}, line {number}") for number, row in enumerate(rows, start=2)]
    keys = [run.key for run in runs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: found two rows of the run {twice}, expected one; remove one of them")
    return runs


def append_run(path: str | Path, run: AblationRun) -> None:
    """Adds a row to a results file, on disk when this returns; the file begins with the names of the columns.

    One process at a time may do this; reading meanwhile is harmless.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    with path.open("ab") as file:
        written = path.read_bytes()
        file.truncate(written.rfind(b"\n") + 1)
        if b"\n" not in written:
            writer.writerow(COLUMNS)
        writer.writerow(["" if value is None else value for value in asdict(run).values()])
        file.write(line.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def select_weights(runs: Iterable[AblationRun]) -> dict[tuple[str, int], Weights]:
    """The loss weights of each arm and codebook size with the least validation error, averaged over search seeds.

    Args:
        runs: rows of any stage; those of the search count.

    Returns:
        For each arm and codebook size the weights. Weights with which a training diverged are out.

    Raises:
        ValueError: the points of an arm's grid were not searched with the same seeds, or all of them diverged.
    """
    chosen = {}
    for (arm, size), points in search_errors(runs).items():
        seeds = {weights: sorted(errors) for weights, errors in points.items()}
        if len({tuple(found) for found in seeds.values()}) > 1:
            raise ValueError(f"search of {arm}, K = {size}: found seeds {seeds}, expected the same; finish the search")
        means = {weights: float(np.mean(list(errors.values()))) for weights, errors in points.items()}
        finite = {weights: mean for weights, mean in means.items() if math.isfinite(mean)}
        if not finite:
            raise ValueError(f"search of {arm}, K = {size}: every training diverged; lower the learning rate")
        chosen[arm, size] = min(finite, key=lambda weights: finite[weights])
    return chosen


def current_runs(runs: Sequence[AblationRun]) -> list[AblationRun]:
    """Rows that belong together: all of the search, and of the other stages those with the weights it chooses now.

    A search that was extended may choose other weights than before; what was trained with the old ones is left out.

    Raises:
        ValueError: as `select_weights`.
    """
    chosen = select_weights(runs)
    return [
        run
        for run in runs
        if run.stage == "search" or run.weights == chosen.get((run.arm, run.codebook_size), run.weights)
    ]


def search_errors(runs: Iterable[AblationRun]) -> dict[tuple[str, int], dict[Weights, dict[int, float]]]:
    """Validation errors of the search: arm and codebook size -> weights -> seed -> mean squared error."""
    points: dict[tuple[str, int], dict[Weights, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if run.stage == "search":
            points[run.arm, run.codebook_size][run.weights][run.seed] = run.validation_mse
    return {key: dict(found) for key, found in points.items()}


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two arms, seed by seed.

    Attributes:
        mean: mean of the differences.
        standard_error: of the mean, `None` for one seed.
        interval: 95 % interval of the mean after Student's t, `None` for one seed.
    """

    mean: float
    standard_error: float | None
    interval: tuple[float, float] | None


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference:
    """`first - second`, paired by seed.

    Args:
        first: for each seed a finite figure of one arm.
        second: the same of another arm.

    Raises:
        ValueError: the seeds are not the same, or there are none.
    """
    if set(first) != set(second):
        raise ValueError(f"seeds are {sorted(first)} and {sorted(second)}; expected the same for a paired difference")
    summary = summarize([first[seed] - second[seed] for seed in sorted(first)])
    mean, error, count = float(summary["mean"] or 0.0), summary["standard_error"], int(summary["count"] or 0)
    if error is None:
        return PairedDifference(mean, None, None)
    half = float(import_extra("scipy.stats").t.ppf(0.975, count - 1)) * error
    return PairedDifference(mean, float(error), (mean - half, mean + half))


def arm_runs(runs: Iterable[AblationRun], stage: str, codebook_size: int) -> dict[str, list[AblationRun]]:
    """Runs of one stage by arm, in order of seeds; runs without a codebook belong to every size."""
    found: dict[str, list[AblationRun]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        if run.stage == stage and run.codebook_size in (codebook_size, ANY_SIZE):
            found[run.arm].append(run)
    return dict(found)


def ranked_arms(
    runs: Iterable[AblationRun], candidates: Sequence[str], codebook_size: int, stage: str = "main"
) -> list[str]:
    """The candidates whose codes are active, by mean test error, the least first: the first one wins.

    Args:
        runs: rows of any stage.
        candidates: names of arms that may win.
        codebook_size: K.
        stage: `"main"` or `"stress"`.

    Returns:
        Names of those that have `MIN_ACTIVE_FRACTION` of their codes active on average and never diverged.
    """
    means = {}
    for arm, rows in arm_runs(runs, stage, codebook_size).items():
        mse, active = figures(rows, "test_mse"), figures(rows, "active_fraction")
        if arm in candidates and mse and active and np.mean(active) >= MIN_ACTIVE_FRACTION and np.isfinite(mse).all():
            means[arm] = float(np.mean(mse))
    return sorted(means, key=lambda arm: means[arm])


def figures(rows: Iterable[AblationRun], name: str) -> list[float]:
    """One figure of several runs, empty cells left out."""
    values = [getattr(row, name) for row in rows]
    return [float(value) for value in values if value is not None]


def _parse_row(row: Sequence[str], where: str) -> AblationRun:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{where}: found {len(row)} cells, expected {len(COLUMNS)}; remove the line")
    values = {
        field.name: _parse_cell(cell, field.type, f"{where}, {field.name}")
        for field, cell in zip(fields(AblationRun), row, strict=True)
    }
    return AblationRun(**values)


def _parse_cell(cell: str, annotation: Any, where: str) -> Any:
    kinds = get_args(annotation) or (annotation,)
    if cell == "" and type(None) in kinds:
        return None
    try:
        return kinds[0](cell)
    except ValueError as error:
        raise ValueError(f"{where}: found {cell!r}, expected {kinds[0].__name__}; remove the line") from error
