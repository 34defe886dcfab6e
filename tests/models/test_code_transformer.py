"""The transformer over volume codes."""

import itertools

import pytest
import torch
from tiny_transformers import CASES, FIELDS, inputs, make

from hf_vq import CodeTransformer
from hf_vq.models.axial_positions import OPPOSITE_DIRECTIONS, rotate
from hf_vq.processors import geometry


@pytest.mark.parametrize(("position_embedding", "context_attention"), CASES)
def test_logits_have_one_row_per_code_and_never_offer_the_mask(position_embedding, context_attention):
    codes, context = inputs()
    model = make(position_embedding, context_attention)
    logits = model(codes, context).sample
    assert logits.shape == (2, 24, 11)
    torch.testing.assert_close(model(codes.flatten(1), context, return_dict=False)[0], logits)


@pytest.mark.parametrize(("position_embedding", "context_attention"), CASES)
def test_save_and_load(position_embedding, context_attention, tmp_path):
    codes, context = inputs()
    model = make(position_embedding, context_attention)
    model.save_pretrained(tmp_path)
    loaded = CodeTransformer.from_pretrained(tmp_path)
    assert torch.equal(loaded(codes, context).sample, model(codes, context).sample)


def test_fields_of_causal_models_and_missing_views_survive_saving(tmp_path):
    fields = {"causal": True, "code_order": torch.randperm(24).tolist(), "context_attention": "prefix"}
    fields |= {"view_dropout": 0.25, "context_dropout": 0.125, "keys_start_as_queries": False}
    codes, context = inputs()
    model = make("axial_rotary", **fields)
    model.save_pretrained(tmp_path)
    loaded = CodeTransformer.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in fields} == fields
    assert torch.equal(loaded(codes, context).sample, model(codes, context).sample)


def test_a_config_makes_another_model_also_where_fields_were_given_by_position():
    model = CodeTransformer.from_config(CodeTransformer(11, (2, 3, 4), 5, (4, 6), hidden_size=16).config)
    assert (model.config.num_codes, tuple(model.config.code_grid)) == (11, (2, 3, 4))
    assert model(*inputs()).sample.shape == (2, 24, 11)


@pytest.mark.parametrize("position_embedding", ["axial", "learned"])
def test_view_ids_survive_saving_whatever_the_order_of_the_names(position_embedding, tmp_path):
    codes, context = inputs()
    axes = {"lateral": ("inferior", "posterior"), "frontal": ("inferior", "left")}
    model = make(position_embedding, view_axes=axes)
    assert model.view_names == ["frontal", "lateral"]
    model.save_pretrained(tmp_path)
    loaded = CodeTransformer.from_pretrained(tmp_path)
    assert loaded.view_names == model.view_names
    assert torch.equal(loaded(codes, context).sample, model(codes, context).sample)


def test_default_axes_are_those_of_the_geometry():
    model = CodeTransformer()
    assert dict(model.config.view_axes) == geometry.VIEW_AXES
    assert tuple(model.config.volume_axes) == geometry.VOLUME_AXES
    for direction, opposite in OPPOSITE_DIRECTIONS.items():
        assert geometry.OPPOSITES[direction] == opposite


@pytest.mark.parametrize("position_embedding", ["axial", "learned"])
def test_cached_context_equals_recomputing_it(position_embedding):
    codes, context = inputs()
    model = make(position_embedding, "prefix")
    cached = model.encode_context(context)
    assert torch.equal(model(codes, context_key_values=cached).sample, model(codes, context).sample)


def test_prefix_views_do_not_see_the_codes_and_full_views_do():
    codes, context = inputs()
    other = (codes + 1) % 11
    model = make(context_attention="prefix")
    cached = model.encode_context(context)
    for sample in (codes, other):  # one and the same cache serves any codes
        assert torch.equal(model(sample, context_key_values=cached).sample, model(sample, context).sample)
    with pytest.raises(ValueError, match="context_attention='prefix'"):
        make(context_attention="full").encode_context(context)
    assert not torch.allclose(model(codes, context).sample, model(other, context).sample)


@pytest.mark.parametrize(("position_embedding", "context_attention"), CASES)
def test_every_view_token_and_every_code_reaches_every_logit(position_embedding, context_attention):
    codes, context = inputs(1)
    context.requires_grad_()
    model = make(position_embedding, context_attention)
    model(codes, context).sample[0, 7].square().sum().backward()
    assert bool((context.grad.abs().sum(-1) > 0).all())


@pytest.mark.parametrize(("position_embedding", "context_attention"), CASES)
def test_views_are_told_apart(position_embedding, context_attention):
    codes, context = inputs()
    model = make(position_embedding, context_attention)
    assert not torch.allclose(model(codes, context).sample, model(codes, context.flip(1)).sample)
    swapped = model(codes, context.flip(1), view_ids=torch.tensor([[1, 0], [1, 0]])).sample
    torch.testing.assert_close(swapped, model(codes, context).sample)


