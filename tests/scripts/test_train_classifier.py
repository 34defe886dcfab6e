"""The training script of the image classifiers, on a tiny data set with MNIST-format files."""

import json
import shutil
import struct
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from PIL import Image
from safetensors.torch import load_file
from script_calls import SCRIPTS, call, run_in_two_processes
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_vq import VQImageClassifierConfig
from hf_vq.data import ImageDataset

train = partial(call, "train_classifier.py")
NAMES = ["dark", "middling", "bright"]
SHORT = ["--max_train_steps", "6", "--logging_steps", "2", "--validation_steps", "3", "--checkpointing_steps", "3"]
NETWORK = [
    *("--model.backbone", "resnet", "--model.image_size", "8"),
    *("--model.backbone_config", "{embedding_size: 4, hidden_sizes: [4, 8], depths: [1, 1]}"),
]
COMMON = [*SHORT, *NETWORK, "--train_batch_size", "8", "--ema_decay", "0.9", "--label_names", *NAMES]
FLAGS = [*COMMON, "--model.quantizer.codebook_size", "8"]
KINDS = {
    "resnet": [],
    "alternating": ["--model.quantizer.update", "alternating", "--model.quantizer.sync_weight", "0.2"],
    "dropout": [  # validated at other steps than the one resumed from
        *("--validation_steps", "2"),
        *("--model.backbone", "alexnet", "--model.backbone_config"),
        "{channels: [4, 4, 4, 4, 4], stem_kernel_size: 3, stem_stride: 1, pooled_size: 1, hidden_size: 8}",
        *("--model.image_size", "24"),
    ],
}


