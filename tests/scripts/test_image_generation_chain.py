"""Every script of the chain from an image data set to scored generated images, on tiny data, and one-line errors."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from PIL import Image
from safetensors.torch import load_file
from script_calls import call, fails
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

from hf_vq import CodeGenerationPipeline, VQTokenizer
from hf_vq.data import ImageDataset, make_image_processor

SHORT = ["--max_train_steps", "4", "--logging_steps", "2", "--validation_steps", "2", "--checkpointing_steps", "2"]
TOKENIZER = [
    *("--data_type", "images", "--processor.size", "16", "--model.spatial_dims", "2", "--model.base_channels", "8"),
    *("--model.num_norm_groups", "4", "--model.stem_stride", "4", "--model.channel_multipliers", "[1]"),
    *("--model.quantizer.codebook_size", "16", "--model.quantizer.codebook_dim", "4"),
]
TRANSFORMER = [
    *("--model.hidden_size", "16", "--model.num_layers", "1", "--model.num_heads", "2", "--num_inference_steps", "2"),
]
NAMES = ["shirt", "bag", "boot"]


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(header + array.tobytes())


def write_images(folder):
    """Grey 12 x 12 images in MNIST's format whose brightness tells their label."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 24)):
        labels = np.arange(count, dtype=np.uint8) % 3
        images = (80 * labels[:, None, None] + rng.integers(0, 60, (count, 12, 12))).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return folder


