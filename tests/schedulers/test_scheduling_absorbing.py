"""Laws of the absorbing scheduler."""

import itertools

import pytest
import torch
from diffusers import AmusedScheduler

from hf_vq import AbsorbingScheduler
from hf_vq.schedulers.halton import halton_order

MASK = 5
SAMPLINGS = ("ancestral", "exact_count", "confidence", "halton", "sequential")
COUNTED = SAMPLINGS[1:]
CASES = list(itertools.product(SAMPLINGS, ("linear", "cosine")))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample_all(scheduler, logits_of, shape, steps, **arguments):
    scheduler.set_timesteps(steps, code_grid=shape[1:])
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


@pytest.mark.parametrize("sampling", COUNTED)
def test_the_expected_number_of_masks_is_left_after_each_step(sampling):
    scheduler = AbsorbingScheduler(MASK, sampling=sampling)
    trajectory = sample_all(scheduler, lambda c: torch.randn(*c.shape, MASK), (4, 40), 8, generator=generator())
    assert [(codes == MASK).sum(1).tolist() for codes in trajectory] == [[n] * 4 for n in range(40, -1, -5)]


@pytest.mark.parametrize("sampling", COUNTED)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_positions_settle_one_at_a_time_given_the_steps_for_it(sampling, schedule):
    """As many linear steps as positions, or cosine steps times pi / 2; with more, some steps settle nothing."""
    scheduler = AbsorbingScheduler(MASK, schedule=schedule, sampling=sampling)
    for steps in (10, 11, 27) if schedule == "linear" else (16, 40):
        trajectory = sample_all(scheduler, lambda c: torch.randn(*c.shape, MASK), (2, 10), steps, generator=generator())
        changes = torch.stack([(b != a).sum(1) for b, a in itertools.pairwise(trajectory)])
        assert int(changes.max()) == 1
        if steps == 10:
            assert bool((changes == 1).all())


@pytest.mark.parametrize("steps", [3, 16, 60])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("one_each", [False, True])
def test_selecting_positions_first_changes_nothing_and_tells_what_will_change(sampling, steps, one_each):
    """Both ways draw the same random numbers in the same order, also in steps that go without logits."""
    scheduler, logits = AbsorbingScheduler(MASK, sampling=sampling), torch.randn(3, 20, MASK)
    given = torch.full((3, 20), MASK)
    given[0, :8] = 1  # its row has nothing to settle in the first steps

    def run(select):
        scheduler.set_timesteps(steps, code_grid=(4, 5))
        source = [generator(seed) for seed in range(3)] if one_each else generator()
        codes, without_logits = given, 0
        for timestep in scheduler.timesteps:
            positions = scheduler.select_positions(codes, timestep, source) if select else None
            asked = positions is None or bool(positions.any())
            without_logits += not asked
            after = scheduler.step(
                logits if asked else None, timestep, codes, generator=source, positions=positions
            ).prev_sample
            if positions is not None:
                assert torch.equal(after != codes, positions)
            codes = after
        return codes, without_logits

    (selected, skipped), (plain, _) = run(True), run(False)
    assert torch.equal(selected, plain)
    assert skipped >= steps - 20 if sampling in COUNTED else skipped > 0 or steps < 60


def reference_step(codes, logits, current, following, sampling, source):
    """One step in the order of draws that seeds rely on: a number for each position's turn, then one for its code."""
    masked = codes == MASK
    reveal = masked
    if following > 0:
        turns = torch.rand(codes.shape, generator=source, dtype=torch.float64)
        if sampling == "ancestral":
            reveal = masked & (turns < (current - following) / current)
        else:
            turns[~masked] = 2
            count = masked.sum(1, keepdim=True) - round(following * codes.shape[1])
            reveal = masked & (turns.argsort(1).argsort(1) < count)
    draws = torch.rand(codes.shape, generator=source, dtype=torch.float64)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = (draws[..., None] >= cumulative / cumulative[..., -1:]).sum(-1)
    return torch.where(reveal, drawn, codes)


