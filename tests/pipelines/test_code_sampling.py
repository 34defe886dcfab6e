"""The sampling loop that the pipelines share: which steps ask the network, and that nothing else depends on it."""

import itertools

import pytest
import torch
from diffusers import AmusedScheduler

from hf_vq import AbsorbingScheduler, CodeGenerationPipeline, CodeTransformer, VQTokenizer, VQTokenizerConfig

NUM_CODES, GRID = 11, (3, 4)
SAMPLINGS = ("ancestral", "exact_count", "confidence", "halton", "sequential")


def make(scheduler=None, **transformer):
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        spatial_dims=2,
        in_channels=1,
        base_channels=8,
        channel_multipliers=[1],
        stem_stride=4,
        num_res_blocks=1,
        num_norm_groups=4,
        quantizer={"codebook_size": NUM_CODES, "codebook_dim": 3},
    )
    fields = {"num_codes": NUM_CODES, "code_grid": GRID, "context_dim": None, "hidden_size": 16}
    model = CodeTransformer(**fields, num_layers=1, num_heads=2, **transformer).eval()
    model.head.weight.data.normal_()  # far enough from its small initial values that other codes give other logits
    pipeline = CodeGenerationPipeline(VQTokenizer(config).eval(), model, scheduler or AbsorbingScheduler(NUM_CODES))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def codes_of(pipe, **arguments):
    return pipe(**{"generator": generator(), "output_type": "latent", **arguments}).codes


def calls_of(pipe):
    """A list that grows by the number of rows in every call of the network."""
    calls = []
    pipe.transformer.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    return calls


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("steps", [5, 40])
def test_the_codes_are_those_of_a_loop_that_asks_the_network_every_time(sampling, steps):
    pipe = make(AbsorbingScheduler(NUM_CODES, sampling=sampling))
    codes = codes_of(pipe, batch_size=2, num_inference_steps=steps, temperature=0.9, top_p=0.95)
    scheduler, source = pipe.scheduler, generator()
    scheduler.set_timesteps(steps, code_grid=GRID)
    expected = torch.full((2, 12), NUM_CODES)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            logits = pipe.transformer(expected).sample
            expected = scheduler.step(
                logits, timestep, expected, temperature=0.9, top_p=0.95, generator=source
            ).prev_sample
    assert torch.equal(codes.flatten(1), expected)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_network_is_not_asked_for_a_step_that_changes_nothing(sampling):
    pipe, changes = make(AbsorbingScheduler(NUM_CODES, sampling=sampling)), []
    calls, before = calls_of(pipe), torch.full((1, 12), NUM_CODES)

    def callback(pipeline, step, timestep, tensors):
        changes.append(not torch.equal(tensors["latents"], before))
        before.copy_(tensors["latents"])
        return tensors

    codes_of(pipe, num_inference_steps=512, callback_on_step_end=callback)
    assert len(changes) == pipe.num_timesteps == 512  # a callback sees every step
    assert pipe.num_network_evaluations == len(calls) == sum(changes)
    assert len(calls) <= 12
    if sampling != "ancestral":  # whose positions may fall into one step
        assert len(calls) == 12


def test_a_step_that_changes_some_samples_asks_for_the_whole_batch():
    pipe = make(AbsorbingScheduler(NUM_CODES, sampling="ancestral"))
    calls = calls_of(pipe)
    codes_of(pipe, batch_size=3, num_inference_steps=200)
    assert set(calls) == {3}
    assert 12 <= pipe.num_network_evaluations == len(calls) <= 36


def test_nothing_is_asked_where_all_codes_are_given_and_the_count_starts_anew_in_every_call():
    pipe = make()
    codes = codes_of(pipe, num_inference_steps=4)
    assert pipe.num_network_evaluations == 4
    assert torch.equal(codes_of(pipe, num_inference_steps=4, latents=codes), codes)
    assert (pipe.num_timesteps, pipe.num_network_evaluations) == (4, 0)


def test_codes_that_a_callback_masks_again_are_settled():
    pipe = make()

    def callback(pipeline, step, timestep, tensors):
        return {"latents": tensors["latents"].masked_fill(torch.tensor(step < 3), NUM_CODES)}

    assert bool((codes_of(pipe, num_inference_steps=4, callback_on_step_end=callback) < NUM_CODES).all())


def test_amused_scheduler_is_asked_in_every_step():
    pipe = make(AmusedScheduler(mask_token_id=NUM_CODES))
    codes = codes_of(pipe, num_inference_steps=20)
    assert bool((codes < NUM_CODES).all())
    assert pipe.num_network_evaluations == 20


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_sampler_can_be_switched_in_a_pipeline(sampling):
    pipe = make()
    pipe.scheduler = AbsorbingScheduler.from_config(pipe.scheduler.config, sampling=sampling)
    one_each = [generator(seed) for seed in range(3)]
    codes = codes_of(pipe, batch_size=3, num_inference_steps=5, generator=one_each)
    assert bool((codes < NUM_CODES).all())
    assert torch.equal(codes_of(pipe, num_inference_steps=5, generator=generator(1)), codes[1:2])


ORDER = [11, *range(11)]


def test_a_causal_model_settles_its_codes_one_by_one_in_its_order():
    scheduler = AbsorbingScheduler(NUM_CODES, sampling="sequential", code_order=ORDER)
    pipe, seen = make(scheduler, causal=True, code_order=ORDER), [torch.full((2, *GRID), NUM_CODES).flatten(1)]

    def callback(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return tensors

    codes_of(pipe, batch_size=2, num_inference_steps=12, callback_on_step_end=callback)
    settled = [(after != before).nonzero().tolist() for before, after in itertools.pairwise(seen)]
    assert settled == [[[0, position], [1, position]] for position in ORDER]


@pytest.mark.parametrize(
    ("fields", "steps", "words"),
    [
        ({}, 12, "'sampling': 'exact_count'"),
        ({"sampling": "sequential"}, 12, "another order"),
        ({"sampling": "sequential", "code_order": ORDER, "schedule": "cosine"}, 12, "'schedule': 'cosine'"),
        ({"sampling": "sequential", "code_order": ORDER}, 11, "the same order and 11 steps"),
    ],
)
def test_what_a_causal_model_cannot_do_is_refused(fields, steps, words):
    pipe = make(AbsorbingScheduler(NUM_CODES, **fields), causal=True, code_order=ORDER)
    with pytest.raises(ValueError, match=words):
        codes_of(pipe, num_inference_steps=steps)
    pipe.scheduler = AmusedScheduler(mask_token_id=NUM_CODES)
    with pytest.raises(ValueError, match="'sampling': None"):
        codes_of(pipe, num_inference_steps=12)