def save_classifier(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(image_size=12, patch_size=4, num_channels=1, num_labels=3, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    make_image_processor(12, channels=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The outputs of the whole chain, run once."""
    root = tmp_path_factory.mktemp("chain")
    data = ["--data", write_images(root / "images")]
    tokenizer = ["--tokenizer", root / "tokenizer"]
    call("train_tokenizer.py", *data, "--output_dir", root / "tokenizer", *SHORT, *TOKENIZER)
    call("encode_codes.py", *data, *tokenizer, "--label_names", *NAMES, "--output_dir", root / "codes")
    train = ["--data", root / "codes", *tokenizer, *SHORT, *TRANSFORMER]
    call("train_code_transformer.py", *train, "--output_dir", root / "pipeline")
    call("train_code_transformer.py", *train, "--output_dir", root / "plain", "--class_conditional", "false")
    generate = ["generate_images.py", "--pipeline", root / "pipeline", "--num_images", 20, "--num_inference_steps", 2]
    call(*generate, "--guidance_scale", 2, "--output_dir", root / "guided")
    call(*generate, "--unlabelled", "--scheduler", "amused", "--output_dir", root / "unlabelled")
    call(
        *("evaluate_images.py", *data, *tokenizer, "--classifier", save_classifier(root / "classifier")),
        *("--generated", root / "guided", root / "unlabelled", "--nearest_k", 3, "--output_dir", root / "evaluation"),
    )
    return root


def test_tokenizer_is_saved_with_a_processor_of_transformers(chain):
    tokenizer = VQTokenizer.from_pretrained(chain / "tokenizer")
    processor = AutoImageProcessor.from_pretrained(chain / "tokenizer")
    pixels = processor(Image.new("L", (12, 12), 255), return_tensors="pt")["pixel_values"]
    assert tokenizer.encode(pixels).codes.shape == (1, 4, 4)
    assert pixels.max() == 1
    logs = [json.loads(line) for line in (chain / "tokenizer" / "logs.jsonl").read_text().splitlines()]
    assert {"loss", "perplexity", "validation_psnr", "validation_active_fraction"} <= set().union(*logs)
    assert len(list((chain / "tokenizer" / "validation").glob("*.png"))) == 2


def test_codes_and_labels_are_those_of_the_images(chain):
    codes = load_from_disk(chain / "codes").with_format("torch")
    assert {split: len(codes[split]) for split in codes} == {"train": 36, "validation": 4, "test": 24}
    assert codes["train"].features["label"].names == NAMES
    tokenizer = VQTokenizer.from_pretrained(chain / "tokenizer")
    dataset = ImageDataset(chain / "images", "test", AutoImageProcessor.from_pretrained(chain / "tokenizer"))
    for row in (0, 23):
        assert torch.equal(tokenizer.encode(dataset[row]["pixel_values"][None]).codes[0], codes["test"][row]["codes"])
        assert int(codes["test"][row]["label"]) == dataset[row]["labels"]


def test_images_without_labels_train_tokenizer_and_transformer(tmp_path, capsys):
    images, tokenizer, codes = (tmp_path / name for name in ("images", "tokenizer", "codes"))
    images.mkdir()
    for number in range(20):
        Image.new("L", (12, 12), 10 * number).save(images / f"{number}.png")
    data, short = ["--data", images], [*SHORT[:-2], "--max_train_steps", 1, "--checkpointing_steps", 0]
    call("train_tokenizer.py", *data, "--output_dir", tokenizer, *short, *TOKENIZER)
    call("encode_codes.py", *data, "--tokenizer", tokenizer, "--output_dir", codes)
    assert {split: rows.column_names for split, rows in load_from_disk(codes).items()} == {
        "train": ["codes"],
        "validation": ["codes"],
    }
    train = ["--data", codes, "--tokenizer", tokenizer, *short, *TRANSFORMER, "--output_dir", tmp_path / "pipeline"]
    assert "pass --class_conditional false" in fails(capsys, "train_code_transformer.py", *train)
    call("train_code_transformer.py", *train, "--class_conditional", "false")
    call("generate_images.py", "--pipeline", tmp_path / "pipeline", "--num_images", 2, "--output_dir", tmp_path / "out")
    with (tmp_path / "out" / "metadata.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["-1", "-1"]


def test_data_without_a_test_split_are_encoded_without_one(chain, tmp_path, capsys):
    images = [Image.new("L", (12, 12), 10 * number) for number in range(20)]
    rows = Dataset.from_dict({"image": images, "label": [number % 3 for number in range(20)]})
    rows = rows.cast_column("label", ClassLabel(names=NAMES))
    DatasetDict(train=rows).save_to_disk(tmp_path / "images")
    DatasetDict(validation=rows).save_to_disk(tmp_path / "untrained")
    flags = ["--tokenizer", chain / "tokenizer", "--output_dir", tmp_path / "codes"]
    assert "expected 'train'" in fails(capsys, "encode_codes.py", "--data", tmp_path / "untrained", *flags)
    call("encode_codes.py", "--data", tmp_path / "images", *flags)
    codes = load_from_disk(tmp_path / "codes")
    assert {split: len(codes[split]) for split in codes} == {"train": 18, "validation": 2}


def test_pipelines_know_their_classes(chain):
    conditional, plain = (CodeGenerationPipeline.from_pretrained(chain / name) for name in ("pipeline", "plain"))
    assert conditional.transformer.label2id == {"shirt": 0, "bag": 1, "boot": 2}
    assert conditional.transformer.config.label_dropout == 0.1
    assert plain.transformer.config.num_classes is None
    assert conditional("boot", num_inference_steps=2).images[0].size == (16, 16)
    assert len(plain(batch_size=2, num_inference_steps=2).images) == 2


def test_validation_compares_right_wrong_and_no_labels(chain):
    expected = {
        "pipeline": {"validation_bits", "validation_bits_shuffled", "validation_bits_unlabelled"},
        "plain": {"validation_bits"},
    }
    for name, figures in expected.items():
        logs = [json.loads(line) for line in (chain / name / "logs.jsonl").read_text().splitlines()]
        assert {key for line in logs for key in line if key.startswith("validation")} == figures
        assert len(list((chain / name / "validation").glob("*.png"))) == 2


def test_generated_images_are_an_image_folder_with_labels(chain):
    with (chain / "guided" / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file_name"], row["label"], row["label_name"]) for row in rows[:4]] == [
        ("000000.png", "0", "shirt"),
        ("000001.png", "1", "bag"),
        ("000002.png", "2", "boot"),
        ("000003.png", "0", "shirt"),
    ]
    assert len(rows) == 20
    loaded = load_dataset("imagefolder", data_dir=str(chain / "guided"), split="train")
    assert loaded.num_rows == 20
    assert loaded[1]["image"].size == (16, 16)
    with (chain / "unlabelled" / "metadata.csv").open(newline="") as file:
        assert {(row["label"], row["label_name"]) for row in csv.DictReader(file)} == {("-1", "")}


def test_an_image_depends_on_seed_and_number_alone(chain, tmp_path):
    flags = ["--pipeline", chain / "pipeline", "--num_inference_steps", 2, "--guidance_scale", 2, "--batch_size", 3]
    call("generate_images.py", *flags, "--num_images", 5, "--output_dir", tmp_path / "few")
    for number in range(5):
        assert (tmp_path / "few" / f"{number:06d}.png").read_bytes() == (
            chain / "guided" / f"{number:06d}.png"
        ).read_bytes()
    call(
        *("generate_images.py", *flags, "--num_images", 3, "--class_labels", "boot", "1"),
        *("--output_dir", tmp_path / "chosen"),
    )
    with (tmp_path / "chosen" / "metadata.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["2", "1", "2"]


def test_evaluation_covers_controls_and_generated_sets(chain):
    report = json.loads((chain / "evaluation" / "metrics.json").read_text())
    assert list(report["rows"]) == [
        *("training images (floor)", "reconstructed test images", "reconstructed training images (ceiling)"),
        *("independent codes (control)", "guided", "unlabelled"),
    ]
    assert report["settings"]["num_images"] == 20
    assert 0 <= report["settings"]["classifier_accuracy"] <= 1
    for name, scores in report["rows"].items():
        assert all(np.isfinite(scores[key]) for key in ("frechet", "density", "coverage", "precision", "recall")), name
    labelled = {name for name, scores in report["rows"].items() if scores["label_agreement"] is not None}
    assert labelled == set(report["rows"]) - {"independent codes (control)", "unlabelled"}
    assert str(chain / "classifier") in (chain / "evaluation" / "metrics.md").read_text()
    for name in ("guided", "unlabelled"):
        assert (chain / "evaluation" / f"{name}.png").stat().st_size > 5_000


def test_a_resumed_training_equals_an_uninterrupted_one(chain, tmp_path):
    """Labels are dropped at random, and that too is the same after an interruption."""
    shutil.copytree(chain / "pipeline" / "checkpoint-0000002", tmp_path / "run" / "checkpoint-0000002")
    flags = ["--data", chain / "codes", "--tokenizer", chain / "tokenizer", *SHORT, *TRANSFORMER]
    call("train_code_transformer.py", *flags, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    expected, resumed = load_file(chain / "pipeline" / weights), load_file(tmp_path / "run" / weights)
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def test_bad_input_is_one_line_and_leaves_nothing(chain, tmp_path, capsys):
    out = tmp_path / "out"
    images, codes = ["--data", chain / "images"], ["--data", chain / "codes"]
    tokenizer, output = ["--tokenizer", chain / "tokenizer"], ["--output_dir", out]
    generate = ["generate_images.py", "--pipeline", chain / "pipeline", *output]
    evaluate = ["evaluate_images.py", *images, *tokenizer, *output, "--classifier", chain / "classifier"]
    cases = [
        (["train_tokenizer.py", *images, *output, *TOKENIZER, "--data_type", "films"], "--data_type films"),
        (["train_tokenizer.py", *images, *output, *TOKENIZER, "--model.spatial_dims", "3"], "spatial_dims=2"),
        (["train_tokenizer.py", *images, *output, *TOKENIZER, "--processor.colour", "1"], "--processor.colour"),
        (["encode_codes.py", *images, *output], "none of them"),
        (["encode_codes.py", *images, *output, *tokenizer, "--view_tokenizer", "x"], "--view_tokenizer"),
        (["encode_codes.py", *images, *output, *tokenizer, "--label_names", "shirt"], "label_names"),
        (["train_code_transformer.py", *codes, *output, *tokenizer, "--view_tokenizer", "x"], "give either"),
        ([*generate, "--unlabelled", "--class_labels", "bag"], "contradict"),
        ([*generate, "--class_labels", "hat"], "'hat'"),
        ([*generate, "--num_images", "0"], "--num_images"),
        ([*generate, "--scheduler", "amused", "--top_p", "0.9"], "--top_p"),
        ([*evaluate, "--generated", chain / "images"], "generate_images.py"),
        ([*evaluate, "--generated", chain / "guided", chain / "guided"], "expected each once"),
        ([*evaluate, "--generated", chain / "guided", "--num_images", "1"], "--num_images"),
        (
            [*evaluate, "--generated", chain / "guided", "--nearest_k", "19", "--classifier", chain / "none"],
            "found 20 images of each set",
        ),
        (
            [*evaluate, "--generated", chain / "guided", "--nearest_k", "3", "--classifier", chain / "none"],
            "image classifier",
        ),
    ]
    for command, words in cases:
        assert words in fails(capsys, *command), command
        assert not out.exists() or not any(out.iterdir()), command
