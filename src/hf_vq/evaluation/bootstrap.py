"""Confidence intervals of means over subjects, from resampled subjects."""

from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
DEFAULT_NUM_RESAMPLES = 10_000
FEWEST_SUBJECTS = 10
"""With fewer subjects than this, intervals of resampled subjects are markedly too narrow, and the report says so."""


class SubjectBootstrap:
    """Percentile intervals of the mean over subjects (Efron and Tibshirani 1993, chapter 13).

    The resampled sets of subjects are drawn once, so every score of every row is resampled alike and an interval does
    not depend on which others are asked for.

    Args:
        num_subjects: subjects that have a score, at least 1.
        seed: seed of the draws.
        num_resamples: resampled sets.

    Raises:
        ValueError: no subjects or no resamples.
    """

    def __init__(self, num_subjects: int, seed: int = 0, num_resamples: int = DEFAULT_NUM_RESAMPLES) -> None:
        if num_subjects < 1 or num_resamples < 1:
            raise ValueError(
                f"found {num_subjects} subjects and {num_resamples} resamples, expected at least 1 of each; raise "
                "num_resamples or add subjects"
            )
        draws = np.random.default_rng(seed).multinomial(
            num_subjects, np.full(num_subjects, 1 / num_subjects), size=num_resamples
        )
        self._weights = draws / num_subjects

    def interval(self, values: Sequence[float]) -> list[float] | None:
        """Interval of the mean of one score.

        Args:
            values: one number per subject.

        Returns:
            Lower and upper end of the 95 % interval; None for a single subject, which has none.

        Raises:
            ValueError: other than one value per subject.
        """
        scores = np.asarray(values, dtype=np.float64)
        if scores.shape != self._weights.shape[1:]:
            raise ValueError(
                f"found scores of shape {scores.shape}, expected {self._weights.shape[1]}, one for each subject; "
                "resample the subjects that were scored"
            )
        if scores.size == 1:
            return None
        tail = (1 - CONFIDENCE) / 2
        ends = np.quantile(self._weights @ scores, [tail, 1 - tail])
        return [float(end) for end in ends]
