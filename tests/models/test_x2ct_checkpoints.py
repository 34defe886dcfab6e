"""Converted checkpoints of the ICCV 2023 authors' code: equal outputs, every key accounted for."""

import pickle
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_vq import AbsorbingScheduler
from hf_vq.models.x2ct_checkpoints import convert_tokenizer, convert_transformer, read_state_dict

LAYOUT = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("x2ct_layout.py"))))

SMALL = {
    "3d, depthwise": (
        {"spatial_dims": 3, "nf": 8, "ch_mult": (1, 2, 8), "res_blocks": 1, "attention": (2,), "depthwise": True},
        (2, 1, 8, 12, 16),
    ),
    "3d": (
        {"spatial_dims": 3, "nf": 8, "ch_mult": (1, 2), "res_blocks": 2, "attention": (), "depthwise": False},
        (1, 1, 4, 8, 6),
    ),
    "3d, attention at two levels": (
        {"spatial_dims": 3, "nf": 4, "ch_mult": (1, 1, 2), "res_blocks": 2, "attention": (0, 2), "depthwise": True},
        (1, 1, 8, 8, 12),
    ),
    "2d, widths on both sides of 32": (
        {"spatial_dims": 2, "nf": 16, "ch_mult": (1, 2, 4), "res_blocks": 1, "attention": (2,), "depthwise": False},
        (2, 1, 16, 24),
    ),
    "2d, wide first level, two channels": (
        {
            "spatial_dims": 2,
            "nf": 8,
            "ch_mult": (2, 1),
            "res_blocks": 2,
            "attention": (1,),
            "depthwise": False,
            "channels": 2,
        },
        (2, 2, 8, 12),
    ),
}
SAMPLER = {"codes": 12, "emb": 6, "n_emb": 24, "layers": 2, "block_size": 2 * 9 + 8, "volume_codes": 8}


def small_state(case, **changes):
    fields, shape = SMALL[case]
    return LAYOUT.autoencoder_state(**{"codes": 32, "emb": 8, **fields, **changes}), shape


def check_outputs(conversion, state, pixel_values):
    model, reference = conversion.model, LAYOUT.Reference(state, pixel_values.ndim - 2)
    with torch.no_grad():
        output, latents = model.encode(pixel_values), reference.encode(pixel_values)
        torch.testing.assert_close(output.latents, latents, rtol=1e-4, atol=1e-4)
        codes = reference.codes(output.latents)
        assert torch.equal(output.codes, codes)
        assert codes.unique().numel() > 1
        torch.testing.assert_close(model.decode(codes).sample, reference.decode(codes), rtol=1e-4, atol=1e-4)
        forward = model(pixel_values)
        torch.testing.assert_close(forward.sample, reference.decode(codes), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(forward.quantizer_loss, reference.quantizer_loss(output.latents))


@pytest.mark.parametrize("case", SMALL)
def test_autoencoder_computes_what_the_authors_does(case, generator):
    state, shape = small_state(case)
    conversion = convert_tokenizer(state)
    check_outputs(conversion, state, torch.rand(shape, generator=generator))
    assert not conversion.model.training
    assert sorted({*conversion.used, *conversion.unused}) == sorted(state)


def test_whole_vqgan_gives_the_same_model_as_its_autoencoder():
    state, _ = small_state("3d, depthwise")
    whole, bare = convert_tokenizer(LAYOUT.vqgan_state(state)), convert_tokenizer(state)
    assert {key.removeprefix("ae.") for key in whole.used} == set(bare.used)
    assert "disc.main.1.num_batches_tracked" in whole.unused
    for name, value in bare.model.state_dict().items():
        assert torch.equal(whole.model.state_dict()[name], value), name


def test_conversion_leaves_nothing_to_chance():
    state, shape = small_state("3d, depthwise")
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = convert_tokenizer(state).model
        outputs.append((model.state_dict(), model(torch.ones(shape)).sample))
    assert all(torch.equal(outputs[0][0][name], value) for name, value in outputs[1][0].items())
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_training_goes_on_from_a_converted_tokenizer():
    state, shape = small_state("3d, depthwise")
    model = convert_tokenizer(state).model.train()
    before = model.quantizer.effective_codebook.detach().clone()
    model(torch.rand(shape)).loss.backward()
    assert torch.equal(model.quantizer.effective_codebook, before)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_parameters_without_effect_are_left_aside():
    state, _ = small_state("3d, depthwise")
    expected = {
        f"{side}.blocks.{index}.conv_out.{leaf}"
        for side, indices in (("encoder", (1, 7, 9)), ("generator", (1, 3, 4)))
        for index in indices
        for leaf in ("weight", "bias")
    }
    expected |= {f"generator.logsigma.{index}.{leaf}" for index in (0, 2) for leaf in ("weight", "bias")}
    assert set(convert_tokenizer(state).unused) == expected


def test_unknown_missing_and_misshapen_keys_are_all_listed():
    state, _ = small_state("2d, widths on both sides of 32")
    del state["encoder.blocks.1.conv1.weight"], state["quantize.embedding.weight"]
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight"):
        convert_tokenizer(state)
    state, _ = small_state("2d, widths on both sides of 32")
    del state["encoder.blocks.1.conv1.weight"], state["generator.blocks.2.q.bias"]
    state["perceptual.net.weight"] = torch.zeros(1)
    state["encoder.blocks.0.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        convert_tokenizer(state)
    for words in (
        "Unknown keys: ['perceptual.net.weight']",
        "missing keys: ['encoder.blocks.1.conv1.weight', 'generator.blocks.2.q.bias']",
        "encoder.blocks.0.bias: (3,) instead of (16,)",
    ):
        assert words in str(error.value)


def test_further_keys_can_be_named_as_of_no_use():
    state, _ = small_state("3d")
    state["perceptual.net.weight"] = torch.zeros(1)
    assert "perceptual.net.weight" in convert_tokenizer(state, unused_prefixes=["perceptual."]).unused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda key: key.replace("encoder.", "coder."), "Is it the checkpoint of another model"),
        (lambda key: key.replace("generator.blocks.3.", "generator.blocks.90."), "another|order"),
        (lambda key: key.replace("encoder.blocks.3.conv", "encoder.blocks.3.norm1"), "order|fit"),
        (lambda key: key.replace("encoder.blocks.1.", "encoder.blocks.1.conv."), "without residual blocks"),
    ],
)
def test_another_architecture_is_refused(change, words):
    state, _ = small_state("3d")
    with pytest.raises(ValueError, match=words):
        convert_tokenizer({change(key): value for key, value in state.items()})


