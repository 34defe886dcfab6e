"""Figures of a codebook's health, against cases worked out by hand."""

import pytest
import torch

from hf_vq import FiniteScalarQuantizer, VectorQuantizer
from hf_vq.training.diagnostics import codebook_figures, codes_with_gradient, gradient_gap


def make(**fields):
    torch.manual_seed(0)
    return VectorQuantizer(
        **{"codebook_size": 8, "codebook_dim": 3, "parameterization": "plain", "sync_weight": 0.0, **fields}
    )


def test_codes_that_are_the_outputs_leave_no_error_and_no_distance():
    quantizer, features = make(), torch.randn(1, 3, 8)
    quantizer.codebook.set_effective(features[0].T, torch.arange(8))
    assert codebook_figures(quantizer, features) == pytest.approx(
        dict.fromkeys(("quantization_error", "relative_quantization_error", "mean_distance", "std_distance"), 0.0),
        abs=1e-6,
    )


def test_shifted_codes_show_their_distance_in_units_of_the_spread():
    quantizer, features = make(), torch.randn(1, 3, 8)
    spread = features.std(dim=2, correction=0).norm()
    quantizer.codebook.set_effective(features[0].T + 5, torch.arange(8))
    figures = codebook_figures(quantizer, features)
    assert figures["mean_distance"] == pytest.approx(float(5 * 3**0.5 / spread), rel=1e-5)
    assert figures["std_distance"] == pytest.approx(0, abs=1e-5)


def test_one_code_at_the_mean_has_relative_error_one():
    quantizer, features = make(), torch.randn(2, 3, 50)
    mean = features.transpose(1, 2).reshape(-1, 3).mean(0)
    quantizer.codebook.set_effective(mean.expand(8, 3), torch.arange(8))
    figures = codebook_figures(quantizer, features)
    assert figures["relative_quantization_error"] == pytest.approx(1, rel=1e-5)
    assert figures["std_distance"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("structure", ["grouped", "residual"])
def test_several_codebooks_are_averaged_and_nothing_changes(structure):
    quantizer = make(codebook_dim=6, structure=structure, num_codebooks=2).train()
    features = torch.randn(2, 6, 20)
    quantizer(features)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    figures, parts = codebook_figures(quantizer, features), quantizer.inspect(features)
    errors = [(part.vectors - part.quantized).square().mean() for part in parts]
    assert figures["quantization_error"] == pytest.approx(float(sum(errors) / 2))
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_quantizers_without_a_codebook_have_no_figures():
    assert codebook_figures(FiniteScalarQuantizer(levels=[3, 3]), torch.randn(2, 2, 4)) == {}


def test_the_gradient_gap_of_a_quadratic_is_the_relative_distance_of_the_points():
    features, quantized = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    gap = gradient_gap(lambda point: point.square().sum(), features, quantized)
    assert gap == pytest.approx(float((quantized - features).norm() / features.norm()), rel=1e-5)
    assert gradient_gap(lambda point: point.sum(), features, quantized) == 0


def test_the_share_of_codes_with_a_gradient_is_that_of_the_codes_in_use():
    quantizer = make(init="random").train()
    assert codes_with_gradient(quantizer) == {}
    output = quantizer(torch.randn(2, 3, 2))
    output.loss.backward()
    assert codes_with_gradient(quantizer) == {"codes_with_gradient": pytest.approx(float(output.active_fraction))}


def test_alternating_codes_have_no_share_in_the_gradient_of_the_network():
    quantizer = make(update="alternating").train()
    quantizer(torch.randn(2, 3, 4, requires_grad=True)).loss.backward()
    assert codes_with_gradient(quantizer) == {}


def test_codes_that_averages_move_have_no_share():
    quantizer = make(update="ema").train()
    quantizer(torch.randn(2, 3, 4, requires_grad=True)).loss.backward()
    assert codes_with_gradient(quantizer) == {}
