"""Every script of the chain from a paired folder to scored volumes, on a tiny cohort, and its one-line errors."""

import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image
from safetensors.torch import load_file

from hf_vq import ViewsToVolumePipeline, VQTokenizer
from hf_vq.data import render_views
from hf_vq.training.state_files import load_states

SCRIPTS = Path(__file__).parents[2] / "scripts"
SIDE, SPACING, COUNTS = 16, 22.0, {"train": 6, "validation": 3, "test": 3}
SHORT = ["--max_train_steps", "6", "--logging_steps", "2", "--validation_steps", "3", "--checkpointing_steps", "3"]
MODEL = [
    *("--model.base_channels", "8", "--model.num_norm_groups", "4", "--model.stem_stride", "4"),
    *(
        "--model.channel_multipliers",
        "[1]",
        "--model.quantizer.codebook_size",
        "16",
        "--model.quantizer.codebook_dim",
        "4",
    ),
]
VOLUME = [
    *MODEL,
    "--processor.size",
    f"[{SIDE}, {SIDE}, {SIDE}]",
    "--processor.spacing",
    f"[{SPACING}, {SPACING}, {SPACING}]",
]
VIEW = [*MODEL, "--model.spatial_dims", "2", "--processor.size", "{height: 16, width: 16}"]
ADVERSARIAL = [
    *("--adversarial_weight", "0.5", "--discriminator.channels", "4", "--discriminator.num_layers", "2"),
    *("--discriminator.start_step", "2", "--gradient_accumulation_steps", "2", "--train_batch_size", "2"),
]
TRANSFORMER = ["--model.hidden_size", "16", "--model.num_layers", "2", "--model.num_heads", "2"]


def call(script, *flags):
    """Runs a script in this process, as the command line would."""
    argv, sys.argv = sys.argv, [str(SCRIPTS / script), *map(str, flags)]
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    finally:
        sys.argv = argv


