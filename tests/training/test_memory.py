"""Flags for memory and layout change neither the model's outputs nor what is trained."""

import pytest
import torch
from tiny_training import make_run, tokenizer, train
from torch import nn

from hf_vq.training.arguments import TrainingArguments
from hf_vq.training.memory import apply_memory_flags


def flags(**values):
    return TrainingArguments(data="", output_dir="", **values)


def test_weights_of_convolutions_have_their_channels_last_and_the_model_computes_the_same():
    model = tokenizer()
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = model.eval()(images).sample
    apply_memory_flags(model, flags(channels_last=True))
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    torch.testing.assert_close(model(images).sample, expected)
    volumes = nn.Conv3d(2, 3, 3)
    apply_memory_flags(volumes, flags(channels_last=True))
    assert volumes.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_run_with_channels_last_is_saved_and_resumed(tmp_path):
    train(make_run(tmp_path, channels_last=True), until=4)
    run = make_run(tmp_path, channels_last=True, resume_from_checkpoint="latest")
    train(run)
    assert run.step == 6


def test_a_model_without_the_means_is_refused_by_name():
    with pytest.raises(ValueError, match="--channels_last true: Linear has no convolutions; leave it out"):
        apply_memory_flags(nn.Linear(2, 2), flags(channels_last=True))
    with pytest.raises(ValueError, match="--gradient_checkpointing true: Linear does not support it"):
        apply_memory_flags(nn.Linear(2, 2), flags(gradient_checkpointing=True))
