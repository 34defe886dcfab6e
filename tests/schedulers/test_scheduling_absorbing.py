"""Laws of the absorbing scheduler."""

import itertools

import pytest
import torch

from hf_vq import AbsorbingScheduler

MASK = 5
CASES = list(itertools.product(("ancestral", "exact_count"), ("linear", "cosine")))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample_all(scheduler, logits_of, shape, steps, **arguments):
    scheduler.set_timesteps(steps)
    codes = torch.full(shape, MASK)
    trajectory = [codes]
    for timestep in scheduler.timesteps:
        codes = scheduler.step(logits_of(codes), timestep, codes, **arguments).prev_sample
        trajectory.append(codes)
    return trajectory


@pytest.mark.parametrize(("sampling", "schedule"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_no_mask_is_left_and_settled_codes_stay(sampling, schedule, steps):
    scheduler = AbsorbingScheduler(MASK, schedule=schedule, sampling=sampling)
    trajectory = sample_all(scheduler, lambda c: torch.randn(*c.shape, MASK), (3, 20), steps, generator=generator())
    for before, after in itertools.pairwise(trajectory):
        settled = before != MASK
        assert torch.equal(after[settled], before[settled])
    assert bool((trajectory[-1] < MASK).all())
    assert bool((trajectory[-1] >= 0).all())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_timesteps_decrease_from_one(schedule):
    scheduler = AbsorbingScheduler(MASK, schedule=schedule)
    scheduler.set_timesteps(9)
    assert scheduler.timesteps[0] == 1
    assert bool((scheduler.timesteps.diff() < 0).all())
    assert bool((scheduler.timesteps > 0).all())


def test_exact_count_leaves_the_expected_number_of_masks_after_each_step():
    scheduler = AbsorbingScheduler(MASK, sampling="exact_count")
    trajectory = sample_all(scheduler, lambda c: torch.randn(*c.shape, MASK), (4, 40), 8, generator=generator())
    assert [(codes == MASK).sum(1).tolist() for codes in trajectory] == [[n] * 4 for n in range(40, -1, -5)]


def test_exact_count_wastes_no_step_when_there_are_as_many_steps_as_positions():
    scheduler = AbsorbingScheduler(MASK, sampling="exact_count")
    trajectory = sample_all(scheduler, lambda c: torch.randn(*c.shape, MASK), (2, 10), 10, generator=generator())
    assert all(bool(((b != a).sum(1) == 1).all()) for b, a in itertools.pairwise(trajectory))


@pytest.mark.parametrize("sampling", ["ancestral", "exact_count"])
def test_add_noise_masks_at_the_rate(sampling):
    scheduler = AbsorbingScheduler(MASK, sampling=sampling)
    codes = torch.randint(MASK, (4, 20_000))
    rates = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    noisy = scheduler.add_noise(codes, rates, generator())
    masked = noisy == MASK
    assert torch.equal(noisy[~masked], codes[~masked])
    tolerance = 0.02 if sampling == "ancestral" else 1e-9  # five standard deviations of a coin at 20,000 tosses
    assert bool(((masked.double().mean(1) - rates.double()).abs() < tolerance).all())


def test_add_noise_keeps_the_shape_and_is_exact_for_tiny_rates():
    scheduler = AbsorbingScheduler(MASK, sampling="exact_count")
    codes = torch.randint(MASK, (2, 3, 4, 5))
    assert ((scheduler.add_noise(codes, 1e-6, generator()) == MASK).flatten(1).sum(1) == 1).all()
    assert torch.equal(scheduler.add_noise(codes, 0.0, generator()), codes)


@pytest.mark.parametrize("sampling", ["ancestral", "exact_count"])
def test_samples_follow_an_enumerable_joint(sampling):
    joint = torch.rand(3, 3, generator=generator(3), dtype=torch.float64)
    joint /= joint.sum()

    def exact_logits(
        codes,
    ):  # two positions of three codes; the conditional of each given the other, marginals if masked
        first = torch.where((codes[:, 1] == 3)[:, None], joint.sum(1), joint.T[codes[:, 1].clamp(max=2)])
        second = torch.where((codes[:, 0] == 3)[:, None], joint.sum(0), joint[codes[:, 0].clamp(max=2)])
        return torch.stack((first, second), dim=1).log()

    # ancestral steps are exact in the limit of many steps; exact counts as soon as one position is revealed at a time
    steps = 64 if sampling == "ancestral" else 2
    scheduler = AbsorbingScheduler(3, sampling=sampling)
    scheduler.set_timesteps(steps)
    codes, source = torch.full((40_000, 2), 3), generator(1)
    for timestep in scheduler.timesteps:
        codes = scheduler.step(exact_logits(codes), timestep, codes, generator=source).prev_sample
    drawn = torch.bincount(codes[:, 0] * 3 + codes[:, 1], minlength=9).double() / len(codes)
    assert float((drawn - joint.flatten()).abs().sum() / 2) < 0.015


def test_temperature_zero_takes_the_likeliest_code():
    scheduler = AbsorbingScheduler(MASK)
    logits = torch.randn(2, 9, MASK)
    assert torch.equal(sample_all(scheduler, lambda c: logits, (2, 9), 3, temperature=0.0)[-1], logits.argmax(-1))


def test_top_p_draws_only_from_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1, 5000, 4)
    scheduler = AbsorbingScheduler(4)
    scheduler.set_timesteps(1)
    sample = torch.full((1, 5000), 4)
    drawn = scheduler.step(logits, 1.0, sample, top_p=0.75, generator=generator()).prev_sample
    frequencies = torch.bincount(drawn.flatten(), minlength=4) / 5000
    torch.testing.assert_close(frequencies, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.035, rtol=0)


def test_codes_of_zero_probability_are_never_drawn():
    logits = torch.zeros(1, 2000, 4)
    logits[..., [0, 3]] = -torch.inf
    scheduler = AbsorbingScheduler(4)
    scheduler.set_timesteps(1)
    drawn = scheduler.step(logits, 1.0, torch.full((1, 2000), 4), generator=generator()).prev_sample
    assert set(drawn.unique().tolist()) == {1, 2}


def test_one_generator_per_sample_makes_samples_independent_of_the_batch():
    scheduler = AbsorbingScheduler(MASK)
    logits = torch.randn(1, 12, MASK)
    together = sample_all(
        scheduler, lambda c: logits.expand(len(c), -1, -1), (2, 12), 4, generator=[generator(1), generator(2)]
    )[-1]
    alone = sample_all(scheduler, lambda c: logits, (1, 12), 4, generator=[generator(2)])[-1]
    assert torch.equal(together[1:], alone)


def test_same_seed_same_codes():
    scheduler = AbsorbingScheduler(MASK)
    logits = torch.randn(2, 12, MASK)
    runs = [sample_all(scheduler, lambda c: logits, (2, 12), 4, generator=generator(seed))[-1] for seed in (4, 4, 5)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_config_survives_saving(tmp_path):
    AbsorbingScheduler(MASK, schedule="cosine", sampling="ancestral").save_pretrained(tmp_path)
    loaded = AbsorbingScheduler.from_pretrained(tmp_path)
    assert (loaded.config.mask_token_id, loaded.config.schedule, loaded.config.sampling) == (
        MASK,
        "cosine",
        "ancestral",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"generator": [generator()]}, "1 generators for 2 samples"),
    ],
)
def test_bad_step_arguments_are_named(arguments, words):
    scheduler = AbsorbingScheduler(MASK)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=words):
        scheduler.step(torch.zeros(2, 6, MASK), 1.0, torch.full((2, 6), MASK), **arguments)


def test_bad_timesteps_are_named():
    scheduler = AbsorbingScheduler(MASK)
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1; got 0"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"timestep=0\.3"):
        scheduler.step(torch.zeros(2, 6, MASK), 0.3, torch.full((2, 6), MASK))
    with pytest.raises(ValueError, match="mask rates"):
        scheduler.add_noise(torch.zeros(1, 4, dtype=torch.int64), 1.5)
    with pytest.raises(ValueError, match="schedule='sigmoid'"):
        AbsorbingScheduler(MASK, schedule="sigmoid")
    with pytest.raises(ValueError, match="sampling='gibbs'"):
        AbsorbingScheduler(MASK, sampling="gibbs")
