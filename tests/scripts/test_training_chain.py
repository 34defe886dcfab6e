"""Every script of the chain from a paired folder to scored volumes, on a tiny cohort."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from datasets import load_from_disk
from paired_chain import COUNTS, SHORT, SIDE, SPACING, TRANSFORMER
from safetensors.torch import load_file
from script_calls import call, fails

from hf_vq import ViewsToVolumePipeline, VQTokenizer
from hf_vq.training.state_files import load_states


def test_tokenizers_are_saved_for_use(chain):
    for name in ("volume", "view"):
        assert VQTokenizer.from_pretrained(chain / name).config.quantizer["codebook_size"] == 16
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
            p.name for p in (chain / name).iterdir()
        }
        logs = [json.loads(line) for line in (chain / name / "logs.jsonl").read_text().splitlines()]
        assert {"loss", "perplexity", "validation_psnr", "validation_active_fraction"} <= set().union(*logs)
        assert len(list((chain / name / "validation").glob("*.png"))) == 2


def test_codes_are_those_of_the_tokenizer(chain):
    codes = load_from_disk(chain / "codes").with_format("torch")
    assert {split: len(codes[split]) for split in codes} == COUNTS
    row = codes["test"][1]
    assert row["subject"] == "test_1"
    pipeline = ViewsToVolumePipeline.from_pretrained(chain / "pipeline")
    pixels = pipeline.volume_processor(str(chain / "cohort" / "test" / "test_1.nii.gz"))["pixel_values"]
    assert torch.equal(pipeline.volume_tokenizer.encode(pixels).codes[0], row["codes"])
    image = pipeline.view_processor(str(chain / "cohort" / "test" / "test_1_lateral.png"))["pixel_values"]
    assert torch.equal(pipeline.view_tokenizer.encode(image).codes[0], row["lateral"])


def test_moved_copies_of_the_training_pairs_are_encoded_too(chain, tmp_path, capsys):
    flags = ["--data", chain / "cohort", "--volume_tokenizer", chain / "volume", "--view_tokenizer", chain / "view"]
    call("encode_codes.py", *flags, "--num_shifts", 3, "--max_shift", 2, "--output_dir", tmp_path / "codes")
    codes, plain = (load_from_disk(folder).with_format("torch") for folder in (tmp_path / "codes", chain / "codes"))
    assert {split: len(codes[split]) for split in codes} == {**COUNTS, "train": 4 * COUNTS["train"]}
    assert codes["train"]["subject"][:5] == ["train_0"] * 4 + ["train_1"]
    for index in range(COUNTS["train"]):
        for column in ("codes", "frontal"):
            assert torch.equal(codes["train"][4 * index][column], plain["train"][index][column])
    copies = [codes["train"][index]["codes"] for index in range(4)]
    assert any(not torch.equal(copies[0], copy) for copy in copies[1:])
    error = fails(capsys, "encode_codes.py", *flags, "--num_shifts", 30, "--output_dir", tmp_path / "more")
    assert "30 shifts by up to 1 voxels wanted, expected 0 to 26" in error


def test_validation_compares_right_and_shuffled_views(chain):
    logs = [json.loads(line) for line in (chain / "pipeline" / "logs.jsonl").read_text().splitlines()]
    expected = {"validation_bits", "validation_bits_shuffled", "validation_psnr", "validation_psnr_shuffled"}
    assert expected <= set().union(*logs)


def train_transformer(chain, codes, output, *flags):
    """A pipeline around a transformer trained on other codes, or in another way, than the chain's."""
    tokenizers = ["--volume_tokenizer", chain / "volume", "--view_tokenizer", chain / "view"]
    data = ["--data", codes, *tokenizers, "--validation_data", chain / "cohort", "--num_inference_steps", 2]
    call("train_code_transformer.py", *data, "--output_dir", output, *SHORT, *TRANSFORMER, *flags)
    return ViewsToVolumePipeline.from_pretrained(output)


