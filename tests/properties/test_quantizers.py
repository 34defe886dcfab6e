"""Any feature map and any codes: the nearest code by brute force, or an error that names what is wrong."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_vq import CodebookUsage, FiniteScalarQuantizer, LookupFreeQuantizer, VectorQuantizer

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHERS = (torch.int64, torch.uint8, torch.bool, torch.complex64)
seeds = st.integers(0, 2**31 - 1)
spatial = st.lists(st.integers(1, 4), max_size=3)
KINDS = ("plain", "affine", "cosine", "linear", "residual", "grouped", "finite_scalar", "lookup_free", "spherical")


def make(kind, seed=0):
    """A quantizer of 4 channels with spread-out codes, in evaluation mode."""
    torch.manual_seed(seed)
    if kind == "finite_scalar":
        return FiniteScalarQuantizer(levels=[2, 3, 4, 5]).eval()
    if kind in ("lookup_free", "spherical"):
        return LookupFreeQuantizer(codebook_dim=4, spherical=kind == "spherical").eval()
    fields = {"codebook_size": 6, "codebook_dim": 4, "init": "random", "replace_after": None}
    if kind in ("residual", "grouped"):
        fields |= {"structure": kind, "num_codebooks": 2}
    if kind in ("plain", "affine", "linear"):
        fields["parameterization"] = kind
    quantizer = VectorQuantizer(**fields, distance="cosine" if kind == "cosine" else "euclidean").eval()
    for codebook in quantizer.all_codebooks:
        codebook.weight.data.normal_()
    return quantizer


def features(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@given(batch=st.integers(0, 3), sides=spatial, dtype=st.sampled_from(FLOATS), seed=seeds)
def test_quantised_vectors_are_those_of_the_codes(kind, batch, sides, dtype, seed):
    quantizer, inputs = make(kind), features((batch, 4, *sides), seed, dtype)
    output = quantizer(inputs)
    assert output.quantized.shape == inputs.shape
    assert output.quantized.dtype == dtype
    assert output.codes.dtype == torch.int64
    assert torch.equal(output.codes, quantizer.encode(inputs))
    torch.testing.assert_close(output.quantized, quantizer.decode(output.codes).to(dtype))
    assert bool(output.loss.isfinite())
    assert 0 <= float(output.active_fraction) <= 1


@given(batch=st.integers(1, 3), sides=spatial, seed=seeds, scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_no_code_is_nearer_than_the_one_chosen(batch, sides, seed, scale):
    quantizer, inputs = make("plain", seed), features((batch, 4, *sides), seed) * scale
    rows = inputs.movedim(1, -1).reshape(-1, 4).double()
    distances = torch.cdist(rows, quantizer.effective_codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = distances.gather(1, quantizer.encode(inputs).reshape(-1, 1)).squeeze(1)
    torch.testing.assert_close(chosen, distances.amin(dim=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(channels=st.integers(0, 9).filter(lambda n: n != 4), sides=spatial, call=st.sampled_from(["encode", "forward"]))
def test_another_number_of_channels_is_refused(kind, channels, sides, call):
    with pytest.raises(ValueError, match="4 channels"):
        getattr(make(kind), call)(torch.zeros(2, channels, *sides))


@given(kind=st.sampled_from(KINDS), dtype=st.sampled_from(OTHERS), call=st.sampled_from(["encode", "forward"]))
def test_features_that_are_no_real_numbers_are_refused(kind, dtype, call):
    with pytest.raises(ValueError, match=str(dtype)):
        getattr(make(kind), call)(torch.zeros(2, 4, 3, dtype=dtype))


@given(kind=st.sampled_from(KINDS), index=st.integers(0, 23), seed=seeds)
def test_encoding_what_is_not_a_number_is_refused(kind, index, seed):
    inputs = features((2, 4, 3), seed)
    inputs.view(-1)[index] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        make(kind).encode(inputs)


@given(kind=st.sampled_from(KINDS), offset=st.one_of(st.integers(0, 2**40), st.integers(-(2**40), -1)))
def test_codes_out_of_range_are_refused(kind, offset):
    quantizer = make(kind)
    code = offset if offset < 0 else quantizer.config.codebook_size + offset
    codes = torch.full((1, 2, 3) if kind in ("residual", "grouped") else (1, 3), code)
    with pytest.raises(ValueError, match=str(code)):
        quantizer.decode(codes)


@given(kind=st.sampled_from(KINDS), dtype=st.sampled_from([*FLOATS, torch.bool, torch.complex64]))
def test_codes_that_are_no_integers_are_refused(kind, dtype):
    with pytest.raises(ValueError, match=str(dtype)):
        make(kind).decode(torch.zeros(1, 2, 3, dtype=dtype))


@given(
    batches=st.lists(st.lists(st.integers(0, 4), max_size=20), min_size=1, max_size=4),
)
def test_usage_counts_every_batch(batches):
    usage = CodebookUsage(5)
    for codes in batches:
        usage.update(torch.tensor(codes, dtype=torch.int64))
    joined = [code for codes in batches for code in codes]
    assert usage.compute()["active_fraction"] == pytest.approx(len(set(joined)) / 5)
