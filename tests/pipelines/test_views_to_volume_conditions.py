"""Guidance, missing views and class labels of the pipeline from views to volumes."""

import pytest
import torch
from tiny_views_to_volume import context_of, first_logits, generator, logits_of, make, views

CLASSES = {"num_classes": 3, "id2label": {0: "chest", 1: "knee", 2: "baggage"}}


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_guidance_is_linear_in_the_logits(context_attention):
    pipe, given = make(context_attention, context_dropout=0.1), views()
    context = torch.cat([context_of(pipe, given[name]) for name in ("frontal", "lateral")], dim=1)
    shown, hidden = logits_of(pipe, context=context), logits_of(pipe)
    assert (shown - hidden).abs().max() > 0.1
    for scale in (1.0, 0.0, 3.0):
        torch.testing.assert_close(
            first_logits(pipe, given, guidance_scale=scale), hidden + scale * (shown - hidden), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(("scale", "evaluations"), [(1.0, 4), (2.0, 8)])
@pytest.mark.parametrize(("context_attention", "encoded"), [("full", 4), ("prefix", 1)])
def test_only_guidance_evaluates_twice_and_a_prefix_is_encoded_once(scale, evaluations, context_attention, encoded):
    pipe, calls = make(context_attention, context_dropout=0.1), []
    pipe.transformer.register_forward_hook(lambda *_: calls.append("evaluation"))
    pipe.transformer.context_projection.register_forward_hook(lambda *_: calls.append("context"))
    pipe(views(), num_inference_steps=4, guidance_scale=scale, generator=generator())
    assert (calls.count("evaluation"), calls.count("context")) == (evaluations, encoded)


def test_guidance_strengthens_the_views_in_half_precision_too():
    pipe, given = make(context_dropout=0.1), views()
    expected = first_logits(pipe, given, guidance_scale=3.0)
    logits = first_logits(pipe.to(torch.bfloat16), given, guidance_scale=3.0)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() < 0.1 * expected.abs().mean()
    output = pipe(
        given,
        **{"num_inference_steps": 2, "num_volumes_per_prompt": 2, "generator": generator(), "output_type": "pt"},
        return_uncertainty=True,
        select_by_reprojection=True,
    )
    assert {output.volumes.dtype, output.mean.dtype, output.std.dtype} == {torch.bfloat16}
    assert bool(output.reprojection_errors.isfinite().all())


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
@pytest.mark.parametrize("name", ["frontal", "lateral"])
def test_some_of_the_views_are_a_model_call_with_them(context_attention, name):
    pipe, given = make(context_attention, view_dropout=0.5), views()
    view_ids = torch.full((2, 1), pipe.transformer.view_names.index(name))
    expected = logits_of(pipe, context=context_of(pipe, given[name]), view_ids=view_ids)
    torch.testing.assert_close(first_logits(pipe, {name: given[name]}), expected)
    torch.testing.assert_close(
        pipe.encode_views({name: given[name]}), context_of(pipe, given[name]), atol=1e-6, rtol=1e-6
    )


def test_the_order_of_the_views_does_not_matter():
    pipe, given = make(), views()
    assert list(given) != list(reversed(given))
    outputs = [
        pipe({name: given[name] for name in names}, num_inference_steps=4, generator=generator()).codes
        for names in (given, reversed(given))
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_each_subject_may_lack_other_views(context_attention):
    pipe, given = make(context_attention, view_dropout=0.5, context_dropout=0.1), views(4)
    frontal, lateral = given["frontal"], given["lateral"]
    ragged = {"lateral": [lateral[0], None, lateral[2], None], "frontal": [None, frontal[1], frontal[2], None]}
    logits = first_logits(pipe, ragged, num_volumes_per_prompt=2)
    for subject in range(4):
        alone = {name: images[subject : subject + 1] for name, images in ragged.items()}
        expected = first_logits(pipe, {name: images for name, images in alone.items() if images != [None]} or alone)
        torch.testing.assert_close(logits[2 * subject : 2 * subject + 2], expected.expand(2, -1, -1))
    torch.testing.assert_close(logits[-1:], logits_of(pipe, 1))


def test_class_labels_and_views_condition_together():
    pipe, given = make(**CLASSES, label_dropout=0.1, context_dropout=0.1), views()
    context = torch.cat([context_of(pipe, given[name]) for name in ("frontal", "lateral")], dim=1)
    labels = torch.tensor([2, -1])
    expected = logits_of(pipe, context=context, class_labels=labels)
    for class_labels in (labels, ["baggage", None], [2, -1]):
        torch.testing.assert_close(first_logits(pipe, given, class_labels=class_labels), expected)
    unlabelled = first_logits(pipe, given)
    assert (unlabelled[0] - expected[0]).abs().max() > 0.1
    torch.testing.assert_close(unlabelled[1], expected[1])
    repeated = first_logits(pipe, given, class_labels=[2, -1], num_volumes_per_prompt=2)
    torch.testing.assert_close(repeated, expected.repeat_interleave(2, dim=0))
    hidden = logits_of(pipe, class_labels=labels)
    guided = first_logits(pipe, given, class_labels=labels, guidance_scale=2.0)
    torch.testing.assert_close(guided, hidden + 2 * (expected - hidden), atol=1e-4, rtol=1e-4)


def test_one_class_label_serves_all_subjects():
    pipe, given = make(**CLASSES), views()
    expected = first_logits(pipe, given, class_labels=[1, 1])
    assert torch.equal(first_logits(pipe, given, class_labels="knee"), expected)
    assert not torch.equal(first_logits(pipe, given, class_labels="chest"), expected)


@pytest.mark.parametrize(
    ("fields", "arguments", "words"),
    [
        ({}, {"guidance_scale": 2.0}, r"guidance_scale=2\.0.*context_dropout=0; leave it at 1, or train"),
        ({"context_dropout": 0.1}, {"guidance_scale": -1.0}, "guidance_scale must be finite"),
        ({"context_dropout": 0.1}, {"guidance_scale": float("inf")}, "guidance_scale must be finite"),
        ({"context_dropout": 0.1}, {"guidance_scale": float("nan")}, "guidance_scale must be finite"),
        (
            {"context_dropout": 0.1},
            {"views": {"frontal": views()["frontal"]}},
            r"missing: \['lateral'\], for 2 of 2 subjects, .* view_dropout=0: give them, or train with view_dropout",
        ),
        (
            {},
            {"views": {"frontal": views()["frontal"], "lateral": [views()["lateral"][0], None]}},
            r"missing: \['lateral'\], for 1 of 2 subjects",
        ),
        (
            {"view_dropout": 0.5},
            {"views": {"frontal": [views()["frontal"][0], None]}},
            r"missing: \['frontal', 'lateral'\], for 1 of 2 subjects, .* context_dropout=0",
        ),
        ({"view_dropout": 0.5}, {"views": {}}, "at least one"),
        ({}, {"return_uncertainty": True}, "num_volumes_per_prompt=1"),
        (
            {},
            {"return_uncertainty": True, "num_volumes_per_prompt": 2, "output_type": "latent"},
            "output_type='latent'",
        ),
        (
            {"view_dropout": 0.5, "context_dropout": 0.1},
            {"select_by_reprojection": True, "views": {"frontal": [views()["frontal"][0], None]}},
            r"subjects \[1\] have none",
        ),
        ({}, {"class_labels": [0, 1]}, "0 classes"),
        (CLASSES, {}, "label_dropout=0"),
        (CLASSES, {"class_labels": "hat"}, r"\['hat', 'hat'\].*'knee'"),
        (CLASSES, {"class_labels": [0, 1, 2]}, "each of 2 subjects, and at least one; got 3"),
    ],
)
def test_what_the_model_was_not_trained_for_is_refused(fields, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**fields)(**{"views": views(), "num_inference_steps": 2, **arguments})


@pytest.mark.parametrize("dropout", [{}, {"view_dropout": 0.1, "context_dropout": 0.1}])
def test_views_may_come_as_one_dict_for_each_subject(dropout):
    pipe, by_name = make(**dropout), views(3)
    by_subject = [dict(zip(by_name, images, strict=True)) for images in zip(*by_name.values(), strict=True)]
    if dropout:
        by_name["lateral"][1] = by_subject[1]["lateral"] = None
        by_name["frontal"][2] = by_name["lateral"][2] = None
        by_subject[2] = {}
    assert torch.equal(first_logits(pipe, by_subject), first_logits(pipe, by_name))


@pytest.mark.parametrize("scales", [(1.0, 3.0), (3.0, 1.0)])
def test_a_callback_may_change_the_guidance(scales):
    pipe, given, before, after = make(context_dropout=0.1), views(), [], []
    step = pipe.scheduler.step

    def record(logits, timestep, codes, **arguments):
        before.append((codes, arguments["positions"]))
        after.append(logits)
        return step(logits, timestep, codes, **arguments)

    def callback(pipeline, index, timestep, tensors):
        assert pipeline.guidance_scale == scales[min(index, 1)]
        pipeline._guidance_scale = scales[1]
        return tensors

    pipe.scheduler.step = record
    arguments = {"generator": generator(), "output_type": "latent", "callback_on_step_end": callback}
    pipe(given, num_inference_steps=2, guidance_scale=scales[0], **arguments)
    context = pipe.encode_views(given)
    for (codes, chosen), logits, scale in zip(before, after, scales, strict=True):
        shown, hidden = pipe.transformer(codes, context=context).sample, pipe.transformer(codes).sample
        torch.testing.assert_close(logits, (hidden + scale * (shown - hidden))[chosen], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_the_views_are_encoded_once_for_all_volumes_of_a_subject(context_attention):
    pipe, given, rows = make(context_attention), views(), []
    pipe.transformer.context_projection.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    codes = pipe(given, num_inference_steps=4, num_volumes_per_prompt=3, generator=generator()).codes
    subjects = len(codes) // 3
    # the paper's view tokens depend on the codes, so each step computes them anew for every volume
    assert rows == ([subjects] if context_attention == "prefix" else [3 * subjects] * 4)
