"""Models compiled into one graph give what they give in eager mode."""

import shutil

import pytest
import torch
from tiny_exports import TRANSFORMER, untrained_transformer

from hf_vq import VQTokenizer, VQTokenizerConfig


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


QUANTIZERS = {
    "affine": {"codebook_size": 16, "codebook_dim": 4},
    "plain": {"codebook_size": 16, "codebook_dim": 4, "parameterization": "plain"},
    "running": {"codebook_size": 16, "codebook_dim": 4, "parameterization": "affine_running"},
    "linear, cosine": {"codebook_size": 16, "codebook_dim": 4, "parameterization": "linear", "distance": "cosine"},
    "grouped": {"codebook_size": 16, "codebook_dim": 4, "structure": "grouped", "num_codebooks": 2},
    "residual": {"codebook_size": 16, "codebook_dim": 4, "structure": "residual", "num_codebooks": 2},
    "finite scalar": {"quantizer_type": "finite_scalar", "levels": [4, 3]},
    "lookup-free": {"quantizer_type": "lookup_free", "codebook_dim": 5},
    "spherical": {"quantizer_type": "lookup_free", "codebook_dim": 5, "spherical": True},
}
SLOW_QUANTIZERS = ["plain", "running", "linear, cosine", "grouped", "lookup-free", "spherical"]
ARCHITECTURES = {
    "2d": {"spatial_dims": 2, "attention_levels": [1]},
    "3d": {"spatial_dims": 3, "mid_attention": True},
    "2d, published": {
        "spatial_dims": 2,
        "stem_stride": 1,
        "resampling": "nearest",
        "encoder_block_type": "depthwise",
        "output_activation": None,
        "latent_kernel_size": 3,
    },
}
CASES = [
    ("axial", "full"),
    ("axial_rotary", "prefix"),
    slow("axial", "prefix"),
    slow("axial_rotary", "full"),
    slow("learned", "full"),
    slow("learned", "prefix"),
]
TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()  # it stops compiling a function anew after a few models


def make_tokenizer(quantizer="affine", architecture="2d"):
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        base_channels=8,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        quantizer=QUANTIZERS[quantizer],
        **ARCHITECTURES[architecture],
    )
    model = VQTokenizer(config)
    if "codebook_size" in QUANTIZERS[quantizer]:
        model(pixels(model, 4))  # in training mode: places the codes among the outputs
    return model.eval()


def pixels(model, batch_size=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, 1, *[8] * model.config.spatial_dims, generator=generator)


def make_transformer(position_embedding, context_attention, **fields):
    chosen = {"position_embedding": position_embedding, "context_attention": context_attention, **fields}
    return untrained_transformer(**{**TRANSFORMER, **chosen}).eval()


def transformer_inputs(batch_size=2):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 12, (batch_size, 24), generator=generator)
    return codes, torch.randn(batch_size, 2, 24, 5, generator=generator)


