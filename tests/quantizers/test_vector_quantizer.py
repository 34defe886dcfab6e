"""Laws that every variant of the quantizer obeys."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from hf_vq import VectorQuantizer
from hf_vq.quantizers.functional import kmeans

PLAIN, EMA = {"parameterization": "plain"}, {"parameterization": "plain", "sync_weight": 0.0, "update": "ema"}
NAMED_VARIANTS = {
    "plain": {**PLAIN, "init": "random"},
    "plain_kmeans_sync": {**PLAIN, "init": "kmeans", "sync_weight": 1.5},
    "affine": {"parameterization": "affine", "init": "kmeans"},
    "affine_groups": {
        **{"parameterization": "affine", "affine_groups": 4, "affine_lr_scale": 3.0},
        **{"init": "random", "replace_after": None},
    },
    "affine_running": {"parameterization": "affine_running", "init": "kmeans"},
    "affine_running_random": {"parameterization": "affine_running", "init": "random", "sync_weight": 1.0},
    "linear": {"parameterization": "linear", "init": "random", "replace_after": None},
    "linear_kmeans": {"parameterization": "linear", "init": "kmeans", "sync_weight": 1.0},
    "ema": {**EMA, "init": "kmeans", "ema_decay": 0.8},
    "ema_random": {**EMA, "init": "random", "estimator": "rotation"},
    "alternating": {"parameterization": "affine", "update": "alternating", "sync_weight": 1.0},
    "alternating_plain": {**PLAIN, "update": "alternating", "init": "random"},
    "rotation": {"parameterization": "affine", "estimator": "rotation"},
    "rotation_sync": {**PLAIN, "estimator": "rotation", "sync_weight": 1.0, "init": "random"},
    "cosine": {"parameterization": "affine", "distance": "cosine"},
    "cosine_ema": {**EMA, "distance": "cosine"},
    "cosine_running": {"parameterization": "affine_running", "distance": "cosine", "estimator": "rotation"},
    "grouped": {"parameterization": "affine", "structure": "grouped", "num_codebooks": 3, "estimator": "rotation"},
    "grouped_cosine": {**PLAIN, "structure": "grouped", "num_codebooks": 2, "distance": "cosine"},
    "grouped_ema": {**EMA, "structure": "grouped", "num_codebooks": 2},
    "residual": {"parameterization": "affine", "structure": "residual", "num_codebooks": 3, "sync_weight": 0.5},
    "residual_ema": {**EMA, "structure": "residual", "num_codebooks": 2, "estimator": "rotation"},
    "residual_linear": {"parameterization": "linear", "structure": "residual", "num_codebooks": 2, "init": "random"},
}
VARIANTS = [pytest.param(fields, id=name) for name, fields in NAMED_VARIANTS.items()]
SHAPES = [(3, 6, 5, 4), (2, 6, 3, 4, 5), (2, 6, 11)]


def make(**fields):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(
        **{"codebook_size": 16, "codebook_dim": 6, "replace_after": 2, "codebook_lr_scale": 2.0, **fields}
    )
    with torch.no_grad():  # away from the identity, so that raw and effective codes differ
        for codebook in quantizer.all_codebooks:
            for parameter in codebook.parameterization.parameters():
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
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
        assert torch.equal(quantizer.encode(output.quantized), output.codes) or "residual" in str(variant)
        books = () if quantizer.config.structure == "single" else (quantizer.config.num_codebooks,)
        assert output.codes.shape == (shape[0], *books, *shape[2:])
        assert output.quantized.shape == shape


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


def seen_by_each_codebook(quantizer, vectors, codes):
    """For each codebook, in float64 and by the definition: the rows it chose codes for, and its effective codes."""
    vectors, config = vectors.double(), quantizer.config
    for index, codebook in enumerate(quantizer.all_codebooks):
        rows = vectors.chunk(config.num_codebooks, dim=1)[index] if config.structure == "grouped" else vectors
        if config.distance == "cosine":
            rows = rows / rows.norm(dim=1, keepdim=True)
        effective = codebook.effective().detach().double()
        yield rows, effective, codes[:, index]
        if config.structure == "residual":
            vectors = vectors - effective[codes[:, index]]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_assignments_equal_a_float64_search(variant, offset):
    quantizer = make(**variant).eval()
    with torch.no_grad():
        for codebook in quantizer.all_codebooks:
            codebook.weight.normal_().add_(offset)
    features = torch.randn(4, 6, 50) + offset
    vectors = features.transpose(1, 2).reshape(-1, 6)
    codes = quantizer.encode(features).view(4, -1, 50).transpose(1, 2).reshape(200, -1)
    for rows, effective, chosen in seen_by_each_codebook(quantizer, vectors, codes):
        distances = (rows[:, None] - effective).square().sum(-1)
        excess = distances.gather(1, chosen[:, None]).squeeze(1) - distances.min(dim=1).values
        assert bool((excess <= 1e-5 * rows.sub(effective.mean(0)).square().sum(1).clamp(min=1e-2 * offset)).all())


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


@pytest.mark.parametrize("parameterization", ["plain", "affine", "affine_running", "linear"])
def test_replacement_places_the_effective_code_on_an_encoder_output(parameterization):
    quantizer = make(parameterization=parameterization, init="random", replace_after=2).train()
    features = 5 + torch.randn(2, 6, 30)
    quantizer.codebook.prepare(features.transpose(1, 2).reshape(-1, 6))
    quantizer.codebook.unused_batches[3:] = 2
    dead = torch.arange(3, 16)
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forward_without_placement_leaves_every_parameter_alone(variant):
    quantizer = make(**{**variant, "init": "random", "replace_after": None, "update": "gradient"}).train()
    before = {name: value.clone() for name, value in quantizer.named_parameters()}
    output = quantizer(torch.randn(SHAPES[0], requires_grad=True))
    (output.loss + output.quantized.sum()).backward()
    for name, value in quantizer.named_parameters():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_module_cast_to_half_precision_stays_finite_and_decodes_its_codes(variant, dtype):
    quantizer = make(**variant).train()
    for _ in range(3):
        quantizer(3 * torch.randn(SHAPES[0]))
    quantizer = quantizer.to(dtype).eval()
    output = quantizer(torch.randn(SHAPES[0]).to(dtype))
    assert torch.isfinite(quantizer.effective_codebook).all()
    assert torch.equal(quantizer.decode(output.codes), output.quantized)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_training_batches_can_share_a_backward(variant):
    quantizer = make(**{**variant, "replace_after": 1}).train()
    features = [torch.randn(SHAPES[0]).add(offset).requires_grad_() for offset in (0, 3, 6)]
    outputs = [quantizer(part) for part in features]
    sum(output.loss + output.quantized.sum() for output in outputs).backward()
    assert all(torch.isfinite(part.grad).all() for part in features)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_batch_has_no_loss_and_changes_no_code(variant):
    quantizer = make(**variant).train()
    quantizer(torch.randn(SHAPES[0]))
    before = quantizer.effective_codebook.detach().clone() if "ema" not in str(variant) else None
    output = quantizer(torch.randn(0, 6, 5, 4, requires_grad=True))
    output.loss.backward()
    assert output.loss == 0
    assert before is None or torch.equal(quantizer.effective_codebook, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_is_float32_under_autocast(variant):
    quantizer = make(**variant).train()
    quantizer(torch.randn(SHAPES[0]))
    codes = torch.randint(16, quantizer.encode(torch.randn(SHAPES[0])).shape)
    expected = quantizer.decode(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.decode(codes), expected)


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_codebook_keeps_everything(variant):
    quantizer = make(**variant).train()
    quantizer(torch.randn(SHAPES[0]))
    quantizer.freeze_codebook()
    state = state_of(quantizer)
    features = (9 * torch.randn(SHAPES[0])).requires_grad_()
    for _ in range(5):
        output = quantizer(features)
        (output.loss + output.quantized.sum()).backward()
    assert_same_state(quantizer, state)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_frozen_codebook_stays_frozen_after_loading(variant):
    frozen = make(**variant).train()
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
        loss = output.loss + output.quantized.square().mean()
        if loss.requires_grad:  # averages alone move nothing through a gradient
            loss.backward()
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


@pytest.mark.parametrize("codes", [torch.tensor([[0, 16]]), torch.tensor([[-1, 3]])])
def test_decoding_a_code_out_of_range_is_refused(codes):
    with pytest.raises(ValueError, match=r"\[0, 16\)"):
        make().decode(codes)


def test_decoding_codes_of_another_number_of_codebooks_is_refused():
    with pytest.raises(ValueError, match=r"\(B, 3, ...\), one entry per codebook; got \(2, 2, 5\)"):
        make(structure="grouped", num_codebooks=3).decode(torch.zeros(2, 2, 5, dtype=torch.int64))


def test_wrong_channel_count_is_refused():
    with pytest.raises(ValueError, match="6 channels"):
        make()(torch.randn(2, 5, 4))
