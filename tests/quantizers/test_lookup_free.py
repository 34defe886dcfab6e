"""Lookup-free quantisation: signs, entropies and gradients. Laws shared with others: test_implicit."""

import itertools
import math

import pytest
import torch

from hf_vq import LookupFreeQuantizer
from hf_vq.quantizers.lookup_free import binary_entropy, mean_code_probabilities


def corners(num_bits, spherical=False):
    """All codes `(2^C, C)` in float64, the first channel being the least significant bit."""
    rows = [bits[::-1] for bits in itertools.product((-1.0, 1.0), repeat=num_bits)]
    return torch.tensor(rows, dtype=torch.float64) / (math.sqrt(num_bits) if spherical else 1.0)


def probabilities(vectors, codes, temperature):
    """`p(code | z)` in full, `(N, K)`."""
    return (-(vectors[:, None] - codes).square().sum(-1) / temperature).softmax(dim=1)


def entropy(distribution):
    return -torch.xlogy(distribution, distribution).sum(-1)


def group_entropy(joint, num_bits, group_size):
    """Sum of the entropies of consecutive groups of bits of a distribution over all codes `(2^C,)`."""
    table = joint.view(*[2] * num_bits).permute(*range(num_bits - 1, -1, -1))  # axis i is now bit i
    total = joint.new_zeros(())
    for start in range(0, num_bits, group_size):
        others = [axis for axis in range(num_bits) if not start <= axis < start + group_size]
        marginal = table.sum(dim=others) if others else table
        total = total + entropy(marginal.flatten())
    return total


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("num_bits", [2, 5, 8])
def test_assignments_equal_a_float64_search(num_bits, spherical):
    quantizer = LookupFreeQuantizer(codebook_dim=num_bits, spherical=spherical)
    features = torch.randn(1, num_bits, 300)
    codes = corners(num_bits, spherical)
    torch.testing.assert_close(quantizer.double().effective_codebook, codes)
    vectors = features[0].T.double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True) if spherical else vectors
    assert torch.equal(quantizer.encode(features)[0], torch.cdist(vectors, codes).argmin(dim=1))


@pytest.mark.parametrize("spherical", [False, True])
def test_every_code_is_its_own_nearest(spherical):
    quantizer = LookupFreeQuantizer(codebook_dim=10, spherical=spherical)
    codes = torch.arange(1024).view(4, 16, 16)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_zero_counts_as_negative():
    assert LookupFreeQuantizer(codebook_dim=3).encode(torch.zeros(1, 3)).tolist() == [0]


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 9])
def test_loss_and_gradients_equal_float64_autograd_of_the_formulas(spherical, group_size):
    fields = {"commitment_weight": 0.3, "entropy_weight": 0.7, "diversity_weight": 1.3, "temperature": 0.8}
    quantizer = LookupFreeQuantizer(
        codebook_dim=4, spherical=spherical, entropy_group_size=group_size, **fields
    ).double()
    features = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    task = torch.randn_like(features)
    output = quantizer(features)
    ((output.quantized * task).sum() + output.loss).backward()

    reference = features.detach().clone().requires_grad_()
    vectors = reference.transpose(1, 2).reshape(-1, 4)
    if spherical:
        vectors = vectors / vectors.square().sum(dim=1, keepdim=True).sqrt()
    chosen = corners(4, spherical)[output.codes.flatten()]
    soft = probabilities(vectors, corners(4, spherical), 0.8)
    commitment = (vectors - chosen).square().mean()
    penalty = entropy(soft).mean() - 1.3 * group_entropy(soft.mean(dim=0), 4, min(group_size, 4))
    loss = 0.3 * commitment + 0.7 * penalty
    ((vectors * task.transpose(1, 2).reshape(-1, 4)).sum() + loss).backward()
    torch.testing.assert_close(output.commitment_loss, commitment)
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(features.grad, reference.grad)
    assert output.codebook_loss == 0


@pytest.mark.parametrize("num_bits", [1, 2, 5])
def test_mean_code_probabilities_equal_the_full_table(num_bits):
    vectors = torch.randn(50, num_bits, dtype=torch.float64)
    expected = probabilities(vectors, corners(num_bits), 2.0).mean(dim=0)
    torch.testing.assert_close(mean_code_probabilities(4 / 2.0 * vectors), expected)


@pytest.mark.parametrize("logit", [0.0, 1e-3, 2.0, -7.0, 30.0, -80.0])
def test_binary_entropy_is_accurate_where_probabilities_round_to_one(logit):
    small = 1 / (1 + math.exp(abs(logit)))
    expected = -small * math.log(small) - (1 - small) * math.log1p(-small)
    assert float(binary_entropy(torch.tensor(logit))) == pytest.approx(expected, rel=1e-5)


