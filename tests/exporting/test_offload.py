"""Weights that are elsewhere until they are needed: accelerate's hooks, as diffusers and transformers attach them."""

import itertools

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from tiny_exports import OF_PIPELINES, TOKENIZER, untrained_transformer

from hf_vq import (
    AbsorbingScheduler,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.quantizers import VectorQuantizer

QUANTIZERS = {
    "affine": {"codebook_size": 11, "codebook_dim": 4},
    "running": {"codebook_size": 11, "codebook_dim": 4, "parameterization": "affine_running"},
    "linear": {"codebook_size": 11, "codebook_dim": 4, "parameterization": "linear"},
    "residual": {"codebook_size": 11, "codebook_dim": 4, "structure": "residual", "num_codebooks": 2},
    "finite scalar": {"quantizer_type": "finite_scalar", "levels": [4, 3, 3, 3]},
}


def make_tokenizer(spatial_dims=2, quantizer="affine"):
    torch.manual_seed(0)
    model = VQTokenizer(VQTokenizerConfig(spatial_dims=spatial_dims, quantizer=QUANTIZERS[quantizer], **TOKENIZER))
    if isinstance(model.quantizer, VectorQuantizer):
        model(torch.randn(4, 1, *[8] * spatial_dims))  # in training mode: places the codes among the outputs
    return model.eval()


def make_transformer(position_embedding="axial", context_attention="full", **fields):
    chosen = {"position_embedding": position_embedding, "context_attention": context_attention, **fields}
    return untrained_transformer(**{**OF_PIPELINES, **chosen}).eval()


def make_pipeline(context_attention="full"):
    pipeline = ViewsToVolumePipeline(
        volume_tokenizer=make_tokenizer(3),
        view_tokenizer=make_tokenizer(2),
        transformer=make_transformer(context_attention=context_attention),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=[8, 12, 16], spacing=[4.0, 3.0, 2.0]),
        view_processor=XrayImageProcessor(size={"height": 16, "width": 16}),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline):
    views = {
        name: torch.rand(16, 16, generator=torch.Generator().manual_seed(seed)).numpy()
        for seed, name in enumerate(("frontal", "lateral"))
    }
    generator = torch.Generator().manual_seed(0)
    return pipeline(views, num_inference_steps=4, generator=generator, output_type="pt").volumes


def is_away(model):
    return all(parameter.device.type == "meta" for parameter in model.parameters())


class AwayUntilCalled(ModelHook):
    """Keeps all weights of a model away until its hook is called, as `CpuOffload` keeps them off the accelerator."""

    execution_device = torch.device("cpu")

    def init_hook(self, module):
        self.weights = {name: value.clone() for name, value in module.named_parameters()}
        for name in self.weights:
            self._set(module, name, self.weights[name].to("meta"))
        return module

    def pre_forward(self, module, *args, **kwargs):
        for name, value in self.weights.items():
            self._set(module, name, value)
        return args, kwargs

    def _set(self, module, name, value):
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, torch.nn.Parameter(value, requires_grad=False))


ENTRIES = {
    "encode": lambda model, pixels, codes: model.encode(pixels).codes,
    "encode_latents": lambda model, pixels, codes: model.encode_latents(pixels),
    "embed_codes": lambda model, pixels, codes: model.embed_codes(codes),
    "decode": lambda model, pixels, codes: model.decode(codes).sample,
    "forward": lambda model, pixels, codes: model(pixels).sample,
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_method_of_a_tokenizer_brings_its_weights(entry):
    model, pixels, codes = make_tokenizer(), torch.randn(2, 1, 8, 8), torch.randint(11, (2, 2, 2))
    with torch.no_grad():
        expected = ENTRIES[entry](model, pixels, codes)
        add_hook_to_module(model, AwayUntilCalled())
        assert is_away(model)
        assert torch.equal(ENTRIES[entry](model, pixels, codes), expected)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_tokenizers_work_with_each_layer_offloaded(quantizer, spatial_dims):
    model, pixels = make_tokenizer(spatial_dims, quantizer), torch.randn(2, 1, *[8] * spatial_dims)
    with torch.no_grad():
        encoded, whole = model.encode(pixels), model(pixels).sample
        decoded = model.decode(encoded.codes).sample
        cpu_offload(model, "cpu")
        assert is_away(model)
        assert torch.equal(model.encode(pixels).codes, encoded.codes)
        assert torch.equal(model.decode(encoded.codes).sample, decoded)
        assert torch.equal(model(pixels).sample, whole)
        assert is_away(model)


@pytest.mark.parametrize(
    ("position_embedding", "context_attention"),
    list(itertools.product(("axial", "axial_rotary", "learned"), ("full", "prefix"))),
)
def test_transformers_work_with_each_layer_offloaded(position_embedding, context_attention):
    model = make_transformer(position_embedding, context_attention, num_classes=3)
    codes, context, labels = torch.randint(12, (2, 24)), torch.randn(2, 2, 16, 4), torch.tensor([0, 2])
    with torch.no_grad():
        expected = model(codes, context, class_labels=labels).sample
        cpu_offload(model, "cpu")
        assert is_away(model)
        assert torch.equal(model(codes, context, class_labels=labels).sample, expected)
        if context_attention == "prefix":
            key_values = model.encode_context(context)
            found = model(codes, context_key_values=key_values, class_labels=labels).sample
            assert torch.equal(found, expected)


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_pipelines_give_the_same_volumes_with_each_model_offloaded(context_attention):
    pipeline = make_pipeline(context_attention)
    expected = generate(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(getattr(pipeline, name), "_hf_hook") for name in pipeline.model_cpu_offload_seq.split("->"))
    for _ in range(2):
        assert torch.equal(generate(pipeline), expected)


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_pipelines_give_the_same_volumes_with_each_layer_offloaded(context_attention):
    pipeline = make_pipeline(context_attention)
    expected = generate(pipeline)
    models = [getattr(pipeline, name) for name in pipeline.model_cpu_offload_seq.split("->")]
    for model in models:
        # as enable_sequential_cpu_offload does, whose device "cpu:0" accelerate takes for another one than "cpu"
        cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert all(is_away(model) for model in models)
    for _ in range(2):
        assert torch.equal(generate(pipeline), expected)


def test_a_pipeline_brings_whole_models_one_after_another():
    pipeline = make_pipeline("prefix")
    expected, came = generate(pipeline), []

    class Noting(AwayUntilCalled):
        def __init__(self, name):
            self.name = name

        def pre_forward(self, module, *args, **kwargs):
            came.append(self.name)
            return super().pre_forward(module, *args, **kwargs)

    names = pipeline.model_cpu_offload_seq.split("->")
    for name in names:
        add_hook_to_module(getattr(pipeline, name), Noting(name))
    assert torch.equal(generate(pipeline), expected)
    assert [name for name, _ in itertools.groupby(came)] == names


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_tokenizer_loads_with_parts_on_the_disk(spatial_dims, tmp_path):
    model, pixels = make_tokenizer(spatial_dims), torch.randn(2, 1, *[8] * spatial_dims)
    model.save_pretrained(tmp_path / "model")
    loaded = VQTokenizer.from_pretrained(
        tmp_path / "model",
        device_map={"encoder": "cpu", "quantizer": "disk", "decoder": "disk"},
        offload_folder=tmp_path / "weights",
    )
    assert is_away(loaded.decoder)
    with torch.no_grad():
        codes = model.encode(pixels).codes
        assert torch.equal(loaded.encode(pixels).codes, codes)
        assert torch.equal(loaded.decode(codes).sample, model.decode(codes).sample)