def write_images(folder):
    """Files in MNIST's format: 6 x 6 pixels, as bright as their label says."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 10)):
        labels = (np.arange(count) % len(NAMES)).astype(np.uint8)
        images = (80 * labels[:, None, None] + rng.integers(0, 40, (count, 6, 6))).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "classifier"
    train("--data", data, "--output_dir", folder, *FLAGS)
    return folder


def test_a_run_leaves_a_model_that_pipelines_load(trained):
    assert not list(trained.glob(".*")) and not list(trained.glob("tmp*"))
    predictions = pipeline("image-classification", model=str(trained))(Image.new("L", (9, 9), 200))
    assert {each["label"] for each in predictions} == set(NAMES)


def test_metrics_are_those_of_the_saved_model_on_the_test_split(trained, data):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["steps"] == 6
    model = AutoModelForImageClassification.from_pretrained(trained)
    dataset = ImageDataset(data, "test", AutoImageProcessor.from_pretrained(trained))
    pixel_values = torch.stack([dataset[i]["pixel_values"] for i in range(len(dataset))])
    labels = torch.tensor([dataset.label(i) for i in range(len(dataset))])
    with torch.no_grad():
        output = model(pixel_values, labels)
    expected = {
        "accuracy": (output.logits.argmax(dim=1) == labels).float().mean(),
        "cross_entropy": output.loss - output.quantizer_loss,
        "quantization_error": output.commitment_loss,
        "active_codes": len(output.codes.unique()),
        "active_fraction": output.active_fraction,
        "perplexity": output.perplexity,
    }
    assert metrics["test"] == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)


def test_a_bounded_evaluation_sees_so_many_images_and_tells_the_accuracy(data, tmp_path, capsys):
    flags = ["--data", data, "--output_dir", tmp_path / "run", *FLAGS, "--max_train_steps", "1"]
    train(*flags, "--max_eval_samples", "5")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test_samples"] == 5
    assert metrics["test"]["accuracy"] in [hits / 5 for hits in range(6)]
    output = capsys.readouterr()
    assert f"test accuracy {metrics['test']['accuracy']:.4f} (5 images)" in output.out
    assert "evaluate validation" in output.err
    assert "evaluate test" in output.err


def write_image_set(folder, broken_test=False, **columns):
    """A saved data set whose test images cannot be decoded if so asked."""
    images = [Image.new("L", (6, 6), 80 * (number % 3)) for number in range(20)]
    rows = Dataset.from_dict({"image": images, **columns})
    test = rows
    if broken_test:
        content = [{"bytes": b"no image", "path": None}] * 20
        test = Dataset.from_dict({"image": content, **columns}, features=rows.features)
    DatasetDict(train=rows, test=test).save_to_disk(folder)
    return folder


def test_the_model_is_saved_before_the_test_images_are_read(tmp_path, capsys):
    data = write_image_set(tmp_path / "data", broken_test=True, label=[number % 3 for number in range(20)])
    with pytest.raises(SystemExit):
        train("--data", data, "--output_dir", tmp_path / "run", *FLAGS, "--max_train_steps", "1")
    assert "found no readable image in row 0" in capsys.readouterr().err
    AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    modes = {path.stat().st_mode for path in (tmp_path / "run").glob("*.*") if path.is_file()}
    assert len(modes) == 1


def test_a_classifier_needs_labels(tmp_path, capsys):
    data = write_image_set(tmp_path / "data")
    with pytest.raises(SystemExit):
        train("--data", data, "--output_dir", tmp_path / "run", *SHORT, *NETWORK)
    assert "found no column of labels in every split" in capsys.readouterr().err


def test_training_and_validation_figures_are_logged(trained):
    logs = [json.loads(line) for line in (trained / "logs.jsonl").read_text().splitlines()]
    training = [entry for entry in logs if "loss" in entry]
    assert [entry["step"] for entry in training] == [2, 4, 6]
    for entry in training:
        assert entry["loss"] == pytest.approx(entry["cross_entropy"] + entry["quantizer_loss"], rel=1e-5)
        assert {"accuracy", "commitment_loss", "codebook_loss", "perplexity", "active_fraction"} <= set(entry)
    validations = [entry for entry in logs if "validation_accuracy" in entry]
    assert [entry["step"] for entry in validations] == [3, 6]
    expected = {"cross_entropy", "quantization_error", "active_fraction", "active_codes", "perplexity"}
    assert {f"validation_{name}" for name in expected} <= set(validations[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_equals_an_uninterrupted_one(data, tmp_path, kind, capsys):
    flags = ["--data", data, *FLAGS, *KINDS[kind]]
    train(*flags, "--output_dir", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-0000003", tmp_path / "resumed" / "checkpoint-0000003")
    train(*flags, "--output_dir", tmp_path / "resumed", "--resume_from_checkpoint", "latest")
    assert "resumed from checkpoint-0000003 (step 3)\n" in capsys.readouterr().out
    expected, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name
    metrics = [(tmp_path / name / "metrics.json").read_text() for name in ("whole", "resumed")]
    assert metrics[0] == metrics[1]


def test_two_processes_train_and_evaluate_together(data, tmp_path):
    flags = ["--data", data, "--output_dir", tmp_path / "run", *FLAGS, "--train_batch_size", "4"]
    run_in_two_processes("train_classifier.py", *flags)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 6
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert int(model.quantizer.codebook.num_batches) == 6


def test_a_network_without_quantisation_is_trained_too(data, tmp_path):
    train("--data", data, "--output_dir", tmp_path / "run", *COMMON, "--model.quantizer", "null")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["test"]) == {"accuracy", "cross_entropy"}
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run").quantizer is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "absent"], "absent: found neither "),
        (["--label_names", "one", "two"], "found 2 label_names, expected 3"),
        (["--model.quantizer_position", "stage9"], "quantizer_position='stage9'"),
        (["--model.colour", "red"], "--model.colour: unknown field"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(data, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as exit_info:
        train("--data", data, "--output_dir", tmp_path / "out", *FLAGS, *flags)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert words in error.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "path", sorted((SCRIPTS / "configs").glob("fashion-mnist-classifier-*.yaml")), ids=lambda path: path.stem
)
def test_the_configs_are_complete(path):
    values = yaml.safe_load(path.read_text())
    assert len(values["label_names"]) == 10
    assert VQImageClassifierConfig(**values["model"]).quantizer_config.codebook_size == 1024