@pytest.mark.parametrize("sampling", ["ancestral", "exact_count"])
@pytest.mark.parametrize("steps", [4, 30])
def test_a_seed_keeps_its_codes(sampling, steps):
    logits, source = torch.randn(2, 12, MASK), generator(8)
    codes, rates = torch.full((2, 12), MASK), [1 - step / steps for step in range(steps)] + [0.0]
    for current, following in itertools.pairwise(rates):
        codes = reference_step(codes, logits, current, following, sampling, source)
    scheduler = AbsorbingScheduler(MASK, sampling=sampling)
    assert torch.equal(sample_all(scheduler, lambda c: logits, (2, 12), steps, generator=generator(8))[-1], codes)


@pytest.mark.parametrize(
    ("sampling", "masking", "rule"),
    [
        ("ancestral", None, "random"),
        ("exact_count", None, "exact_count"),
        ("halton", None, "exact_count"),
        ("ancestral", "exact_count", "exact_count"),
        ("sequential", "random", "random"),
    ],
)
def test_add_noise_masks_at_the_rate(sampling, masking, rule):
    scheduler = AbsorbingScheduler(MASK, sampling=sampling, masking=masking)
    assert scheduler.masking_rule == rule
    codes = torch.randint(MASK, (4, 20_000))
    rates = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    noisy = scheduler.add_noise(codes, rates, generator())
    masked = noisy == MASK
    assert torch.equal(noisy[~masked], codes[~masked])
    tolerance = 0.02 if rule == "random" else 1e-9  # five standard deviations of a coin at 20,000 tosses
    assert bool(((masked.double().mean(1) - rates.double()).abs() < tolerance).all())


