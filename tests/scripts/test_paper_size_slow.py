"""One training step of every model at the paper's size, and one generation, from the configs as they stand.

Minutes of CPU and some gigabytes of memory. What is learned in a step is nothing; that all parts fit together is what
this shows.
"""

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image
from script_calls import SCRIPTS, call

from hf_vq import ViewsToVolumePipeline, VQTokenizer

SIDE, SPACING, VIEW_SIDE = 128, 2.5, 256
COUNTS = {"train": 2, "validation": 2, "test": 1}
ONE_STEP = ["--max_train_steps", "1", "--train_batch_size", "1", "--dataloader_num_workers", "0"]
FROM_THE_START = ["--discriminator.start_step", "0"]
pytestmark = pytest.mark.slow


def config(name):
    return ["--config", SCRIPTS / "configs" / f"ct-128-{name}.yaml"]


def logged(folder):
    """All figures that a training has logged, merged."""
    rows = [json.loads(line) for line in (folder / "logs.jsonl").read_text().splitlines()]
    return {name: value for row in rows for name, value in row.items()}


def write_subject(folder, name, generator):
    """A body of soft tissue with a denser ball in air; its views are smooth random pictures."""
    hu = np.full((SIDE,) * 3, -1000, np.int16)
    hu[20:108, 30:98, 10:118] = 40
    centre = generator.integers(40, 88, 3)[:, None, None, None]
    hu[((np.indices(hu.shape) - centre) ** 2).sum(axis=0) < 15**2] = 600
    nib.Nifti1Image(hu, np.diag([SPACING] * 3 + [1.0])).to_filename(folder / f"{name}.nii.gz")
    row = {"file_name": f"{name}.nii.gz", "subject": name}
    for view in ("frontal", "lateral"):
        row[view] = f"{name}_{view}.png"
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8)).astype(np.uint8))
        coarse.resize((VIEW_SIDE, VIEW_SIDE)).save(folder / row[view])
    return row


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root, generator = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    for split, count in COUNTS.items():
        (root / split).mkdir()
        rows = [write_subject(root / split, f"{split}_{number}", generator) for number in range(count)]
        with (root / split / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


def train(cohort, tmp_path_factory, kind):
    folder = tmp_path_factory.mktemp(kind)
    flags = [*config(f"{kind}-tokenizer"), *ONE_STEP, *FROM_THE_START]
    call("train_tokenizer.py", *flags, "--data", cohort, "--output_dir", folder)
    return folder


@pytest.fixture(scope="module")
def volume_tokenizer(cohort, tmp_path_factory):
    return train(cohort, tmp_path_factory, "volume")


@pytest.fixture(scope="module")
def view_tokenizer(cohort, tmp_path_factory):
    return train(cohort, tmp_path_factory, "view")


@pytest.fixture(scope="module")
def codes(cohort, volume_tokenizer, view_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "codes"
    tokenizers = ["--volume_tokenizer", volume_tokenizer, "--view_tokenizer", view_tokenizer]
    call("encode_codes.py", "--data", cohort, *tokenizers, "--batch_size", 1, "--output_dir", folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(codes, volume_tokenizer, view_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tokenizers = ["--volume_tokenizer", volume_tokenizer, "--view_tokenizer", view_tokenizer]
    flags = [*config("code-transformer"), *ONE_STEP, *tokenizers]
    call("train_code_transformer.py", *flags, "--data", codes, "--output_dir", folder)
    return folder


@pytest.mark.parametrize(("kind", "side", "grid"), [("volume", SIDE, (8, 8, 8)), ("view", VIEW_SIDE, (16, 16))])
def test_a_tokenizer_makes_a_step_with_its_discriminator(kind, side, grid, request):
    folder = request.getfixturevalue(f"{kind}_tokenizer")
    model = VQTokenizer.from_pretrained(folder)
    assert model.code_grid([side] * len(grid)) == grid
    assert model.quantizer.effective_codebook.shape == (1024, 256)
    figures = logged(folder)
    assert {"discriminator_loss", "adversarial_loss", "adaptive_weight", "validation_psnr"} <= set(figures)
    assert all(math.isfinite(value) for value in figures.values())


def test_the_code_transformer_makes_a_step_of_512_and_512_tokens(pipeline, codes):
    row = load_from_disk(codes).with_format("torch")["train"][0]
    assert row["codes"].numel() == row["frontal"].numel() + row["lateral"].numel() == 512
    assert math.isfinite(logged(pipeline)["validation_bits"])
    transformer = ViewsToVolumePipeline.from_pretrained(pipeline).transformer
    assert (transformer.config.num_layers, transformer.config.hidden_size, transformer.config.num_heads) == (8, 512, 4)


def test_a_volume_is_generated_on_the_grid_of_the_cohort(pipeline, cohort, tmp_path):
    flags = ["--pipeline", pipeline, "--data", cohort, "--num_inference_steps", 2, "--output_dir", tmp_path / "out"]
    call("generate.py", *flags)
    volume = nib.load(tmp_path / "out" / "test_0_0.nii.gz")
    assert volume.shape == (SIDE,) * 3
    np.testing.assert_allclose(volume.header.get_zooms(), SPACING)
    assert bool(np.isfinite(volume.get_fdata()).all())
