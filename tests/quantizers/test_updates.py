"""What moves the codes: averages, running moments, a learned map, and the alternating step."""

import warnings

import pytest
import torch

from hf_vq import VectorQuantizer
from hf_vq.quantizers.codebook import PlacementWatch
from hf_vq.training.alternating import AlternatingOptimizer

K, C = 8, 3


def make(**fields):
    torch.manual_seed(0)
    base = {"codebook_size": K, "codebook_dim": C, "init": "random", "replace_after": None, "sync_weight": 0.0}
    base["codebook_lr_scale"] = 1.0
    return VectorQuantizer(**{**base, **fields})


def batch(step, offset=0.0):
    return torch.randn(2, C, 20, generator=torch.Generator().manual_seed(step)) + offset


def rows_of(features):
    return features.transpose(1, 2).reshape(-1, C)


def test_ema_codes_are_the_averages_of_what_chose_them():
    quantizer = make(parameterization="plain", update="ema", ema_decay=0.9).train()
    codes, counts, sums = quantizer.effective_codebook.clone(), torch.zeros(K), torch.zeros(K, C)
    for step in range(5):
        features = batch(step)
        output = quantizer(features)
        torch.testing.assert_close(quantizer.effective_codebook, codes)
        chosen, rows = output.codes.flatten(), rows_of(features)
        hits = torch.bincount(chosen, minlength=K).float()
        counts = 0.9 * counts + 0.1 * hits
        sums = 0.9 * sums + 0.1 * torch.stack([rows[chosen == k].sum(0) for k in range(K)])
        codes = torch.where(hits[:, None] > 0, sums / counts.clamp(min=1e-9)[:, None], codes)
    quantizer(batch(9))
    torch.testing.assert_close(quantizer.effective_codebook, codes)


def test_ema_codes_get_no_gradient_and_no_codebook_term():
    quantizer = make(parameterization="plain", update="ema").train()
    output = quantizer(batch(0).requires_grad_())
    (output.loss + output.quantized.sum()).backward()
    assert all(parameter.grad is None for parameter in quantizer.parameters())
    torch.testing.assert_close(output.loss, quantizer.config.commitment_weight * output.commitment_loss)


def test_ema_codes_without_use_stand_still_to_the_bit():
    quantizer = make(parameterization="plain", update="ema", ema_decay=0.5).train()
    with torch.no_grad():
        quantizer.codebook.weight[0] = 1e3
        quantizer.codebook.weight[1] = batch(0)[0, :, 0]
    quantizer(batch(0))
    quantizer(batch(1))
    before = quantizer.codebook.weight[0].clone()
    for step in range(300):  # the counts of unused codes decay below what float32 can hold
        quantizer(batch(step))
    assert torch.equal(quantizer.codebook.weight[0], before)
    assert torch.isfinite(quantizer.codebook.weight).all()


def test_replacing_an_ema_code_resets_its_averages():
    quantizer = make(parameterization="plain", update="ema", ema_decay=0.5, replace_after=1).train()
    quantizer(batch(0))
    quantizer.codebook.unused_batches[2] = 1
    place = quantizer.codebook.placements.clone()
    quantizer(batch(1))
    assert quantizer.codebook.placements[2] == place[2] + 1
    codebook = quantizer.codebook
    torch.testing.assert_close(codebook.averages.sums[2], codebook.weight[2] * codebook.averages.counts[2])
    assert codebook.averages.counts[2] == 1


def test_affine_running_follows_the_moments_of_the_encoder():
    quantizer = make(parameterization="affine_running").train()
    features = 3 * batch(0) + 7
    quantizer(features)
    effective, rows = quantizer.effective_codebook.detach(), rows_of(features)
    torch.testing.assert_close(effective.mean(0), rows.mean(0))
    torch.testing.assert_close(effective.var(0, correction=0), rows.var(0, correction=0))
    later = 0.5 * batch(1) - 20
    quantizer(later)
    expected = 0.9 * rows.mean(0) + 0.1 * rows_of(later).mean(0)
    torch.testing.assert_close(quantizer.codebook.parameterization.encoder_mean, expected)
    torch.testing.assert_close(quantizer.effective_codebook.mean(0).detach(), expected)


def test_exchanged_running_codes_get_the_encoders_moments_back_when_measured():
    quantizer = make(parameterization="affine_running").train()
    features = 3 * batch(0) + 7
    quantizer(features)
    with torch.no_grad():  # as averaged weights do
        quantizer.codebook.weight.mul_(0.2).add_(1)
    rows = rows_of(features)
    assert not torch.allclose(quantizer.effective_codebook.mean(0), rows.mean(0), atol=0.1)
    quantizer.codebook.measure()
    torch.testing.assert_close(quantizer.effective_codebook.mean(0).detach(), rows.mean(0), rtol=1e-4, atol=1e-4)
    effective_std = quantizer.effective_codebook.detach().std(0, correction=0)
    torch.testing.assert_close(effective_std, rows.std(0, correction=0), rtol=1e-4, atol=1e-4)


