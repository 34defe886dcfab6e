"""State of a training run."""

import torch

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.training.run import parameter_groups


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


def test_frozen_parameters_are_left_out():
    model = VQTokenizer(VQTokenizerConfig(spatial_dims=2))
    model.quantizer.freeze_codebook()
    grouped = {id(parameter) for group in parameter_groups(model, 0.1) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert id(model.quantizer.codebook.weight) not in grouped