def test_add_noise_keeps_the_shape_and_is_exact_for_tiny_rates():
    scheduler = AbsorbingScheduler(MASK, sampling="exact_count")
    codes = torch.randint(MASK, (2, 3, 4, 5))
    assert ((scheduler.add_noise(codes, 1e-6, generator()) == MASK).flatten(1).sum(1) == 1).all()
    assert torch.equal(scheduler.add_noise(codes, 0.0, generator()), codes)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_temperature_zero_takes_the_likeliest_code(sampling):
    scheduler = AbsorbingScheduler(MASK, sampling=sampling)
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


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_one_generator_per_sample_makes_samples_independent_of_the_batch(sampling):
    scheduler = AbsorbingScheduler(MASK, sampling=sampling)
    logits = torch.randn(1, 12, MASK)

    def sample(given, seeds):
        scheduler.set_timesteps(5, code_grid=(3, 4))
        codes, sources = given, [generator(seed) for seed in seeds]
        for timestep in scheduler.timesteps:
            positions = scheduler.select_positions(codes, timestep, sources)
            asked = positions is None or bool(positions.any())
            shown = logits.expand(len(codes), -1, -1) if asked else None
            codes = scheduler.step(shown, timestep, codes, generator=sources, positions=positions).prev_sample
        return codes

    given = torch.full((2, 12), MASK)
    given[1, :9] = 0  # alone, it has steps in which nothing settles; beside a row of masks, it has none
    assert torch.equal(sample(given, (1, 2))[1:], sample(given[1:], (2,)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_same_seed_same_codes(sampling):
    scheduler = AbsorbingScheduler(MASK, sampling=sampling)
    logits = torch.randn(2, 12, MASK)
    runs = [sample_all(scheduler, lambda c: logits, (2, 12), 4, generator=generator(seed))[-1] for seed in (4, 4, 5)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_config_survives_saving(tmp_path):
    fields = {"mask_token_id": MASK, "schedule": "cosine", "sampling": "sequential", "masking": "random"}
    fields |= {"choice_temperature": 2.5, "code_order": [2, 0, 1]}
    AbsorbingScheduler(**fields).save_pretrained(tmp_path)
    loaded = AbsorbingScheduler.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in fields} == fields
    assert loaded.compatibles == [AbsorbingScheduler]


def test_a_loaded_config_holds_nothing_else_than_the_saved_one(tmp_path):
    scheduler = AbsorbingScheduler(MASK, "cosine", sampling="halton")
    scheduler.save_pretrained(tmp_path)
    loaded = dict(AbsorbingScheduler.from_pretrained(tmp_path).config)
    assert loaded == {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}


def test_a_start_of_masks_may_be_multiplied_by_the_deviation_of_the_noise():
    masks = torch.full((2, 3), MASK)
    assert torch.equal(masks * AbsorbingScheduler(MASK).init_noise_sigma, masks)


def test_another_sampler_takes_over_a_config():
    """Arguments that were given by position are passed on too, and so they are to another class."""
    scheduler = AbsorbingScheduler(MASK, "cosine")
    switched = AbsorbingScheduler.from_config(scheduler.config, sampling="halton").config
    assert (switched.sampling, switched.schedule, switched.mask_token_id) == ("halton", "cosine", MASK)
    assert AmusedScheduler.from_config(scheduler.config).config.mask_token_id == MASK


def settled_order(scheduler, count, rows=2, **arguments):
    """`(rows, count)`: positions in the order in which they settle, one each step."""
    logits = torch.zeros(rows, count, MASK)
    trajectory = sample_all(scheduler, lambda c: logits, (rows, count), count, **arguments)
    return torch.stack([(b != a).long().argmax(1) for b, a in itertools.pairwise(trajectory)], dim=1)


@pytest.mark.parametrize("code_order", [None, [4, 2, 0, 5, 3, 1]])
def test_sequential_settles_in_its_order_whatever_the_seed(code_order):
    scheduler = AbsorbingScheduler(MASK, sampling="sequential", code_order=code_order)
    for seed in range(3):
        order = settled_order(scheduler, 6, generator=generator(seed))
        assert order.tolist() == [code_order or list(range(6))] * 2
    if code_order:
        with pytest.raises(ValueError, match="code_order has 6 positions, but the sample 7"):
            settled_order(scheduler, 7)


def test_halton_settles_in_the_order_of_its_grid_moved_by_one_shift_for_each_sample():
    scheduler, moves = AbsorbingScheduler(MASK, sampling="halton"), []
    scheduler.set_timesteps(24, code_grid=(4, 6))
    codes, source, order = torch.full((8, 24), MASK), generator(), []
    for timestep in scheduler.timesteps:
        positions = scheduler.select_positions(codes, timestep, source)
        order.append(positions.long().argmax(1))
        codes = torch.where(positions, 0, codes)
    expected = torch.stack(torch.unravel_index(halton_order((4, 6)), (4, 6)), dim=-1)
    for row in torch.stack(order, dim=1):
        cells = torch.stack(torch.unravel_index(row, (4, 6)), dim=-1)
        moves.append(tuple(((cells - expected) % torch.tensor([4, 6])).unique(dim=0).flatten().tolist()))
    assert all(len(move) == 2 for move in moves)  # one shift from the first to the last step
    assert len(set(moves)) > 4


def test_halton_draws_new_shifts_for_every_trajectory():
    scheduler, source = AbsorbingScheduler(MASK, sampling="halton"), generator()
    scheduler.set_timesteps(4, code_grid=(8, 8))
    masks = torch.full((4, 64), MASK)
    first, second = (scheduler.select_positions(masks, 1.0, source) for _ in range(2))
    assert bool((first != second).any(dim=1).all())


def test_halton_needs_the_grid_of_its_codes():
    scheduler, masks = AbsorbingScheduler(MASK, sampling="halton"), torch.full((2, 24), MASK)
    for grid, words in ((None, "got None"), ((4, 5), r"got \(4, 5\)"), ((2, 3, 2, 2), "1 to 3 sides")):
        scheduler.set_timesteps(4, code_grid=grid)
        with pytest.raises(ValueError, match=words):
            scheduler.select_positions(masks, 1.0)
    scheduler.set_timesteps(4, code_grid=(4, 6))
    scheduler.select_positions(masks, 1.0)
    with pytest.raises(ValueError, match="call set_timesteps before another batch"):
        scheduler.select_positions(masks[:1], 0.75)


def test_confidence_keeps_the_codes_of_the_highest_probability():
    probabilities = torch.tensor([0.9, 0.5, 0.99, 0.7])  # of code 0; the others share the rest
    rest = ((1 - probabilities) / (MASK - 1))[:, None].expand(4, MASK - 1)
    logits = torch.cat((probabilities[:, None], rest), dim=1).log().expand(2, 4, MASK)
    scheduler = AbsorbingScheduler(MASK, sampling="confidence", choice_temperature=0.0)
    trajectory = sample_all(scheduler, lambda c: logits, (2, 4), 4, temperature=0.0)
    orders = torch.stack([(b != a).long().argmax(1) for b, a in itertools.pairwise(trajectory)], dim=1)
    assert orders.tolist() == [[2, 0, 3, 1]] * 2


def test_confidence_s_noise_is_standard_gumbel_noise_that_fades_with_the_mask_rate():
    """With equal noise-free scores p(first of two) is 1/2; scores log p plus Gumbel noise choose by p itself."""
    scheduler = AbsorbingScheduler(2, sampling="confidence", choice_temperature=2.0)
    scheduler.set_timesteps(2)  # the first step leaves the rate 1/2, so the weight of the noise is 1
    logits = torch.tensor([[0.75, 0.25], [1.0, 0.0]]).log().expand(40_000, 2, 2)
    first = scheduler.step(logits, 1.0, torch.full((40_000, 2), 2), temperature=0.0, generator=generator()).prev_sample
    share = (first[:, 0] != 2).double().mean().item()
    assert share == pytest.approx(0.75 / 1.75, abs=0.0125)  # five standard deviations


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("steps", [3, 20])
def test_logits_of_the_positions_alone_give_the_codes_of_all_logits(sampling, steps):
    scheduler = AbsorbingScheduler(9, sampling=sampling)
    scheduler.set_timesteps(steps, code_grid=(3, 4))
    table, codes = torch.randn(2, 12, 9, generator=generator(5)), torch.full((2, 12), 9)
    sources = generator(), generator()
    for timestep in scheduler.timesteps:
        halton_ranks = scheduler._halton_ranks
        expected = scheduler.step(table, timestep, codes, generator=sources[0], top_p=0.9).prev_sample
        scheduler._halton_ranks = halton_ranks
        positions = scheduler.select_positions(codes, timestep, sources[1])
        wanted = codes == 9 if positions is None else positions & (codes == 9)
        chosen = {"positions": positions, "generator": sources[1], "top_p": 0.9}
        output = scheduler.step(table[wanted], timestep, codes, **chosen)
        assert output.pred_original_sample is None
        assert torch.equal(output.prev_sample, expected)
        codes = expected
    with pytest.raises(ValueError, match="model_output has 5 rows for 24 positions"):
        scheduler.step(table[0, :5], scheduler.timesteps[-1], torch.full((2, 12), 9))


def test_positions_are_checked_and_settled_ones_stay():
    scheduler, logits = AbsorbingScheduler(MASK), torch.randn(1, 4, MASK)
    scheduler.set_timesteps(2)
    sample = torch.tensor([[0, MASK, 1, MASK]])
    settled = scheduler.step(logits, 1.0, sample, positions=torch.tensor([[True, True, True, False]])).prev_sample
    assert ((settled == sample) == torch.tensor([[True, False, True, True]])).all()
    with pytest.raises(ValueError, match=r"positions must be \(1, 4\)"):
        scheduler.step(logits, 1.0, sample, positions=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="model_output is None, but this step settles codes"):
        scheduler.step(None, 1.0, sample, positions=torch.ones(1, 4, dtype=torch.bool))


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
    for fields, words in (
        ({"sampling": "gibbs"}, "sampling='gibbs'"),
        ({"masking": "none"}, "masking='none'"),
        ({"choice_temperature": -1.0}, "choice_temperature"),
        ({"choice_temperature": float("inf")}, "choice_temperature"),
        ({"code_order": [0, 2, 2]}, "code_order"),
    ):
        with pytest.raises(ValueError, match=words):
            AbsorbingScheduler(MASK, **fields)