@pytest.mark.parametrize("names", [("frontal", "lateral"), ("lateral", "frontal")])
def test_sampler_computes_what_the_authors_does(names, generator):
    state = LAYOUT.sampler_state(**SAMPLER)
    conversion = convert_transformer(state, view_names=names)
    model = conversion.model
    assert (tuple(model.config.code_grid), tuple(model.config.context_grid)) == ((2, 2, 2), (3, 3))
    codes = torch.randint(0, SAMPLER["codes"] + 1, (3, 8), generator=generator)
    context = torch.randn(3, 2, 9, SAMPLER["emb"], generator=generator)
    expected = LAYOUT.reference_logits(state, codes, context.flatten(1, 2), num_heads=4)
    ours = context[:, [names.index(name) for name in model.view_names]]
    with torch.no_grad():
        logits = model(codes, context=ours).sample
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert sorted({*conversion.used, *conversion.unused}) == sorted(state)
    assert set(conversion.unused) == {"Lt_history", "Lt_count", "loss_history", "_denoise_fn.start_tok"}


def test_number_of_heads_and_grids_can_be_given(generator):
    state = LAYOUT.sampler_state(**{**SAMPLER, "block_size": 6 + 8})
    del state["Lt_history"]
    model = convert_transformer(
        state, num_heads=2, view_names=["frontal"], code_grid=(1, 2, 4), context_grid=(2, 3)
    ).model
    codes = torch.randint(0, SAMPLER["codes"], (1, 8), generator=generator)
    context = torch.randn(1, 1, 6, SAMPLER["emb"], generator=generator)
    with torch.no_grad():
        logits = model(codes, context=context).sample
    expected = LAYOUT.reference_logits(state, codes, context[:, 0], num_heads=2)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "removed", "arguments", "words"),
    [
        ({}, ["_denoise_fn.blocks.1.mlp.0.bias"], {}, r"missing keys: \['_denoise_fn.blocks.1.mlp.0.bias'\]"),
        ({}, ["Lt_history"], {}, "no Lt_history"),
        ({}, ["_denoise_fn.tok_emb.weight"], {}, "_denoise_fn.tok_emb.weight"),
        ({"volume_codes": 9}, [], {}, "code_grid is not given, and 9 positions"),
        ({}, [], {"view_names": ["frontal"]}, "context_grid is not given, and 18 positions"),
        ({}, [], {"context_grid": (3, 4)}, "do not add up"),
        ({}, [], {"view_names": ["frontal", "frontal"]}, "each named once"),
        ({}, [], {"num_heads": 5}, "num_heads=5"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(fields, removed, arguments, words):
    state = LAYOUT.sampler_state(**{**SAMPLER, **fields})
    for key in removed:
        del state[key]
    with pytest.raises(ValueError, match=words):
        convert_transformer(state, **arguments)


def test_unknown_keys_of_a_sampler_are_listed():
    with pytest.raises(ValueError, match=r"Unknown keys: \['_denoise_fn.blocks.0.attn.mask'\]"):
        convert_transformer({**LAYOUT.sampler_state(**SAMPLER), "_denoise_fn.blocks.0.attn.mask": torch.zeros(1)})


@pytest.mark.parametrize(("step", "probability"), [(0, 1 / 4), (1, 1 / 3), (2, 1 / 2), (3, 1.0)])
def test_scheduler_settles_codes_as_often_as_the_authors(step, probability, generator):
    """At step t = S ... 1 they settle each masked code with probability 1 / t."""
    scheduler = AbsorbingScheduler(mask_token_id=3, sampling="ancestral")
    scheduler.set_timesteps(4)
    masked = torch.full((1, 20000), 3)
    logits = torch.zeros(1, 20000, 3)
    after = scheduler.step(logits, scheduler.timesteps[step], masked, generator=generator).prev_sample
    assert float((after != 3).float().mean()) == pytest.approx(probability, abs=0.015)


def test_default_configs_have_the_authors_number_of_parameters():
    for fields, total in ((LAYOUT.DEFAULT_3D, 26_338_689), (LAYOUT.DEFAULT_2D, 65_808_001)):
        assert count(LAYOUT.autoencoder_state(**fields, device="meta")) == total
    buffers = 3 * 513
    assert count(LAYOUT.sampler_state(**LAYOUT.DEFAULT_SAMPLER, device="meta")) == 26_925_568 + buffers


def count(state, keys=None):
    return sum(state[key].numel() for key in (keys or state))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "unused"),
    [("DEFAULT_3D", (1, 1, 32, 48, 32), 516_096), ("DEFAULT_2D", (1, 1, 64, 48), 2_529_536)],
)
def test_default_autoencoders_convert(name, shape, unused, generator):
    state = LAYOUT.autoencoder_state(**getattr(LAYOUT, name))
    conversion = convert_tokenizer(state)
    assert count(state, conversion.unused) == unused
    assert sum(parameter.numel() for parameter in conversion.model.parameters()) == count(state) - unused
    check_outputs(conversion, state, torch.rand(shape, generator=generator))


