"""State of a training run."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.quantizers.codebook import PlacementWatch
from hf_vq.training.arguments import TrainingArguments
from hf_vq.training.moments import forget_moments, restart_averages
from hf_vq.training.run import make_accelerator, parameter_groups


def test_weight_decay_pulls_only_the_weights_of_layers():
    model = VQTokenizer(VQTokenizerConfig(spatial_dims=2, mid_attention=True))
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.5), lr=0.1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    layers = {name for name in before if name.endswith(".weight") and "norm" not in name and "quantizer" not in name}
    assert moved == layers


def test_codes_placed_anew_start_without_moments_and_averages_of_the_old():
    model = VQTokenizer(
        VQTokenizerConfig(spatial_dims=2, quantizer={"codebook_size": 8, "codebook_dim": 4, "codebook_lr_scale": 1.0})
    )
    codebook, optimizer = model.quantizer.codebook, torch.optim.AdamW(model.parameters(), lr=0.1)
    ema, watch = EMAModel(model.parameters(), decay=0.99), PlacementWatch(model)
    codebook.weight.grad = torch.ones_like(codebook.weight)
    optimizer.step()
    place = torch.full((1, 4), 9.0)
    codebook.set_effective(place, torch.tensor([3]))
    moved = watch.take()
    forget_moments(optimizer.state, moved)
    restart_averages(model, ema, moved)

    moments = optimizer.state[codebook.weight]["exp_avg"]
    assert bool((moments[3] == 0).all())
    assert bool((moments[[0, 1, 2, 4, 5, 6, 7]] != 0).all())
    index = [id(parameter) for parameter in model.parameters()].index(id(codebook.weight))
    torch.testing.assert_close(ema.shadow_params[index][3:4], place)
    assert bool((ema.shadow_params[index][0] < 1).all())
    assert not watch.take()[0][1].any()


def test_frozen_parameters_are_left_out():
    model = VQTokenizer(VQTokenizerConfig(spatial_dims=2))
    model.quantizer.freeze_codebook()
    grouped = {id(parameter) for group in parameter_groups(model, 0.1) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert id(model.quantizer.codebook.weight) not in grouped


def test_a_folder_that_is_not_empty_says_how_to_go_on(tmp_path):
    args = TrainingArguments(data="", output_dir=str(tmp_path))
    (tmp_path / "logs.jsonl").touch()
    with pytest.raises(ValueError, match="--overwrite true to start again; it holds no checkpoint to go on from"):
        make_accelerator(args)
    (tmp_path / "checkpoint-0000020").mkdir()
    (tmp_path / "checkpoint-0000020" / "checkpoint.json").write_text("{}")
    with pytest.raises(ValueError, match="--overwrite true to start again or --resume_from_checkpoint latest to go on"):
        make_accelerator(args)
