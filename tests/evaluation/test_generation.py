"""Scores of generated images: the Fréchet distance's laws, the controls, the classifier's features, the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification, ViTConfig

from hf_vq.data import make_image_processor
from hf_vq.evaluation.generation import (
    FeatureNetwork,
    GenerationSettings,
    ImageSet,
    SetFeatures,
    frechet_distance,
    generation_markdown,
    generation_report,
    generation_scores,
    independent_codes,
    read_generated,
)

SETTINGS = GenerationSettings("images", "test", "ViT `folder`", 0.875, 16, 40, 7, "tokenizer", nearest_k=3)


def _sample(count: int, seed: int, width: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def test_frechet_distance_equals_the_formula() -> None:
    real, generated = _sample(50, 1), _sample(30, 2)
    covariances = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(real.mean(0) - generated.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_one_feature_is_that_of_two_normal_distributions() -> None:
    real, generated = _sample(50, 1, width=1), _sample(30, 2, width=1)
    expected = (real.mean() - generated.mean()) ** 2 + (real.std(ddof=1) - generated.std(ddof=1)) ** 2
    assert frechet_distance(real, generated) == pytest.approx(expected)


def test_frechet_distance_is_a_symmetric_distance_that_ignores_rotation_and_order() -> None:
    real, generated = _sample(50, 1), _sample(30, 2)
    distance = frechet_distance(real, generated)
    assert distance > 0
    assert frechet_distance(generated, real) == pytest.approx(distance)
    assert frechet_distance(real, real[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real + 3) == pytest.approx(4 * 9)
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))
    assert frechet_distance(real @ rotation + 1, generated @ rotation + 1) == pytest.approx(distance)


def test_frechet_distance_of_fewer_rows_than_features_is_finite() -> None:
    real = _sample(3, 1, width=20).astype(np.float32)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-5)
    assert np.isfinite(frechet_distance(real, _sample(5, 2, width=20)))


@pytest.mark.parametrize(
    ("real", "words"),
    [(np.zeros((5, 3)), "shapes"), (np.zeros((1, 4)), "above 1"), (np.zeros(4), "shapes"), (np.inf, "NaN")],
)
def test_bad_features_are_named(real: np.ndarray, words: str) -> None:
    if np.isscalar(real):
        real = np.full((5, 4), real)
    with pytest.raises(ValueError, match=words):
        frechet_distance(real, _sample(6, 1))


def test_independent_codes_keep_what_stands_at_each_position_and_lose_what_belongs_together(
    generator: torch.Generator,
) -> None:
    first = torch.arange(4).repeat(250)
    codes = torch.stack((first, first + 10), dim=1).view(1000, 1, 2)  # the second code tells the first
    drawn = independent_codes(codes, 4000, generator)
    assert drawn.shape == (4000, 1, 2)
    for position in range(2):
        values, counts = drawn[:, 0, position].unique(return_counts=True)
        assert torch.equal(values, codes[:, 0, position].unique())
        assert counts.min() > 850
    assert (drawn[:, 0, 1] - drawn[:, 0, 0] == 10).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_the_real_images_themselves_score_best(generator: torch.Generator) -> None:
    real = torch.randn(40, 6, generator=generator).numpy()
    same = generation_scores(real, SetFeatures(real, 0.9), nearest_k=3)
    far = generation_scores(real, SetFeatures(real + 30, None), nearest_k=3)
    assert same["frechet"] == pytest.approx(0, abs=1e-9)
    assert (same["coverage"], same["precision"], same["recall"], same["label_agreement"]) == (1, 1, 1, 0.9)
    assert far["frechet"] == pytest.approx(6 * 900, rel=1e-6)
    assert (far["coverage"], far["density"], far["label_agreement"]) == (0, 0, None)


def _save_classifier(folder: Path, kind: str) -> str:
    torch.manual_seed(0)
    if kind == "vit":
        config = ViTConfig(
            **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
            **{"image_size": 12, "patch_size": 4, "num_channels": 3, "num_labels": 4},
        )
        model = AutoModelForImageClassification.from_config(config)
    else:
        model = ResNetForImageClassification(
            ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
        )
    model.save_pretrained(folder)
    make_image_processor(12, channels=model.config.num_channels).save_pretrained(folder)
    return str(folder)


def _images(count: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (10, 9), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_features_of_any_image_classifier(tmp_path: Path, kind: str) -> None:
    network = FeatureNetwork.from_pretrained(_save_classifier(tmp_path, kind), batch_size=2)
    images = _images()
    unknown = network(ImageSet(images, np.full(5, -1)))
    assert unknown.features.shape == (5, 16)
    assert unknown.label_agreement is None
    with torch.no_grad():
        mode = "RGB" if kind == "vit" else "L"
        pixels = network.processor([image.convert(mode) for image in images], return_tensors="pt")["pixel_values"]
        predicted = network.model(pixels).logits.argmax(dim=1).numpy()
    assert network(ImageSet(images, predicted)).label_agreement == 1
    half = np.where(np.arange(5) < 4, (predicted + np.arange(5) % 2) % 4, -1)  # wrong, right, wrong, right, no label
    assert network(ImageSet(images, half)).label_agreement == 0.5
    np.testing.assert_allclose(network(ImageSet(images[3:], half[3:])).features, unknown.features[3:], rtol=1e-4)
    assert str(tmp_path) in network.description
    assert type(network.model).__name__ in network.description


def test_a_processor_that_does_not_normalise_is_taken_for_one_of_rgb(tmp_path: Path) -> None:
    network = FeatureNetwork.from_pretrained(_save_classifier(tmp_path, "vit"))
    network.processor.do_normalize, network.processor.image_mean = False, None
    assert network(ImageSet(_images(), np.full(5, -1))).features.shape == (5, 16)


def test_classes_agree_by_number_and_where_both_have_names_by_name(tmp_path: Path) -> None:
    network, names = FeatureNetwork.from_pretrained(_save_classifier(tmp_path, "vit")), ["bag", "boot", "coat", "hat"]
    assert network.has_classes(names)
    assert not network.has_classes(names[:3])
    network.model.config.id2label = dict(enumerate(names))
    assert network.has_classes(names)
    assert network.has_classes(["0", "1", "2", "3"])
    assert not network.has_classes(names[::-1])


def test_a_classifier_without_its_weights_is_refused(tmp_path: Path) -> None:
    _save_classifier(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="lacks weights"):
        FeatureNetwork.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="no image classifier"):
        FeatureNetwork.from_pretrained(str(tmp_path / "none"))


def test_generated_images_are_read_with_their_labels(tmp_path: Path) -> None:
    for number, image in enumerate(_images(2)):
        image.save(tmp_path / f"{number}.png")
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("file_name,label,label_name\n0.png,2,Bag\n1.png,-1,\n")
    images = read_generated(tmp_path)
    assert images.labels.tolist() == [2, -1]
    assert images.label_names == {2: "Bag", -1: "-1"}
    np.testing.assert_array_equal(np.asarray(images.images[1]), np.asarray(_images(2)[1]))
    for text, words in (
        ("file_name\n0.png\n", "columns"),
        ("file_name,label\n", "no rows"),
        ("file_name,label\n2.png,1\n", "2.png"),
        ("file_name,label\n0.png,Bag\n", "'Bag'"),
    ):
        metadata.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_generated(tmp_path)
    with pytest.raises(ValueError, match=r"generate_images\.py"):
        read_generated(tmp_path / "none")


def test_the_report_names_what_the_numbers_depend_on() -> None:
    rows = {
        "generated": {"frechet": 12.345, "density": 0.5, "coverage": 0.25, "precision": 0.75, "recall": 0.125}
        | {"label_agreement": 0.625},
        "control": {"frechet": 99.0, "density": 0.0, "coverage": 0.0, "precision": 0.0, "recall": 0.0}
        | {"label_agreement": None},
    }
    report = generation_report(SETTINGS, rows, ["A remark."])
    assert json.loads(json.dumps(report)) == report
    text = generation_markdown(report)
    for words in ("ViT `folder`", "87.5%", "40 real images", "seed 7", "nearest_k = 3", "`tokenizer`", "- A remark."):
        assert words in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("generated", "12.35", "0.500", "0.250", "0.750", "0.125", "0.625")
    ]
    assert lines[3].split("|")[-2].strip() == ""
    assert report["notes"] == ["A remark."]


def test_too_few_images_for_the_covariance_are_said_to_be() -> None:
    settings = GenerationSettings("images", "test", "ViT", None, 40, 40, 0, "tokenizer")
    report = generation_report(settings, {})
    assert "do not determine" in report["notes"][0]
    assert "accuracy" not in generation_markdown(report)
