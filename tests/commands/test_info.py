"""`hf-vq info` on what the package saves: facts agree with the models themselves, and no weights are needed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    ViewsToVolumePipeline,
    VQForImageClassification,
    VQImageClassifierConfig,
    VQTokenizer,
)
from hf_vq.commands.info import main


def facts_of(source: Path, capsys) -> dict:
    main([str(source), "--json"])
    return json.loads(capsys.readouterr().out)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_tokenizer(volume_tokenizer, capsys):
    facts = facts_of(volume_tokenizer, capsys)
    expected = {
        "source": str(volume_tokenizer),
        "class": "VQTokenizer",
        "spatial_dims": 3,
        "in_channels": 1,
        "input_size": [12, 12, 12],
        "code_grid": [3, 3, 3],
        "codes_per_input": 27,
        "spacing": [4.0, 4.0, 4.0],
        "hu_window": [-1000.0, 1000.0],
        "downsampling_factor": 4,
        "codebook_size": 11,
        "codebook_dim": 3,
        "num_codebooks": 1,
        "dtype": ["float32"],
        "model_card": False,
    }
    assert {name: facts.get(name) for name in expected} == expected
    assert facts["parameters"] == count(VQTokenizer.from_pretrained(volume_tokenizer))
    assert facts["weight_bytes"] == (volume_tokenizer / "model.safetensors").stat().st_size
    assert facts["bytes"] == sum(path.stat().st_size for path in volume_tokenizer.iterdir())
    assert facts["quantizer"]["parameterization"] == "affine"
    saved = json.loads((volume_tokenizer / "config.json").read_text())
    assert facts["transformers_version"] == saved["transformers_version"]


def test_images_have_two_sides(view_tokenizer, picture_tokenizer, capsys):
    for source in (view_tokenizer, picture_tokenizer):
        facts = facts_of(source, capsys)
        assert (facts["input_size"], facts["code_grid"], facts["codes_per_input"]) == ([16, 16], [4, 4], 16)


def test_a_pipeline_and_its_parts(flexible, capsys):
    facts = facts_of(flexible, capsys)
    whole = ViewsToVolumePipeline.from_pretrained(flexible)
    models = {name: part for name, part in whole.components.items() if isinstance(part, torch.nn.Module)}
    assert facts["class"] == "ViewsToVolumePipeline"
    assert facts["parameters"] == sum(map(count, models.values()))
    for name, part in models.items():
        assert (facts[name]["class"], facts[name]["parameters"]) == (type(part).__name__, count(part))
    transformer = facts["transformer"]
    assert transformer["views"] == ["frontal", "lateral"]
    assert transformer["code_grid"] == [3, 3, 3]
    assert transformer["views_may_be_missing"] and transformer["guidance"]
    assert facts["volume_processor"] == {
        "class": "CTVolumeProcessor",
        "size": [12, 12, 12],
        "spacing": [4.0, 4.0, 4.0],
        "hu_window": [-1000.0, 1000.0],
        "output_range": [-1.0, 1.0],
    }
    assert facts["scheduler"]["class"] == "AbsorbingScheduler"
    assert facts["scheduler"]["sampling"] == whole.scheduler.config.sampling
    assert facts["diffusers_version"] == json.loads((flexible / "model_index.json").read_text())["_diffusers_version"]


def test_views_are_not_optional_without_dropout(pipeline, capsys):
    transformer = facts_of(pipeline, capsys)["transformer"]
    assert transformer["views"] == ["frontal"]
    assert not transformer["views_may_be_missing"] and not transformer["guidance"]


@pytest.mark.parametrize(
    "quantizer", [None, {"codebook_size": 16}, {"quantizer_type": "finite_scalar", "levels": [5, 3]}]
)
def test_a_classifier(tmp_path, capsys, quantizer):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    labels = {0: "shirt", 1: "bag"}
    config = VQImageClassifierConfig(
        backbone_config=sizes, image_size=32, num_channels=1, quantizer=quantizer, id2label=labels
    )
    model = VQForImageClassification(config)
    model.save_pretrained(tmp_path)
    facts = facts_of(tmp_path, capsys)
    assert (facts["class"], facts["backbone"]) == ("VQForImageClassification", "resnet")
    assert (facts["classes"], facts["input_size"]) == (["shirt", "bag"], [32, 32])
    if quantizer is None:
        assert facts["quantizer_position"] is None and "codebook_size" not in facts
    else:
        assert facts["quantizer_position"] == config.quantizer_position
        assert facts["codebook_size"] == (15 if "levels" in quantizer else 16)
    floats = sum(v.numel() for v in model.state_dict().values() if v.is_floating_point())
    assert facts["parameters"] == floats


def test_a_transformer_alone_with_classes(tmp_path, capsys):
    model = CodeTransformer(
        num_codes=7, code_grid=(2, 2), context_dim=None, hidden_size=16, num_layers=1, num_heads=2, num_classes=2
    )
    model.save_pretrained(tmp_path)
    facts = facts_of(tmp_path, capsys)
    assert (facts["class"], facts["num_codes"], facts["num_classes"]) == ("CodeTransformer", 7, 2)
    assert "views" not in facts
    assert facts["parameters"] == count(model)


def test_no_weights_are_read(volume_tokenizer, tmp_path, capsys):
    header_only = shutil.copytree(volume_tokenizer, tmp_path / "header")
    weights = (header_only / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(weights[:8], "little")
    (header_only / "model.safetensors").write_bytes(weights[:length])
    assert facts_of(header_only, capsys)["parameters"] == facts_of(volume_tokenizer, capsys)["parameters"]
    (header_only / "model.safetensors").unlink()
    assert facts_of(header_only, capsys)["weights"] == "none found"


def test_shards_are_added_and_variants_are_not(volume_tokenizer, tmp_path, capsys):
    model = VQTokenizer.from_pretrained(volume_tokenizer)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert facts_of(tmp_path, capsys)["parameters"] == count(model)
    model.half().save_pretrained(tmp_path, variant="fp16")
    facts = facts_of(tmp_path, capsys)
    assert (facts["parameters"], facts["dtype"]) == (count(model), ["float32"])
    assert facts["variants"] == ["default", "fp16"]


def test_checkpoints_and_records_of_a_training(volume_tokenizer, tmp_path, capsys):
    folder = shutil.copytree(volume_tokenizer, tmp_path / "trained")
    (folder / "checkpoint-0000010").mkdir()
    (folder / "checkpoint-0000010" / "model.safetensors").write_bytes(bytes(1000))
    (folder / "training.json").write_text(json.dumps({"steps": 10, "versions": {"hf_vq": "0.1.0"}}))
    (folder / "README.md").write_text("# A card")
    plain, facts = facts_of(volume_tokenizer, capsys), facts_of(folder, capsys)
    assert facts["checkpoint_bytes"] == 1000
    assert facts["training"] == {"steps": 10, "versions": {"hf_vq": "0.1.0"}}
    assert facts["model_card"]
    assert facts["parameters"] == plain["parameters"]
    main([str(folder)])
    text = capsys.readouterr().out
    assert re.search(r"^input size +12, 12, 12$", text, re.MULTILINE)
    assert re.search(r"^training states +0\.00 MB$", text, re.MULTILINE)
    assert "training\n  steps  10\n  versions\n    hf vq  0.1.0\n" in text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, r"found a folder without config\.json: nothing was saved there"),
        ({"logs.jsonl": ""}, "its training has not finished"),
        ({"config.json": '{"model_type": "bert"}'}, "found a model of type 'bert', expected one of"),
        ({"config.json": "{"}, r"config\.json: found no JSON"),
        ({"config.json": "[]"}, r"config\.json: found list, expected a mapping"),
        (
            {"config.json": '{"model_type": "hf_vq_tokenizer"}', "model.safetensors": "x" * 99},
            "found no header of safetensors",
        ),
        (
            {"config.json": '{"model_type": "hf_vq_tokenizer"}', "model.safetensors": ""},
            "found no header of safetensors",
        ),
    ],
)
def test_what_is_no_model_is_told_in_one_line(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        main([str(tmp_path)])
    assert "\n" not in str(error.value)


def test_a_scheduler_alone_is_no_model(tmp_path):
    AbsorbingScheduler(4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"without config\.json"):
        main([str(tmp_path)])


def test_a_revision_belongs_to_the_hub(volume_tokenizer):
    with pytest.raises(ValueError, match="--revision main: found the folder"):
        main([str(volume_tokenizer), "--revision", "main"])
