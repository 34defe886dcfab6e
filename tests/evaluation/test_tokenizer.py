"""Codebook usage, features and reconstructions of a small tokenizer."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from hf_vq.evaluation.tokenizer import VolumeTokenizer, codebook_usage, pipeline_views
from hf_vq.evaluation.volumes import GridVolume
from hf_vq.models.configuration_vq_tokenizer import VQTokenizerConfig
from hf_vq.models.modeling_vq_tokenizer import VQTokenizer
from hf_vq.processors.image_processing_ct_volume import CTVolumeProcessor


@pytest.fixture
def tokenizer() -> VolumeTokenizer:
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        spatial_dims=3,
        base_channels=8,
        channel_multipliers=[1, 1],
        num_res_blocks=1,
        quantizer={"codebook_size": 16, "codebook_dim": 4, "init": "random"},
    )
    return VolumeTokenizer(VQTokenizer(config).eval(), CTVolumeProcessor(size=[16, 16, 16]), batch_size=2)


def _volumes(count: int, side: int = 16) -> list[GridVolume]:
    generator = np.random.default_rng(0)
    hu = generator.uniform(-1000, 1000, size=(count, side, side, side)).astype(np.float32)
    return [GridVolume(volume, np.diag([160 / side] * 3 + [1.0])) for volume in hu]


def test_usage_counts_codes_and_their_perplexity() -> None:
    """Codes 0, 0, 1, 2 of 8: entropy 0.5 ln 2 + 2 * 0.25 ln 4, perplexity 2 sqrt 2."""
    usage = codebook_usage(torch.tensor([[0, 0], [1, 2]]), 8)
    assert usage["codes_used"] == 3
    assert usage["codebook_size"] == 8
    assert usage["used_fraction"] == pytest.approx(3 / 8)
    assert usage["perplexity"] == pytest.approx(2 * 2**0.5, rel=1e-5)


def test_usage_of_all_codes_equally() -> None:
    usage = codebook_usage(torch.arange(8).repeat(3), 8)
    assert (usage["codes_used"], usage["used_fraction"]) == (8, 1.0)
    assert usage["perplexity"] == pytest.approx(8.0, rel=1e-5)


def test_features_are_pooled_latents_and_do_not_depend_on_the_batch(tokenizer: VolumeTokenizer) -> None:
    volumes = _volumes(5)
    features = tokenizer.encode(volumes).features
    pixels = tokenizer.processor([volume.to_nifti() for volume in volumes])["pixel_values"]
    with torch.no_grad():
        latents = tokenizer.model.encode(pixels).latents
    expected = latents.reshape(5, 4, 2, 2, 2, 2, 2, 2).mean(dim=(3, 5, 7)).flatten(1)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
    assert features.shape == (5, 32)


def test_features_of_an_untrained_network_are_not_called_learned(tokenizer: VolumeTokenizer) -> None:
    assert tokenizer.feature_name.endswith("(NOT learned: no training recorded)")
    assert not tokenizer.is_learned
    tokenizer.model.train()(torch.zeros(1, 1, 16, 16, 16))
    assert tokenizer.feature_name.endswith("(learned in 1 batches)")
    assert tokenizer.is_learned


def test_reconstructions_lie_on_the_true_grid(tokenizer: VolumeTokenizer) -> None:
    volumes = _volumes(3, side=20)
    encoded = tokenizer.encode(volumes)
    reconstructions = list(tokenizer.decode(encoded))
    assert [one.shape for one in reconstructions] == [(20, 20, 20)] * 3
    assert all(np.isfinite(one).all() and np.abs(one).max() <= 1000 for one in reconstructions)
    assert encoded.codes.shape == (3, 4, 4, 4)


def test_the_first_of_some_encoded_volumes_are_those_volumes_encoded(tokenizer: VolumeTokenizer) -> None:
    volumes = _volumes(3, side=20)
    first, alone = tokenizer.encode(volumes).first(2), tokenizer.encode(volumes[:2])
    torch.testing.assert_close(first.codes, alone.codes)
    np.testing.assert_allclose(first.features, alone.features, atol=1e-6)
    np.testing.assert_allclose(list(tokenizer.decode(first)), list(tokenizer.decode(alone)), atol=1)
    assert (len(first), len(alone)) == (2, 2)


def test_parts_are_loaded_out_of_a_pipeline_folder(tokenizer: VolumeTokenizer, tmp_path: Path) -> None:
    tokenizer.model.save_pretrained(tmp_path / "volume_tokenizer")
    tokenizer.processor.save_pretrained(tmp_path / "volume_processor")
    loaded = VolumeTokenizer.from_pipeline(str(tmp_path))
    assert not loaded.model.training
    assert loaded.codebook_size == 16
    torch.testing.assert_close(loaded.encode(_volumes(2)).codes, tokenizer.encode(_volumes(2)).codes)


def test_another_model_in_the_tokenizers_place_is_refused(tokenizer: VolumeTokenizer, tmp_path: Path) -> None:
    """It would otherwise load as a network with random weights."""
    tokenizer.processor.save_pretrained(tmp_path / "volume_processor")
    BertConfig(hidden_size=8).save_pretrained(tmp_path / "volume_tokenizer")
    with pytest.raises(ValueError, match="'bert'; expected a VQTokenizer"):
        VolumeTokenizer.from_pipeline(str(tmp_path))
    tokenizer.model.save_pretrained(tmp_path / "volume_tokenizer")
    weights = load_file(tmp_path / "volume_tokenizer" / "model.safetensors")
    weights.pop(next(name for name in sorted(weights) if name.startswith("decoder")))
    save_file(weights, tmp_path / "volume_tokenizer" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights"):
        VolumeTokenizer.from_pipeline(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-pipeline", "no/such/pipeline"])
def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: found no volume_tokenizer"):
        VolumeTokenizer.from_pipeline(name)


def test_a_folder_that_is_no_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a saved ViewsToVolumePipeline"):
        VolumeTokenizer.from_pipeline(str(tmp_path))


def test_volumes_are_read_one_batch_at_a_time(tokenizer: VolumeTokenizer) -> None:
    """An iterator is asked for no more than the batch that is encoded next."""
    read: list[int] = []
    encoded: list[int] = []
    tokenizer.model.encoder.register_forward_hook(lambda *_: encoded.append(len(read)))

    def volumes() -> Iterator[GridVolume]:
        for volume in _volumes(5):
            read.append(1)
            yield volume

    assert len(tokenizer.encode(volumes())) == 5
    assert encoded == [2, 4, 5]


def test_a_tokenizers_own_folder_is_loaded(tokenizer: VolumeTokenizer, tmp_path: Path) -> None:
    tokenizer.model.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="found no volume tokenizer with its processor"):
        VolumeTokenizer.from_tokenizer(str(tmp_path / "tokenizer"))
    tokenizer.processor.save_pretrained(tmp_path / "tokenizer")
    loaded = VolumeTokenizer.from_tokenizer(str(tmp_path / "tokenizer"))
    np.testing.assert_allclose(loaded.encode(_volumes(2)).features, tokenizer.encode(_volumes(2)).features, atol=1e-6)


def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("models/pipeline", "./pipeline", "a/b/c"):
        for load in (VolumeTokenizer.from_pipeline, VolumeTokenizer.from_tokenizer):
            with pytest.raises(ValueError, match=f"^{name}: found no .* not looked for on the Hub"):
                load(name)


def test_the_views_of_a_pipeline_stand_in_its_transformers_config(tmp_path: Path) -> None:
    assert pipeline_views(str(tmp_path)) is None
    (tmp_path / "transformer").mkdir()
    axes = {"lateral": ["inferior", "posterior"], "frontal": ["inferior", "left"]}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"view_axes": axes}))
    assert pipeline_views(str(tmp_path)) == ["lateral", "frontal"]
    with pytest.raises(ValueError, match="no/such/pipeline: found no pipeline"):
        pipeline_views("no/such/pipeline")
