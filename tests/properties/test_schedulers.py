"""Any schedule, sample and settings: no mask left and settled codes kept, or an error that names the value."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_vq import AbsorbingScheduler
from hf_vq.schedulers.checks import MASKINGS, SAMPLINGS, SCHEDULES

MASK = 5
seeds = st.integers(0, 2**31 - 1)
steps = st.one_of(st.integers(1, 20), st.sampled_from([99, 1000]))
bad_numbers = st.one_of(st.floats(max_value=-1e-300), st.sampled_from([math.nan, math.inf, -math.inf]))


def source(seed):
    return torch.Generator().manual_seed(seed)


def sampled(scheduler, sample, logits, number, **arguments):
    scheduler.set_timesteps(number, code_grid=(2, 3))
    for timestep in scheduler.timesteps:
        sample = scheduler.step(logits, timestep, sample, **arguments).prev_sample
    return sample


@pytest.mark.parametrize("sampling", SAMPLINGS)
@given(
    schedule=st.sampled_from(SCHEDULES),
    batch=st.integers(0, 3),
    number=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 5e-324, 1e-300, 1e-5, 1.0, 1e300]),
    top_p=st.sampled_from([5e-324, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=seeds,
)
def test_no_mask_is_left_and_settled_codes_stay(sampling, schedule, batch, number, temperature, top_p, dtype, seed):
    scheduler = AbsorbingScheduler(MASK, schedule=schedule, sampling=sampling)
    sample = torch.randint(0, MASK + 1, (batch, 6), generator=source(seed))
    logits = torch.randn(batch, 6, MASK, generator=source(seed)).to(dtype)
    arguments = {"temperature": temperature, "top_p": top_p, "generator": source(seed)}
    codes = sampled(scheduler, sample, logits, number, **arguments)
    assert codes.dtype == torch.int64
    assert bool(((codes >= 0) & (codes < MASK)).all())
    assert torch.equal(codes[sample != MASK], sample[sample != MASK])
    if temperature < 1e-200 or (temperature == 1 and top_p < 1e-200):
        likeliest = logits.double().amax(dim=-1)
        chosen = logits.double().gather(-1, codes[..., None]).squeeze(-1)
        assert torch.equal(chosen[sample == MASK], likeliest[sample == MASK])


@given(schedule=st.sampled_from(SCHEDULES), number=steps)
def test_timesteps_fall_from_one(schedule, number):
    scheduler = AbsorbingScheduler(MASK, schedule=schedule)
    scheduler.set_timesteps(number)
    assert len(scheduler.timesteps) == number
    assert float(scheduler.timesteps[0]) == pytest.approx(1.0)
    assert bool((scheduler.timesteps.diff() < 0).all())
    assert bool((scheduler.timesteps > 0).all())


@given(number=st.one_of(st.integers(max_value=0), st.integers(10**6), st.floats(), st.booleans(), st.none(), st.text()))
def test_numbers_of_steps_that_make_no_sense_are_refused(number):
    with pytest.raises(ValueError, match="num_inference_steps"):
        AbsorbingScheduler(MASK).set_timesteps(number)


@given(value=bad_numbers, name=st.sampled_from(["temperature", "top_p"]))
def test_settings_of_a_draw_that_make_no_sense_are_refused(value, name):
    scheduler = AbsorbingScheduler(MASK)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=name):
        scheduler.step(torch.zeros(1, 6, MASK), scheduler.timesteps[0], torch.full((1, 6), MASK), **{name: value})


@pytest.mark.parametrize("sampling", SAMPLINGS)
@given(bad=st.sampled_from([math.nan, math.inf]), place=st.integers(0, 6 * MASK - 1), zero=st.booleans())
def test_logits_that_are_not_finite_are_refused(sampling, bad, place, zero):
    logits = torch.zeros(1, 6, MASK)
    logits.view(-1)[place] = bad
    scheduler = AbsorbingScheduler(MASK, sampling=sampling)
    with pytest.raises(ValueError, match="model_output"):
        sampled(scheduler, torch.full((1, 6), MASK), logits, 1, temperature=0.0 if zero else 1.0)


@given(allowed=st.sets(st.integers(0, MASK - 1), min_size=1), seed=seeds, temperature=st.sampled_from([0.0, 0.1, 1.0]))
def test_codes_of_no_probability_are_never_drawn(allowed, seed, temperature):
    logits = torch.full((2, 6, MASK), -math.inf)
    logits[..., sorted(allowed)] = 0.0
    arguments = {"temperature": temperature, "generator": source(seed)}
    codes = sampled(AbsorbingScheduler(MASK), torch.full((2, 6), MASK), logits, 3, **arguments)
    assert set(codes.flatten().tolist()) <= allowed


@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(lambda sides: sides[:2] != [2, 6]))
def test_logits_of_another_shape_are_refused(shape):
    scheduler = AbsorbingScheduler(MASK)
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match="model_output"):
        scheduler.step(torch.zeros(shape), scheduler.timesteps[0], torch.full((2, 6), MASK))


@given(codes=st.integers(0, 12).filter(lambda count: not 1 <= count <= MASK), alone=st.booleans())
def test_logits_of_more_codes_than_there_are_would_leave_masks_and_are_refused(codes, alone):
    scheduler = AbsorbingScheduler(MASK)
    scheduler.set_timesteps(1)
    logits = torch.zeros(12, codes) if alone else torch.zeros(2, 6, codes)
    with pytest.raises(ValueError, match=f"logits of {codes} codes"):
        scheduler.step(logits, scheduler.timesteps[0], torch.full((2, 6), MASK))


@given(timestep=st.floats().filter(lambda value: not abs(value - 1) < 1e-5 and not abs(value - 0.5) < 1e-5))
def test_unknown_timesteps_are_refused(timestep):
    scheduler = AbsorbingScheduler(MASK)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="timestep"):
        scheduler.step(torch.zeros(1, 6, MASK), timestep, torch.full((1, 6), MASK))


@given(masking=st.sampled_from(MASKINGS), rates=st.lists(st.floats(0, 1), max_size=4), seed=seeds)
def test_noise_masks_at_the_rate(masking, rates, seed):
    codes = torch.randint(0, MASK, (len(rates), 3, 4), generator=source(seed))
    timesteps = torch.tensor(rates, dtype=torch.float64)
    noisy = AbsorbingScheduler(MASK, masking=masking).add_noise(codes, timesteps, source(seed))
    masked = noisy == MASK
    assert torch.equal(noisy[~masked], codes[~masked])
    for rate, count in zip(rates, masked.flatten(1).sum(dim=1).tolist(), strict=True):
        if rate in (0.0, 1.0):
            assert count == 12 * rate
        elif masking == "exact_count":
            assert count == max(1, round(rate * 12))


@given(rate=st.one_of(bad_numbers, st.floats(min_value=1.0, exclude_min=True)))
def test_rates_outside_their_range_are_refused(rate):
    with pytest.raises(ValueError, match="timesteps are mask rates"):
        AbsorbingScheduler(MASK).add_noise(
            torch.zeros(1, 6, dtype=torch.int64), torch.tensor([rate], dtype=torch.float64)
        )
