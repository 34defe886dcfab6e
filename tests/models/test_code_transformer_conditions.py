"""The code transformer where views are missing, codes have an order, or classes or nothing stand in their place."""

import pytest
import torch
from tiny_transformers import CASES, CLASSES, IMAGE_FIELDS, image_codes, inputs, make, make_for_images

from hf_vq import CodeTransformer


@pytest.mark.parametrize(("position_embedding", "context_attention"), CASES)
def test_a_hidden_view_is_a_view_left_out(position_embedding, context_attention):
    codes, context = inputs(3)
    model = make(position_embedding, context_attention, view_dropout=0.5, context_dropout=0.5)
    shown = torch.tensor([[True, True], [False, True], [False, False]])
    logits = model(codes, context, view_mask=shown).sample
    torch.testing.assert_close(logits[:1], model(codes[:1], context[:1]).sample)
    lateral = model(codes[1:2], context[1:2, 1:], view_ids=torch.tensor([[1]])).sample
    torch.testing.assert_close(logits[1:2], lateral)
    torch.testing.assert_close(logits[2:], model(codes[2:]).sample)
    assert not torch.allclose(logits[1:2], model(codes[1:2], context[1:2]).sample)


def test_cached_context_with_a_mask_equals_recomputing_it():
    codes, context = inputs(3)
    model = make(context_attention="prefix")
    shown = torch.tensor([[True, True], [False, True], [False, False]])
    cached = model.encode_context(context, view_mask=shown)
    logits = model(codes, context_key_values=cached, view_mask=shown).sample
    assert torch.equal(logits, model(codes, context, view_mask=shown).sample)


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_hidden_views_give_finite_gradients(context_attention):
    codes, context = inputs()
    model = make(context_attention=context_attention)
    model(codes, context, view_mask=torch.zeros(2, 2, dtype=torch.bool)).sample.square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("code_order", [None, "reversed", "shuffled"])
def test_a_causal_model_sees_the_views_and_the_codes_before_only(code_order):
    codes, context = inputs(1)
    codes = codes.flatten(1) % 11
    orders = {"reversed": list(range(23, -1, -1)), "shuffled": torch.randperm(24).tolist()}
    model = make(context_attention="prefix", causal=True, code_order=orders.get(code_order))
    order = orders.get(code_order, list(range(24)))
    logits = model(codes, context).sample
    for rank in (0, 7, 23):
        changed = codes.clone()
        changed[0, order[rank]] = (codes[0, order[rank]] + 1) % 11
        same = (model(changed, context).sample == logits).all(dim=-1)[0]
        assert bool(same[order[: rank + 1]].all())
        assert not bool(same[order[rank + 1 :]].any())
    assert bool((model(codes, context + 1).sample != logits).any(dim=-1).all())


def test_a_causal_model_with_hidden_views_equals_one_without():
    codes, context = inputs(2)
    model = make(context_attention="prefix", causal=True, view_dropout=0.5, context_dropout=0.5)
    shown = torch.tensor([[True, False], [False, False]])
    logits = model(codes, context, view_mask=shown).sample
    torch.testing.assert_close(logits[:1], model(codes[:1], context[:1, :1]).sample)
    torch.testing.assert_close(logits[1:], model(codes[1:]).sample)


def test_causal_fields_are_checked():
    with pytest.raises(ValueError, match="causal=True needs context_attention='prefix'"):
        make(causal=True)
    with pytest.raises(ValueError, match="not causal"):
        make(code_order=list(range(24)))
    with pytest.raises(ValueError, match="each place from 0 to 23"):
        make(causal=True, context_attention="prefix", code_order=[0, 0, 1])


def test_view_dropout_hides_views_at_its_rate_and_context_dropout_all_of_a_subject():
    shown = make(view_dropout=0.5).drop_views(4000, torch.Generator().manual_seed(0))
    assert bool(shown.any(dim=1).all())
    assert shown.float().mean() == pytest.approx(0.625, abs=0.02)  # hidden: both at 1/4 -> one comes back, else at 1/2
    shown = make(context_dropout=0.2).drop_views(4000, torch.Generator().manual_seed(0))
    assert bool((shown.all(dim=1) == shown.any(dim=1)).all())
    assert shown.any(dim=1).float().mean() == pytest.approx(0.8, abs=0.03)
    assert make().drop_views(3) is None
    with pytest.raises(ValueError, match="view_dropout must lie"):
        make(view_dropout=1.0)
    with pytest.raises(ValueError, match="without views"):
        make(context_dim=None, context_dropout=0.1)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize(("position_embedding", "context_attention"), CASES)
def test_a_model_without_views_or_classes(grid, position_embedding, context_attention, tmp_path):
    codes = torch.randint(0, 12, (2, *grid))
    fields = {"position_embedding": position_embedding, "context_attention": context_attention, "code_grid": grid}
    model = make_for_images(**fields)
    logits = model(codes).sample
    assert logits.shape == (2, codes[0].numel(), 11)
    assert model.view_names == []
    assert model.label2id == {}
    names = {name for name, _ in model.named_parameters()}
    assert not any("context" in name or "view" in name or "class" in name for name in names)
    model.save_pretrained(tmp_path)
    assert torch.equal(CodeTransformer.from_pretrained(tmp_path)(codes).sample, logits)