def fails(capsys, script, *flags):
    """The one line that a script ends with; asserts exit status 2 and that there is no stack trace."""
    with pytest.raises(SystemExit) as exit_info:
        call(script, *flags)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def write_cohort(root):
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        (root / split).mkdir(parents=True)
        rows = []
        for number in range(count):
            name = f"{split}_{number}"
            hu = np.full((SIDE,) * 3, -1000, np.int16)
            low = rng.integers(1, 6, 3)
            hu[low[0] : low[0] + 9, low[1] : low[1] + 9, low[2] : low[2] + 9] = rng.integers(-200, 300)
            affine = np.diag([SPACING] * 3 + [1])
            nib.Nifti1Image(hu.transpose(2, 1, 0), affine).to_filename(root / split / f"{name}.nii.gz")
            views = render_views(torch.from_numpy(hu)[None, None].float(), [SPACING] * 3)[0, :, 0].numpy()
            row = {"file_name": f"{name}.nii.gz", "subject": name}
            for view, image in zip(("frontal", "lateral"), views, strict=True):
                row[view] = f"{name}_{view}.png"
                Image.fromarray((image * 255).astype(np.uint8)).save(root / split / row[view])
            rows.append(row)
        with (root / split / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The outputs of the whole chain, run once."""
    root = tmp_path_factory.mktemp("chain")
    data = ["--data", write_cohort(root / "cohort")]
    call("train_tokenizer.py", *data, "--output_dir", root / "volume", *SHORT, *VOLUME)
    call("train_tokenizer.py", *data, "--output_dir", root / "view", *SHORT, *VIEW)
    tokenizers = ["--volume_tokenizer", root / "volume", "--view_tokenizer", root / "view"]
    call("encode_codes.py", *data, *tokenizers, "--output_dir", root / "codes", "--batch_size", 4)
    call(
        *("train_code_transformer.py", "--data", root / "codes", *tokenizers, "--validation_data", root / "cohort"),
        *("--output_dir", root / "pipeline", "--num_inference_steps", 2, *SHORT, *TRANSFORMER),
    )
    generate = ["--pipeline", root / "pipeline", *data, "--num_inference_steps", 2]
    call("generate.py", *generate, "--num_volumes_per_prompt", 2, "--output_dir", root / "generated")
    call("generate.py", *generate, "--shuffle_views", "--output_dir", root / "shuffled")
    call(
        *("evaluate.py", *data, "--generated", root / "generated", "--shuffled", root / "shuffled"),
        *("--pipeline", root / "pipeline", "--output_dir", root / "evaluation", "--num_sheet_subjects", 2),
        *("--nearest_k", 2),
    )
    return root


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


@pytest.mark.parametrize("script", ["train_tokenizer.py", "train_code_transformer.py"])
def test_a_resumed_training_equals_an_uninterrupted_one(chain, tmp_path, script):
    if script == "train_tokenizer.py":
        flags = ["--data", chain / "cohort", *VOLUME]
        whole, weights = chain / "volume", "model.safetensors"
    else:
        tokenizers = ["--volume_tokenizer", chain / "volume", "--view_tokenizer", chain / "view"]
        flags = ["--data", chain / "codes", *tokenizers, *TRANSFORMER, "--validation_data", chain / "cohort"]
        flags += ["--num_inference_steps", "2"]
        whole, weights = chain / "pipeline", "transformer/diffusion_pytorch_model.safetensors"
    shutil.copytree(whole / "checkpoint-0000003", tmp_path / "run" / "checkpoint-0000003")
    shutil.copy(whole / "logs.jsonl", tmp_path / "run")
    call(script, *flags, "--output_dir", tmp_path / "run", *SHORT, "--resume_from_checkpoint", "latest")
    expected, resumed = load_file(whole / weights), load_file(tmp_path / "run" / weights)
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name
    assert (tmp_path / "run" / "logs.jsonl").read_text() == (whole / "logs.jsonl").read_text()
    state = json.loads((whole / "checkpoint-0000003" / "checkpoint.json").read_text())["record"]
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["parts"], record["steps"]) == (2, 6)
    assert record["seconds"] > state["seconds"] > 0


def test_a_training_with_a_discriminator_resumes_exactly_and_with_it_only(chain, tmp_path, capsys):
    flags = ["--data", chain / "cohort", *VOLUME, *SHORT, "--logging_steps", "1"]
    call("train_tokenizer.py", *flags, *ADVERSARIAL, "--output_dir", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-0000003", tmp_path / "run" / "checkpoint-0000003")
    shutil.copy(tmp_path / "whole" / "logs.jsonl", tmp_path / "run")
    flags += ["--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest"]
    assert "['discriminator']" in fails(capsys, "train_tokenizer.py", *flags)
    call("train_tokenizer.py", *flags, *ADVERSARIAL)

    whole, resumed = (
        [json.loads(line) for line in (tmp_path / name / "logs.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    )
    assert resumed == whole
    heard = {"discriminator_loss", "real_logits", "fake_logits", "adversarial_loss", "adaptive_weight"}
    trained = [row for row in whole if "loss" in row]
    assert [heard <= set(row) for row in trained] == [False, False, True, True, True, True]  # start_step 2
    for file in ("model.safetensors", "model_1.safetensors"):
        first, last, again = (
            load_file(tmp_path / run / step / file)
            for run, step in (
                ("whole", "checkpoint-0000003"),
                ("whole", "checkpoint-0000006"),
                ("run", "checkpoint-0000006"),
            )
        )
        assert all(torch.equal(value, again[name]) for name, value in last.items())
        assert any(not torch.equal(value, first[name]) for name, value in last.items())


def run_in_two_processes(*command):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *map(str, command)], check=True, timeout=200, env=environment)


def test_two_processes_train_together_with_a_discriminator(chain, tmp_path):
    flags = ["--data", chain / "cohort", "--output_dir", tmp_path / "run", *SHORT, *VIEW, *ADVERSARIAL]
    run_in_two_processes(SCRIPTS / "train_tokenizer.py", *flags)
    before, after = (load_file(tmp_path / "run" / f"checkpoint-000000{n}" / "model_1.safetensors") for n in (3, 6))
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_two_processes_train_together_and_leave_together(chain, tmp_path):
    flags = ["--data", chain / "cohort", "--output_dir", tmp_path / "run", *SHORT, *VIEW, "--train_batch_size", "2"]
    run_in_two_processes(SCRIPTS / "train_tokenizer.py", *flags)
    model = VQTokenizer.from_pretrained(tmp_path / "run")
    assert int(model.quantizer.codebook.num_batches) == 6
    assert (tmp_path / "run" / "checkpoint-0000006" / "random_states_1.pkl").is_file()


def test_a_checkpoint_of_another_model_is_refused(chain, tmp_path, capsys):
    shutil.copytree(chain / "pipeline" / "checkpoint-0000003", tmp_path / "run" / "checkpoint-0000003")
    flags = ["--data", chain / "cohort", "--output_dir", tmp_path / "run", *SHORT, "--resume_from_checkpoint", "latest"]
    assert "CodeTransformer" in fails(capsys, "train_tokenizer.py", *flags, *VOLUME)
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(chain / "volume" / "checkpoint-0000003", tmp_path / "run" / "checkpoint-0000003")
    assert "quantizer" in fails(capsys, "train_tokenizer.py", *flags, *VOLUME, "--model.quantizer.codebook_size", "32")


def test_bad_input_is_one_line_and_leaves_nothing(chain, tmp_path, capsys):
    tokenizers = ["--volume_tokenizer", chain / "volume", "--view_tokenizer", chain / "view"]
    swapped = ["--volume_tokenizer", chain / "view", "--view_tokenizer", chain / "volume"]
    out = tmp_path / "out"
    cases = [
        (["train_tokenizer.py", "--data", tmp_path / "none", "--output_dir", out, *SHORT, *VOLUME], "none"),
        (
            ["train_tokenizer.py", "--data", chain / "cohort", "--output_dir", out, "--model.spatial_dims", "4"],
            "spatial_dims=4",
        ),
        (
            ["train_tokenizer.py", "--data", chain / "cohort", "--output_dir", out, "--max_train_steps", "0"],
            "max_train_steps",
        ),
        (["train_tokenizer.py", "--data", chain / "cohort", "--output_dir", out, "--model.colour", "red"], "colour"),
        (
            ["train_tokenizer.py", "--data", chain / "cohort", "--output_dir", out, "--logging_steps", "0"],
            "logging_steps",
        ),
        (
            ["train_tokenizer.py", "--data", chain / "cohort", "--output_dir", out, "--discriminator.depth", "3"],
            "the fields are ['channels', 'num_layers'",
        ),
        (
            ["train_tokenizer.py", "--data", chain / "cohort", "--output_dir", out, "--perceptual_model", out / "no"],
            "no",
        ),
        (["train_code_transformer.py", "--data", chain / "codes", "--output_dir", out], "--volume_tokenizer"),
        (
            [
                "train_code_transformer.py",
                "--data",
                chain / "codes",
                *tokenizers,
                "--output_dir",
                out,
                "--scheduler.mask",
                "3",
            ],
            "--scheduler.mask",
        ),
        (["encode_codes.py", "--data", chain / "cohort", *swapped, "--output_dir", out], "swapped"),
        (["encode_codes.py", "--data", chain / "cohort", *tokenizers, "--output_dir", chain / "view"], "not empty"),
        (
            ["train_code_transformer.py", "--data", chain / "cohort", *tokenizers, "--output_dir", out],
            "encode_codes.py",
        ),
        (["train_code_transformer.py", "--data", chain / "codes", *swapped, "--output_dir", out], "swapped"),
        (
            [
                "train_code_transformer.py",
                "--data",
                chain / "codes",
                *tokenizers,
                "--output_dir",
                out,
                "--loss_type",
                "nll",
            ],
            "loss_type",
        ),
        (["generate.py", "--pipeline", tmp_path / "none", "--data", chain / "cohort", "--output_dir", out], "none"),
        (
            ["generate.py", "--pipeline", chain / "volume", "--data", chain / "cohort", "--output_dir", out],
            "model_index.json",
        ),
        (
            [
                "generate.py",
                "--pipeline",
                chain / "pipeline",
                "--data",
                chain / "cohort",
                "--split",
                "dev",
                "--output_dir",
                out,
            ],
            "dev",
        ),
    ]
    for command, words in cases:
        assert words in fails(capsys, *command), command
        assert not out.exists() or not any(out.iterdir()), command


def test_overwrite_replaces_a_training_and_nothing_else(chain, tmp_path, capsys):
    flags = ["--data", chain / "cohort", "--output_dir", tmp_path / "out", *SHORT, *VIEW, "--overwrite", "true"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("1")
    assert "logs.jsonl" in fails(capsys, "train_tokenizer.py", *flags)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "1"
    (tmp_path / "out" / "logs.jsonl").touch()
    call("train_tokenizer.py", *flags)
    assert not (tmp_path / "out" / "thesis.txt").exists()


def test_a_cohort_without_a_test_split_is_encoded_without_one(chain, tmp_path):
    shutil.copytree(chain / "cohort", tmp_path / "cohort", ignore=shutil.ignore_patterns("test"))
    tokenizers = ["--volume_tokenizer", chain / "volume", "--view_tokenizer", chain / "view"]
    call("encode_codes.py", "--data", tmp_path / "cohort", *tokenizers, "--output_dir", tmp_path / "codes")
    assert set(load_from_disk(tmp_path / "codes")) == {"train", "validation"}


def test_codes_without_views_are_refused(chain, tmp_path, capsys):
    load_from_disk(chain / "codes").remove_columns(["frontal", "lateral"]).save_to_disk(tmp_path / "codes")
    tokenizers = ["--volume_tokenizer", chain / "volume", "--view_tokenizer", chain / "view"]
    flags = ["--data", tmp_path / "codes", *tokenizers, "--output_dir", tmp_path / "out"]
    assert "codes of at least one view" in fails(capsys, "train_code_transformer.py", *flags)


def test_splits_with_other_views_are_refused(chain, tmp_path, capsys):
    shutil.copytree(chain / "cohort", tmp_path / "cohort")
    metadata = tmp_path / "cohort" / "train" / "metadata.csv"
    with metadata.open() as file:
        rows = [{key: value for key, value in row.items() if key != "lateral"} for row in csv.DictReader(file)]
    with metadata.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    flags = [
        "--volume_tokenizer",
        chain / "volume",
        "--view_tokenizer",
        chain / "view",
        "--output_dir",
        tmp_path / "out",
    ]
    assert "same in all splits" in fails(capsys, "encode_codes.py", "--data", tmp_path / "cohort", *flags)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_not_overwritten_unasked(chain, capsys):
    before = (chain / "volume" / "config.json").read_bytes()
    error = fails(
        capsys, "train_tokenizer.py", "--data", chain / "cohort", "--output_dir", chain / "volume", *SHORT, *VOLUME
    )
    assert "--overwrite" in error
    assert (chain / "volume" / "config.json").read_bytes() == before
