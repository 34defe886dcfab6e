"""The scripts of the chain resumed, in two processes, and with what they cannot use: one line, and nothing lost."""

import csv
import json
import shutil

import pytest
import torch
from datasets import load_from_disk
from paired_chain import ADVERSARIAL, SHORT, TRANSFORMER, VIEW, VOLUME
from safetensors.torch import load_file
from script_calls import call, fails, run_in_two_processes

from hf_vq import VQTokenizer


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


def test_two_processes_train_together_with_a_discriminator(chain, tmp_path):
    flags = ["--data", chain / "cohort", "--output_dir", tmp_path / "run", *SHORT, *VIEW, *ADVERSARIAL]
    run_in_two_processes("train_tokenizer.py", *flags)
    before, after = (load_file(tmp_path / "run" / f"checkpoint-000000{n}" / "model_1.safetensors") for n in (3, 6))
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_two_processes_train_together_and_leave_together(chain, tmp_path):
    flags = ["--data", chain / "cohort", "--output_dir", tmp_path / "run", *SHORT, *VIEW, "--train_batch_size", "2"]
    run_in_two_processes("train_tokenizer.py", *flags)
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