def penalty_of(vectors, **fields):
    """The entropy penalty alone, of `(N, C)` vectors, at a temperature that leaves no doubt about a corner."""
    fields = {"commitment_weight": 0.0, "entropy_weight": 1.0, "temperature": 1e-2, **fields}
    return float(LookupFreeQuantizer(codebook_dim=vectors.shape[1], **fields)(vectors).loss)


def test_the_penalty_is_least_when_every_code_is_certain_and_used_alike():
    everything = corners(6).float()
    assert penalty_of(everything) == pytest.approx(-6 * math.log(2), abs=1e-5)
    assert penalty_of(everything, diversity_weight=0.5) == pytest.approx(-3 * math.log(2), abs=1e-5)
    assert penalty_of(everything[:1]) == pytest.approx(0, abs=1e-5)
    assert penalty_of(torch.zeros(8, 6)) == pytest.approx(0, abs=1e-5)  # diverse for want of certainty


def test_groups_see_that_bits_agree_and_single_bits_do_not():
    agreeing = torch.tensor([[1.0] * 6, [-1.0] * 6])
    for group_size in (1, 2, 3, 6):
        expected = -6 / group_size * math.log(2)
        assert penalty_of(agreeing, entropy_group_size=group_size) == pytest.approx(expected, abs=1e-5)


def test_penalty_against_collapse_moves_vectors_to_other_codes():
    torch.manual_seed(0)
    active = {}
    for weight in (0.0, 1.0):
        vectors = (1 + 0.5 * torch.randn(1, 6, 256)).requires_grad_()
        quantizer = LookupFreeQuantizer(codebook_dim=6, entropy_weight=weight, temperature=1.0)
        optimizer = torch.optim.Adam([vectors], lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            quantizer(vectors).loss.backward()
            optimizer.step()
        active[weight] = float(quantizer(vectors).active_fraction)
    assert active[1.0] > 2 * active[0.0]


def test_memory_does_not_grow_with_vectors_times_codes():
    num_vectors, num_bits = 300, 14
    quantizer = LookupFreeQuantizer(codebook_dim=num_bits, entropy_group_size=num_bits)
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = quantizer(torch.randn(1, num_bits, num_vectors, requires_grad=True)).loss
    assert max(sizes) <= max(2**num_bits, num_vectors * 2 ** (num_bits // 2))
    loss.backward()


def test_many_codes_are_quantized_and_decoded_by_their_bits():
    quantizer = LookupFreeQuantizer(codebook_dim=18).train()
    features = torch.randn(2, 18, 40)
    output = quantizer(features)
    assert torch.equal(quantizer.decode(output.codes), torch.where(features > 0, 1.0, -1.0))
    assert float(output.active_fraction) == pytest.approx(len(torch.unique(output.codes)) / 2**18)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_spherical_codes_ignore_the_length_of_a_vector(scale):
    quantizer = LookupFreeQuantizer(codebook_dim=6, spherical=True)
    features = torch.randn(1, 6, 50)
    expected, output = quantizer(features), quantizer(scale * features)
    assert torch.equal(output.codes, expected.codes)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.quantized.norm(dim=1), torch.ones(1, 50))


def test_a_vector_of_zeros_gets_a_gradient_of_ordinary_size():
    features = torch.zeros(1, 6, 2, requires_grad=True)
    output = LookupFreeQuantizer(codebook_dim=6, spherical=True)(features)
    (output.quantized.sum() + output.loss).backward()
    assert bool(torch.isfinite(features.grad).all())
    assert float(features.grad.abs().max()) < 10


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codebook_dim": 0}, "codebook_dim=0"),
        ({"codebook_dim": 25}, "codebook_dim=25 .*1 to 24"),
        ({"codebook_dim": 1, "spherical": True}, "codebook_dim=1 .*spherical=True"),
        ({"codebook_dim": 4.0}, "codebook_dim=4.0"),
        ({"codebook_dim": True}, "codebook_dim=True"),
        ({"spherical": 1}, "spherical=1"),
        ({"commitment_weight": -1.0}, "commitment_weight=-1.0"),
        ({"entropy_weight": float("inf")}, "entropy_weight=inf"),
        ({"diversity_weight": float("nan")}, "diversity_weight=nan"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": "1"}, "temperature='1'"),
        ({"entropy_group_size": 0}, "entropy_group_size=0"),
        ({"entropy_group_size": 25}, "entropy_group_size=25"),
        ({"channel_last": None}, "channel_last=None"),
        ({"codebook_size": 8}, "codebook_size"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        LookupFreeQuantizer(**fields)


def test_config_gives_the_size_of_the_codebook():
    config = LookupFreeQuantizer(codebook_dim=10).config
    assert (config.codebook_size, config.codebook_dim) == (1024, 10)
    assert config.to_dict()["quantizer_type"] == "lookup_free"
