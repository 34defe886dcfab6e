"""Samplers against exact laws on an enumerable joint distribution: 4 positions of 4 codes, 256 states.

The network is perfect: it gives every masked position its true conditional distribution given the settled ones. What is
left is the sampler's own error.
"""

import itertools
import math

import pytest
import torch

from hf_vq import AbsorbingScheduler
from hf_vq.schedulers.halton import halton_order

N = K = 4
MASK, DRAWS, GRID = K, 120_000, (2, 2)
STATES = torch.cartesian_prod(*[torch.arange(K)] * N)
PARTIAL_STATES = torch.cartesian_prod(*[torch.arange(K + 1)] * N)
POWERS = (K + 1) ** torch.arange(N - 1, -1, -1)
BOUND = 0.01


def make_joint():
    draws = torch.randn(K**N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.softmax(3 * draws, dim=0)


JOINT = make_joint()


def make_conditionals():
    """`(625, N, K)` p(code at a position | settled codes) for every partly masked state."""
    agrees = ((PARTIAL_STATES[:, None] == STATES) | (PARTIAL_STATES[:, None] == MASK)).all(-1)
    weights = agrees * JOINT
    one_hot = torch.nn.functional.one_hot(STATES, K).double()
    marginals = torch.einsum("sx,xnk->snk", weights, one_hot)
    return marginals / weights.sum(-1)[:, None, None]


CONDITIONALS = make_conditionals()
LOGITS = CONDITIONALS.log().float()


def total_variation(left, right):
    return float((left - right).abs().sum() / 2)


def drawn_law(scheduler, steps, seed=1):
    """Frequencies of the 256 states among many samples."""
    scheduler.set_timesteps(steps, code_grid=GRID)
    codes, generator = torch.full((DRAWS, N), MASK), torch.Generator().manual_seed(seed)
    for timestep in scheduler.timesteps:
        positions = scheduler.select_positions(codes, timestep, generator)
        logits = LOGITS[codes @ POWERS] if positions is None or positions.any() else None
        codes = scheduler.step(logits, timestep, codes, generator=generator, positions=positions).prev_sample
    return torch.bincount(codes @ K ** torch.arange(N - 1, -1, -1), minlength=K**N).double() / DRAWS


def law_of(blocks):
    """Law of the samples whose positions settle block by block, those of a block independently of each other."""
    law, settled = torch.ones(K**N, dtype=torch.float64), torch.full_like(STATES, MASK)
    for block in blocks:
        conditionals = CONDITIONALS[settled @ POWERS]
        for position in block:
            law = law * conditionals[torch.arange(K**N), position, STATES[:, position]]
        settled[:, block] = STATES[:, block]
    return law


def mean_law(all_blocks):
    return torch.stack([law_of(blocks) for blocks in all_blocks]).mean(0)


def in_blocks(order, size):
    return [list(order[start : start + size]) for start in range(0, N, size)]


def halton_orders():
    """The order of the 2 x 2 grid under each of its four shifts."""
    cells = torch.stack(torch.unravel_index(halton_order(GRID), GRID), dim=1)
    for shift in itertools.product(*map(range, GRID)):
        moved = (cells + torch.tensor(shift)) % torch.tensor(GRID)
        yield (moved @ torch.tensor([GRID[1], 1])).tolist()


ORDERS = {
    "exact_count": list(itertools.permutations(range(N))),
    "halton": list(halton_orders()),
    "sequential": [[0, 1, 2, 3]],
    "sequential, another order": [[2, 0, 3, 1]],
}


def make_scheduler(name):
    order = {"code_order": ORDERS[name][0]} if name.startswith("sequential") else {}
    return AbsorbingScheduler(MASK, sampling=name.split(",")[0], **order)


def test_the_noise_of_so_many_draws_lies_well_below_the_bound():
    """Mean total variation of frequencies to their own law."""
    floor = (2 * JOINT * (1 - JOINT) / (math.pi * DRAWS)).sqrt().sum() / 2
    assert floor < 0.6 * BOUND


@pytest.mark.parametrize("name", ORDERS)
def test_one_position_at_a_time_is_exact(name):
    for order in ORDERS[name]:
        torch.testing.assert_close(law_of(in_blocks(order, 1)), JOINT)
    assert total_variation(drawn_law(make_scheduler(name), N), JOINT) < BOUND


@pytest.mark.parametrize("name", ORDERS)
def test_two_positions_at_a_time_are_not_exact_and_follow_the_law_of_their_pairs(name):
    law = mean_law([in_blocks(order, 2) for order in ORDERS[name]])
    drawn = drawn_law(make_scheduler(name), N // 2)
    assert total_variation(drawn, law) < BOUND
    assert total_variation(drawn, JOINT) > 5 * BOUND


def test_more_steps_than_positions_are_the_first_hitting_sampler():
    """Steps beyond one for each position settle nothing and leave the law as it is."""
    assert total_variation(drawn_law(make_scheduler("exact_count"), 2 * N + 1), JOINT) < BOUND


def ancestral_law(steps):
    """Positions settle in steps of their own, uniformly and independently; those of one step settle together."""
    law = torch.zeros(K**N, dtype=torch.float64)
    for pattern in set(itertools.product(range(N), repeat=N)):
        count = max(pattern) + 1
        if set(pattern) == set(range(count)):  # each pattern is an ordered partition into `count` blocks
            blocks = [[i for i in range(N) if pattern[i] == block] for block in range(count)]
            law += math.comb(steps, count) / steps**N * law_of(blocks)
    return law


@pytest.mark.parametrize("steps", [1, 8])
def test_ancestral_steps_follow_their_law_which_is_not_the_joint(steps):
    law = ancestral_law(steps)
    assert float(law.sum()) == pytest.approx(1)
    drawn = drawn_law(AbsorbingScheduler(MASK, sampling="ancestral"), steps)
    assert total_variation(drawn, law) < BOUND
    assert total_variation(drawn, JOINT) > 5 * BOUND


def test_ancestral_steps_are_exact_in_the_limit():
    errors = [total_variation(ancestral_law(steps), JOINT) for steps in (64, 128, 256)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)
    assert errors[2] < BOUND


def greedy_law(steps):
    """Confidence without noise: draws for all masked positions, keeps those drawn with the highest probability."""
    law = {(MASK,) * N: 1.0}
    for step in range(steps):
        kept, following = round((1 - (step + 1) / steps) * N), {}
        for state, weight in law.items():
            probabilities = CONDITIONALS[torch.tensor(state) @ POWERS].tolist()
            masked = [i for i in range(N) if state[i] == MASK]
            for codes in itertools.product(range(K), repeat=len(masked)):
                chances = {i: probabilities[i][code] for i, code in zip(masked, codes, strict=True)}
                settled = sorted(masked, key=chances.get, reverse=True)[: len(masked) - kept]
                drawn = dict(zip(masked, codes, strict=True))
                after = tuple(drawn[i] if i in settled else state[i] for i in range(N))
                following[after] = following.get(after, 0.0) + weight * math.prod(chances.values())
        law = following
    return torch.tensor([law.get(tuple(state), 0.0) for state in STATES.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("steps", [2, 4])
def test_confidence_follows_its_law_which_is_not_the_joint(steps):
    scheduler = AbsorbingScheduler(MASK, sampling="confidence", choice_temperature=0.0)
    drawn = drawn_law(scheduler, steps)
    assert total_variation(drawn, greedy_law(steps)) < BOUND
    assert total_variation(drawn, JOINT) > 5 * BOUND


def test_confidence_under_much_noise_is_the_exact_count():
    scheduler = AbsorbingScheduler(MASK, sampling="confidence", choice_temperature=1e6)
    assert total_variation(drawn_law(scheduler, N), JOINT) < BOUND