def test_axial_positions_are_shared_between_volume_and_views():
    model = make(code_grid=(4, 5, 6), context_grid=(4, 6), view_axes={"frontal": ("inferior", "left")})
    volume = model.positions(("superior", "anterior", "right"), (4, 5, 6)).view(4, 5, 6, -1)
    view = model.positions(("inferior", "left"), (4, 6)).view(4, 6, -1)
    anterior = model.positions.tables("anterior")
    for d, h, w in itertools.product(range(4), range(5), range(6)):
        # row 0 of a view is the top and its column 0 the patient's right; the volume's indices grow the other way
        torch.testing.assert_close(volume[d, h, w], view[3 - d, 5 - w] + anterior[h])


def test_axial_positions_of_a_finer_view_interpolate():
    model = make(code_grid=(4, 4, 4), context_grid=(8, 8))
    for table in model.positions.tables.parameters():  # linear along the axis, so interpolation inside must be exact
        table.data = torch.arange(4.0)[:, None] * torch.randn(16)
    coarse = model.positions(("inferior", "left"), (4, 4)).view(4, 4, -1)
    fine = model.positions(("inferior", "left"), (8, 8)).view(8, 8, -1)
    middle = fine[2:6, 2:6].unflatten(0, (2, 2)).unflatten(2, (2, 2)).mean((1, 3))
    torch.testing.assert_close(middle, coarse[1:3, 1:3])


def test_rotary_angles_are_shared_between_volume_and_views_of_any_fineness():
    model = make("axial_rotary", context_grid=(8, 12), code_grid=(4, 5, 6), hidden_size=48)
    device = torch.device("cpu")
    volume = model.rotation(("superior", "anterior", "right"), (4, 5, 6), device).view(4, 5, 6, 3, -1)
    view = model.rotation(("inferior", "left"), (8, 12), device).view(8, 12, 3, -1)
    seen = view.unflatten(0, (4, 2)).unflatten(2, (6, 2)).mean((1, 3)).flip(0, 1)  # on the volume's grid
    for axis in (0, 2):  # superior and right
        torch.testing.assert_close(seen[:, None, :, axis].expand(4, 5, 6, -1), volume[:, :, :, axis])
    assert not bool(view[:, :, 1].any())  # nowhere along its rays


