"""Intervals of means over resampled subjects."""

import numpy as np
import pytest

from hf_vq.evaluation.bootstrap import SubjectBootstrap


def test_an_interval_of_many_values_is_that_of_the_normal_distribution() -> None:
    """With 400 values the mean is nearly normal: mean ± 1.96 standard errors, within the error of 20000 resamples."""
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = SubjectBootstrap(400, seed=1, num_resamples=20_000).interval(values.tolist())
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.06 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.06 * error)


def test_two_values_by_hand() -> None:
    """Means of resamples of 0 and 1 are 0, 1/2 and 1 with chances 1/4, 1/2, 1/4: the 2.5 % quantiles are 0 and 1."""
    assert SubjectBootstrap(2, num_resamples=2000).interval([0.0, 1.0]) == [0.0, 1.0]


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    """40 subjects, 300 experiments: 95 % nominal; a percentile interval of 40 normal values covers some 94 %."""
    experiments = np.random.default_rng(2).normal(size=(300, 40))
    bootstrap = SubjectBootstrap(40, num_resamples=2000)
    intervals = [bootstrap.interval(values.tolist()) for values in experiments]
    assert 0.90 < np.mean([low < 0 < high for low, high in intervals]) < 0.98


def test_seed_and_scale_decide_and_nothing_else() -> None:
    values = np.random.default_rng(5).normal(size=30).tolist()
    first, again = (SubjectBootstrap(30, seed=3).interval(values) for _ in range(2))
    assert first == again != SubjectBootstrap(30, seed=4).interval(values)
    scaled = SubjectBootstrap(30, seed=3).interval([10 * value - 1 for value in values])
    np.testing.assert_allclose(scaled, [10 * end - 1 for end in first])


def test_one_subject_has_no_interval() -> None:
    assert SubjectBootstrap(1).interval([2.0]) is None


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="0 subjects"):
        SubjectBootstrap(0)
    with pytest.raises(ValueError, match="0 resamples"):
        SubjectBootstrap(3, num_resamples=0)
    with pytest.raises(ValueError, match=r"shape \(2,\), expected 3"):
        SubjectBootstrap(3).interval([1.0, 2.0])