def test_image_grids_have_axes_of_their_own():
    model = make_for_images(code_grid=(3, 4))
    assert tuple(model.config.volume_axes) == ("rows", "columns")
    rows, columns = (model.positions.tables(axis) for axis in ("rows", "columns"))
    positions = model.positions(("rows", "columns"), (3, 4)).view(3, 4, -1)
    torch.testing.assert_close(positions, rows[:, None] + columns)


def test_class_label_changes_the_logits_and_no_label_has_three_spellings(tmp_path):
    model, codes = make_for_images(**CLASSES), image_codes()
    assert model.label2id == {"shirt": 0, "bag": 1, "boot": 2}
    logits = [model(codes, class_labels=torch.full((2,), label)).sample for label in (0, 1, -1, 3)]
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    assert torch.equal(logits[2], logits[3])
    assert torch.equal(logits[2], model(codes).sample)
    mixed = model(codes, class_labels=torch.tensor([1, -1])).sample
    torch.testing.assert_close(mixed, torch.stack((logits[1][0], logits[2][1])))
    model.save_pretrained(tmp_path)
    loaded = CodeTransformer.from_pretrained(tmp_path)
    assert loaded.label2id == model.label2id
    assert torch.equal(loaded(codes, class_labels=torch.tensor([1, -1])).sample, mixed)


def test_a_model_with_labels_compiles_into_one_graph():
    model, codes = make_for_images(**CLASSES), image_codes()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for labels in (torch.tensor([1, -1]), None):
        expected = model(codes, class_labels=labels).sample
        torch.testing.assert_close(compiled(codes, class_labels=labels).sample, expected)


def test_blocks_compile_by_themselves():
    model, codes = make_for_images(), image_codes()
    expected = model(codes).sample
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(codes).sample, expected)


def test_a_model_with_missing_views_compiles_into_one_graph():
    codes, context = inputs()
    model = make("axial_rotary", "prefix", causal=True, num_layers=1)
    arguments = {"view_ids": torch.tensor([[1, 0], [0, 1]]), "view_mask": torch.tensor([[True, False], [False, False]])}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(codes, context, **arguments).sample, model(codes, context, **arguments).sample)


def test_no_label_goes_through_the_embedding_s_forward():
    """Hooks that bring offloaded weights to the device run there."""
    model, seen = make_for_images(**CLASSES), []
    model.class_embedding.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].tolist()))
    model(image_codes())
    assert seen == [[3, 3]]


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_labels_are_dropped_at_the_configured_rate(rate, generator):
    model, labels = make_for_images(**{**CLASSES, "label_dropout": rate}), torch.arange(3).repeat(1000)
    dropped = model.drop_labels(labels, generator)
    assert torch.equal(model.drop_labels(labels, torch.Generator().manual_seed(0)), dropped)
    assert torch.equal(dropped[dropped >= 0], labels[dropped >= 0])
    assert (dropped == -1).float().mean().item() == pytest.approx(rate, abs=0.03)


def test_a_class_is_no_obstacle_to_views_and_their_cache():
    codes, context = inputs()
    model = make(context_attention="prefix", num_classes=3)
    labels = torch.tensor([0, 2])
    logits = model(codes, context, class_labels=labels).sample
    assert not torch.allclose(logits, model(codes, context).sample)
    cached = model.encode_context(context)
    assert torch.equal(model(codes, context_key_values=cached, class_labels=labels).sample, logits)


def test_gradients_reach_the_classes_that_were_given():
    model = make_for_images(**CLASSES).train()
    model(image_codes(), class_labels=torch.tensor([0, -1])).sample.square().mean().backward()
    moved = model.class_embedding.weight.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == [True, False, False, True]


def test_initialisation_from_a_single_codebook():
    model = make_for_images()
    head = model.head.weight.clone()
    model.initialize_from_codebooks(torch.randn(11, 6))
    assert not torch.equal(model.head.weight, head)
    with pytest.raises(ValueError, match="context_dim is None, and they are given"):
        model.initialize_from_codebooks(torch.randn(11, 6), torch.randn(9, 5))
    with pytest.raises(ValueError, match="context_dim is 5, and they are missing"):
        make().initialize_from_codebooks(torch.randn(11, 6))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number from 1 .*got 0"),
        ({"num_classes": 3, "label_dropout": 1.0}, "label_dropout"),
        ({"label_dropout": 0.1}, "need num_classes"),
        ({"id2label": {0: "bag"}}, "need num_classes"),
        ({"num_classes": 2, "id2label": {0: "bag"}}, "from 0 to 1"),
        ({"num_classes": 2, "id2label": {0: "bag", 1: "bag"}}, "names of their own"),
        ({"view_axes": {"front": ("rows", "columns")}}, r"\['front'\] of a model without any"),
        ({"context_dim": 5}, "context_dim=None"),
    ],
)
def test_bad_fields_of_image_models_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        CodeTransformer(**{**IMAGE_FIELDS, **fields})


def test_bad_conditions_are_named():
    model, codes = make_for_images(**CLASSES), image_codes()
    for labels in (torch.tensor([0, 4]), torch.tensor([-2, 0]), torch.tensor([0])):
        with pytest.raises(ValueError, match=r"class_labels must be \(2,\)"):
            model(codes, class_labels=labels)
    with pytest.raises(ValueError, match="without classes"):
        make_for_images()(codes, class_labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="without views"):
        model(codes, context=torch.randn(2, 1, 24, 5))
    with pytest.raises(ValueError, match="without views"):
        make_for_images(context_attention="prefix").encode_context(torch.randn(2, 1, 24, 5))
