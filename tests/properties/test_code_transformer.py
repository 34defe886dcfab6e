"""Any codes, positions, views and labels: logits of the right places, or an error that names what does not fit."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_vq import CodeTransformer

K, N, TOKENS, DIM, CLASSES = 5, 8, 4, 3, 3
KINDS = ("full", "prefix", "rotary", "learned", "causal")
seeds = st.integers(0, 2**31 - 1)
kinds = st.sampled_from(KINDS)
not_whole = st.sampled_from([torch.float32, torch.float16, torch.bool, torch.uint8, torch.complex64])


@functools.cache
def make(kind):
    """A transformer over 2 x 2 x 2 codes with two views and 3 classes."""
    torch.manual_seed(0)
    model = CodeTransformer(
        num_codes=K,
        code_grid=(2, 2, 2),
        context_dim=DIM,
        context_grid=(2, 2),
        hidden_size=12,
        num_layers=1,
        num_heads=2,
        num_classes=CLASSES,
        label_dropout=0.1,
        view_dropout=0.1,
        context_dropout=0.1,
        context_attention="prefix" if kind in ("prefix", "causal") else "full",
        position_embedding={"rotary": "axial_rotary", "learned": "learned"}.get(kind, "axial"),
        causal=kind == "causal",
    ).eval()
    model.head.weight.data.normal_()
    return model


def source(seed):
    return torch.Generator().manual_seed(seed)


def codes(batch, seed=0):
    return torch.randint(0, K + 1, (batch, N), generator=source(seed))


def views(batch, count=2, seed=0):
    return torch.randn(batch, count, TOKENS, DIM, generator=source(seed))


@pytest.mark.parametrize("kind", KINDS)
@given(batch=st.integers(0, 3), seed=seeds, shown=st.sampled_from([None, 0, 1, 2]), labelled=st.booleans())
def test_asking_for_some_places_gives_their_rows_of_all_logits(kind, batch, seed, shown, labelled):
    model = make(kind)
    arguments = {} if shown is None else {"context": views(batch, seed=seed)}
    if shown is not None:
        arguments["view_mask"] = torch.arange(2).expand(batch, 2) < shown
    if labelled:
        arguments["class_labels"] = torch.randint(-1, CLASSES + 1, (batch,), generator=source(seed))
    sample, wanted = codes(batch, seed), torch.rand(batch, N, generator=source(seed)) < 0.4
    places = torch.randint(0, N, (batch, 3), generator=source(seed))
    with torch.no_grad():
        logits = model(sample, **arguments).sample
        some = model(sample, **arguments, positions=wanted).sample
        listed = model(sample, **arguments, positions=places).sample
        gridded = model(sample.view(batch, 2, 2, 2), **arguments).sample
    assert logits.shape == (batch, N, K)
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(some, logits[wanted], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(listed, logits.gather(1, places[..., None].expand(-1, -1, K)), rtol=1e-4, atol=1e-4)
    assert torch.equal(gridded, logits)


@given(kind=kinds, seed=seeds, view=st.integers(0, 1))
def test_a_masked_view_is_as_if_it_were_not_there(kind, seed, view):
    sample, context = codes(2, seed), views(2, seed=seed)
    mask = torch.arange(2).expand(2, 2) == view
    ids = torch.full((2, 1), view)
    with torch.no_grad():
        masked = make(kind)(sample, context, view_mask=mask).sample
        alone = make(kind)(sample, context[:, view : view + 1], view_ids=ids).sample
    torch.testing.assert_close(masked, alone, rtol=1e-4, atol=1e-4)


@given(kind=kinds, code=st.one_of(st.integers(-(2**60), -1), st.integers(K + 1, 2**60)), place=st.integers(0, N - 1))
def test_codes_out_of_range_are_refused(kind, code, place):
    sample = codes(1)
    sample[0, place] = code
    with pytest.raises(ValueError, match=str(code)):
        make(kind)(sample)


@given(kind=kinds, dtype=not_whole)
def test_codes_that_are_no_integers_are_refused(kind, dtype):
    with pytest.raises(ValueError, match=str(dtype)):
        make(kind)(torch.zeros(1, N, dtype=dtype))


@given(kind=kinds, shape=st.lists(st.integers(0, 9), max_size=5))
def test_codes_of_another_shape_are_refused(kind, shape):
    sample = torch.zeros(shape, dtype=torch.int64)
    if shape[1:] in ([N], [2, 2, 2]):
        assert make(kind)(sample).sample.shape == (shape[0], N, K)
    else:
        with pytest.raises(ValueError, match="sample"):
            make(kind)(sample)


@given(kind=kinds, place=st.one_of(st.integers(-(2**60), -1), st.integers(N, 2**60)))
def test_positions_out_of_range_are_refused(kind, place):
    with pytest.raises(ValueError, match=f"positions.*{place}"):
        make(kind)(codes(1), positions=torch.tensor([[0, place]]))


@given(
    kind=kinds,
    shape=st.lists(st.integers(0, 9), max_size=3).filter(lambda each: len(each) != 2 or each[0] != 2),
    dtype=st.sampled_from([torch.int64, torch.bool, torch.float32, torch.int32]),
)
def test_positions_of_another_form_are_refused(kind, shape, dtype):
    with pytest.raises(ValueError, match=r"positions must be \(2, M\) int64"):
        make(kind)(codes(2), positions=torch.zeros(shape, dtype=dtype))


@given(kind=kinds, shape=st.lists(st.integers(0, 5), max_size=5), batch=st.integers(1, 2))
def test_views_of_another_shape_are_refused(kind, shape, batch):
    context = torch.zeros(shape)
    if len(shape) == 4 and shape[0] == batch and shape[1] <= 2 and shape[2:] == [TOKENS, DIM]:
        assert make(kind)(codes(batch), context).sample.shape == (batch, N, K)
    else:
        with pytest.raises(ValueError, match=r"context|view_ids"):
            make(kind)(codes(batch), context)


@given(kind=kinds, batch=st.integers(1, 3), others=st.integers(0, 3))
def test_views_of_another_number_of_samples_are_refused(kind, batch, others):
    if batch == others:
        return
    with pytest.raises(ValueError, match="context"):
        make(kind)(codes(batch), views(others))


@given(kind=kinds, bad=st.one_of(st.integers(-(2**60), -1), st.integers(2, 2**60)))
def test_views_that_the_model_does_not_know_are_refused(kind, bad):
    with pytest.raises(ValueError, match=f"view_ids.*{bad}"):
        make(kind)(codes(1), views(1), view_ids=torch.tensor([[0, bad]]))
    with pytest.raises(ValueError, match="view_ids"):
        make(kind)(codes(1), views(1, count=3))


@given(kind=kinds, shape=st.lists(st.integers(0, 3), max_size=3), dtype=st.sampled_from([torch.int64, torch.float32]))
def test_view_ids_of_another_form_are_refused(kind, shape, dtype):
    if shape == [1, 2] and dtype == torch.int64:
        return
    with pytest.raises(ValueError, match="view_ids"):
        make(kind)(codes(1), views(1), view_ids=torch.zeros(shape, dtype=dtype))


@given(kind=kinds, shape=st.lists(st.integers(0, 3), max_size=3), dtype=st.sampled_from([torch.bool, torch.int64]))
def test_view_masks_of_another_form_are_refused(kind, shape, dtype):
    if shape == [1, 2] and dtype == torch.bool:
        return
    with pytest.raises(ValueError, match="view_mask"):
        make(kind)(codes(1), views(1), view_mask=torch.ones(shape, dtype=dtype))


@given(kind=kinds, bad=st.one_of(st.integers(-(2**60), -2), st.integers(CLASSES + 1, 2**60)))
def test_labels_out_of_range_are_refused(kind, bad):
    with pytest.raises(ValueError, match=f"class_labels.*{bad}"):
        make(kind)(codes(2), class_labels=torch.tensor([0, bad]))


@given(kind=kinds, shape=st.lists(st.integers(0, 3), max_size=3), dtype=st.sampled_from([torch.int64, torch.float32]))
def test_labels_of_another_form_are_refused(kind, shape, dtype):
    if shape == [2] and dtype == torch.int64:
        return
    with pytest.raises(ValueError, match="class_labels"):
        make(kind)(codes(2), class_labels=torch.zeros(shape, dtype=dtype))


@given(kind=st.sampled_from(["full", "rotary", "learned"]))
def test_views_cannot_be_encoded_before_the_codes_where_they_see_them(kind):
    with pytest.raises(ValueError, match="prefix"):
        make(kind).encode_context(views(1))


@given(kind=st.sampled_from(["prefix", "causal"]), seed=seeds, batch=st.integers(1, 2))
def test_encoded_views_serve_as_the_views_do(kind, seed, batch):
    model, sample, context = make(kind), codes(batch, seed), views(batch, seed=seed)
    with torch.no_grad():
        key_values = model.encode_context(context)
        direct, later = model(sample, context).sample, model(sample, context_key_values=key_values).sample
    torch.testing.assert_close(later, direct, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="each of 1 blocks"):
        model(sample, context_key_values=key_values * 2)
    with pytest.raises(ValueError, match="both"):
        model(sample, context, context_key_values=key_values)
    with pytest.raises(ValueError, match="context_key_values"):
        model(codes(batch + 1), context_key_values=key_values)


@given(kind=kinds, bad=st.sampled_from([math.nan, math.inf]), seed=seeds)
def test_a_view_that_is_not_finite_spoils_no_other_sample(kind, bad, seed):
    sample, context = codes(2, seed), views(2, seed=seed)
    with torch.no_grad():
        clean = make(kind)(sample, context).sample
        context[1] = bad
        spoilt = make(kind)(sample, context).sample
    torch.testing.assert_close(spoilt[0], clean[0])
    assert not bool(spoilt[1].isfinite().any())
