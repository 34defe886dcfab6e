"""Attention in half precision on a CPU, where it goes a way of its own."""

import pytest
import torch
import torch.nn.functional as F

from hf_vq.models import attention
from hf_vq.models.attention import attend

SHAPES = [((2, 3, 7, 16), (2, 3, 11, 16)), ((1, 1, 1, 8), (1, 1, 5, 8))]
HALVES = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}


def make_inputs(shapes, dtype, generator):
    of_query, of_key = shapes
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in (of_query, of_key, of_key)]


def reference(query, key, value, attended=None):
    """Softmax attention in float64."""
    query, key, value = (tensor.detach().double().requires_grad_() for tensor in (query, key, value))
    logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if attended is not None:
        logits = logits.masked_fill(~attended, -torch.inf)
    output = logits.softmax(dim=-1) @ value
    return output, torch.autograd.grad(output.square().sum(), (query, key, value))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_half_precision_is_softmax_attention_up_to_rounding(shapes, dtype, masked, generator):
    inputs = make_inputs(shapes, dtype, generator)
    attended = None
    if masked:
        attended = torch.rand(inputs[0].shape[0], 1, 1, inputs[1].shape[2], generator=generator) < 0.6
        attended[..., 0] = True
    output = attend(*inputs, attended)
    wanted, wanted_gradients = reference(*inputs, attended)
    assert output.dtype == dtype
    # A few roundings, each relative to the size of what is summed.
    assert (output.double() - wanted).abs().max() < 4 * HALVES[dtype] * inputs[2].abs().max()
    gradients = torch.autograd.grad(output.float().square().sum(), inputs)
    for gradient, exact in zip(gradients, wanted_gradients, strict=True):
        assert (gradient.double() - exact).norm() < 8 * HALVES[dtype] * exact.norm() + HALVES[dtype]


def test_hidden_keys_change_nothing(generator):
    query, key, value = make_inputs(SHAPES[0], torch.bfloat16, generator)
    attended = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool)
    attended[..., 4:] = False
    assert torch.equal(attend(query, key, value, attended), attend(query, key[:, :, :4], value[:, :, :4]))


def test_float32_and_too_many_scores_take_the_fused_kernel(generator, monkeypatch):
    inputs = make_inputs(SHAPES[0], torch.float32, generator)
    assert torch.equal(attend(*inputs), F.scaled_dot_product_attention(*inputs))
    halves = make_inputs(SHAPES[0], torch.bfloat16, generator)
    monkeypatch.setattr(attention, "MAX_SCORES", 1)
    assert torch.equal(attend(*halves), F.scaled_dot_product_attention(*halves))
