"""Half precision in the network leaves the quantizer in float32."""

import math

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_training import make_run, tokenizer, train

from hf_vq.quantizers import VectorQuantizer


@pytest.fixture
def fresh_accelerate():
    """Accelerate knows one precision to a process, which other tests must not inherit."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def watch_types(quantizer):
    """Types of what the codes are compared with, in every forward from now on."""
    seen = []
    quantizer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.loss.dtype)))
    return seen


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("update", ["gradient", "ema", "alternating"])
def test_bfloat16_training_keeps_codes_and_their_losses_in_float32(update, tmp_path):
    plain = {} if update == "alternating" else {"parameterization": "plain", "sync_weight": 0.0}
    run = make_run(tmp_path, lambda: tokenizer(update=update, **plain), mixed_precision="bf16", max_train_steps=8)
    quantizer = next(module for module in run.unwrapped_model.modules() if isinstance(module, VectorQuantizer))
    before, seen = quantizer.effective_codebook.clone(), watch_types(quantizer)
    train(run)
    assert seen and set(seen) == {(torch.bfloat16, torch.float32)}
    assert quantizer.effective_codebook.dtype == quantizer.codebook.weight.dtype == torch.float32
    assert not torch.equal(quantizer.effective_codebook, before)
    for parameter in run.unwrapped_model.parameters():
        assert parameter.dtype == torch.float32 and bool(parameter.isfinite().all())


def test_a_quantizer_compares_in_float32_under_float16_autocast():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codebook_size=16, codebook_dim=4, init="random").train()
    # squared distances are beyond the largest float16
    features = 300 * torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", dtype=torch.float16):
        output = quantizer(features.half())
    expected = quantizer(features.half().float())
    assert torch.equal(output.codes, expected.codes)
    assert output.loss.dtype == torch.float32 and math.isfinite(output.loss.item())
