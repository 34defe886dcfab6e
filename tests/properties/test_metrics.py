"""Any two volumes: the score of its formula, or an error that names what is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_vq.evaluation.bootstrap import SubjectBootstrap
from hf_vq.evaluation.metrics import mae_hu, mse, prdc, psnr_3d, psnr_slices, reprojection_error, ssim_3d

SCORES = (psnr_3d, psnr_slices, mae_hu, mse)
dtypes = st.sampled_from([np.float16, np.float32, np.float64, np.int16, np.uint8, np.bool_])
seeds = st.integers(0, 2**31 - 1)
sides = st.tuples(*[st.integers(1, 5)] * 3)


def volume(shape, seed, spread=3000):
    return np.random.default_rng(seed).normal(0, spread, shape)


@given(shape=sides, seed=seeds, dtype=dtypes, spread=st.sampled_from([1, 100, 3000]))
def test_errors_follow_their_formulas(shape, seed, dtype, spread):
    with np.errstate(invalid="ignore"):
        true, other = (volume(shape, seed + n, spread).clip(-30000, 30000).astype(dtype) for n in (0, 1))
    clipped = [np.clip(one.astype(np.float64), -1000, 1000) for one in (true, other)]
    difference = np.abs(clipped[0] - clipped[1])
    assert mae_hu(true, other) == pytest.approx(difference.mean(), abs=1e-9)
    assert mse(true, other) == pytest.approx(np.square(difference / 2000).mean(), abs=1e-12)
    assert psnr_3d(true, other) == pytest.approx(min(100.0, -10 * math.log10(max(mse(true, other), 1e-10))))


@pytest.mark.parametrize("score", SCORES)
@given(shape=sides, seed=seeds, far=st.sampled_from([0.0, 1e6, 1e30, 1e300]))
def test_equal_volumes_score_best_however_far_their_hu(score, shape, seed, far):
    one = volume(shape, seed) + far
    assert score(one, one) == (100.0 if score in (psnr_3d, psnr_slices) else 0.0)


@given(
    score=st.sampled_from([*SCORES, ssim_3d]), bad=st.sampled_from([math.nan, math.inf, -math.inf]), first=st.booleans()
)
def test_voxels_that_are_not_finite_are_refused(score, bad, first):
    pair = [np.zeros((11, 11, 11)), np.zeros((11, 11, 11))]
    pair[first][3, 2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(*pair)


@given(
    score=st.sampled_from(SCORES),
    shapes=st.tuples(*[hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)] * 2),
)
def test_shapes_that_do_not_fit_are_refused(score, shapes):
    true, other = (np.zeros(shape) for shape in shapes)
    if len(shapes[0]) == 3 and shapes[0] == shapes[1] and 0 not in shapes[0]:
        assert score(true, other) in (0.0, 100.0)
    else:
        with pytest.raises(ValueError, match="shapes"):
            score(true, other)


@given(
    score=st.sampled_from(SCORES),
    window=st.one_of(st.tuples(st.floats(), st.floats()), st.sampled_from([(-1e308, 1e308), (0.0, 5e-324)])),
)
def test_windows_that_hold_nothing_are_refused(score, window):
    low, high = window
    one = np.zeros((2, 2, 2))
    if math.isfinite(low) and math.isfinite(high) and low < high and math.isfinite(high - low):
        assert score(one, one, window) in (0.0, 100.0)
    else:
        with pytest.raises(ValueError, match="window"):
            score(one, one, window)


@given(rows=st.tuples(st.integers(0, 9), st.integers(0, 9)), nearest_k=st.integers(-2, 9), seed=seeds)
def test_distributions_need_enough_rows(rows, nearest_k, seed):
    random = np.random.default_rng(seed)
    real, fake = (random.normal(size=(count, 3)) for count in rows)
    if nearest_k < 1 or min(rows) < nearest_k + 2:
        with pytest.raises(ValueError, match=f"nearest_k={nearest_k}"):
            prdc(real, fake, nearest_k)
    else:
        scores = prdc(real, fake, nearest_k)
        assert all(0 <= scores[name] <= 1 for name in ("precision", "recall", "coverage"))
        assert prdc(real, real, nearest_k)["coverage"] == 1.0


@given(name=st.text(max_size=12).filter(lambda text: text not in ("frontal", "lateral")))
def test_views_of_another_name_are_refused(name):
    with pytest.raises(ValueError, match="view"):
        reprojection_error(np.zeros((4, 4, 4)), (1.0, 1.0, 1.0), np.zeros((1, 4, 4)), [name])


@given(step=st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf]), axis=st.integers(0, 2))
def test_spacings_that_make_no_sense_are_refused(step, axis):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = step
    with pytest.raises(ValueError, match="spacing"):
        reprojection_error(np.zeros((4, 4, 4)), spacing, np.zeros((1, 4, 4)), ["frontal"])


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), seed=seeds)
def test_intervals_lie_within_the_scores(values, seed):
    interval = SubjectBootstrap(len(values), seed, num_resamples=50).interval(values)
    if len(values) == 1:
        assert interval is None
    else:
        low, high = interval
        assert min(values) - 1e-6 <= low <= high <= max(values) + 1e-6


@given(counts=st.tuples(st.integers(-3, 3), st.integers(-3, 3)).filter(lambda pair: min(pair) < 1))
def test_nothing_to_resample_is_refused(counts):
    with pytest.raises(ValueError, match=f"found {counts[0]} subjects and {counts[1]} resamples"):
        SubjectBootstrap(counts[0], num_resamples=counts[1])
