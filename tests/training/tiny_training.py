"""A training of a few steps on noise, in this process, that can be stopped anywhere and gone on with."""

import json
import random

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import Dataset

from hf_vq import VQForImageClassification, VQImageClassifierConfig, VQTokenizer, VQTokenizerConfig
from hf_vq.training.arguments import TrainingArguments
from hf_vq.training.run import TrainingRun, make_accelerator

NUM_SUBJECTS, SIDE = 6, 8


class Subjects(Dataset):
    """Six small images with names; one of them may be spoilt."""

    def __init__(self, spoilt=None, value=float("nan")):
        self.subjects = [f"patient_{number}" for number in range(NUM_SUBJECTS)]
        self.pixels = torch.randn(NUM_SUBJECTS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        if spoilt is not None:
            self.pixels[spoilt] = value

    def __len__(self):
        return NUM_SUBJECTS

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": index % 2}


def tokenizer(**quantizer):
    """The smallest tokenizer, with these fields of its quantizer."""
    fields = {"codebook_size": 8, "codebook_dim": 4, **quantizer}
    return VQTokenizer(
        VQTokenizerConfig(
            spatial_dims=2, base_channels=8, num_norm_groups=4, channel_multipliers=[1], stem_stride=2, quantizer=fields
        )
    )


def classifier():
    """A small vision transformer whose dropout draws from the global generators."""
    quantizer = {"codebook_size": 8, "init": "random"}
    backbone = {
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
        **{"patch_size": 4, "hidden_dropout_prob": 0.5},
    }
    return VQForImageClassification(
        VQImageClassifierConfig(
            backbone="vit", backbone_config=backbone, image_size=SIDE, num_channels=1, quantizer=quantizer
        )
    )


def make_run(output_dir, make_model=tokenizer, **flags):
    """A run and its arguments, everything seeded as a script does it."""
    values = {"max_train_steps": 6, "train_batch_size": 2, "checkpointing_steps": 2, "checkpoints_total_limit": 9}
    args = TrainingArguments(
        data="", output_dir=str(output_dir), **{**values, "logging_steps": 1, "validation_steps": 3, **flags}
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # else the first precision of the process stays
    accelerator = make_accelerator(args)
    return TrainingRun(accelerator, make_model(), args)


def train(run, dataset=None, until=None, after_step=lambda run: None, validate=lambda run: None):
    """The loop of a script; leaves after `until` steps as if the process had been killed, without another word."""
    run.model.train()

    def look_back():
        with run.validation(), run.averaged_weights():
            validate(run)
            torch.rand(1)  # what a validation draws must not matter to the training
            run.log({"validation_draw": float(run.step)})

    if run.validation_missed:
        look_back()
    takes_labels = isinstance(run.unwrapped_model, VQForImageClassification)
    for batches in run.steps(Subjects() if dataset is None else dataset):
        if not takes_labels:
            run.begin_step([batch["pixel_values"] for batch in batches])
        for batch in batches:
            with run.accumulate():
                arguments = batch if takes_labels else {"pixel_values": batch["pixel_values"]}
                loss = run.model(**arguments).loss * (1 + 0.1 * random.random() + 0.1 * np.random.rand())
                run.optimize(loss, {})
        if run.validation_due:
            look_back()
        if run.step == until:
            return
        after_step(run)
    run.end()


def digests(checkpoint):
    """SHA-256 of every file of a checkpoint."""
    files = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items()}
