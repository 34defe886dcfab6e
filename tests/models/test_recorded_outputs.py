"""Hidden states, attention maps and the first convolution, as tools for transformers' models ask for them."""

import pytest
import torch
from torch import nn

from hf_vq import VQForImageClassification, VQImageClassifierConfig, VQTokenizer, VQTokenizerConfig
from hf_vq.models.pretrained import float_state

SIZE = 24
BACKBONES = {
    "alexnet": {
        "channels": [4, 6, 8, 6, 4],
        "stem_kernel_size": 3,
        "stem_stride": 1,
        "pooled_size": 1,
        "hidden_size": 8,
    },
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 2]},
    "vit": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "patch_size": 8,
    },
}
# backbone -> shapes of the hidden states of one image
CLASSIFIER_STATES = {
    "alexnet": [(4, 12, 12), (6, 5, 5), (8, 5, 5), (6, 5, 5), (4, 2, 2)],
    "resnet": [(4, 6, 6), (4, 6, 6), (6, 3, 3)],
    "vit": [(10, 8)] * 3,
}
# spatial_dims -> sides, and shapes of the hidden states of one input: stem, encoder (a block in each of two levels;
# block, attention, block in the middle), decoder (the same three; the levels in the other order)
TOKENIZER_STATES = {
    2: ((8, 16), [(4, 4, 8)] * 2 + [(8, 2, 4)] * 8 + [(4, 4, 8)]),
    3: ((4, 8, 8), [(4, 2, 4, 4)] * 2 + [(8, 1, 2, 2)] * 8 + [(4, 2, 4, 4)]),
}


def classifier(backbone, **options):
    torch.manual_seed(0)
    config = VQImageClassifierConfig(
        backbone=backbone,
        backbone_config=BACKBONES[backbone],
        image_size=SIZE,
        num_labels=3,
        quantizer={"codebook_size": 8},
        **options,
    )
    return VQForImageClassification(config).eval(), torch.randn(2, 3, SIZE, SIZE)


def tokenizer(spatial_dims=2, **options):
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        spatial_dims=spatial_dims,
        base_channels=4,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        num_norm_groups=2,
        mid_attention=True,
        quantizer={"codebook_size": 8, "codebook_dim": 4},
        **options,
    )
    return VQTokenizer(config).eval(), torch.randn(2, 1, *TOKENIZER_STATES[spatial_dims][0])


MODELS = {
    **{f"tokenizer, {n}D": (lambda n=n, **options: tokenizer(n, **options)) for n in (2, 3)},
    **{f"{name} classifier": (lambda name=name, **options: classifier(name, **options)) for name in BACKBONES},
}
SHAPES = {
    **{f"tokenizer, {n}D": TOKENIZER_STATES[n][1] for n in (2, 3)},
    **{f"{name} classifier": CLASSIFIER_STATES[name] for name in BACKBONES},
}
WITH_ATTENTION = [name for name in MODELS if "tokenizer" in name or "vit" in name]


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def test_hidden_states_are_recorded_when_asked_for_and_change_nothing(name):
    model, pixel_values = MODELS[name]()
    plain = model(pixel_values)
    output = model(pixel_values, output_hidden_states=True)
    assert "hidden_states" not in plain
    assert [tuple(state.shape[1:]) for state in output.hidden_states] == SHAPES[name]
    assert all(torch.equal(output[key], value) for key, value in plain.items())
    model.config.output_hidden_states = True
    assert len(model(pixel_values).hidden_states) == len(SHAPES[name])


def test_chosen_hidden_states_are_those_of_the_full_list(name):
    model, pixel_values = MODELS[name]()
    states = model(pixel_values, output_hidden_states=True).hidden_states
    chosen = model(pixel_values, output_hidden_states=[0, 2]).hidden_states
    assert [state is None for state in chosen] == [index not in (0, 2) for index in range(len(states))]
    assert torch.equal(chosen[0], states[0])
    assert torch.equal(chosen[2], states[2])


def test_hidden_states_are_inside_the_graph(name):
    model, pixel_values = MODELS[name]()
    output = model(pixel_values, output_hidden_states=True)
    output.hidden_states[0].retain_grad()
    output[0].flatten()[0].backward()
    assert output.hidden_states[0].grad.abs().sum() > 0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_classifier_s_state_at_the_quantizer_is_what_it_gets(backbone):
    model, pixel_values = classifier(backbone)
    states = model(pixel_values, output_hidden_states=True).hidden_states
    latents = model.encode_latents(pixel_values)
    state = states[model.depth][:, 1:] if backbone == "vit" else states[model.depth - 1]
    assert torch.equal(state, latents)


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_maps_are_rows_of_shares_and_eager_attention_computes_the_same(name):
    fast, pixel_values = MODELS[name]()
    eager, _ = MODELS[name](attn_implementation="eager")
    output = eager(pixel_values, output_attentions=True)
    tokens = 10 if "vit" in name else 8 if "2D" in name else 4
    heads = 2 if "vit" in name else 1
    assert [tuple(maps.shape) for maps in output.attentions] == [(2, heads, tokens, tokens)] * 2
    for maps in output.attentions:
        torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, heads, tokens))
    assert fast.config._attn_implementation == "sdpa"
    expected = fast(pixel_values)
    torch.testing.assert_close(eager(pixel_values).to_tuple(), expected.to_tuple())
    fast.set_attn_implementation("eager")
    assert torch.equal(fast(pixel_values, output_attentions=True).attentions[0], output.attentions[0])


def test_the_input_embedding_is_the_convolution_that_sees_the_input(name):
    model, pixel_values = MODELS[name]()
    seen = []
    convolution = model.get_input_embeddings()
    assert isinstance(convolution, nn.Conv2d | nn.Conv3d)
    convolution.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(pixel_values)
    assert torch.equal(seen[0], pixel_values)
    replacement = nn.Identity()
    model.set_input_embeddings(replacement)
    assert model.get_input_embeddings() is replacement
    assert convolution not in list(model.modules())


def test_float_state_names_saved_floats_alone():
    model = tokenizer()[0]
    model.quantizer.register_buffer("scratch", torch.zeros(2), persistent=False)
    names = float_state(model.quantizer, "quantizer")
    parameters = [
        f"quantizer.codebook.{name}" for name in ("weight", "parameterization.gamma", "parameterization.shift")
    ]
    assert names == parameters
    assert float_state(None, "quantizer") == []
