"""The chain from a tiny paired folder to scored volumes: its data, the flags of its trainings, and a run of it all."""

import csv

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from script_calls import call

from hf_vq.data import render_views

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


def run_chain(root):
    """Leaves the outputs of the whole chain in a folder, and returns it."""
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