@pytest.mark.slow
def test_default_sampler_converts(generator):
    state = LAYOUT.sampler_state(**LAYOUT.DEFAULT_SAMPLER)
    model = convert_transformer(state).model
    codes = torch.randint(0, 1025, (1, 512), generator=generator)
    context = torch.randn(1, 2, 256, 256, generator=generator)
    with torch.no_grad():
        logits = model(codes, context=context).sample
    expected = LAYOUT.reference_logits(state, codes, context.flatten(1, 2), num_heads=4)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_are_not_executed(legacy, tmp_path):
    mark = tmp_path / "executed"
    torch.save(
        {"a": torch.zeros(1), "b": Malicious(mark)}, tmp_path / "a.th", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(ValueError, match="without executing"):
        read_state_dict(tmp_path / "a.th")
    (tmp_path / "b.th").write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    with pytest.raises(ValueError, match="without executing"):
        read_state_dict(tmp_path / "b.th")
    assert not mark.exists()


def test_only_tensors_by_name_are_read(tmp_path):
    state = {"a": torch.arange(3.0)}
    torch.save(state, tmp_path / "a.th")
    assert torch.equal(read_state_dict(tmp_path / "a.th")["a"], state["a"])
    for content, words in (
        ([torch.zeros(1)], "found list"),
        ({"model": state}, r"no tensors: \['model'\]"),
        ({}, "dict"),
    ):
        torch.save(content, tmp_path / "b.th")
        with pytest.raises(ValueError, match=words):
            read_state_dict(tmp_path / "b.th")
    (tmp_path / "c.th").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="save model"):
        read_state_dict(tmp_path / "c.th")
    with pytest.raises(ValueError, match="no such file"):
        read_state_dict(tmp_path / "d.th")
