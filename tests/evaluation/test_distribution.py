"""Sets of volumes in the features of a tokenizer, and what their overlap is worth."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vq.evaluation.baseline_volumes import BaselineVolumes
from hf_vq.evaluation.distribution import (
    FeatureSet,
    distribution_scores,
    encode_held_out,
    feature_sets,
    training_set,
)
from hf_vq.evaluation.programs import GeneratedVolumes, Program
from hf_vq.evaluation.protocol import Subject
from hf_vq.evaluation.tokenizer import VolumeTokenizer
from hf_vq.evaluation.volumes import GridVolume
from hf_vq.models.configuration_vq_tokenizer import VQTokenizerConfig
from hf_vq.models.modeling_vq_tokenizer import VQTokenizer
from hf_vq.processors.image_processing_ct_volume import CTVolumeProcessor


def _subjects(split: str, count: int) -> list[Subject]:
    generator = np.random.default_rng(len(split))
    hu = generator.uniform(-900, 900, size=(count, 12, 12, 12)).astype(np.float32)
    views = generator.random((count, 1, 6, 6)).astype(np.float32)
    affine = np.diag([20.0, 20.0, 20.0, 1.0])
    return [
        Subject(f"{split}_{index}", GridVolume(hu[index], affine), views[index], ("frontal",)) for index in range(count)
    ]


@pytest.fixture
def tokenizer() -> VolumeTokenizer:
    torch.manual_seed(0)
    quantizer = {"codebook_size": 16, "codebook_dim": 4, "init": "random"}
    config = VQTokenizerConfig(spatial_dims=3, base_channels=8, channel_multipliers=[1], quantizer=quantizer)
    processor = CTVolumeProcessor(size=[12, 12, 12], spacing=[20.0, 20.0, 20.0])
    return VolumeTokenizer(VQTokenizer(config).eval(), processor, batch_size=2)


def test_held_out_volumes_are_encoded_once(tokenizer: VolumeTokenizer) -> None:
    """The evaluated split and its union with the validation split share their codes and features."""
    encoded: list[int] = []
    tokenizer.model.encoder.register_forward_hook(lambda _, inputs, output: encoded.append(len(inputs[0])))
    splits = {"validation": _subjects("validation", 4), "test": _subjects("test", 5)}
    sets = encode_held_out(tokenizer, "test", splits)
    assert sum(encoded) == 9
    assert {name: (len(one), len(one.codes), len(one.features)) for name, one in sets.items()} == {
        "test + validation": (9, 9, 9),
        "test": (5, 5, 5),
    }
    assert torch.equal(sets["test"].codes, tokenizer.encode([one.truth for one in splits["test"]]).codes)
    assert list(encode_held_out(tokenizer, "validation", splits)) == ["validation"]


def test_sets_of_programs_and_baselines(tokenizer: VolumeTokenizer, tmp_path: Path) -> None:
    """Two samples of each of three subjects: all of them, the first of each; and each baseline once per subject."""
    subjects, train = _subjects("test", 3), _subjects("train", 4)
    rows = []
    for number, subject in enumerate(subjects):
        for sample in range(2):
            rows.append({"file_name": f"{subject.name}_{sample}.nii", "subject": subject.name, "sample": sample})
            subject.truth.with_hu(subject.truth.hu + 10 * number + sample).to_nifti().to_filename(
                tmp_path / rows[-1]["file_name"]
            )
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "scratch").mkdir()
    baselines = BaselineVolumes(train, train, subjects, (-1000.0, 1000.0), tmp_path / "scratch")
    program = Program("ours", GeneratedVolumes.find(tmp_path, [one.name for one in subjects]))
    sets = feature_sets(tokenizer, subjects, [program], baselines)
    all_samples, first = sets["ours: generated, all samples"], sets["ours: generated, one sample per subject"]
    assert [(len(one.features), one.num_subjects) for one in sets.values()] == [(6, 3)] + [(3, 3)] * 4
    expected = tokenizer.encode([one.truth.with_hu(one.truth.hu + 10 * number) for number, one in enumerate(subjects)])
    np.testing.assert_allclose(first.features, expected.features, atol=1e-5)
    np.testing.assert_array_equal(all_samples.features[::2], first.features)
    np.testing.assert_allclose(sets["mean volume"].features[0], sets["mean volume"].features[2], atol=1e-5)


def test_training_volumes_stand_for_a_perfect_generator(tokenizer: VolumeTokenizer) -> None:
    train = _subjects("train", 6)
    chosen = training_set(tokenizer, train, 4, seed=1)
    every = tokenizer.encode([one.truth for one in train]).features
    found = [int(np.abs(every - row).sum(axis=1).argmin()) for row in chosen.features]
    assert len(set(found)) == 4 == chosen.num_subjects
    np.testing.assert_allclose(chosen.features, every[found], atol=1e-5)
    assert training_set(tokenizer, train, 99, seed=1).num_subjects == 6


@pytest.mark.parametrize(("real", "subjects", "learned"), [(199, 200, True), (200, 199, True), (200, 200, False)])
def test_few_subjects_or_random_features_are_flagged(real: int, subjects: int, learned: bool) -> None:
    """Many samples of few subjects don't help: subjects count."""
    features = np.random.default_rng(3).normal(size=(400, 3))
    rows, _ = distribution_scores(features[:real], {"a": FeatureSet(features, subjects)}, 5, learned)
    assert rows["a"]["reliable"] is False
    rows, _ = distribution_scores(features[:200], {"a": FeatureSet(features, 200)}, 5)
    assert rows["a"]["reliable"] is True


def test_repeated_means_show_why_few_neighbours_mislead() -> None:
    """One vector repeated has recall 0 whatever its density, so it must stand beside the model's own scores."""
    real = np.random.default_rng(1).normal(size=(24, 3))
    rows, notes = distribution_scores(
        real, {"mean volume": FeatureSet(np.repeat(real.mean(axis=0)[None], 24, axis=0), 24)}, 5
    )
    assert rows["mean volume"]["recall"] == 0.0
    assert rows["mean volume"]["num_generated"] == 24
    assert notes == []


def test_sets_too_small_are_left_out_and_named() -> None:
    real = np.random.default_rng(2).normal(size=(10, 3))
    rows, notes = distribution_scores(real, {"enough": FeatureSet(real, 10), "few": FeatureSet(real[:4], 4)}, 5)
    assert list(rows) == ["enough"]
    assert notes == ["Density and the like of 'few' left out: 4 volumes, nearest_k = 5."]
