"""Laws that every variant of the quantizer obeys."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from hf_vq import VectorQuantizer
from hf_vq.quantizers.functional import kmeans, nearest_codes

VARIANTS = [
    {"parameterization": "plain", "init": "random"},
    {"parameterization": "plain", "init": "kmeans", "sync_weight": 1.5},
    {"parameterization": "affine", "init": "kmeans"},
    {"parameterization": "affine", "affine_groups": 4, "affine_lr_scale": 3.0, "init": "random", "replace_after": None},
]
SHAPES = [(3, 6, 5, 4), (2, 6, 3, 4, 5), (2, 6, 11)]


def make(**fields):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(**{"codebook_size": 16, "codebook_dim": 6, "replace_after": 2, **fields})
    with torch.no_grad():  # away from the identity, so that raw and effective codes differ
        for parameter in quantizer.codebook.parameterization.parameters():
            parameter.uniform_(-0.3, 0.3)
    return quantizer


def state_of(quantizer):
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def assert_same_state(quantizer, state):
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_decoding_codes_gives_the_quantized_vectors(variant, shape, training):
    quantizer = make(**variant).train(training)
    for _ in range(4):
        output = quantizer(3 * torch.randn(shape) + 1)
        assert torch.equal(quantizer.decode(output.codes), output.quantized)
        assert output.codes.shape == (shape[0], *shape[2:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_channel_last_is_a_transposition(variant):
    first, last = make(**variant).eval(), make(**variant, channel_last=True).eval()
    features = torch.randn(2, 6, 11)
    expected, output = first(features), last(features.transpose(1, 2))
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantized.transpose(1, 2), expected.quantized)
    assert torch.equal(last.decode(output.codes), output.quantized)


@pytest.mark.parametrize("variant", VARIANTS)
def test_eval_never_changes_state(variant):
    quantizer = make(**variant)
    quantizer(torch.randn(SHAPES[0]))
    quantizer.eval()
    state = state_of(quantizer)
    for _ in range(5):
        quantizer(10 * torch.randn(SHAPES[0]))
        quantizer.encode(torch.randn(SHAPES[0]))
    assert_same_state(quantizer, state)


def test_encode_changes_no_state_in_training_either():
    quantizer = make().train()
    state = state_of(quantizer)
    quantizer.encode(torch.randn(SHAPES[0]))
    assert_same_state(quantizer, state)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_assignments_equal_a_float64_search(variant, offset):
    quantizer = make(**variant).eval()
    with torch.no_grad():
        quantizer.codebook.weight.copy_(torch.randn(16, 6) + offset)
    features = torch.randn(4, 6, 50) + offset
    effective = quantizer.effective_codebook.detach().double()
    vectors = features.transpose(1, 2).reshape(-1, 6).double()
    distances = (vectors[:, None] - effective).square().sum(-1)
    codes = quantizer.encode(features).flatten()
    chosen = distances.gather(1, codes[:, None]).squeeze(1)
    tolerance = 1e-5 * vectors.sub(effective.mean(0)).square().sum(1)
    assert bool((chosen - distances.min(dim=1).values <= tolerance).all())


def test_search_in_many_blocks_equals_search_in_one(monkeypatch):
    vectors, codebook = torch.randn(1000, 4), torch.randn(33, 4)
    whole = nearest_codes(vectors, codebook)
    monkeypatch.setattr("hf_vq.quantizers.functional.DISTANCE_BLOCK_ELEMENTS", 33 * 7)
    assert torch.equal(nearest_codes(vectors, codebook), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_stays_finite_and_searches_in_float32(variant, dtype):
    quantizer = make(**variant).train()
    features = (300 * torch.randn(SHAPES[0])).to(dtype).requires_grad_()  # 300^2 overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(features)
    assert output.quantized.dtype == dtype
    assert output.loss.dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in (output.quantized, output.loss, output.perplexity))
    reference = copy.deepcopy(quantizer).eval()
    assert torch.equal(quantizer.eval().encode(features), reference.encode(features.float()))
    (output.loss + output.quantized.float().mean()).backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("sync_weight", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("parameterization", ["plain", "affine"])
def test_gradients_equal_float64_autograd_of_the_formulas(sync_weight, parameterization):
    quantizer = make(
        parameterization=parameterization,
        init="random",
        sync_weight=sync_weight,
        commitment_weight=0.3,
        codebook_weight=0.9,
    ).double()
    features = torch.randn(3, 6, 7, dtype=torch.float64, requires_grad=True)
    task = torch.randn(3, 6, 7, dtype=torch.float64)
    output = quantizer.eval()(features)
    ((output.quantized * task).sum() + output.loss).backward()

    vectors = features.detach().transpose(1, 2).reshape(-1, 6)
    task_rows = task.transpose(1, 2).reshape(-1, 6)
    codes = output.codes.flatten()
    effective = quantizer.effective_codebook.detach()
    chosen, size = effective[codes], vectors.numel()
    expected_features = task_rows + 0.3 * 2 * (vectors - chosen) / size
    torch.testing.assert_close(features.grad.transpose(1, 2).reshape(-1, 6), expected_features)
    row_gradient = sync_weight * task_rows + 0.9 * 2 * (chosen - vectors) / size
    gradient = torch.zeros(16, 6, dtype=torch.float64).index_add_(0, codes, row_gradient)
    if parameterization == "plain":
        torch.testing.assert_close(quantizer.codebook.weight.grad, gradient)
        return
    affine, raw = quantizer.codebook.parameterization, quantizer.codebook.weight.detach()
    torch.testing.assert_close(quantizer.codebook.weight.grad, gradient * (1 + affine.gamma.detach()))
    torch.testing.assert_close(affine.gamma.grad, (gradient * raw).sum(0, keepdim=True))
    torch.testing.assert_close(affine.shift.grad, gradient.sum(0, keepdim=True))


def test_straight_through_hands_the_task_gradient_to_the_encoder_unchanged():
    quantizer = make(init="random").eval()
    features, task = torch.randn(SHAPES[0], requires_grad=True), torch.randn(SHAPES[0])
    (quantizer(features).quantized * task).sum().backward()
    assert torch.equal(features.grad, task)


def test_unused_codes_move_under_affine_and_not_under_plain():
    moved = {}
    for parameterization in ("plain", "affine"):
        quantizer = make(parameterization=parameterization, init="random", replace_after=None).train()
        before = quantizer.effective_codebook.detach().clone()
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
        output = quantizer(torch.full((2, 6, 4), 5.0))
        output.loss.backward()
        optimizer.step()
        unused = torch.bincount(output.codes.flatten(), minlength=16) == 0
        assert unused.any()
        moved[parameterization] = (quantizer.effective_codebook.detach() - before)[unused].abs().sum(1)
    assert bool((moved["plain"] == 0).all())
    assert bool((moved["affine"] > 0).all())


@pytest.mark.parametrize("parameterization", ["plain", "affine"])
def test_replacement_places_the_effective_code_on_an_encoder_output(parameterization):
    quantizer = make(parameterization=parameterization, init="random", replace_after=2).train()
    features = 5 + torch.randn(2, 6, 30)
    for _ in range(2):
        quantizer(features)
    dead = (quantizer.codebook.unused_batches >= 2).nonzero().squeeze(1)
    assert len(dead) > 0
    quantizer(features)
    vectors = features.transpose(1, 2).reshape(-1, 6)
    distance = torch.cdist(quantizer.effective_codebook.detach()[dead], vectors).min(dim=1).values
    assert bool((distance < 0.2).all())  # noise is 1 % of the spread of 1 in 6 channels
    assert len(torch.unique(quantizer.effective_codebook.detach()[dead], dim=0)) == len(dead)
    assert bool((quantizer.codebook.unused_batches[dead] <= 1).all())


def test_replacement_waits_for_the_configured_number_of_batches():
    quantizer = make(parameterization="plain", init="random", replace_after=3).train()
    features = 5 + torch.randn(2, 6, 30)
    before = quantizer.codebook.weight.detach().clone()
    for _ in range(3):
        quantizer(features)
        assert torch.equal(quantizer.codebook.weight, before)
    quantizer(features)
    assert not torch.equal(quantizer.codebook.weight, before)


def test_replacement_keeps_a_stretched_affine_codebook_full():
    quantizer = make(parameterization="affine", init="random", replace_after=1).train()
    with torch.no_grad():
        quantizer.codebook.parameterization.gamma.fill_(-0.9)
        quantizer.codebook.parameterization.shift.fill_(4.0)
    features = torch.randn(2, 6, 400)
    for _ in range(20):
        output = quantizer(features)
    assert output.active_fraction == 1.0


@pytest.mark.parametrize("rows", [3, 16, 5000])
def test_kmeans_initialisation_gives_every_code_a_place_of_its_own(rows):
    quantizer = make(init="kmeans", replace_after=None).train()
    features = torch.randn(1, 6, rows)
    quantizer(features)
    effective = quantizer.effective_codebook.detach()
    assert len(torch.unique(effective, dim=0)) == 16
    assert bool(quantizer.codebook.initialized)
    distance = torch.cdist(features[0].T, effective).min(dim=1).values.mean()
    random_rows = features[0].T[torch.randint(rows, (16,))]
    assert distance <= torch.cdist(features[0].T, random_rows).min(dim=1).values.mean() + 1e-6


def test_kmeans_finds_separated_clusters():
    centres = 100 * torch.randn(8, 3)
    samples = (centres[:, None] + torch.randn(8, 50, 3)).flatten(0, 1)
    found = kmeans(samples, 8, torch.Generator().manual_seed(0))
    assert bool((torch.cdist(centres, found).min(dim=1).values < 1).all())


def test_kmeans_initialisation_sees_the_whole_batch():
    quantizer = make(init="kmeans", replace_after=None).train()
    features = torch.cat((torch.zeros(1, 6, 3000), 50 + torch.randn(1, 6, 3000)), dim=2)
    quantizer(features)
    assert int((quantizer.effective_codebook.detach().mean(dim=1) > 25).sum()) > 1


def test_frozen_codebook_keeps_everything():
    quantizer = make().train()
    quantizer(torch.randn(SHAPES[0]))
    quantizer.freeze_codebook()
    state = state_of(quantizer)
    features = (9 * torch.randn(SHAPES[0])).requires_grad_()
    for _ in range(5):
        output = quantizer(features)
        (output.loss + output.quantized.sum()).backward()
    assert_same_state(quantizer, state)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_a_frozen_codebook_stays_frozen_after_loading():
    frozen = make().train()
    frozen(torch.randn(SHAPES[0]))
    frozen.freeze_codebook()
    loaded = VectorQuantizer(frozen.config).train()
    loaded.load_state_dict(frozen.state_dict())
    for _ in range(5):
        loaded((9 * torch.randn(SHAPES[0])).requires_grad_()).loss.backward()
    assert_same_state(loaded, frozen.state_dict())
    assert all(parameter.grad is None for parameter in loaded.parameters())


def train(quantizer, steps, seed):
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    for step in range(*steps):
        generator = torch.Generator().manual_seed(seed + step)
        optimizer.zero_grad()
        output = quantizer(3 * torch.randn(2, 6, 20, generator=generator) + step)
        (output.loss + output.quantized.square().mean()).backward()
        optimizer.step()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(variant):
    straight = make(**variant).train()
    train(straight, (0, 12), seed=1)
    first = make(**variant).train()
    train(first, (0, 5), seed=1)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(77)  # what the process drew in between must not matter
    resumed = VectorQuantizer(first.config).train()
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    train(resumed, (5, 12), seed=1)
    assert_same_state(resumed, straight.state_dict())


def test_loss_is_the_weighted_sum_of_its_parts():
    quantizer = make(commitment_weight=0.25, codebook_weight=2.0).eval()
    features = torch.randn(SHAPES[0])
    output = quantizer(features)
    expected = F.mse_loss(features, quantizer.decode(output.codes))
    torch.testing.assert_close(output.commitment_loss, expected)
    torch.testing.assert_close(output.codebook_loss, expected)
    torch.testing.assert_close(output.loss, 2.25 * expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codebook_size": 1}, "codebook_size=1"),
        ({"codebook_dim": 0}, "codebook_dim=0"),
        ({"parameterization": "afine"}, "parameterization='afine'"),
        ({"sync_weight": 3.0}, "sync_weight=3.0"),
        ({"replace_after": 0}, "replace_after=0"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"commitment_weight": float("nan")}, "commitment_weight=nan"),
        ({"affine_groups": 3}, "affine_groups=3"),
        ({"affine_lr_scale": 0.0}, "affine_lr_scale=0.0"),
        ({"parameterization": "plain", "affine_groups": 2}, "parameterization='plain'"),
        ({"codebok_size": 8}, "codebok_size"),
        ({"codebook_size": 8.0}, r"codebook_size=8.0 is out of range; it must be of type int"),
        ({"sync_weight": "1"}, "sync_weight='1'"),
        ({"channel_last": 1}, "channel_last=1"),
        ({"seed": True}, "seed=True"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        VectorQuantizer(**{"codebook_size": 16, "codebook_dim": 6, **fields})


@pytest.mark.parametrize("codes", [torch.tensor([[0, 16]]), torch.tensor([[-1, 3]])])
def test_decoding_a_code_out_of_range_is_refused(codes):
    with pytest.raises(ValueError, match=r"\[0, 16\)"):
        make().decode(codes)


def test_wrong_channel_count_is_refused():
    with pytest.raises(ValueError, match="6 channels"):
        make()(torch.randn(2, 5, 4))
