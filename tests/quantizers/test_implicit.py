"""Laws that every quantizer without a stored codebook obeys, in one process and in two."""

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_vq import FiniteScalarQuantizer, LookupFreeQuantizer, VectorQuantizerOutput

VARIANTS = {
    "finite_scalar": (FiniteScalarQuantizer, {"levels": [8, 5, 2, 3]}),
    "lookup_free": (LookupFreeQuantizer, {"codebook_dim": 4, "entropy_group_size": 3, "temperature": 2.0}),
    "spherical": (LookupFreeQuantizer, {"codebook_dim": 4, "spherical": True, "diversity_weight": 0.7}),
}
SHAPES = [(3, 4), (2, 4, 11), (3, 4, 5, 6), (2, 4, 3, 4, 5)]
SPLIT, ROWS = 13, 40


def make(variant, **fields):
    quantizer_class, own = VARIANTS[variant]
    return quantizer_class(**{**own, **fields})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_decoding_codes_gives_the_quantized_vectors(variant, shape, training):
    quantizer = make(variant).train(training)
    features = 3 * torch.randn(shape) - 1
    output = quantizer(features)
    assert isinstance(output, VectorQuantizerOutput)
    assert output.codes.shape == (shape[0], *shape[2:])
    assert output.codes.dtype == torch.int64
    assert torch.equal(quantizer.decode(output.codes), output.quantized)
    assert torch.equal(quantizer.encode(features), output.codes)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_decoding_follows_the_dtype_of_the_module(variant, dtype):
    quantizer = make(variant).to(dtype)
    output = quantizer(torch.randn(SHAPES[2], dtype=dtype))
    decoded = quantizer.decode(output.codes)
    assert decoded.dtype == output.quantized.dtype == quantizer.effective_codebook.dtype == dtype
    assert torch.equal(decoded, output.quantized)


@pytest.mark.parametrize("variant", VARIANTS)
def test_channel_last_is_a_transposition(variant):
    first, last = make(variant), make(variant, channel_last=True)
    features = torch.randn(2, 4, 3, 11)
    expected, output = first(features), last(features.movedim(1, -1))
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantized.movedim(-1, 1), expected.quantized)
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(last.decode(output.codes), output.quantized)
    assert torch.equal(first.effective_codebook, last.effective_codebook)


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_and_vectors_stand_for_each_other(variant):
    quantizer = make(variant)
    size = quantizer.config.codebook_size
    codebook = quantizer.effective_codebook
    assert codebook.shape == (size, quantizer.config.codebook_dim)
    assert len(torch.unique(codebook, dim=0)) == size
    codes = torch.randint(size, (2, 30))
    assert torch.equal(quantizer.decode(codes), codebook[codes].movedim(-1, 1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_is_no_state_and_training_computes_what_eval_does(variant):
    quantizer = make(variant).train()
    features = torch.randn(SHAPES[2])
    trained = quantizer(features)
    quantizer.freeze_codebook()
    assert quantizer.state_dict() == {}
    assert list(quantizer.parameters()) == []
    loaded = copy.deepcopy(quantizer).eval()
    loaded.load_state_dict(quantizer.state_dict())
    for name, value in vars(loaded(features)).items():
        assert torch.equal(value, getattr(trained, name)), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_computes_in_float32(variant, dtype):
    quantizer = make(variant).train()
    features = torch.cat((torch.randn(SHAPES[2]), 300 * torch.randn(SHAPES[2])))  # 300^2 overflows float16
    features = features.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(features)
        expected = quantizer(features.detach().float())
    assert output.quantized.dtype == dtype
    assert output.loss.dtype == output.commitment_loss.dtype == output.codebook_loss.dtype == torch.float32
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.loss, expected.loss)
    assert all(bool(torch.isfinite(value).all()) for value in vars(output).values())
    (output.loss + output.quantized.float().mean()).backward()
    assert bool(torch.isfinite(features.grad).all())


@pytest.mark.parametrize("variant", VARIANTS)
def test_not_a_number_gets_a_code_and_stays_visible(variant):
    features = torch.full((1, 4, 2), torch.nan)
    quantizer = make(variant)
    output = quantizer(features)
    quantizer.decode(output.codes)
    assert bool(output.quantized.isnan().all())


@pytest.mark.parametrize("variant", VARIANTS)
def test_usage_is_that_of_the_batch(variant):
    quantizer = make(variant)
    output = quantizer(1 + torch.randn(1, 4, 50))
    counts = torch.bincount(output.codes.flatten(), minlength=quantizer.config.codebook_size)
    share = counts[counts > 0].double() / 50
    torch.testing.assert_close(output.active_fraction, (counts > 0).float().mean())
    torch.testing.assert_close(output.perplexity.double(), (-(share * share.log()).sum()).exp())


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_out_of_range_are_refused(variant):
    quantizer = make(variant)
    size = quantizer.config.codebook_size
    for codes in (torch.tensor([[0, size]]), torch.tensor([[-1, 3]])):
        with pytest.raises(ValueError, match=rf"\[0, {size}\).*Masked positions"):
            quantizer.decode(codes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_wrong_channel_count_is_refused(variant):
    with pytest.raises(ValueError, match="4 channels"):
        make(variant)(torch.randn(2, 5, 3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_survives_a_round_trip_and_names_its_quantizer(variant):
    config = make(variant).config
    values = config.to_dict()
    assert values["quantizer_type"] == VARIANTS[variant][0]().config.quantizer_type
    assert type(config).from_dict(values) == config
    quantizer = type(make(variant))(config)
    assert quantizer.config is config
    with pytest.raises(ValueError, match="not both"):
        type(quantizer)(config, channel_last=True)
    with pytest.raises(ValueError, match="quantizer_type='vector'"):
        type(config).from_dict({**values, "quantizer_type": "vector"})
    with pytest.raises(ValueError, match="levls"):
        type(config).from_dict({**values, "levls": 3})


class Encoder(nn.Module):
    """A linear map before a quantizer, and a loss that two ranks average to that of the joined batch."""

    def __init__(self, variant):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.quantizer = make(variant)

    def forward(self, rows, num_ranks):
        output = self.quantizer(self.linear(rows))
        task = (output.quantized - rows).square().sum() * num_ranks / ROWS
        return task + output.loss, output


def gradient_step(variant, rows, wrap, num_ranks):
    encoder = Encoder(variant).train()
    batch = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1))[rows]
    wrapped = wrap(encoder)  # held until the backward pass is through, or nobody averages the gradients
    loss, output = wrapped(batch, num_ranks)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in encoder.parameters()]
    return loss.detach(), gradients, output.perplexity, output.active_fraction


def worker(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    if rank == 0:  # evaluation by one rank alone waits for nobody
        for variant in VARIANTS:
            make(variant).eval()(torch.randn(SHAPES[0]))
    rows = slice(0, SPLIT) if rank == 0 else slice(SPLIT, ROWS)
    results[rank] = {variant: gradient_step(variant, rows, DistributedDataParallel, 2) for variant in VARIANTS}
    dist.destroy_process_group()


def test_two_ranks_equal_one_process_on_the_joined_batch():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(worker, args=(port, results), nprocs=2)
    for variant in VARIANTS:
        loss, gradients, *usage = gradient_step(variant, slice(None), lambda module: module, 1)
        torch.testing.assert_close((results[0][variant][0] + results[1][variant][0]) / 2, loss)
        for rank in (0, 1):
            torch.testing.assert_close(results[rank][variant][1], gradients)
            torch.testing.assert_close(list(results[rank][variant][2:]), usage)
