"""The VQ tokenizer, in two and three dimensions."""

import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_tokenizers import AUTHORS, SMALL
from transformers import AutoConfig, AutoModel, BertConfig

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.models import load_tokenizer
from hf_vq.models.vq_tokenizer_blocks import depth_to_space

CASES = {
    "2d": ({"spatial_dims": 2, **SMALL}, (2, 1, 16, 24), (4, 6)),
    "3d": ({"spatial_dims": 3, **SMALL}, (2, 1, 8, 12, 16), (2, 3, 4)),
    "3d, full-resolution stem": ({"spatial_dims": 3, **SMALL, "stem_stride": 1}, (1, 1, 4, 8, 6), (2, 4, 3)),
    "2d, attention": (
        {"spatial_dims": 2, **SMALL, "attention_levels": [1], "mid_attention": True, "in_channels": 3},
        (2, 3, 8, 8),
        (2, 2),
    ),
    "3d, strides": (
        {"spatial_dims": 3, **SMALL, "level_strides": [3], "stem_stride": 4},
        (1, 1, 12, 12, 24),
        (1, 1, 2),
    ),
    "2d, nearest resampling": (
        {"spatial_dims": 2, **SMALL, "stem_stride": 1, "resampling": "nearest", "channel_multipliers": [2, 1, 3]},
        (2, 1, 8, 12),
        (2, 3),
    ),
    "3d, as the ICCV 2023 authors": (
        {"spatial_dims": 3, **SMALL, **AUTHORS, "attention_levels": [1]},
        (1, 1, 4, 8, 6),
        (2, 4, 3),
    ),
    "2d, depthwise blocks, no output activation": (
        {"spatial_dims": 2, **SMALL, "encoder_block_type": "depthwise", "output_activation": None},
        (2, 1, 8, 8),
        (2, 2),
    ),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    fields, shape, grid = CASES[request.param]
    torch.manual_seed(0)
    return VQTokenizer(VQTokenizerConfig(**fields)).eval(), torch.randn(shape), grid


def test_shapes(case):
    model, pixel_values, grid = case
    assert model.encode(pixel_values).codes.shape == (len(pixel_values), *grid)
    assert model.code_grid(pixel_values.shape[2:]) == grid
    assert model(pixel_values).sample.shape == pixel_values.shape


@pytest.mark.parametrize("training", [True, False])
def test_forward_composes_encode_and_decode(case, training):
    model, pixel_values, _ = case
    model.train()
    model(pixel_values)  # initialises the codebook
    model.train(training)
    output = model(pixel_values)
    assert torch.equal(model.encode(pixel_values).codes, output.codes)
    torch.testing.assert_close(model.decode(output.codes).sample, output.sample)


def test_save_and_load_keeps_outputs_and_codebook_state(case, tmp_path):
    model, pixel_values, _ = case
    model.train()
    model(pixel_values)
    model.eval().save_pretrained(tmp_path)
    loaded, info = VQTokenizer.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not loaded.training
    assert bool(loaded.quantizer.codebook.initialized)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        assert loaded.state_dict()[name].dtype == value.dtype
    assert torch.equal(loaded(pixel_values).sample, model(pixel_values).sample)
    assert isinstance(AutoModel.from_pretrained(tmp_path), VQTokenizer)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()


def test_half_precision_load_keeps_codes_and_counters(tmp_path):
    model = VQTokenizer(VQTokenizerConfig(**CASES["2d"][0])).train()
    model(torch.randn(CASES["2d"][1]))
    model.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.quantizer.codebook.num_batches.dtype == torch.int64
    assert loaded.quantizer.codebook.initialized.dtype == torch.bool
    assert torch.equal(loaded.quantizer.codebook.weight, model.quantizer.codebook.weight)
    codes = torch.arange(16).view(1, 4, 4)
    assert loaded.embed_codes(codes).dtype == loaded.decode(codes).sample.dtype == torch.bfloat16
    output = loaded(torch.randn(CASES["2d"][1], dtype=torch.bfloat16))
    assert output.sample.dtype == torch.bfloat16
    assert torch.isfinite(output.loss)


def test_missing_weights_are_initialised_like_a_new_model(tmp_path):
    model = VQTokenizer(VQTokenizerConfig(**CASES["3d"][0]))
    model.save_pretrained(tmp_path, state_dict={"encoder.conv_out.bias": model.encoder.conv_out.bias})
    loaded = VQTokenizer.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.isfinite(value.float()).all(), name
    assert not bool(loaded.quantizer.codebook.initialized)
    assert int(loaded.quantizer.codebook.num_batches) == 0
    assert float(loaded.quantizer.codebook.weight.detach().abs().max()) <= 1 / 16


def test_gradients_reach_every_parameter(case):
    model, pixel_values, _ = case
    model.train()
    model(pixel_values).loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = VQTokenizer(VQTokenizerConfig(**CASES["2d, attention"][0])).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(torch.ones(CASES["2d, attention"][1])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


@pytest.mark.parametrize("name", ["2d, attention", "3d", "3d, as the ICCV 2023 authors"])
def test_gradient_checkpointing_keeps_less_for_the_backward_pass(name):
    kept = []
    for checkpointing in (False, True):
        model = VQTokenizer(VQTokenizerConfig(**CASES[name][0])).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        kept.append(0)

        def note(tensor):
            kept[-1] += tensor.nbytes if tensor.grad_fn is not None else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(torch.randn(CASES[name][1]))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("name", ["2d", "2d, attention", "2d, nearest resampling", "3d"])
def test_channels_last_changes_no_result_and_no_block_leaves_it(name):
    fields, shape, _ = CASES[name]
    torch.manual_seed(0)
    model = VQTokenizer(VQTokenizerConfig(**{**fields, "in_channels": 3})).eval()
    pixel_values = torch.randn(shape[0], 3, *shape[2:])
    expected = model(pixel_values)
    memory_format = torch.channels_last if fields["spatial_dims"] == 2 else torch.channels_last_3d
    model.to(memory_format=memory_format)
    formats = []
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        block.register_forward_hook(lambda *parts: formats.append(parts[-1].is_contiguous(memory_format=memory_format)))
    output = model(pixel_values.contiguous(memory_format=memory_format))
    assert formats and all(formats)
    torch.testing.assert_close(output.sample, expected.sample)
    assert torch.equal(output.codes, expected.codes)


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model = VQTokenizer(VQTokenizerConfig(**CASES["2d"][0])).train()
    pixel_values = torch.randn(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        output = model(pixel_values)
        output.loss.backward()
        optimizer.step()
        losses.append(output.reconstruction_loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_charbonnier_is_l1_far_from_zero_and_smooth_at_it():
    model = VQTokenizer(VQTokenizerConfig(**{**CASES["2d"][0], "reconstruction_loss": "charbonnier"}))
    target = torch.zeros(4)
    torch.testing.assert_close(model.reconstruction_loss(target, target), torch.tensor(1e-3))  # epsilon
    sample = torch.tensor([3e-3, -4e-3, 0.0, 2.0])
    distances = [1e-3 * math.sqrt(3**2 + 1), 1e-3 * math.sqrt(4**2 + 1), 1e-3, math.sqrt(4 + 1e-6)]
    torch.testing.assert_close(model.reconstruction_loss(sample, target), torch.tensor(sum(distances) / 4))
    sample = target.clone().requires_grad_()
    model.reconstruction_loss(sample, target).backward()
    assert bool((sample.grad == 0).all())


def test_groups_follow_the_width():
    config = VQTokenizerConfig(num_norm_groups=None, base_channels=16, channel_multipliers=[1, 2, 4])
    model = VQTokenizer(config)
    groups = {norm.num_channels: norm.num_groups for norm in model.modules() if isinstance(norm, torch.nn.GroupNorm)}
    assert groups == {16: 1, 32: 1, 64: 32}


def test_config_without_the_newer_fields_means_their_defaults():
    config = VQTokenizerConfig(**SMALL)
    fields = {name: value for name, value in config.to_dict().items() if name not in {*AUTHORS} - {"stem_stride"}}
    assert VQTokenizerConfig.from_dict({**fields, "num_norm_groups": 4}).to_dict() == config.to_dict()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_depth_to_space_matches_its_definition(spatial_dims, channels_last):
    tensor = torch.randn(2, 3 * 2**spatial_dims, *[4] * spatial_dims)
    memory_format = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    if channels_last:
        tensor = tensor.contiguous(memory_format=memory_format)
    output = depth_to_space(tensor, 2, spatial_dims)
    assert output.is_contiguous(memory_format=memory_format if channels_last else torch.contiguous_format)
    if spatial_dims == 2:
        assert torch.equal(output, torch.nn.functional.pixel_shuffle(tensor, 2))
    coarse, fine = (1, 3, 2)[:spatial_dims], (1, 0, 1)[:spatial_dims]
    index = tuple(2 * c + f for c, f in zip(coarse, fine, strict=True))
    offset = sum(f * 2 ** (spatial_dims - 1 - axis) for axis, f in enumerate(fine))
    for channel in range(3):
        assert torch.equal(
            output[(slice(None), channel, *index)], tensor[(slice(None), channel * 2**spatial_dims + offset, *coarse)]
        )


def test_config_is_json_and_round_trips(tmp_path):
    config = VQTokenizerConfig(**CASES["3d, strides"][0])
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantizer"]["codebook_size"] == 16
    assert VQTokenizerConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"spatial_dims": 1}, "spatial_dims=1"),
        ({"reconstruction_loss": "ssim"}, "reconstruction_loss='ssim'"),
        ({"channel_multipliers": []}, "at least one level"),
        ({"level_strides": [2, 2]}, "level_strides"),
        ({"num_norm_groups": 3}, "num_norm_groups=3"),
        ({"num_norm_groups": 0}, "num_norm_groups=0"),
        ({"num_norm_groups": None, "channel_multipliers": [1, 5]}, "num_norm_groups=None: 32 groups"),
        ({"encoder_block_type": "dense"}, "encoder_block_type='dense'"),
        ({"resampling": "linear"}, "resampling='linear'"),
        ({"resampling": "nearest"}, "stem_stride=2"),
        ({"resampling": "nearest", "stem_stride": 1, "level_strides": [3]}, r"level_strides=\[3\]"),
        ({"output_activation": "tanh"}, "output_activation='tanh'"),
        ({"latent_kernel_size": 2}, "latent_kernel_size=2"),
        ({"attention_levels": [2]}, r"attention_levels \[2\]"),
        ({"quantizer": {"codebook_sise": 4}}, "codebook_sise"),
        ({"quantizer": {"codebook_size": 1}}, "codebook_size=1"),
        ({"quantizer": {"channel_last": True}}, "channel_last"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        VQTokenizerConfig(**{**SMALL, **fields})


def test_only_a_whole_tokenizer_of_the_wanted_dimension_is_loaded(tmp_path):
    model = VQTokenizer(VQTokenizerConfig(**CASES["2d"][0]))
    model.save_pretrained(tmp_path / "whole")
    assert not load_tokenizer(tmp_path / "whole", 2).training
    with pytest.raises(ValueError, match="2D tokenizer; expected a 3D one"):
        load_tokenizer(tmp_path / "whole", 3)
    model.save_pretrained(tmp_path / "part", state_dict={"encoder.conv_out.bias": model.encoder.conv_out.bias})
    with pytest.raises(ValueError, match="lacks weights"):
        load_tokenizer(tmp_path / "part", 2)
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="type 'bert'"):
        load_tokenizer(tmp_path / "other", 2)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 1, 8, 8), r"\(B, 1, D, H, W\)"),
        ((1, 2, 8, 8, 8), r"\(1, 2, 8, 8, 8\)"),
        ((1, 1, 8, 8, 10), "multiples of 4"),
    ],
)
def test_bad_shapes_are_named(shape, words):
    model = VQTokenizer(VQTokenizerConfig(**CASES["3d"][0]))
    with pytest.raises(ValueError, match=words):
        model(torch.zeros(shape))
    with pytest.raises(ValueError, match="grid axes"):
        model.decode(torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    ("quantizer", "axes"),
    [
        ({"quantizer_type": "finite_scalar", "levels": [4, 3]}, ()),
        ({"quantizer_type": "lookup_free", "codebook_dim": 5}, ()),
        ({"codebook_size": 16, "codebook_dim": 4, "structure": "grouped", "num_codebooks": 2}, (2,)),
        ({"codebook_size": 16, "codebook_dim": 4, "structure": "residual", "num_codebooks": 3}, (3,)),
        ({"codebook_size": 16, "codebook_dim": 4, "parameterization": "affine"}, ()),
        ({"codebook_size": 16, "codebook_dim": 4, "parameterization": "plain", "sync_weight": 0, "update": "ema"}, ()),
    ],
)
def test_every_quantizer_trains_saves_and_decodes_its_codes(quantizer, axes, spatial_dims, tmp_path):
    config = VQTokenizerConfig(spatial_dims=spatial_dims, base_channels=8, quantizer=quantizer)
    model, pixel_values = VQTokenizer(config).train(), torch.randn(2, 1, *[8] * spatial_dims)
    output = model(pixel_values)
    output.loss.backward()
    assert output.codes.shape == (2, *axes, *[2] * spatial_dims)
    assert all(torch.isfinite(p.grad).all() for p in model.encoder.parameters())
    model.eval().save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path)
    codes = loaded.encode(pixel_values).codes
    assert torch.equal(codes, model.encode(pixel_values).codes)
    assert torch.equal(loaded.decode(codes).sample, model.decode(codes).sample)
    torch.testing.assert_close(loaded.decode(codes).sample, loaded(pixel_values).sample)


@pytest.mark.parametrize("mid_attention", [False, True])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_encoder_has_as_many_blocks_in_its_middle_as_asked_for(blocks, mid_attention):
    fields = {"base_channels": 8, "channel_multipliers": [1], "num_res_blocks": 1, "mid_attention": mid_attention}
    models = [VQTokenizer(VQTokenizerConfig(**fields, encoder_mid_blocks=count)).eval() for count in (blocks, 2)]
    kinds = [[type(block).__name__ for block in model.encoder.blocks] for model in models]
    assert kinds[0].count("VQTokenizerResidualBlock") == 1 + blocks
    assert kinds[0].count("VQTokenizerAttentionBlock") == int(mid_attention)
    decoders = [[type(block).__name__ for block in model.decoder.blocks] for model in models]
    assert decoders[0] == decoders[1]
    assert models[0].encode(torch.zeros(1, 1, 8, 8, 8)).codes.shape == (1, 4, 4, 4)


def test_number_of_blocks_in_the_middle_is_checked():
    with pytest.raises(StrictDataclassError, match="encoder_mid_blocks=-1 must lie in 0 to 16"):
        VQTokenizerConfig(encoder_mid_blocks=-1)
