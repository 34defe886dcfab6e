"""The optimizer's kernel and compilation."""

import copy

import pytest
import torch
from torch import nn

from hf_vq import CodeTransformer
from hf_vq.training.arguments import TrainingArguments
from hf_vq.training.speed import compile_parts, make_adamw

CPU = torch.device("cpu")


def arguments(**fields):
    return TrainingArguments(data="", output_dir="", **fields)


def test_the_fused_step_is_that_of_adamw(generator):
    fused = nn.Linear(5, 3)
    plain = copy.deepcopy(fused)
    args = arguments(learning_rate=0.1, adam_beta1=0.8, adam_beta2=0.9)
    optimizers = [
        make_adamw([{"params": list(fused.parameters()), "weight_decay": 0.3}], args, CPU),
        torch.optim.AdamW(plain.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=0.3, foreach=False),
    ]
    for _ in range(5):
        gradient = torch.randn(3, 5, generator=generator)
        for layer, optimizer in zip((fused, plain), optimizers, strict=True):
            layer.weight.grad, layer.bias.grad = gradient.clone(), gradient[:, 0].clone()
            optimizer.step()
    assert optimizers[0].defaults["fused"]
    torch.testing.assert_close(fused.weight, plain.weight)
    torch.testing.assert_close(fused.bias, plain.bias)


def test_with_a_gradient_scaler_the_step_is_not_fused():
    optimizer = make_adamw([{"params": [nn.Parameter(torch.ones(1))]}], arguments(mixed_precision="fp16"), CPU)
    assert not optimizer.defaults["fused"]


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"--compile true needs a C\+\+ compiler.*leave --compile out"):
        compile_parts(nn.Linear(1, 1), CPU)


@pytest.mark.slow
def test_a_compiled_transformer_is_the_same_model(generator):
    fields = {"num_codes": 7, "code_grid": (2, 2, 2), "context_dim": None, "hidden_size": 12, "num_heads": 2}
    model = CodeTransformer(num_layers=1, **fields)
    codes = torch.randint(8, (2, 8), generator=generator)
    names, wanted = list(model.state_dict()), model(codes).sample
    compile_parts(model, CPU)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(codes).sample, wanted, atol=1e-5, rtol=1e-5)
