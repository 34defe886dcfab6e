"""Perceptual loss with a tiny network of random weights."""

import json

import pytest
import torch
from transformers import CLIPTextConfig, ResNetConfig, ResNetForImageClassification, ViTConfig, ViTModel

from hf_vq.training.perceptual import PerceptualLoss


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Folder of a ResNet of two stages, saved with its classifier, as published ones are."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def loss_of(folder, **fields):
    return PerceptualLoss(str(folder), value_range=(-1.0, 1.0), **fields)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 32, 32), (1, 1, 16, 24, 32)])
def test_equal_inputs_have_no_distance_and_others_pull_the_sample(resnet, shape, generator):
    loss = loss_of(resnet)
    target = torch.rand(shape, generator=generator)
    assert loss(target, target, generator) == 0
    sample = torch.rand(shape, generator=generator, requires_grad=True)
    value = loss(sample, target, generator)
    assert value.ndim == 0
    assert value > 0
    value.backward()
    assert bool((sample.grad != 0).any())
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_it_is_the_squared_distance_of_unit_features_over_all_stages(resnet, generator):
    one, two = (2 * torch.rand(2, 1, 32, 32, generator=generator) - 1 for _ in range(2))
    model = ResNetForImageClassification.from_pretrained(resnet).eval().resnet
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet

    def features(images):
        colours = ((images + 1) / 2).expand(-1, 3, -1, -1)
        hidden = model((colours - mean[:, None, None]) / std[:, None, None], output_hidden_states=True).hidden_states
        return [stage / stage.norm(dim=1, keepdim=True) for stage in hidden[1:]]

    with torch.no_grad():
        pairs = list(zip(features(one), features(two), strict=True))
        expected = sum((a - b).square().sum(dim=1).mean() for a, b in pairs) / len(pairs)
        assert len(pairs) == 2
        torch.testing.assert_close(loss_of(resnet)(one, two, generator), expected)


def test_all_slices_of_a_volume_are_the_images_along_its_axes(resnet, generator):
    one, two = (torch.rand(1, 1, 16, 16, 16, generator=generator) for _ in range(2))
    loss = loss_of(resnet, slices_per_axis=16)
    along = [[volume[0].movedim(axis, 1).transpose(0, 1) for volume in (one, two)] for axis in (1, 2, 3)]
    expected = torch.stack([loss(*images, generator) for images in along]).mean()
    torch.testing.assert_close(loss(one, two, generator), expected)


def test_slices_follow_the_generator_only(resnet, generator):
    one, two = (torch.rand(1, 1, 16, 16, 16, generator=generator) for _ in range(2))
    loss = loss_of(resnet, slices_per_axis=1)
    values = [loss(one, two, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert values[0] == values[1] != values[2]


def test_statistics_of_the_models_own_processor_are_used(resnet, tmp_path, generator):
    model = ResNetForImageClassification.from_pretrained(resnet)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    loss = loss_of(tmp_path)
    assert loss.mean.flatten().tolist() == [0.5] * 3
    assert loss.std.flatten().tolist() == [0.25] * 3


def test_models_that_are_no_backbone_or_lack_weights_are_refused(resnet, tmp_path):
    CLIPTextConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="'clip_text_model' is no backbone"):
        loss_of(tmp_path / "text")
    torch.manual_seed(0)
    tiny = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ViTModel(tiny).save_pretrained(tmp_path / "mixed")
    ResNetConfig.from_pretrained(resnet).save_pretrained(tmp_path / "mixed")
    with pytest.raises(ValueError, match="lacks weights"):
        loss_of(tmp_path / "mixed")
    with pytest.raises(OSError, match="none"):
        loss_of(tmp_path / "none")


def test_inputs_and_fields_out_of_range_are_named(resnet, generator):
    with pytest.raises(ValueError, match="1 or 3 channels; got 2"):
        loss_of(resnet)(torch.zeros(1, 2, 32, 32), torch.zeros(1, 2, 32, 32), generator)
    with pytest.raises(ValueError, match="perceptual_slices=0"):
        loss_of(resnet, slices_per_axis=0)