def test_linear_moves_its_matrix_and_never_its_raw_codes():
    quantizer = make(parameterization="linear").train()
    raw, matrix = quantizer.codebook.weight.clone(), quantizer.codebook.parameterization.matrix.clone()
    optimizer = torch.optim.SGD([p for p in quantizer.parameters() if p.requires_grad], lr=0.1)
    quantizer(batch(0)).loss.backward()
    optimizer.step()
    assert torch.equal(quantizer.codebook.weight, raw)
    assert not torch.equal(quantizer.codebook.parameterization.matrix, matrix)


def test_placing_codes_through_a_singular_linear_map_stays_finite():
    quantizer = make(parameterization="linear").train()
    with torch.no_grad():
        quantizer.codebook.parameterization.matrix[:, 0] = 0
    wanted = torch.randn(2, C)
    quantizer.codebook.set_effective(wanted, torch.tensor([1, 4]))
    placed = quantizer.effective_codebook[[1, 4]].detach()
    torch.testing.assert_close(placed[:, 1:], wanted[:, 1:])
    assert bool((placed[:, 0].abs() < 1e-5).all())


@pytest.mark.parametrize("parameterization", ["plain", "affine", "affine_running", "linear"])
@pytest.mark.parametrize("structure", ["single", "grouped", "residual"])
def test_inner_steps_pull_the_codes_to_the_encoder(parameterization, structure):
    dims = {"codebook_dim": 6, "structure": structure, "num_codebooks": 1 if structure == "single" else 2}
    quantizer = make(parameterization=parameterization, update="alternating", **dims).train()
    features = torch.randn(2, 6, 40) + 2
    quantizer(features)
    alternating = AlternatingOptimizer(quantizer, learning_rate=0.05, inner_steps=3)
    errors = [quantizer.eval()(features).codebook_loss.item()]
    for _ in range(10):
        assert torch.isfinite(alternating.step(features))
        errors.append(quantizer.eval()(features).codebook_loss.item())
    assert errors[-1] < 0.8 * errors[0]


def test_one_inner_step_is_the_optimizers_step_on_the_codebook_loss():
    quantizer = make(parameterization="plain", update="alternating").train()
    before, features = quantizer.codebook.weight.detach().clone(), batch(0)
    AlternatingOptimizer(quantizer, 0.5, optimizer_class=torch.optim.SGD).step(features)
    rows, codes = rows_of(features), make(parameterization="plain").encode(features).flatten()
    gradient = torch.zeros(K, C).index_add_(0, codes, 2 * (before[codes] - rows) / rows.numel())
    torch.testing.assert_close(quantizer.codebook.weight.detach(), before - 0.5 * gradient)


def test_without_its_step_alternating_codes_stand_still():
    quantizer = make(parameterization="affine", update="alternating", sync_weight=0.0).train()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    before = quantizer.effective_codebook.detach().clone()
    for step in range(3):
        output = quantizer(batch(step).requires_grad_())
        (output.loss + output.quantized.sum()).backward()
        optimizer.step()
    assert torch.equal(quantizer.effective_codebook, before)


def test_alternating_codes_that_nobody_moves_are_pointed_out_once():
    quantizer = make(update="alternating").train()
    quantizer(batch(0))
    with warnings.catch_warnings():  # one more batch, and evaluation at any time, are no reason to warn
        warnings.simplefilter("error")
        quantizer(batch(1))
        for step in range(5):
            quantizer.eval()(batch(step))
    with pytest.warns(UserWarning, match="no AlternatingOptimizer: the codes stand still") as caught:
        for step in range(5):
            quantizer.train()(batch(step))
    assert len(caught) == 1


def test_alternating_codes_are_read_in_a_compiled_graph():
    quantizer = make(update="alternating").eval()
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    encode = torch.compile(quantizer.encode, backend="eager", fullgraph=True)
    expected = quantizer(batch(0))
    torch.testing.assert_close(compiled(batch(0)).quantized, expected.quantized)
    assert torch.equal(encode(batch(0)), expected.codes)
    decode = torch.compile(quantizer.decode, backend="eager")
    torch.testing.assert_close(decode(expected.codes), expected.quantized)


@pytest.mark.parametrize("kind", ["in charge", "frozen", "gradient"])
def test_no_warning_where_an_optimizer_has_the_codes_or_none_is_needed(kind):
    quantizer = make(update="gradient" if kind == "gradient" else "alternating").train()
    state = set(quantizer.state_dict())
    if kind == "in charge":
        AlternatingOptimizer(quantizer)
    elif kind == "frozen":
        quantizer.freeze_codebook()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(5):
            quantizer(batch(step))
    assert set(quantizer.state_dict()) == state