def assert_tokenizer_compiles(model, backend):
    encode = torch.compile(model.encode, backend=backend, fullgraph=True)
    decode = torch.compile(model.decode, backend=backend, fullgraph=True)
    with torch.no_grad():
        expected, found = model.encode(pixels(model)), encode(pixels(model))
        torch.testing.assert_close(found.latents, expected.latents, **TOLERANCE)
        assert torch.equal(found.codes, expected.codes)
        sample = model.decode(expected.codes).sample
        assert sample.abs().max() > 1e-2  # so the tolerance tells something
        torch.testing.assert_close(decode(expected.codes).sample, sample, **TOLERANCE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokenizers_compile_into_one_graph(architecture):
    assert_tokenizer_compiles(make_tokenizer(architecture=architecture), "eager")


@pytest.mark.parametrize("quantizer", ["residual", "finite scalar", *(slow(name) for name in SLOW_QUANTIZERS)])
def test_tokenizers_compile_with_every_quantizer(quantizer):
    assert_tokenizer_compiles(make_tokenizer(quantizer), "eager")


@pytest.mark.slow
def test_a_compiled_tokenizer_takes_batches_of_any_size_by_one_graph():
    model = make_tokenizer()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    encode = torch.compile(model.encode, backend=count, fullgraph=True, dynamic=True)
    decode = torch.compile(model.decode, backend=count, fullgraph=True, dynamic=True)
    for batch_size in (3, 2, 5):  # the first unlike the sides of the grid, which would be taken for the same number
        with torch.no_grad():
            codes = encode(pixels(model, batch_size)).codes
            assert torch.equal(codes, model.encode(pixels(model, batch_size)).codes)
            torch.testing.assert_close(decode(codes).sample, model.decode(codes).sample, **TOLERANCE)
    assert len(graphs) == 2


def test_codes_out_of_range_are_refused_in_eager_mode_only():
    model, codes = make_tokenizer(), torch.full((1, 2, 2), 16)
    with pytest.raises(ValueError, match=r"\[0, 16\)"):
        model.decode(codes)
    torch.compile(model.decode, backend="eager", fullgraph=True)(codes - 1)


def test_a_whole_reconstruction_compiles_into_one_graph():
    model = make_tokenizer()
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(pixels(model))
        torch.testing.assert_close(dict(found), dict(model(pixels(model))))


@pytest.mark.parametrize(("position_embedding", "context_attention"), CASES)
def test_transformers_compile_into_one_graph(position_embedding, context_attention):
    model = make_transformer(position_embedding, context_attention)
    codes, context = transformer_inputs()
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(codes, context).sample
        torch.testing.assert_close(found, model(codes, context).sample, **TOLERANCE)


@pytest.mark.parametrize("position_embedding", ["axial", slow("axial_rotary"), slow("learned")])
def test_transformers_compile_with_the_views_computed_once(position_embedding):
    model = make_transformer(position_embedding, "prefix", context_dropout=0.1, num_classes=3)
    codes, context = transformer_inputs()
    mask, labels = torch.tensor([[True, False], [True, True]]), torch.tensor([-1, 2])
    with torch.no_grad():
        encode = torch.compile(model.encode_context, backend="eager", fullgraph=True)
        key_values = encode(context, view_mask=mask)
        arguments = {"context_key_values": key_values, "view_mask": mask, "class_labels": labels}
        found = torch.compile(model, backend="eager", fullgraph=True)(codes, **arguments).sample
        expected = model(codes, context, view_mask=mask, class_labels=labels).sample
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.slow
def test_a_causal_transformer_compiles_into_one_graph():
    model = make_transformer("axial", "prefix", causal=True, code_order=list(reversed(range(24))))
    codes, context = transformer_inputs()
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(codes, context).sample
        torch.testing.assert_close(found, model(codes, context).sample, **TOLERANCE)


def train(model, step, num_steps=4):
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=1e-2), []
    for index in range(num_steps):
        batch = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(index))
        loss = step(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.slow
def test_training_steps_run_compiled():
    # The codebook places codes by their values, so there are several graphs with python between them.
    losses, states = [], []
    for backend in (None, "aot_eager"):
        torch.manual_seed(0)
        quantizer = {"codebook_size": 16, "codebook_dim": 4, "replace_after": 2, "codebook_lr_scale": 1.0}
        model = VQTokenizer(VQTokenizerConfig(spatial_dims=2, base_channels=8, num_res_blocks=1, quantizer=quantizer))
        model.train()
        losses.append(train(model, model if backend is None else torch.compile(model, backend=backend)))
        states.append(model.state_dict())
    assert int(states[0]["quantizer.codebook.num_batches"]) == 4
    torch.testing.assert_close(losses[1], losses[0], **TOLERANCE)
    torch.testing.assert_close(states[1], states[0], **TOLERANCE)


@pytest.mark.slow
def test_a_training_step_of_the_transformer_compiles_into_one_graph():
    model = make_transformer("axial", "full").train()
    codes, context = transformer_inputs()

    def gradients(function):
        model.zero_grad()
        torch.nn.functional.cross_entropy(
            function(codes, context).sample.flatten(0, 1), codes.flatten() % 11
        ).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    found = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(found, gradients(model), **TOLERANCE)


needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler"
)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["2d", "3d"])
def test_tokenizers_compile_to_machine_code(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert_tokenizer_compiles(make_tokenizer(architecture=architecture), "inductor")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_transformers_compile_to_machine_code(context_attention, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = make_transformer("axial_rotary", context_attention)
    codes, context = transformer_inputs()
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True)(codes, context).sample
        torch.testing.assert_close(found, model(codes, context).sample, **TOLERANCE)