def test_classes_guidance_and_missing_views_from_metadata_to_pipeline(chain, tmp_path):
    cohort = tmp_path / "cohort"
    shutil.copytree(chain / "cohort", cohort)
    for number, path in enumerate(sorted(cohort.glob("*/metadata.csv"))):
        rows = list(csv.DictReader(path.open(newline="")))
        for row, label in zip(rows, ["sick", "well", ""] if number else ["well"] * 3, strict=False):
            row["label"] = label
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    tokenizers = ["--volume_tokenizer", chain / "volume", "--view_tokenizer", chain / "view"]
    call("encode_codes.py", "--data", cohort, *tokenizers, "--output_dir", tmp_path / "codes")
    codes = load_from_disk(tmp_path / "codes")
    assert codes["train"].features["label"].names == ["sick", "well"]
    assert codes["train"]["label"][:3] == [0, 1, -1]
    dropout = ["--model.view_dropout", "0.5", "--model.context_dropout", "0.5"]
    options = ["--mask_rates", "cosine", "--code_vector_weight", "1", "--soft_target_temperature", "0.5"]
    more = ["--shuffle_view_order", "true", "--initialize_from_codebooks", "false"]
    pipeline = train_transformer(chain, tmp_path / "codes", tmp_path / "pipeline", *dropout, *options, *more)
    assert pipeline.transformer.label2id == {"sick": 0, "well": 1}
    frontal = {"frontal": str(cohort / "test" / "test_0_frontal.png")}
    output = pipeline(frontal, 2, class_labels="well", guidance_scale=2.0, output_type="pt")
    assert output.volumes.shape == (1, 1, SIDE, SIDE, SIDE)
    flags = ["--pipeline", tmp_path / "pipeline", "--data", cohort, "--num_inference_steps", 2]
    call("generate.py", *flags, "--output_dir", tmp_path / "generated", "--guidance_scale", 2, "--views", "lateral")
    assert len(list((tmp_path / "generated").glob("*.nii.gz"))) == COUNTS["test"]


def test_autoregressive_baseline_is_trained_and_settles_one_code_per_step(chain, tmp_path):
    causal = ["--model.causal", "true", "--model.context_attention", "prefix"]
    pipeline = train_transformer(chain, chain / "codes", tmp_path / "pipeline", *causal)
    assert pipeline.scheduler.config.sampling == "sequential"
    views = {name: str(chain / "cohort" / "test" / f"test_0_{name}.png") for name in ("frontal", "lateral")}
    pipeline(views, num_inference_steps=64, output_type="latent")
    assert pipeline.num_network_evaluations == 64
    logs = [json.loads(line) for line in (tmp_path / "pipeline" / "logs.jsonl").read_text().splitlines()]
    assert {"validation_bits", "validation_psnr_shuffled"} <= set().union(*logs)


def test_conditioning_is_ablated_arm_by_arm_and_not_trained_twice(chain, tmp_path, capsys):
    flags = ["--data", chain / "codes", "--volume_tokenizer", chain / "volume", "--view_tokenizer", chain / "view"]
    flags += ["--num_inference_steps", 2, *SHORT, *TRANSFORMER, "--output_dir", tmp_path]
    assert "--validation_data is missing" in fails(capsys, "ablate_conditioning.py", *flags)
    flags += ["--validation_data", chain / "cohort"]
    assert "['typo'] are unknown" in fails(capsys, "ablate_conditioning.py", *flags, "--arms", "typo")
    call("ablate_conditioning.py", *flags, "--arms", "config", "as the paper")
    report = json.loads((tmp_path / "conditioning.json").read_text())
    assert [row["arm"] for row in report["rows"]] == ["config", "as the paper"]
    assert {row["steps"] for row in report["rows"]} == {6}
    written = (tmp_path / "config-0" / "logs.jsonl").stat().st_mtime_ns
    call("ablate_conditioning.py", *flags, "--arms", "config")
    assert (tmp_path / "config-0" / "logs.jsonl").stat().st_mtime_ns == written
    assert "| config | 1 |" in (tmp_path / "conditioning.md").read_text()


