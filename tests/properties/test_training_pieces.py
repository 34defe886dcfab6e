"""Losses, data order and augmentation: their formulas for any input, or an error that names the value."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hf_vq.training.data_augmentation import ShiftAndFlip
from hf_vq.training.losses import (
    CODE_LOSSES,
    MASK_RATES,
    CodeObjective,
    code_vector_loss,
    draw_mask_rates,
    masked_code_loss,
    soft_code_targets,
)
from hf_vq.training.sampler import MAX_SEED, ResumableSampler

seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def source(seed):
    return torch.Generator().manual_seed(seed)


@given(loss_type=st.sampled_from(CODE_LOSSES), batch=st.integers(1, 3), dtype=dtypes, alone=st.booleans(), seed=seeds)
def test_the_loss_is_the_weighted_cross_entropy(loss_type, batch, dtype, alone, seed):
    logits = torch.randn(batch, 6, 5, generator=source(seed)).to(dtype)
    codes = torch.randint(0, 5, (batch, 6), generator=source(seed))
    masked = torch.rand(batch, 6, generator=source(seed)) < 0.5
    rates = torch.rand(batch, generator=source(seed)) * 0.9 + 0.1
    expected = 0.0
    for row in range(batch):
        each = F.cross_entropy(logits[row].double(), codes[row], reduction="none")[masked[row]].sum()
        weight = {
            "elbo": 1 / (6 * float(rates[row])),
            "mlm": 1 / max(1, int(masked[row].sum())),
            "reweighted_elbo": (1 - float(rates[row]) + 1 / 6) / 6,
        }
        expected += float(each) * weight[loss_type] / batch
    given_logits = logits[masked] if alone else logits
    assert float(masked_code_loss(given_logits, codes, masked, rates, loss_type)) == pytest.approx(expected, rel=1e-4)


@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(lambda s: s[:2] != [2, 6] and s[:1] != [12]))
def test_logits_of_another_shape_are_refused(shape):
    codes, masked = torch.zeros(2, 6, dtype=torch.int64), torch.ones(2, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match="logits must be"):
        masked_code_loss(torch.zeros(shape), codes, masked, torch.ones(2))
    with pytest.raises(ValueError, match="logits must be"):
        code_vector_loss(torch.zeros(shape), codes, masked, torch.randn(5, 3))


@given(code=st.one_of(st.integers(-(2**40), -1), st.integers(5, 2**40)), vector=st.booleans())
def test_true_codes_out_of_range_are_refused(code, vector):
    codes, masked = torch.zeros(2, 6, dtype=torch.int64), torch.ones(2, 6, dtype=torch.bool)
    codes[1, 2] = code
    with pytest.raises(ValueError, match=str(code)):
        if vector:
            code_vector_loss(torch.zeros(2, 6, 5), codes, masked, torch.randn(5, 3))
        else:
            masked_code_loss(torch.zeros(2, 6, 5), codes, masked, torch.ones(2))


@given(rows=st.integers(2, 8), temperature=st.floats(1e-6, 1e6), seed=seeds)
def test_soft_targets_are_distributions_that_prefer_the_true_code(rows, temperature, seed):
    targets = soft_code_targets(torch.randn(rows, 3, generator=source(seed)), temperature)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(rows))
    assert torch.equal(targets.diagonal(), targets.amax(dim=1))


@given(value=st.one_of(st.floats(max_value=-1e-300), st.sampled_from([math.nan, math.inf])), own=st.booleans())
def test_numbers_that_weigh_nothing_are_refused(value, own):
    name = "soft_target_temperature" if own else "code_vector_weight"
    with pytest.raises(ValueError, match=name):
        CodeObjective("elbo", torch.randn(4, 2), **{name: value})
    with pytest.raises(ValueError, match="temperature"):
        soft_code_targets(torch.randn(4, 2), value)


@given(text=st.text(max_size=9).filter(lambda text: text not in (*CODE_LOSSES, *MASK_RATES)))
def test_unknown_names_are_refused(text):
    with pytest.raises(ValueError, match="loss_type"):
        CodeObjective(text, torch.randn(4, 2))
    with pytest.raises(ValueError, match="mask_rates"):
        draw_mask_rates(2, text)


@given(batch=st.integers(-3, 50), distribution=st.sampled_from(MASK_RATES), seed=seeds)
def test_mask_rates_lie_above_zero(batch, distribution, seed):
    if batch < 0:
        with pytest.raises(ValueError, match=str(batch)):
            draw_mask_rates(batch, distribution)
        return
    rates = draw_mask_rates(batch, distribution, source(seed))
    assert rates.shape == (batch,)
    assert bool(((rates > 0) & (rates <= 1)).all())


@given(size=st.integers(1, 9), start=st.integers(0, 30), length=st.integers(0, 30), cut=st.integers(0, 30), seed=seeds)
def test_an_interruption_does_not_change_the_order(size, start, length, cut, seed):
    middle = start + min(cut, length)
    whole = list(ResumableSampler(size, start, start + length, seed))
    parts = [*ResumableSampler(size, start, middle, seed), *ResumableSampler(size, middle, start + length, seed)]
    assert whole == parts
    assert len(whole) == length
    epoch = list(ResumableSampler(size, 3 * size, 4 * size, seed))
    assert sorted(epoch) == list(range(size))


@given(size=st.integers(max_value=0))
def test_an_empty_data_set_is_refused(size):
    with pytest.raises(ValueError, match="empty"):
        ResumableSampler(size, 0, 1, 0)


@given(seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10**9))
def test_seeds_are_used_or_refused(seed, epoch):
    if abs(seed) <= MAX_SEED:
        assert sorted(ResumableSampler(3, 3 * epoch, 3 * epoch + 3, seed)) == [0, 1, 2]
    else:
        with pytest.raises(ValueError, match=f"seed={seed}"):
            ResumableSampler(3, 0, 3, seed)


@given(
    shift=st.integers(0, 3),
    flips=st.sets(st.integers(0, 1)),
    sides=st.tuples(*[st.integers(4, 6)] * 2),
    dtype=dtypes,
    seed=seeds,
)
def test_augmentation_moves_and_reflects_whole_elements(shift, flips, sides, dtype, seed):
    samples = torch.arange(2 * sides[0] * sides[1]).view(2, 1, *sides).to(dtype)
    moved = ShiftAndFlip(shift, sorted(flips))(samples, source(seed))
    assert moved.shape == samples.shape
    assert moved.dtype == dtype
    rows, columns = (torch.arange(side) for side in sides)
    for before, after in zip(samples[:, 0], moved[:, 0], strict=True):
        candidates = [
            before[(rows + down).clamp(0, sides[0] - 1)][:, (columns + right).clamp(0, sides[1] - 1)].flip(axes)
            for down in range(-shift, shift + 1)
            for right in range(-shift, shift + 1)
            for axes in ([], [0], [1], [0, 1])
            if set(axes) <= flips
        ]
        assert any(torch.equal(after, one) for one in candidates)


@given(shift=st.one_of(st.integers(max_value=-1), st.integers(4, 10**12)))
def test_shifts_out_of_range_are_refused(shift):
    with pytest.raises(ValueError, match="max_shift"):
        ShiftAndFlip(shift)(torch.zeros(1, 1, 4, 4), source(0))


@given(
    axes=st.lists(st.integers(-3, 5), min_size=1, max_size=3).filter(
        lambda a: min(a) < 0 or max(a) > 1 or len(set(a)) < len(a)
    )
)
def test_axes_that_are_not_there_are_refused(axes):
    with pytest.raises(ValueError, match="flip_axes"):
        ShiftAndFlip(0, axes)(torch.zeros(1, 1, 4, 4), source(0))
