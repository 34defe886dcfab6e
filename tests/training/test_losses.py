"""Losses of code diffusion, against their formulas."""

import math

import pytest
import torch

from hf_vq import AbsorbingScheduler
from hf_vq.training.losses import masked_code_loss


def uniform_case(masked_counts, positions=10, classes=4):
    batch = len(masked_counts)
    masked = torch.arange(positions) < torch.tensor(masked_counts)[:, None]
    return torch.zeros(batch, positions, classes), torch.randint(classes, (batch, positions)), masked


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("mlm", 1.0),
        ("elbo", (5 / 0.5 + 2 / 0.25) / 20),
        ("reweighted_elbo", ((0.5 + 0.1) * 0.5 + (0.75 + 0.1) * 0.2) / 2),
    ],
)
def test_weights_of_a_uniform_prediction(loss_type, expected):
    logits, codes, masked = uniform_case([5, 2])
    loss = masked_code_loss(logits, codes, masked, torch.tensor([0.5, 0.25]), loss_type)
    assert loss.item() == pytest.approx(expected * math.log(4), rel=1e-5)


@pytest.mark.parametrize("loss_type", ["mlm", "elbo", "reweighted_elbo"])
def test_full_mask_is_trained_and_settled_positions_are_not(loss_type):
    logits, codes, masked = uniform_case([10, 3])
    logits = torch.randn_like(logits).requires_grad_()
    masked_code_loss(logits, codes, masked, torch.tensor([1.0, 0.3]), loss_type).backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert torch.equal(touched, masked)


def test_elbo_is_unbiased_over_the_mask_rate():
    # with a fixed per-position loss c the bound integrates to c whatever the rate
    torch.manual_seed(0)
    codes, logits = torch.zeros(4000, 8, dtype=torch.int64), torch.randn(8, 3).expand(4000, 8, 3)
    rates = 1 - torch.rand(4000)
    masked = torch.rand(4000, 8) < rates[:, None]
    exact = -logits[0].log_softmax(-1)[:, 0].mean()
    assert masked_code_loss(logits, codes, masked, rates, "elbo").item() == pytest.approx(exact.item(), rel=0.08)


def test_elbo_with_exact_counts_stays_bounded_at_tiny_rates():
    scheduler = AbsorbingScheduler(4, sampling="exact_count")
    codes, logits = torch.randint(4, (1, 50)), torch.zeros(1, 50, 4)
    masked = scheduler.add_noise(codes, 1e-6) == 4
    loss = masked_code_loss(logits, codes, masked, masked.double().mean(dim=1), "elbo")
    assert loss.item() == pytest.approx(math.log(4))


def test_no_mask_is_no_loss():
    logits, codes, masked = uniform_case([0])
    for loss_type in ("mlm", "elbo", "reweighted_elbo"):
        assert masked_code_loss(logits, codes, masked, torch.tensor([0.1]), loss_type).item() == 0


def test_unknown_loss_is_named():
    with pytest.raises(ValueError, match="loss_type='nll'"):
        masked_code_loss(*uniform_case([1]), torch.tensor([1.0]), "nll")
