"""The picture of a codebook, from saved models on small data."""

from functools import partial

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from script_calls import call

from hf_vq import VQForImageClassification, VQImageClassifierConfig, VQTokenizer, VQTokenizerConfig
from hf_vq.data import make_image_processor
from hf_vq.evaluation.codebook_plot import principal_axes, save_codebook_plot
from hf_vq.quantizers import VectorQuantizer

plot = partial(call, "plot_codebook.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 16, 16), dtype=np.uint8)
    columns = {"image": [PILImage.fromarray(image) for image in pixels], "label": [index % 2 for index in range(12)]}
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    split = Dataset.from_dict(columns, features=features)
    DatasetDict(train=split, validation=split, test=split).save_to_disk(path)
    return path


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("structure", ["single", "residual"])
def test_the_codebooks_of_a_tokenizer_are_drawn(structure, data, tmp_path, capsys):
    quantizer = {"codebook_size": 8, "codebook_dim": 4, "structure": structure}
    quantizer["num_codebooks"] = 1 if structure == "single" else 2
    config = VQTokenizerConfig(spatial_dims=2, base_channels=8, quantizer=quantizer)
    model = save(VQTokenizer(config), make_image_processor(16, 1), tmp_path / "model")
    plot("--model", model, "--data", data, "--num_samples", 10, "--output", tmp_path / "codebook.png")
    with PILImage.open(tmp_path / "codebook.png") as picture:
        height = picture.height
        assert picture.width > 1000
    assert height > 500 * quantizer["num_codebooks"]
    assert "relative_quantization_error" in capsys.readouterr().out


def test_the_codebook_of_a_classifier_is_drawn(data, tmp_path):
    fields = {"backbone": "vit", "image_size": 16, "num_channels": 1, "backbone_config": {"patch_size": 8}}
    config = VQImageClassifierConfig(**fields, quantizer={"codebook_size": 8})
    model = save(VQForImageClassification(config), make_image_processor(16, 1), tmp_path / "model")
    plot("--model", model, "--data", data, "--output", tmp_path / "codebook.png")
    assert (tmp_path / "codebook.png").stat().st_size > 0


def test_a_quantizer_without_codebook_is_refused(data, tmp_path, capsys):
    config = VQTokenizerConfig(
        spatial_dims=2, base_channels=8, quantizer={"quantizer_type": "finite_scalar", "levels": [3, 3]}
    )
    model = save(VQTokenizer(config), make_image_processor(16, 1), tmp_path / "model")
    with pytest.raises(SystemExit):
        plot("--model", model, "--data", data, "--output", tmp_path / "codebook.png")
    assert "FiniteScalarQuantizer, which has no codebook" in capsys.readouterr().err
    assert not (tmp_path / "codebook.png").exists()


def test_principal_axes_find_the_plane_of_flat_data():
    torch.manual_seed(0)
    plane = torch.linalg.qr(torch.randn(5, 2)).Q
    vectors = torch.randn(200, 2) * torch.tensor([5.0, 1.0]) @ plane.T + 3
    mean, directions = principal_axes(vectors)
    torch.testing.assert_close(mean, vectors.mean(0))
    assert abs(float(directions[:, 0] @ plane[:, 0])) > 0.98
    centred = vectors - mean
    torch.testing.assert_close(centred @ directions @ directions.T, centred, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_channel_and_one_vector_can_be_drawn(channels, tmp_path):
    quantizer = VectorQuantizer(codebook_size=4, codebook_dim=channels)
    save_codebook_plot(quantizer.inspect(torch.randn(1, channels, 1)), tmp_path / "codebook.svg")
    assert (tmp_path / "codebook.svg").read_text().lstrip().startswith("<?xml")
