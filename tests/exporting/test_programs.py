"""Programs of torch.export give what their model gives, for any batch."""

import pytest
import torch
from tiny_exports import TRANSFORMER, untrained_transformer

from hf_vq import VQForImageClassification, VQImageClassifierConfig, VQTokenizer, VQTokenizerConfig
from hf_vq.exporting import export_programs
from hf_vq.exporting.graphs import model_graphs
from hf_vq.exporting.parity import run_graph

TOKENIZER = {"base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1, "quantizer": {"codebook_dim": 4}}
TOKENIZERS = {
    "2d": {"spatial_dims": 2, "attention_levels": [1]},
    "3d": {"spatial_dims": 3, "mid_attention": True},
    "published": {
        "spatial_dims": 2,
        "stem_stride": 1,
        "resampling": "nearest",
        "encoder_block_type": "depthwise",
        "output_activation": None,
    },
    "residual": {
        "spatial_dims": 2,
        "quantizer": {"codebook_size": 8, "codebook_dim": 4, "structure": "residual", "num_codebooks": 2},
    },
    "finite scalar": {"spatial_dims": 3, "quantizer": {"quantizer_type": "finite_scalar", "levels": [4, 3, 3]}},
    "lookup-free": {"spatial_dims": 2, "quantizer": {"quantizer_type": "lookup_free", "codebook_dim": 5}},
}
TRANSFORMERS = {
    "full": {"position_embedding": "axial_rotary", "context_dropout": 0.1},
    "learned": {"position_embedding": "learned"},
    "prefix": {"context_attention": "prefix", "view_dropout": 0.1, "num_classes": 3},
    "causal": {"context_attention": "prefix", "causal": True, "code_order": list(reversed(range(24)))},
    "images": {"code_grid": (3, 4), "context_dim": None, "num_classes": 3},
}
TOLERANCE = {"rtol": 0, "atol": 1e-4}


def make_tokenizer(name):
    torch.manual_seed(0)
    model = VQTokenizer(VQTokenizerConfig(**{**TOKENIZER, **TOKENIZERS[name]}))
    if hasattr(model.quantizer, "all_codebooks"):
        model(torch.randn(8, 1, *[16] * model.config.spatial_dims))  # in training mode: places the codes
    return model


def make_transformer(name):
    return untrained_transformer(**{**TRANSFORMER, **TRANSFORMERS[name]})


def assert_programs_agree(model, batch_size, **fields):
    programs = export_programs(model, **fields)
    graphs = model_graphs(model, **fields)
    assert list(programs) == [graph.name for graph in graphs]
    for graph in graphs:
        inputs = graph.make_inputs(batch_size, torch.Generator().manual_seed(batch_size))
        outputs = programs[graph.name].module()(**inputs)
        outputs = dict(zip(graph.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
        torch.testing.assert_close(outputs, run_graph(graph, inputs), **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_export(name):
    model = make_tokenizer(name)
    assert model.training
    assert_programs_agree(model, 3)
    assert all(part.training for part in model.modules())  # it stays as it was


@pytest.mark.parametrize(
    "name", ["prefix", *(pytest.param(name, marks=pytest.mark.slow) for name in TRANSFORMERS if name != "prefix")]
)
def test_transformers_export(name):
    assert_programs_agree(make_transformer(name), 3)


@pytest.mark.slow
def test_a_program_takes_inputs_of_any_size_unless_it_is_fixed():
    model = make_tokenizer("2d")
    free, fixed = export_programs(model), export_programs(model, spatial=(8, 16))
    for batch_size, sides in ((1, (8, 16)), (5, (24, 8))):
        pixels = torch.randn(batch_size, 1, *sides)
        with torch.no_grad():
            codes, latents, embeddings = free["encoder"].module()(pixel_values=pixels)
            encoded = model.encode(pixels)
            assert torch.equal(codes, encoded.codes)
            torch.testing.assert_close(latents, encoded.latents, **TOLERANCE)
            torch.testing.assert_close(embeddings, model.embed_codes(codes), **TOLERANCE)
            sample = free["decoder"].module()(codes=codes)
            torch.testing.assert_close(sample, model.decode(codes).sample, **TOLERANCE)
    assert fixed["encoder"].module()(pixel_values=torch.randn(3, 1, 8, 16))[0].shape == (3, 2, 4)
    with pytest.raises((RuntimeError, AssertionError)):
        fixed["encoder"].module()(pixel_values=pixels)


@pytest.mark.slow
def test_a_graph_holds_the_weights_that_it_needs():
    model = make_tokenizer("2d")
    programs = export_programs(model)
    assert not any("decoder" in name for name in programs["encoder"].state_dict)
    assert not any("encoder" in name for name in programs["decoder"].state_dict)


@pytest.mark.slow
def test_context_of_the_exported_encoders_is_what_the_transformer_sees():
    model = make_transformer("prefix")
    programs = export_programs(model)
    context, codes = torch.randn(3, 2, 24, 5), torch.randint(12, (3, 24))
    mask, labels = torch.tensor([[True, True], [True, False], [False, True]]), torch.tensor([0, -1, 2])
    keys, values = programs["context_encoder"].module()(context=context, view_mask=mask)
    found = programs["transformer"].module()(
        sample=codes, context_keys=keys, context_values=values, view_mask=mask, class_labels=labels
    )
    expected = model.eval()(codes, context, view_mask=mask, class_labels=labels).sample
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_what_cannot_be_exported_is_named():
    with pytest.raises(ValueError, match="found a VQForImageClassification"):
        export_programs(VQForImageClassification(VQImageClassifierConfig()))
    with pytest.raises(ValueError, match=r"torch\.bfloat16, expected torch\.float32"):
        export_programs(make_tokenizer("2d").to(torch.bfloat16))
    with pytest.raises(ValueError, match="multiples of 4"):
        export_programs(make_tokenizer("2d"), spatial=(8, 10))
    with pytest.raises(ValueError, match=r"spatial=\(8, 8\) is given for a transformer"):
        export_programs(make_transformer("full"), spatial=(8, 8))
