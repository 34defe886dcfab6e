"""Gradients of every loss term and estimator against float64 autograd of the formulas, written out here anew."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from hf_vq import VectorQuantizer
from hf_vq.quantizers.functional import codebook_loss, commitment_loss, quantization_losses, rotation

K, C = 16, 6
NU, COMMITMENT, CODEBOOK = 0.7, 0.3, 0.9


def make(**fields):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(
        **{"codebook_size": K, "codebook_dim": C, "init": "random", "replace_after": None, "sync_weight": NU},
        **{"commitment_weight": COMMITMENT, "codebook_weight": CODEBOOK, "codebook_lr_scale": 3.0},
        **fields,
    ).double()
    for codebook in quantizer.all_codebooks:
        torch.nn.init.normal_(codebook.weight)
        for parameter in codebook.parameterization.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        if fields["parameterization"] == "affine_running":
            codebook.parameterization.observe(codebook.weight, 2 * torch.randn(50, codebook.weight.shape[1]).double())
    return quantizer


def effective_by_formula(codebook, parameters):
    raw, config = parameters["weight"], codebook.config
    moments = dict(codebook.parameterization.named_buffers())
    if config.parameterization in ("plain", "affine"):
        raw = config.codebook_lr_scale * raw
    if config.parameterization == "affine":
        scaled = (1 + config.affine_lr_scale * parameters["parameterization.gamma"]) * raw
        raw = scaled + config.affine_lr_scale * parameters["parameterization.shift"]
    elif config.parameterization == "affine_running":
        ratio = moments["encoder_variance"] / moments["code_variance"]
        raw = ratio.sqrt() * (raw - moments["code_mean"]) + moments["encoder_mean"]
    elif config.parameterization == "linear":
        raw = raw @ parameters["parameterization.matrix"]
    return raw / raw.norm(dim=1, keepdim=True) if config.distance == "cosine" else raw


def carrier_by_formula(config, vectors, chosen):
    """What the estimator puts in the place of z for the gradient, row by row with explicit rotation matrices."""
    if config.estimator == "straight_through":
        return vectors
    rows = []
    for z, q in zip(vectors, chosen.detach(), strict=True):
        unit, target = (z / z.norm()).detach(), q / q.norm()
        r = (unit + target) / (unit + target).norm()
        matrix = torch.eye(len(z)).double() - 2 * torch.outer(r, r) + 2 * torch.outer(target, unit)
        rows.append((q.norm() / z.norm()).detach() * matrix @ z)
    return torch.stack(rows)


def loss_by_formula(quantizer, vectors, codes, task):
    config, parameters = quantizer.config, dict(quantizer.named_parameters())
    terms, outputs, left = [], [], vectors
    for index, codebook in enumerate(quantizer.all_codebooks):
        prefix = "codebook." if config.structure == "single" else f"codebooks.{index}."
        own = {name.removeprefix(prefix): p for name, p in parameters.items() if name.startswith(prefix)}
        seen = vectors.chunk(config.num_codebooks, dim=1)[index] if config.structure == "grouped" else left
        if config.distance == "cosine":
            seen = seen / seen.norm(dim=1, keepdim=True)
        chosen = effective_by_formula(codebook, own)[codes[:, index]]
        beta = CODEBOOK if config.update == "gradient" else 0.0
        pulls = (seen - chosen.detach()).square().mean(), (seen.detach() - chosen).square().mean()
        terms.append(COMMITMENT * pulls[0] + beta * pulls[1])
        outputs.append((seen, chosen))
        left = left - chosen.detach() if config.structure == "residual" else left
    if config.structure == "residual":
        outputs = [(vectors, sum(chosen for _, chosen in outputs))]
    carriers = [carrier_by_formula(config, seen, chosen) for seen, chosen in outputs]
    quantized = torch.cat([c + NU * q for c, (_, q) in zip(carriers, outputs, strict=True)], dim=1)
    return (quantized * task).sum() + torch.stack(terms).mean()


AXES = itertools.product(
    ("plain", "affine", "affine_running", "linear"),
    ("straight_through", "rotation"),
    ("euclidean", "cosine"),
    ("single", "grouped", "residual"),
    ("gradient", "alternating"),
)


@pytest.mark.parametrize(
    ("parameterization", "estimator", "distance", "structure", "update"),
    [values for values in AXES if values[2:4] != ("cosine", "residual")],
)
def test_gradients_equal_float64_autograd_of_the_formulas(parameterization, estimator, distance, structure, update):
    quantizer = make(
        **{"parameterization": parameterization, "estimator": estimator, "distance": distance, "update": update},
        **{"structure": structure, "num_codebooks": 1 if structure == "single" else 2},
    ).eval()
    features = torch.randn(2, C, 5, dtype=torch.float64, requires_grad=True)
    task = torch.randn(2, C, 5, dtype=torch.float64)
    output = quantizer(features)
    trained = [p for p in quantizer.parameters() if p.requires_grad]
    found = torch.autograd.grad((output.quantized * task).sum() + output.loss, [features, *trained])

    vectors = features.detach().transpose(1, 2).reshape(-1, C).requires_grad_()
    codes = output.codes.view(2, -1, 5).transpose(1, 2).reshape(10, -1)
    loss = loss_by_formula(quantizer, vectors, codes, task.transpose(1, 2).reshape(-1, C))
    expected = torch.autograd.grad(loss, [vectors, *trained])
    torch.testing.assert_close(found[0].transpose(1, 2).reshape(-1, C), expected[0])
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_straight_through_hands_the_task_gradient_to_the_encoder_unchanged():
    quantizer = VectorQuantizer(codebook_size=K, codebook_dim=C, init="random").eval()
    features, task = torch.randn(3, C, 5, 4, requires_grad=True), torch.randn(3, C, 5, 4)
    (quantizer(features).quantized * task).sum().backward()
    assert torch.equal(features.grad, task)


def test_rotation_keeps_the_angle_between_gradient_and_vector():
    vectors, codes, gradient = torch.randn(3, 40, C, dtype=torch.float64)
    vectors.requires_grad_()
    (rotation(vectors, codes) * gradient).sum().backward()
    at_code = F.cosine_similarity(gradient, codes)
    torch.testing.assert_close(F.cosine_similarity(vectors.grad, vectors.detach()), at_code)
    stretch = codes.norm(dim=1) / vectors.detach().norm(dim=1)
    torch.testing.assert_close(vectors.grad.norm(dim=1), stretch * gradient.norm(dim=1))


def test_rotation_onto_the_vector_itself_is_straight_through():
    vectors, gradient = torch.randn(2, 8, C, dtype=torch.float64)
    vectors.requires_grad_()
    (rotation(vectors, vectors.detach()) * gradient).sum().backward()
    torch.testing.assert_close(vectors.grad, gradient)


@pytest.mark.parametrize("case", ["zero_vector", "zero_code", "opposite"])
def test_rotation_survives_vectors_without_a_plane(case):
    vectors = torch.randn(4, C)
    codes = {"zero_vector": torch.randn(4, C), "zero_code": torch.zeros(4, C), "opposite": -vectors.clone()}[case]
    vectors = (vectors * (case != "zero_vector")).requires_grad_()
    output = rotation(vectors, codes)
    assert torch.equal(output, codes)
    output.backward(torch.ones_like(output))
    assert torch.isfinite(vectors.grad).all()
    if case == "zero_vector":
        assert torch.equal(vectors.grad, torch.ones_like(vectors))


@pytest.mark.parametrize("parameterization", ["plain", "affine", "affine_running", "linear"])
def test_which_unused_codes_a_gradient_moves(parameterization):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(
        codebook_size=K, codebook_dim=C, parameterization=parameterization, init="random", replace_after=None
    ).train()
    quantizer(torch.full((2, C, 4), 5.0) + torch.randn(2, C, 4))
    before = quantizer.effective_codebook.detach().clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    output = quantizer(torch.full((2, C, 4), 9.0) + torch.randn(2, C, 4))
    output.loss.backward()
    optimizer.step()
    unused = torch.bincount(output.codes.flatten(), minlength=K) == 0
    assert unused.any()
    moved = (quantizer.effective_codebook.detach() - before)[unused].abs().sum(1)
    assert bool((moved == 0).all() if parameterization == "plain" else (moved > 0).all())


@pytest.mark.parametrize("rows", [0, 7])
def test_losses_at_the_price_of_one_are_the_two_losses(rows, generator):
    """Values and gradients, each loss with a weight of its own."""
    found = []
    for losses in (quantization_losses, lambda *pair: (commitment_loss(*pair), codebook_loss(*pair))):
        generator.manual_seed(0)
        pair = [torch.randn(rows, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
        commitment, codebook = losses(*pair)
        found.append([commitment, codebook, *torch.autograd.grad(0.3 * commitment + 2 * codebook, pair)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_loss_of_what_is_not_a_number_is_none():
    vectors = torch.tensor([[1.0, torch.nan]])
    assert all(loss.isnan() for loss in quantization_losses(vectors, torch.zeros(1, 2)))
