"""ONNX files, run through onnxruntime, give what their model gives in PyTorch."""

import json

import onnx
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from tiny_exports import OF_PIPELINES, TOKENIZER, untrained_transformer

from hf_vq import (
    AbsorbingScheduler,
    CodeGenerationPipeline,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.exporting import OPSET, check_onnx, export_onnx, run_onnx
from hf_vq.exporting.parity import TOLERANCE, OutputParity, near_ties
from hf_vq.quantizers import FiniteScalarQuantizer, VectorQuantizer

ONE_LEVEL = {"layers_per_block": 1, "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
QUANTIZERS = {
    "affine": {"codebook_size": 11, "codebook_dim": 4},
    "cosine": {"codebook_size": 11, "codebook_dim": 4, "distance": "cosine"},
    "residual": {"codebook_size": 11, "codebook_dim": 4, "structure": "residual", "num_codebooks": 2},
    "finite scalar": {"quantizer_type": "finite_scalar", "levels": [4, 3, 3, 3]},
    "lookup-free": {"quantizer_type": "lookup_free", "codebook_dim": 4, "spherical": True},
}
TRANSFORMERS = {
    "full, rotary": {"position_embedding": "axial_rotary", "view_dropout": 0.1},
    "full, learned": {"position_embedding": "learned"},
    "prefix": {"context_attention": "prefix", "context_dropout": 0.1, "num_classes": 3},
    "causal": {"context_attention": "prefix", "causal": True, "code_order": list(reversed(range(24)))},
}


def make_tokenizer(spatial_dims=2, quantizer="affine", **fields):
    torch.manual_seed(0)
    config = VQTokenizerConfig(spatial_dims=spatial_dims, quantizer=QUANTIZERS[quantizer], **{**TOKENIZER, **fields})
    model = VQTokenizer(config)
    if isinstance(model.quantizer, VectorQuantizer):
        model(torch.randn(8, 1, *[16] * spatial_dims))  # in training mode: places the codes among the outputs
    return model.eval()


def make_transformer(**fields):
    return untrained_transformer(**{**OF_PIPELINES, **fields}).eval()


def assert_agree(model, folder, **arguments):
    results = check_onnx(model, folder, **arguments)
    assert [str(result) for result in results if not result.passes] == []
    assert all(result.differing_codes == 0 for result in results)
    return {f"{result.file} {result.output}" for result in results}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "tokenizer"
    return folder, export_onnx(tokenizer, folder)


def test_a_tokenizer_gives_the_same_in_onnx(tokenizer, exported):
    folder, files = exported
    assert [file.name for file in files] == ["encoder.onnx", "decoder.onnx"]
    outputs = {"encoder.onnx codes", "encoder.onnx latents", "encoder.onnx embeddings", "decoder.onnx sample"}
    assert assert_agree(tokenizer, folder) == outputs


def test_batch_and_sides_are_free(tokenizer, exported):
    folder, _ = exported
    for shape in ((1, 1, 16, 16), (5, 1, 8, 24)):
        pixels = torch.randn(shape)
        found = run_onnx(folder / "encoder.onnx", {"pixel_values": pixels})
        with torch.no_grad():
            assert torch.equal(found["codes"], tokenizer.encode(pixels).codes)
            sample = run_onnx(folder / "decoder.onnx", {"codes": found["codes"]})["sample"]
            expected = tokenizer.decode(found["codes"]).sample
        assert expected.abs().max() > 1e-2  # so the tolerance tells something
        torch.testing.assert_close(sample, expected, rtol=0, atol=TOLERANCE)


def test_the_summary_tells_inputs_and_outputs(exported):
    folder, files = exported
    summary = json.loads((folder / "export.json").read_text())
    assert (summary["class"], summary["opset"]) == ("VQTokenizer", OPSET)
    shape = summary["files"]["encoder.onnx"]["outputs"]["embeddings"]["shape"]
    shape[1] = "*".join(sorted(shape[1].split("*")))  # the order of a product is not ours
    assert summary["files"]["encoder.onnx"] == {
        "inputs": {"pixel_values": {"dtype": "float", "shape": ["batch", 1, "4*height", "4*width"]}},
        "outputs": {
            "codes": {"dtype": "int64", "shape": ["batch", "height", "width"]},
            "latents": {"dtype": "float", "shape": ["batch", 4, "height", "width"]},
            "embeddings": {"dtype": "float", "shape": ["batch", "height*width", 4]},
        },
    }
    assert VQTokenizerConfig.from_pretrained(folder).spatial_dims == 2
    for file in files:
        model = onnx.load(file)
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
        assert {entry.key: entry.value for entry in model.metadata_props}["graph"] == file.stem


def test_another_model_is_found_out(tokenizer, exported):
    folder, _ = exported
    other = make_tokenizer()
    other.load_state_dict(tokenizer.state_dict())
    with torch.no_grad():
        other.quantizer.codebook.weight[3] += 1
        other.decoder.conv_out.conv.bias += 1e-3
    failed = {f"{result.file} {result.output}" for result in check_onnx(other, folder) if not result.passes}
    assert {"encoder.onnx codes", "decoder.onnx sample"} <= failed


def test_a_taken_folder_stays_unless_it_is_to_be_replaced(tokenizer, exported, tmp_path):
    folder, _ = exported
    with pytest.raises(ValueError, match="not empty"):
        export_onnx(tokenizer, folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no export\.json"):
        export_onnx(tokenizer, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="opset=12"):
        export_onnx(tokenizer, tmp_path / "old", opset=12)


def test_a_transformer_gives_the_same_in_onnx_with_the_views_computed_once(tmp_path):
    model = make_transformer(**TRANSFORMERS["prefix"])
    files = export_onnx(model, tmp_path / "onnx")
    assert [file.name for file in files] == ["context_encoder.onnx", "transformer.onnx"]
    assert_agree(model, tmp_path / "onnx", batch_size=1)
    context, codes = torch.randn(3, 2, 16, 4), torch.randint(12, (3, 24))
    mask, labels = torch.tensor([[True, True], [True, False], [False, False]]), torch.tensor([0, -1, 2])
    prefix = run_onnx(tmp_path / "onnx" / "context_encoder.onnx", {"context": context, "view_mask": mask})
    found = run_onnx(
        tmp_path / "onnx" / "transformer.onnx", {"sample": codes, **prefix, "view_mask": mask, "class_labels": labels}
    )["logits"]
    expected = model(codes, context, view_mask=mask, class_labels=labels).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    without = model(codes[2:], class_labels=labels[2:]).sample  # a mask without views is a model without them
    torch.testing.assert_close(found[2:], without, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if name != "prefix"])
def test_every_transformer_gives_the_same_in_onnx(name, tmp_path):
    model = make_transformer(**TRANSFORMERS[name])
    export_onnx(model, tmp_path / "onnx")
    assert_agree(model, tmp_path / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_gives_the_same_in_onnx(quantizer, spatial_dims, tmp_path):
    if (quantizer, spatial_dims) == ("affine", 2):
        fields = {
            "stem_stride": 1,
            "channel_multipliers": [1, 2],
            "resampling": "nearest",
            "encoder_block_type": "depthwise",
            "attention_levels": [1],
        }
    else:
        fields = {"mid_attention": True}
    model = make_tokenizer(spatial_dims, quantizer, **fields)
    export_onnx(model, tmp_path / "onnx")
    assert_agree(model, tmp_path / "onnx")
    assert_agree(model, tmp_path / "onnx", spatial=(16, 8, 24)[:spatial_dims], batch_size=2)


@pytest.mark.slow
def test_a_pipeline_is_exported_with_all_its_parts(tmp_path):
    pipeline = ViewsToVolumePipeline(
        volume_tokenizer=make_tokenizer(3),
        view_tokenizer=make_tokenizer(2),
        transformer=make_transformer(),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=[8, 12, 16], spacing=[4.0, 3.0, 2.0]),
        view_processor=XrayImageProcessor(size={"height": 16, "width": 16}),
    )
    export_onnx(pipeline, tmp_path / "onnx")
    assert_agree(pipeline, tmp_path / "onnx")
    files = json.loads((tmp_path / "onnx" / "export.json").read_text())["files"]
    volume, view = (files[f"{name}_tokenizer/encoder.onnx"]["inputs"]["pixel_values"] for name in ("volume", "view"))
    assert (volume["shape"], view["shape"]) == (["batch", 1, 8, 12, 16], ["batch", 1, 16, 16])
    assert CTVolumeProcessor.from_pretrained(tmp_path / "onnx" / "volume_processor").spacing == [4.0, 3.0, 2.0]
    assert AbsorbingScheduler.from_pretrained(tmp_path / "onnx" / "scheduler").config.mask_token_id == 11
    assert CodeTransformer.load_config(tmp_path / "onnx" / "transformer")["num_codes"] == 11
    # What the pipeline does between its models is little: views -> codes -> vectors -> context of the transformer.
    pixels = torch.rand(2, 1, 16, 16)
    found = run_onnx(tmp_path / "onnx" / "view_tokenizer" / "encoder.onnx", {"pixel_values": pixels})["embeddings"]
    expected = pipeline.view_tokenizer.embed_codes(pipeline.view_tokenizer.encode(pixels).codes)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="given for a pipeline"):
        export_onnx(pipeline, tmp_path / "other", spatial=(8, 8, 8))


@pytest.mark.slow
def test_a_pipeline_of_images_is_exported(tmp_path):
    pipeline = CodeGenerationPipeline(
        tokenizer=make_tokenizer(2),
        transformer=make_transformer(code_grid=(3, 4), context_dim=None),
        scheduler=AbsorbingScheduler(11),
    )
    export_onnx(pipeline, tmp_path / "onnx")
    assert_agree(pipeline, tmp_path / "onnx")


def test_another_pipeline_is_refused(tmp_path):
    pipeline = DDPMPipeline(UNet2DModel(8, block_out_channels=(8,), norm_num_groups=4, **ONE_LEVEL), DDPMScheduler())
    with pytest.raises(ValueError, match="found a DDPMPipeline without a CodeTransformer"):
        export_onnx(pipeline, tmp_path / "onnx")


def test_near_ties_of_a_codebook():
    quantizer = VectorQuantizer(codebook_size=4, codebook_dim=2, parameterization="plain", codebook_lr_scale=1.0).eval()
    quantizer.codebook.weight.data = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    latents = torch.tensor([[0.9, 0.0], [1.0, 1e-6], [1.9, 0.1]]).T[None, :, :, None]  # (1, 2, 3, 1)
    assert near_ties(quantizer, latents, torch.tensor([[0, 0, 2]])[..., None]).flatten().tolist() == [True] * 3
    assert near_ties(quantizer, latents, torch.tensor([[1, 1, 1]])[..., None]).flatten().tolist() == [False, True, True]
    assert near_ties(quantizer, latents, torch.tensor([[3, 3, 0]])[..., None]).flatten().tolist() == [False] * 3


def test_near_ties_of_residual_codebooks_follow_the_codes_chosen(generator):
    quantizer = VectorQuantizer(
        codebook_size=8, codebook_dim=3, structure="residual", num_codebooks=2, codebook_lr_scale=1.0
    ).eval()
    for codebook in quantizer.all_codebooks:
        codebook.weight.data.normal_(generator=generator)
    # Halfway between two codes either may come first, and the second codebook sees what that one leaves over.
    first, second = quantizer.all_codebooks[0].effective()[:2]
    middle, way = (first + second) / 2, 1e-4 * (second - first)
    quantizer.all_codebooks[0].weight.data[2:] += 10  # so that nothing else is near
    this, that = (quantizer.encode((middle + shift)[None, :, None, None]) for shift in (-way, way))
    assert (this[0, 0].item(), that[0, 0].item()) == (0, 1)
    latents = (middle - way)[None, :, None, None]
    assert bool(near_ties(quantizer, latents, that).all())
    mixed = torch.stack((this[:, 0], that[:, 1]), dim=1)
    assert near_ties(quantizer, latents, mixed).flatten().tolist() == [True, this[0, 1].item() == that[0, 1].item()]


def test_near_ties_without_a_codebook():
    quantizer = FiniteScalarQuantizer(levels=[3, 3])
    border = torch.atanh(torch.tensor(0.5)).item()
    latents = torch.tensor([[border + 1e-6, 0.0], [border + 1e-2, 0.0]]).T[None, :, :, None]
    codes = quantizer.encode(latents)
    below = codes - 1  # the level below in the first channel, which is the least significant digit
    assert bool(near_ties(quantizer, latents, codes).all())
    assert near_ties(quantizer, latents, below).flatten().tolist() == [True, False]


def test_what_a_comparison_says():
    assert OutputParity("a.onnx", "logits", 10, 2e-5).passes
    assert not OutputParity("a.onnx", "logits", 10, 2e-4).passes
    codes = OutputParity("a.onnx", "codes", 4096, 0.0, 3, 1)
    assert str(codes) == "a.onnx codes: 3 of 4,096 differ, 2 of them near ties"
    assert not codes.passes
