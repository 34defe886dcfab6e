"""Losses of code diffusion, against their formulas."""

import math

import pytest
import torch

from hf_vq import AbsorbingScheduler
from hf_vq.training.losses import (
    CODE_LOSSES,
    CodeObjective,
    code_vector_loss,
    draw_mask_rates,
    masked_code_loss,
    soft_code_targets,
)


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


@pytest.mark.parametrize("soft_target_temperature", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", CODE_LOSSES)
def test_logits_of_the_masked_positions_alone_give_the_same_loss_and_gradients(loss_type, soft_target_temperature):
    torch.manual_seed(0)
    objective = CodeObjective(loss_type, torch.randn(7, 3), soft_target_temperature, code_vector_weight=0.5)
    logits, codes = torch.randn(4, 9, 7), torch.randint(7, (4, 9))
    masked, rates = torch.rand(4, 9) < torch.tensor([[0.9], [0.4], [0.0], [1.0]]), torch.tensor([0.9, 0.4, 0.1, 1.0])
    of_all, of_masked = logits.clone().requires_grad_(), logits[masked].requires_grad_()
    losses = [objective(given, codes, masked, rates) for given in (of_all, of_masked)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(of_all.grad[masked], of_masked.grad, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match=r"logits must be \(4, 9, 'K'\), or \("):
        objective(logits[:, :5], codes, masked, rates)


def test_unknown_loss_is_named():
    with pytest.raises(ValueError, match="loss_type='nll'"):
        masked_code_loss(*uniform_case([1]), torch.tensor([1.0]), "nll")


def test_mask_rates_lie_in_range_and_cosine_ones_nearer_full_masks():
    uniform, cosine = (
        draw_mask_rates(20_000, name, torch.Generator().manual_seed(0)) for name in ("uniform", "cosine")
    )
    for rates in (uniform, cosine):
        assert rates.dtype == torch.float64
        assert bool(((rates > 0) & (rates <= 1)).all())
    assert uniform.mean() == pytest.approx(1 / 2, abs=0.01)
    assert cosine.mean() == pytest.approx(2 / math.pi, abs=0.01)
    with pytest.raises(ValueError, match="mask_rates='even' is unknown"):
        draw_mask_rates(1, "even")


def test_soft_targets_prefer_close_codes_at_any_scale_of_the_codebook():
    codebook = torch.tensor([[0.0], [1.0], [3.0]])
    targets = soft_code_targets(codebook, 0.5)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(3))
    # Nearest neighbours are 1, 1 and 2 away: their mean square is 2, so the exponents are -d^2 / (0.5 * 2).
    expected = torch.softmax(-torch.tensor([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]]), dim=1)
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(soft_code_targets(100 * codebook, 0.5), targets)
    torch.testing.assert_close(soft_code_targets(codebook, 1e-3), torch.eye(3))


def test_soft_targets_in_the_loss_are_the_mean_of_the_hard_losses():
    torch.manual_seed(0)
    logits, codes, masked = torch.randn(2, 5, 3), torch.randint(3, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    targets = soft_code_targets(torch.randn(3, 2), 1.0)
    rates = torch.ones(2)
    loss = masked_code_loss(logits, codes, masked, rates, "mlm", targets)
    hard = [
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.full((10,), k), reduction="none")
        for k in range(3)
    ]
    expected = sum(targets[codes.flatten(), k] * hard[k] for k in range(3)).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        masked_code_loss(logits, codes, masked, rates, "mlm", torch.eye(3)),
        masked_code_loss(logits, codes, masked, rates, "mlm"),
    )


def test_code_vector_loss_is_zero_for_certainty_and_one_for_the_mean_of_a_used_up_codebook():
    codebook = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    codes, masked = torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool)
    certain = 100 * torch.nn.functional.one_hot(codes, 4).float()
    assert code_vector_loss(certain, codes, masked, codebook) == pytest.approx(0, abs=1e-6)
    assert code_vector_loss(torch.zeros(1, 4, 4), codes, masked, codebook) == pytest.approx(1, abs=1e-6)
    wrong = certain.roll(1, dims=-1)
    masked = torch.tensor([[True, False, False, False]])
    expected = (codebook[1] - codebook[0]).square().sum() / codebook.var(dim=0, correction=0).sum()
    torch.testing.assert_close(code_vector_loss(wrong, codes, masked, codebook), expected)


def test_objective_adds_its_parts_and_names_what_is_wrong():
    torch.manual_seed(0)
    codebook = torch.randn(4, 3)
    case = (torch.randn(2, 5, 4), torch.randint(4, (2, 5)), torch.rand(2, 5) < 0.5, torch.full((2,), 0.5))
    objective = CodeObjective("mlm", codebook, soft_target_temperature=0.3, code_vector_weight=0.7)
    expected = masked_code_loss(*case, "mlm", soft_code_targets(codebook, 0.3))
    expected = expected + 0.7 * code_vector_loss(*case[:3], codebook)
    torch.testing.assert_close(objective(*case), expected)
    torch.testing.assert_close(CodeObjective("elbo", codebook)(*case), masked_code_loss(*case, "elbo"))
    for loss_type in CODE_LOSSES:  # a causal model has no mask rate to weight by
        all_codes = (*case[:2], torch.ones(2, 5, dtype=torch.bool), torch.ones(2))
        causal = CodeObjective(loss_type, codebook, causal=True)(*all_codes)
        torch.testing.assert_close(causal, torch.nn.functional.cross_entropy(case[0].flatten(0, 1), case[1].flatten()))
    with pytest.raises(ValueError, match="--loss_type huber is unknown"):
        CodeObjective("huber", codebook)
    with pytest.raises(ValueError, match="--code_vector_weight must be a finite number of at least 0; got -1"):
        CodeObjective("mlm", codebook, code_vector_weight=-1.0)