def test_the_inner_step_leaves_the_outer_gradients_alone():
    quantizer = make(parameterization="affine", update="alternating", sync_weight=1.0).train()
    quantizer(batch(0)).quantized.square().sum().backward()
    before = [parameter.grad.clone() for parameter in quantizer.parameters()]
    AlternatingOptimizer(quantizer).step(batch(1))
    for parameter, gradient in zip(quantizer.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_the_inner_step_waits_for_kmeans_and_spares_frozen_codes():
    quantizer = make(update="alternating", init="kmeans").train()
    alternating = AlternatingOptimizer(quantizer)
    assert alternating.step(batch(0)) is None
    quantizer(batch(0))
    assert alternating.step(batch(0)) is not None
    quantizer.freeze_codebook()
    before = quantizer.effective_codebook.clone()
    assert alternating.step(batch(0)) is None
    assert torch.equal(quantizer.effective_codebook, before)


def test_one_frozen_quantizer_does_not_keep_the_other_from_moving():
    pair = torch.nn.ModuleList([make(update="alternating"), make(update="alternating")])
    alternating = AlternatingOptimizer(pair)
    pair[0].freeze_codebook()
    before = [quantizer.effective_codebook.detach().clone() for quantizer in pair]
    alternating.step(batch(0), batch(1))
    assert torch.equal(pair[0].effective_codebook, before[0])
    assert not torch.equal(pair[1].effective_codebook, before[1])


@pytest.mark.parametrize("parameterization", ["plain", "affine", "affine_running"])
def test_the_scale_of_the_codebooks_learning_rate_is_how_far_adam_moves_a_code(parameterization):
    moved = []
    for scale in (1.0, 8.0):
        quantizer = make(parameterization=parameterization, codebook_lr_scale=scale, init="kmeans").train()
        quantizer(batch(0))
        before = quantizer.effective_codebook.detach().clone()
        optimizer = torch.optim.Adam([quantizer.codebook.weight], lr=1e-4)
        quantizer.eval()(batch(0) + 0.1).loss.backward()  # in eval mode the moments stand still
        optimizer.step()
        moved.append((quantizer.effective_codebook.detach() - before).abs().mean())
    torch.testing.assert_close(moved[1], 8 * moved[0], rtol=0.05, atol=0)


def test_the_inner_optimizer_forgets_replaced_codes():
    quantizer = make(parameterization="plain", update="alternating").train()
    alternating = AlternatingOptimizer(quantizer)
    alternating.step(batch(0))
    moment = alternating.optimizer.state[quantizer.codebook.weight]["exp_avg"]
    used = moment.abs().sum(1).nonzero().squeeze(1)
    quantizer.codebook.set_effective(torch.ones(1, C), used[:1])
    alternating.state_dict()
    assert bool((moment[used[0]] == 0).all())
    assert bool((moment[used[1:]] != 0).any())


def test_a_resumed_alternating_run_equals_an_uninterrupted_one():
    def train(quantizer, alternating, steps):
        for step in steps:
            alternating.step(batch(step, step))
            quantizer(batch(step, step))

    def start():
        quantizer = make(parameterization="affine", update="alternating", init="kmeans", replace_after=1).train()
        return quantizer, AlternatingOptimizer(quantizer, 0.01, inner_steps=2)

    straight, first, resumed = start(), start(), start()
    train(*straight, range(10))
    train(*first, range(4))
    for part, loaded in zip(first, resumed, strict=True):
        loaded.load_state_dict(part.state_dict())
    train(*resumed, range(4, 10))
    for name, value in straight[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], value), name


def test_alternating_needs_a_quantizer_that_asks_for_it():
    with pytest.raises(ValueError, match="update='alternating'"):
        AlternatingOptimizer(make())
    with pytest.raises(ValueError, match="inner_steps=0"):
        AlternatingOptimizer(make(update="alternating"), inner_steps=0)
    with pytest.raises(ValueError, match=r"1 quantizer\(s\); got 2"):
        AlternatingOptimizer(make(update="alternating")).step(batch(0), batch(1))


def test_a_watch_reports_placements_once():
    quantizer = make(structure="residual", num_codebooks=2)
    watch = PlacementWatch(quantizer)
    quantizer.codebooks[1].set_effective(torch.ones(2, C), torch.tensor([3, 5]))
    (_, first), (_, second) = watch.take()
    assert not first.any()
    assert second.nonzero().flatten().tolist() == [3, 5]
    assert not any(mask.any() for _, mask in watch.take())