def test_rotated_vectors_know_the_distance_along_an_axis_only():
    model = make("axial_rotary", hidden_size=48)
    query, key = torch.randn(24), torch.randn(24)
    angles = model.rotation(("superior", "anterior", "right"), (2, 3, 4), torch.device("cpu"))
    products = (rotate(query.expand(24, 24), angles) @ rotate(key.expand(24, 24), angles).T).view(2, 3, 4, 2, 3, 4)
    torch.testing.assert_close(products[0, 0, 1, 1, 2, 3], products[0, 0, 0, 1, 2, 2])
    assert not torch.isclose(products[0, 0, 1, 1, 2, 3], products[0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(rotate(query.expand(24, 24), angles).norm(dim=-1), query.norm().expand(24))


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_initialisation_from_codebooks_keeps_the_scale_and_the_neighbourhoods(scale):
    torch.manual_seed(0)
    model = CodeTransformer(**{**FIELDS, "hidden_size": 512, "num_codes": 40})
    codes, context_codes = 3 + scale * torch.randn(40, 6), 3 + scale * torch.randn(50, 5)
    mask_before = model.code_embedding.weight[-1].clone()
    model.initialize_from_codebooks(codes, context_codes)
    assert torch.equal(model.code_embedding.weight[-1], mask_before)
    assert model.context_projection(context_codes).std().item() == pytest.approx(1, abs=0.25)
    true = torch.cdist(*[(codes - codes.mean(0)) / codes.std(0)] * 2).flatten()
    for table in (model.code_embedding.weight[:-1], model.head.weight):
        assert torch.corrcoef(torch.stack((true, torch.cdist(table, table).flatten())))[0, 1] > 0.95
    with pytest.raises(ValueError, match=r"\(40, C\)"):
        model.initialize_from_codebooks(codes[:3], context_codes)
    with pytest.raises(ValueError, match=r"\(K, 5\)"):
        model.initialize_from_codebooks(codes, context_codes[:, :2])


@pytest.mark.parametrize(("position_embedding", "context_attention"), CASES)
def test_gradient_checkpointing_changes_nothing(position_embedding, context_attention):
    codes, context = inputs()
    gradients = []
    for checkpointing in (False, True):
        model = make(position_embedding, context_attention).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        shown = torch.tensor([[True, False], [True, True]])
        model(codes, context, view_mask=shown).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("position_embedding", "context_attention", "causal"),
    [*((*case, False) for case in CASES), *((*case, True) for case in CASES if case[1] == "prefix")],
)
def test_logits_of_some_positions_are_those_of_all(position_embedding, context_attention, causal):
    order = {"causal": True, "code_order": torch.randperm(24).tolist()} if causal else {}
    model, (codes, context) = make(position_embedding, context_attention, **order), inputs()
    arguments = {"context": context, "view_mask": torch.tensor([[True, False], [True, True]])}
    expected = model(codes, **arguments).sample
    places = torch.tensor([[3, 0, 23], [7, 7, 1]])
    of_places = model(codes, **arguments, positions=places).sample
    torch.testing.assert_close(of_places, expected.take_along_dim(places[:, :, None], dim=1), rtol=1e-5, atol=1e-6)
    for chosen in (torch.rand(2, 24) < 0.4, torch.zeros(2, 24, dtype=torch.bool), torch.ones(2, 24, dtype=torch.bool)):
        of_chosen = model(codes, **arguments, positions=chosen).sample
        torch.testing.assert_close(of_chosen, expected[chosen], rtol=1e-5, atol=1e-6)


def test_the_head_is_computed_for_the_positions_asked_for_alone():
    (codes, context), model, tokens = inputs(), make(), []
    model.head.register_forward_pre_hook(lambda module, arguments: tokens.append(arguments[0].shape[:-1].numel()))
    model.blocks[-1].mlp.register_forward_pre_hook(lambda module, arguments: tokens.append(len(arguments[0][0])))
    model(codes, context, positions=torch.tensor([[3, 0, 23], [7, 8, 1]]))
    model(codes, context)
    assert tokens == [3, 2 * 3, 24, 2 * 24]


def test_positions_are_brought_to_the_device_of_the_model():
    codes, context = (each.to("meta") for each in inputs())
    positions = torch.tensor([[3, 0], [7, 8]])
    assert make().to("meta")(codes, context, positions=positions).sample.shape == (2, 2, 11)


@pytest.mark.parametrize(
    "positions", [torch.zeros(2, 24), torch.zeros(3, 4, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.bool)]
)
def test_bad_positions_are_named(positions):
    with pytest.raises(ValueError, match=r"positions must be \(2, M\) int64 or \(2, 24\) bool"):
        make()(*inputs(), positions=positions)


def test_logits_of_some_positions_compile_into_one_graph():
    model, (codes, context) = make("axial_rotary", "prefix"), inputs()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for places in (torch.tensor([[3, 0, 23], [7, 8, 1]]), torch.tensor([[4], [5]])):
        expected = model(codes, context, positions=places).sample
        torch.testing.assert_close(compiled(codes, context, positions=places).sample, expected)


def test_it_learns_to_read_a_view():
    torch.manual_seed(0)
    model = make(num_codes=4, context_dim=4, context_grid=(2, 4), code_grid=(2, 2, 4), hidden_size=32).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    masks = torch.full((16, 2, 2, 4), 4)
    for _ in range(150):
        codes_2d = torch.randint(4, (16, 2, 4))  # (superior, right); constant along the anterior axis
        truth = codes_2d[:, :, None].expand(16, 2, 2, 4)
        view = torch.nn.functional.one_hot(codes_2d.flip(1, 2), 4).float().flatten(1, 2)
        context = torch.stack((view, torch.zeros_like(view)), dim=1)
        loss = torch.nn.functional.cross_entropy(model(masks, context).sample.transpose(1, 2), truth.flatten(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7  # ln 4 = 1.39 without reading the view


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_heads": 3}, "num_heads=3"),
        ({"num_heads": 0}, "num_heads must be a whole number from 1 .*got 0"),
        ({"position_embedding": "rope"}, "position_embedding='rope'"),
        ({"context_attention": "cross"}, "context_attention='cross'"),
        ({"position_embedding": "axial_rotary", "num_heads": 4}, "got heads of 4 channels"),
        ({"volume_axes": ("superior", "inferior", "right")}, "volume_axes"),
        ({"view_axes": {"oblique": ("inferior", "outward")}}, "view_axes\\['oblique'\\]"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        CodeTransformer(**{**FIELDS, **fields})


def test_bad_inputs_are_named():
    codes, context = inputs()
    model = make()
    with pytest.raises(ValueError, match="24 codes per volume"):
        model(codes[:, :1], context)
    with pytest.raises(ValueError, match=r"\(B, V, 24, 5\)"):
        model(codes, context[:, :, :3])
    with pytest.raises(ValueError, match="view_ids"):
        model(codes, context, view_ids=torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="give one of them"):
        model(codes, context, context_key_values=[])
    with pytest.raises(ValueError, match="without views"):
        model(codes, view_mask=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"neither `context` nor `context_key_values` is given.*context_dropout=0"):
        model(codes)
    for context_attention in ("full", "prefix"):
        with pytest.raises(ValueError, match="view_mask has 1 views, the context 2"):
            make(context_attention=context_attention)(codes, context, view_mask=torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"view_mask must be \(B, V\) booleans with B=2; got torch.float32 \(2, 2\)"):
        model(codes, context, view_mask=torch.ones(2, 2))
