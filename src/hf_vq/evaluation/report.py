"""Summary of per-subject scores: means, their uncertainty and paired differences, as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .bootstrap import CONFIDENCE, DEFAULT_NUM_RESAMPLES, FEWEST_SUBJECTS, SubjectBootstrap
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
BASELINE_ROWS = (ROW_MEAN_VOLUME, ROW_NEAREST, ROW_RIDGE)

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


@dataclass(frozen=True)
class ProgramSettings:
    """One program whose volumes stand in a report.

    Attributes:
        name: how its rows are called; empty for the only program of a report.
        folder: folder of its volumes.
        num_samples: volumes per subject.
        shuffled: folder of its control, made from views shuffled between subjects.
        values: lowest and highest value of its files and the HU they stand for; HU themselves when absent.
        alignment: `centre` or `world`, how its volumes are laid on the true ones' grids.
        sampling: how they were drawn, as `read_sampling` returns it; None where that is not recorded.
    """

    name: str
    folder: str
    num_samples: int
    shuffled: str | None = None
    values: tuple[float, float, float, float] | None = None
    alignment: str = "centre"
    sampling: dict[str, Any] | None = None


@dataclass(frozen=True)
class EvaluationSettings:
    """What the numbers of a report depend on.

    Attributes:
        data: data set, folder or Hub id.
        split: split that was evaluated.
        window: HU window to which both volumes are clipped.
        num_subjects: number of subjects evaluated.
        num_samples: generated volumes per subject, of the first program.
        seed: seed of the evaluation's own random choices: resampled subjects, and which ones the picture shows.
        generated: folder of the generated volumes, of the first program.
        ssim_window_size: side of the Gaussian window of SSIM, voxels.
        ssim_sigma: its standard deviation, voxels.
        nearest_k: neighbour that sets the radius in density, coverage, precision and recall.
        num_resamples: resampled sets of subjects behind the confidence intervals.
        rays: how the volumes are rendered again for the re-projection error.
        views: views that the baselines and the re-projection error use.
        programs: the programs, the first being the one that the others are compared with; one without a name by
            default.
        data_facts: what is known of the data set, as `describe_data` returns it.
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
    num_resamples: int = DEFAULT_NUM_RESAMPLES
    rays: str = "parallel"
    views: tuple[str, ...] = ()
    programs: tuple[ProgramSettings, ...] = ()
    data_facts: dict[str, Any] | None = None

    def all_programs(self) -> tuple[ProgramSettings, ...]:
        """The programs, at least one."""
        return self.programs or (ProgramSettings("", self.generated, self.num_samples),)


def row_of(program: str, row: str) -> str:
    """Name of a program's row in the report."""
    return f"{program}: {row}" if program else row


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
            each set of generated volumes what `distribution_scores` returns; and `left_out`, a sentence for each set
            too small to be judged.
        codebook: usage of the volume tokenizer's codebook, per name of the held-out splits.
        notes: sentences about what was left out or changed.

    Returns:
        A dictionary of JSON types: `settings`, `subjects`, `summary`, `paired_differences` (of the first program's one
        sample to every other row), `comparisons` (the pairs of rows worth a line of the table), `per_subject`,
        `distribution`, `codebook`, `notes`. A summary has `mean`, `std`, `standard_error`, `count` and
        `confidence_interval`, the two ends of a 95 % bootstrap interval, None for one subject.

    Raises:
        ValueError: a row whose length isn't the number of subjects.
    """
    for name, scores in rows.items():
        if len(scores) != len(subjects):
            raise ValueError(
                f"row {name!r} has {len(scores)} scores; expected one for each of {len(subjects)} subjects"
            )
    bootstrap = SubjectBootstrap(len(subjects), settings.seed, settings.num_resamples)
    reference = row_of(settings.all_programs()[0].name, ROW_ONE_SAMPLE)
    others = [name for name in rows if reference in rows and name != reference]
    few = [_few_subjects_note(len(subjects))] if len(subjects) < FEWEST_SUBJECTS else []
    return {
        "settings": _json_settings(settings),
        "subjects": list(subjects),
        "summary": {name: _summary(scores, bootstrap) for name, scores in rows.items()},
        "paired_differences": {name: _difference(rows[reference], rows[name], bootstrap) for name in others},
        "comparisons": [
            {"minuend": first, "subtrahend": second, "scores": _difference(rows[first], rows[second], bootstrap)}
            for first, second in compared_rows(settings.all_programs(), list(rows))
        ],
        "per_subject": {name: [dict(score) for score in scores] for name, scores in rows.items()},
        "distribution": None if distribution is None else dict(distribution),
        "codebook": None if codebook is None else dict(codebook),
        "notes": [*notes, *few],
    }


def compared_rows(programs: Sequence[ProgramSettings], rows: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of rows whose difference is worth a line: to the first program, to the own control, to the baselines.

    Args:
        programs: the programs, the first being the one that the others are compared with.
        rows: names of the rows there are.

    Returns:
        Pairs of row names, minuend and subtrahend, both among the rows.
    """
    pairs = []
    for program in programs:
        for kind in (ROW_ONE_SAMPLE, ROW_MEAN_OF_SAMPLES):
            of_first = row_of(programs[0].name, kind.format(count=programs[0].num_samples))
            control = [row_of(program.name, ROW_SHUFFLED)] if kind == ROW_ONE_SAMPLE else []
            minuend = row_of(program.name, kind.format(count=program.num_samples))
            pairs += [(minuend, other) for other in (of_first, *control, *BASELINE_ROWS) if other != minuend]
    return [pair for pair in pairs if pair[0] in rows and pair[1] in rows]


def _json_settings(settings: EvaluationSettings) -> dict[str, Any]:
    """Settings as JSON types."""
    programs = [asdict(program) for program in settings.all_programs()]
    for program in programs:
        program["values"] = None if program["values"] is None else list(program["values"])
    lists = {"window": list(settings.window), "views": list(settings.views), "programs": programs}
    return asdict(settings) | lists | {"confidence": CONFIDENCE}


def _summary(scores: Sequence[Mapping[str, float]], bootstrap: SubjectBootstrap) -> dict[str, Any]:
    """Summary of every metric that all subjects of a row have."""
    shared = [metric for metric in METRIC_LABELS if all(metric in score for score in scores)]
    values = {metric: [score[metric] for score in scores] for metric in shared}
    return {
        metric: summarize(numbers) | {"confidence_interval": bootstrap.interval(numbers)}
        for metric, numbers in values.items()
    }


def _difference(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]], bootstrap: SubjectBootstrap
) -> dict[str, Any]:
    """Summary of differences subject by subject: their spread leaves out hard subjects."""
    differences = [
        {metric: one[metric] - other[metric] for metric in one if metric in other}
        for one, other in zip(first, second, strict=True)
    ]
    return _summary(differences, bootstrap)


def _few_subjects_note(count: int) -> str:
    return (
        f"{count} subjects, fewer than {FEWEST_SUBJECTS}: the confidence intervals are too narrow, because resampling "
        "so few misses part of the spread."
    )