def test_averaged_weights_are_the_ones_saved(chain):
    pipeline = ViewsToVolumePipeline.from_pretrained(chain / "pipeline")
    for folder, name, model in (
        ("volume", "model.safetensors", pipeline.volume_tokenizer),
        ("pipeline", "transformer/diffusion_pytorch_model.safetensors", pipeline.transformer),
    ):
        saved = load_file(chain / folder / name)
        raw = load_file(chain / folder / "checkpoint-0000006" / "model.safetensors")
        averaged = load_states(chain / folder / "checkpoint-0000006")["ema"]["shadow_params"]
        parameters = [saved[name] for name, _ in model.named_parameters()]
        assert all(torch.equal(one, two) for one, two in zip(parameters, averaged, strict=True))
        assert any(not torch.equal(saved[key], raw[key]) for key in saved)


def test_generated_volumes_are_listed_on_the_grid_of_the_cohort(chain):
    with (chain / "generated" / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["subject"], row["sample"]) for row in rows] == [
        (f"test_{s}", str(n)) for s in range(3) for n in range(2)
    ]
    for row in rows:
        volume = nib.load(chain / "generated" / row["file_name"])
        assert volume.shape == (SIDE,) * 3
        np.testing.assert_allclose(volume.header.get_zooms(), SPACING)


def test_evaluation_covers_the_protocol(chain):
    metrics = json.loads((chain / "evaluation" / "metrics.json").read_text())
    assert {
        *("one sample", "mean of 2 samples", "shuffled views, one sample", "mean volume", "nearest subject"),
        *("ridge regression", "tokenizer reconstruction (ceiling)"),
    } <= set(metrics["summary"])
    assert (chain / "evaluation" / "sheet.png").stat().st_size > 10_000


def test_every_training_leaves_a_record_and_so_does_sampling(chain):
    volume, view, pipeline = (
        json.loads((chain / name / "training.json").read_text()) for name in ("volume", "view", "pipeline")
    )
    assert pipeline["tokenizers"] == {"volume_tokenizer": volume, "view_tokenizer": view}
    assert [one["num_samples"] for one in (volume, view, pipeline)] == [COUNTS["train"]] * 3
    assert [one["steps"] for one in (volume, view, pipeline)] == [6] * 3
    assert volume["data"] == {"name": "cohort", "kind": "paired", "subjects": COUNTS}
    codes = pipeline["data"].pop("codes")
    assert (pipeline["data"], codes["rows"], codes["num_shifts"]) == (volume["data"], COUNTS, 0)
    last = json.loads((chain / "volume" / "logs.jsonl").read_text().splitlines()[-1])
    assert volume["validation"]["psnr"] == last["validation_psnr"] and volume["validation"]["step"] == 6
    assert pipeline["arguments"]["volume_tokenizer"] == "volume"
    assert str(chain) not in (chain / "pipeline" / "training.json").read_text()
    settings = json.loads((chain / "evaluation" / "metrics.json").read_text())["settings"]
    sampling = settings["programs"][0]["sampling"]
    assert (sampling["num_inference_steps"], sampling["sampling"], sampling["seed"]) == (2, "exact_count", 0)
    assert settings["data_facts"] == volume["data"]


def test_the_card_of_a_chain_lacks_only_what_nobody_recorded(chain, tmp_path):
    models = [chain / name for name in ("volume", "view", "pipeline")]
    call("make_model_card.py", "--model", *models, "--metrics", chain / "evaluation" / "metrics.json")
    for folder in models:
        lines = [line for line in (folder / "README.md").read_text().splitlines() if "not recorded" in line]
        assert {line.partition("|")[2].split("|")[0].strip() for line in lines} == {"Source", "Licence of the data", ""}
        assert any("Licence of these weights: not recorded." in line for line in lines)
        VQTokenizer.from_pretrained(folder) if folder.name != "pipeline" else ViewsToVolumePipeline.from_pretrained(
            folder
        )
    flags = ["--model", *models, "--output_dir", tmp_path / "cards"]
    with pytest.raises(SystemExit):
        call("make_model_card.py", *flags)
    assert not (tmp_path / "cards").exists()
