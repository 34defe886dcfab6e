"""The VQ image classifier on its three backbones."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ResNetModel,
    Trainer,
    TrainingArguments,
    ViTModel,
    pipeline,
)

from hf_vq import VQForImageClassification, VQImageClassifierConfig
from hf_vq.data import make_image_processor
from hf_vq.quantizers.codebook import Codebook

BACKBONES = {
    "alexnet": {
        "channels": [4, 6, 8, 6, 4],
        "stem_kernel_size": 3,
        "stem_stride": 1,
        "pooled_size": 1,
        "hidden_size": 32,
        "dropout": 0.1,
    },
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 6, 8], "depths": [1, 1, 1]},
    "vit": {
        "hidden_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 8,
    },
}
# backbone -> the middle of the network, the shape of the latents there for 24 pixels, and the width of the features
MIDDLES = {
    "alexnet": ("conv3", (8, 5, 5), 32),
    "resnet": ("stage1", (4, 6, 6), 8),
    "vit": ("layer1", (9, 8), 8),
}
SIZE, NUM_LABELS = 24, 5
QUANTIZERS = {
    "vector": {"codebook_size": 16},
    "grouped": {"codebook_size": 8, "structure": "grouped", "num_codebooks": 2},
    "finite_scalar": {"quantizer_type": "finite_scalar", "levels": [5, 4]},
    "lookup_free": {"quantizer_type": "lookup_free", "codebook_dim": 4},
    "none": None,
}


def small_config(backbone, **fields):
    fields = {"quantizer": QUANTIZERS["vector"], "num_labels": NUM_LABELS, **fields}
    return VQImageClassifierConfig(
        backbone=backbone, backbone_config=BACKBONES[backbone], image_size=SIZE, num_channels=3, **fields
    )


def small_model(backbone, **fields):
    torch.manual_seed(0)
    return VQForImageClassification(small_config(backbone, **fields))


def trained_model(backbone, **fields):
    """A model whose codebook and running statistics have seen a batch, in eval mode."""
    model = small_model(backbone, **fields).train()
    model(images())
    return model.eval()


def images(count=3):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def labels(count=3):
    return torch.arange(count) % NUM_LABELS


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return request.param


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_shapes(backbone, quantizer):
    model = trained_model(backbone, quantizer=QUANTIZERS[quantizer])
    position, latent_shape, feature_size = MIDDLES[backbone]
    output = model(images(), labels())
    assert model.config.quantizer_position == position
    assert output.logits.shape == (3, NUM_LABELS)
    assert output.loss.shape == ()
    assert model.extract_features(images()).shape == (3, feature_size)
    channel_axis = 1 if backbone == "vit" else 0
    grid = [side for axis, side in enumerate(latent_shape) if axis != channel_axis]
    if quantizer == "none":
        assert list(output) == ["loss", "logits"]
    else:
        width = model.config.quantizer_config.codebook_dim
        expected = [width if axis == channel_axis else side for axis, side in enumerate(latent_shape)]
        assert list(model.encode_latents(images()).shape[1:]) == expected
        assert output.codes.shape == (3, *([2] if quantizer == "grouped" else []), *grid)


def test_every_named_place_works_and_the_quantizer_sits_there(backbone):
    positions = small_config(backbone).positions
    for depth, (position, width) in enumerate(positions.items(), start=1):
        model = trained_model(backbone, quantizer_position=position)
        features, class_token = model.backbone.lower(images(), depth)
        assert features.shape[-1 if backbone == "vit" else 1] == width
        assert torch.equal(model.encode_latents(images()), features)
        quantized = model.quantizer(features).quantized
        pooled = model.backbone.upper(quantized, class_token, depth)
        assert torch.equal(model.extract_features(images()), pooled)
        output = model(images())
        assert torch.equal(output.logits, model.classifier(pooled))
        assert torch.equal(output.codes, model.quantizer.encode(features))


def test_latents_in_training_are_what_the_quantizer_gets_and_leave_no_trace(backbone):
    model = small_model(backbone).train()
    seen = []
    model.quantizer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    latents = model.encode_latents(images())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model(images())
    assert torch.equal(seen[0], latents)
    if backbone == "resnet":
        norm = model.backbone.embedder.embedder.normalization
        assert int(norm.num_batches_tracked) == 1


def test_latents_leave_no_trace_in_any_kind_of_batch_normalisation():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(small_model("resnet")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.encode_latents(images())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("quantizer", ["vector", "none"])
def test_the_trainer_of_transformers_gathers_logits_alone(quantizer, tmp_path):
    model = small_model("alexnet", quantizer=QUANTIZERS[quantizer])
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(images(), labels(), strict=True)]
    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=2, use_cpu=True, report_to="none")
    predictions = Trainer(model, arguments).predict(rows).predictions
    assert predictions.shape == (3, NUM_LABELS)
    torch.testing.assert_close(torch.from_numpy(predictions), model(images()).logits)


def test_without_a_quantizer_a_network_is_the_one_of_transformers():
    for backbone, base in (("resnet", ResNetModel), ("vit", ViTModel)):
        model = small_model(backbone, quantizer=None).eval()
        plain = base(model.config.network_config).eval()
        assert not plain.load_state_dict(model.backbone.state_dict(), strict=False).unexpected_keys
        output = plain(images())
        expected = output.pooler_output.flatten(1) if backbone == "resnet" else output.last_hidden_state[:, 0]
        torch.testing.assert_close(model.extract_features(images()), expected)


def test_the_attention_asked_for_is_the_one_of_the_vit(tmp_path):
    model = trained_model("vit")
    model.save_pretrained(tmp_path)
    eager = VQForImageClassification.from_pretrained(tmp_path, attn_implementation="eager")
    names = [each.backbone.layers[0].attention.config._attn_implementation for each in (model, eager)]
    assert names == ["sdpa", "eager"]
    torch.testing.assert_close(eager(images()).logits, model(images()).logits)


def test_the_class_token_is_not_quantised():
    model = trained_model("vit")
    tokens, class_token = model.backbone.lower(images(), model.depth)
    assert tokens.shape[1] + class_token.shape[1] == 1 + (SIZE // 8) ** 2
    changed = model.backbone.upper(model.quantizer(tokens).quantized, class_token + 1, model.depth)
    assert not torch.allclose(changed, model.extract_features(images()))


def test_the_loss_is_cross_entropy_and_the_quantizer_s(backbone):
    output = trained_model(backbone)(images(), labels())
    cross_entropy = torch.nn.functional.cross_entropy(output.logits, labels())
    torch.testing.assert_close(output.loss, cross_entropy + output.quantizer_loss)
    without = small_model(backbone, quantizer=None).eval()(images(), labels())
    torch.testing.assert_close(without.loss, torch.nn.functional.cross_entropy(without.logits, labels()))
    assert "loss" not in trained_model(backbone)(images())


@pytest.mark.parametrize("named", [True, False])
def test_the_problem_type_chooses_the_loss_or_else_the_labels_do(named):
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]]).expand(3, -1)
    model = small_model("alexnet", problem_type="multi_label_classification" if named else None).eval()
    output = model(images(), targets)
    signs = 2 * targets - 1
    expected = torch.nn.functional.softplus(-signs * output.logits).mean()
    torch.testing.assert_close(output.loss, expected + output.quantizer_loss)
    targets = torch.tensor([0.5, -1.0, 2.0])
    model = small_model("alexnet", problem_type="regression" if named else None, num_labels=1).eval()
    output = model(images(), targets)
    expected = (output.logits[:, 0] - targets).square().mean()
    torch.testing.assert_close(output.loss, expected + output.quantizer_loss)


def test_a_training_step_leaves_the_config_as_it_is(backbone):
    model = small_model(backbone).train()
    before = model.config.to_dict()
    model(images(), labels()).loss.backward()
    assert model.config.to_dict() == before


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_gradients_reach_every_parameter(backbone, quantizer):
    model = small_model(backbone, quantizer=QUANTIZERS[quantizer]).train()
    model(images(), labels()).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_tuple_has_the_values_of_the_output(backbone):
    model = trained_model(backbone)
    output, values = model(images(), labels()), model(images(), labels(), return_dict=False)
    assert len(values) == len(output)
    assert all(torch.equal(one, two) for one, two in zip(values, output.to_tuple(), strict=True))


def test_images_of_a_batch_do_not_see_each_other_in_eval_mode(backbone):
    model = trained_model(backbone)
    singles = torch.cat([model(image[None]).logits for image in images()])
    torch.testing.assert_close(singles, model(images()).logits)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_save_and_load_keeps_outputs_and_state(backbone, quantizer, tmp_path):
    model = trained_model(backbone, quantizer=QUANTIZERS[quantizer], id2label=dict(enumerate("abcde")))
    model.save_pretrained(tmp_path)
    loaded, info = VQForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        assert loaded.state_dict()[name].dtype == value.dtype
    assert torch.equal(loaded(images()).logits, model(images()).logits)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}
    assert loaded.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    assert isinstance(AutoModelForImageClassification.from_pretrained(tmp_path), VQForImageClassification)


def test_missing_weights_are_initialised_like_a_new_model(backbone, tmp_path):
    model = trained_model(backbone)
    model.save_pretrained(tmp_path, state_dict={"classifier.bias": model.classifier.bias})
    loaded = VQForImageClassification.from_pretrained(tmp_path)
    fresh = small_model(backbone)
    for name, value in fresh.state_dict().items():
        other = loaded.state_dict()[name].float()
        assert torch.isfinite(other).all(), name
        if value.is_floating_point() and value.numel() > 1 and value.std() > 0:
            assert 0.3 * value.std() < other.std() < 3 * value.std(), name
        elif name != "classifier.bias":
            assert torch.equal(other, value.float()), name
    assert not bool(loaded.quantizer.codebook.initialized)


def test_bfloat16_keeps_codes_counters_and_a_float_quantizer_loss(backbone, tmp_path):
    trained = trained_model(backbone)
    trained.save_pretrained(tmp_path)
    model = VQForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(model.quantizer.codebook.weight, trained.quantizer.codebook.weight)
    assert model.quantizer.codebook.num_batches.dtype == torch.int64
    output = model(images().bfloat16(), labels())
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    for backbone in ("alexnet", "vit"):
        gradients = []
        for checkpointing in (False, True):
            model = small_model(backbone).train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            torch.manual_seed(0)
            model(images(), labels()).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        for name, value in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], value)


def test_a_resnet_refuses_gradient_checkpointing():
    with pytest.raises(ValueError, match="does not support"):
        small_model("resnet").gradient_checkpointing_enable()


def test_a_few_steps_lower_the_loss(backbone):
    model = small_model(backbone).train()
    targets = labels(10)
    pixel_values = images(NUM_LABELS)[targets]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        output = model(pixel_values, targets)
        output.loss.backward()
        optimizer.step()
        losses.append((output.loss - output.quantizer_loss).item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_pipeline_of_transformers_classifies_with_a_saved_model(backbone, tmp_path):
    model = trained_model(backbone, id2label=dict(enumerate(["bag", "boot", "coat", "shirt", "hat"])))
    model.save_pretrained(tmp_path)
    processor = make_image_processor(SIZE)
    processor.save_pretrained(tmp_path)
    image = Image.effect_mandelbrot((30, 20), (-2, -1, 1, 1), 50)
    predictions = pipeline("image-classification", model=str(tmp_path))(image, top_k=5)
    logits = model(processor(image, return_tensors="pt")["pixel_values"]).logits[0].detach()
    expected = {model.config.id2label[i]: float(score) for i, score in enumerate(logits.softmax(0))}
    assert {each["label"]: each["score"] for each in predictions} == pytest.approx(expected, rel=1e-4)


def test_every_codebook_is_found_where_the_training_looks_for_it(backbone):
    assert sum(isinstance(module, Codebook) for module in small_model(backbone).modules()) == 1


def test_config_is_json_and_round_trips(tmp_path, backbone):
    for quantizer in QUANTIZERS.values():
        config = small_config(backbone, quantizer=quantizer)
        config.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert (saved["quantizer"] is None) == (quantizer is None)
        assert VQImageClassifierConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_defaults_are_resnet_18_vit_tiny_and_alexnet():
    sizes = {"resnet": 11_689_512, "vit": 5_717_416, "alexnet": 61_100_840}  # of the networks in torchvision and timm
    for name, size in sizes.items():
        config = VQImageClassifierConfig(backbone=name, quantizer=None, num_labels=1000)
        with torch.device("meta"):
            model = VQForImageClassification(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == size


def test_the_default_place_is_the_middle():
    positions = {name: VQImageClassifierConfig(backbone=name).quantizer_position for name in BACKBONES}
    assert positions == {"alexnet": "conv3", "resnet": "stage2", "vit": "layer5"}
    assert VQImageClassifierConfig(backbone="resnet").quantizer["codebook_dim"] == 128


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backbone": "vgg"}, "backbone='vgg' is unknown; choose one of .*'resnet'"),
        ({"quantizer_position": "stage5"}, "quantizer_position='stage5' .*'embedder', 'stage1', .*'stage4'"),
        ({"backbone": "vit", "quantizer_position": "layer11"}, "quantizer_position='layer11' .*'layer10'"),
        ({"backbone": "alexnet", "quantizer_position": "conv6"}, "quantizer_position='conv6'"),
        ({"quantizer": {"codebook_dim": 64}}, "codebook_dim=64 contradicts the 128 channels"),
        ({"quantizer": {"channel_last": True}}, "channel_last=True does not fit"),
        ({"quantizer": {"codebook_sise": 64}}, "codebook_sise"),
        ({"backbone_config": {"deptsh": [2]}}, "no field 'deptsh'"),
        ({"backbone_config": {"num_channels": 1}}, "no field 'num_channels'"),
        ({"backbone_config": {"layer_type": "wide"}}, "layer_type"),
        ({"backbone": "vit", "image_size": 28}, "patch_size=16 .*image_size=28"),
        ({"backbone": "vit", "backbone_config": {"num_hidden_layers": 1}}, "num_hidden_layers=1"),
        ({"backbone": "alexnet", "image_size": 28}, "image_size=28 leaves nothing .*stem_stride=4"),
        ({"backbone": "alexnet", "backbone_config": {"channels": [8, 8]}}, r"channels=\[8, 8\]"),
        ({"backbone": "alexnet", "backbone_config": {"stem_stride": 0}}, "stem_stride=0"),
        ({"backbone": "alexnet", "backbone_config": {"dropout": 1.0}}, r"dropout=1\.0"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        VQImageClassifierConfig(**fields)


@pytest.mark.parametrize("shape", [(1, 1, SIZE, SIZE), (1, 3, SIZE, SIZE + 8), (3, SIZE, SIZE)])
def test_bad_shapes_are_named(backbone, shape):
    with pytest.raises(ValueError, match=r"must be \(B, 3, 24, 24\); got shape"):
        small_model(backbone)(torch.zeros(shape))
