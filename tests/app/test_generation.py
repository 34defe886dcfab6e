"""From the page's controls to volumes, with a small untrained pipeline."""

import nibabel
import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler
from PIL import Image

from hf_vq.app.generation import (
    MAX_SEED,
    MAX_STEPS,
    MAX_VOLUMES,
    MEAN,
    Abilities,
    Settings,
    generate,
    save_images,
    summary,
)


@pytest.fixture(scope="module")
def pipeline(build_pipeline):
    return build_pipeline()


@pytest.fixture(scope="module")
def images(views):
    return {name: Image.open(path) for name, path in views.items()}


def test_a_page_learns_what_a_pipeline_takes(build_pipeline, pipeline):
    plain = Abilities.of(pipeline)
    assert plain.view_axes == {"frontal": ("inferior", "left"), "lateral": ("inferior", "posterior")}
    assert (plain.some_views, plain.guidance, plain.classes, plain.class_required) == (False, False, {}, False)
    assert plain.views_rendered
    flexible = Abilities.of(build_pipeline(view_dropout=0.5, context_dropout=0.1))
    assert (flexible.some_views, flexible.guidance) == (True, True)
    named = {"num_classes": 2, "id2label": {0: "left", 1: "right"}}
    assert Abilities.of(build_pipeline(**named)).classes == {"left": 0, "right": 1}
    assert Abilities.of(build_pipeline(**named)).class_required
    unnamed = Abilities.of(build_pipeline(num_classes=2, label_dropout=0.1))
    assert (unnamed.classes, unnamed.class_required) == ({"0": 0, "1": 1}, False)


def test_a_sample_is_the_pipelines_own_of_its_seed(pipeline, images):
    generated = generate(pipeline, images, Settings(num_inference_steps=4, num_volumes=3, seed=5))
    assert list(generated.images) == [
        *("ct_seed5", "ct_seed6", "ct_seed7"),
        *("ct_mean_of_3", "ct_standard_deviation_of_3"),
    ]
    stored = [np.asarray(generated.images[f"ct_seed{seed}"].dataobj) for seed in (5, 6, 7)]
    assert len({volume.tobytes() for volume in stored}) == 3
    for number, volume in enumerate(stored):
        alone = pipeline(images, num_inference_steps=4, generator=torch.Generator().manual_seed(5 + number)).volumes[0]
        np.testing.assert_allclose(volume, np.asarray(alone.dataobj), atol=1)
        np.testing.assert_array_equal(generated.samples[number].hu, volume.transpose(2, 1, 0))


def test_uncertainty_is_the_spread_of_the_samples(pipeline, images):
    generated = generate(pipeline, images, Settings(num_inference_steps=2, num_volumes=4))
    samples = np.stack([volume.hu for volume in generated.samples])
    assert generated.std.hu.max() > 10
    np.testing.assert_allclose(generated.mean.hu, samples.mean(axis=0), atol=1)
    np.testing.assert_allclose(generated.std.hu, samples.std(axis=0, ddof=1), atol=1)
    assert list(generated.volumes) == [MEAN, "sample 1", "sample 2", "sample 3", "sample 4"]
    assert generated.volume("sample 3") is generated.samples[2]
    assert generated.volume("sample 8") is generated.mean


def test_one_sample_has_no_spread(pipeline, images):
    generated = generate(pipeline, images, Settings(num_inference_steps=2))
    assert (generated.mean, generated.std, list(generated.images)) == (None, None, ["ct_seed0"])
    assert generated.volume(None) is generated.samples[0]


def test_progress_comes_after_every_step(pipeline, images):
    told = []
    generate(pipeline, images, Settings(num_inference_steps=5), lambda done, total: told.append((done, total)))
    assert told == [(step, 5) for step in range(1, 6)]


def test_files_hold_what_is_looked_at(pipeline, images, tmp_path):
    generated = generate(pipeline, images, Settings(num_inference_steps=2, num_volumes=2))
    paths = save_images(generated, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    for path, image in zip(paths, generated.images.values(), strict=True):
        read = nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(read.dataobj), np.asarray(image.dataobj))
        np.testing.assert_array_equal(read.affine, image.affine)


def test_the_summary_names_what_was_drawn(pipeline, images):
    settings = Settings(num_inference_steps=2, num_volumes=2, seed=3)
    text = summary(generate(pipeline, images, settings), settings, 1.23)
    assert text == "2 samples, seeds 3 to 4: 2 steps in 1.2 s; 12 x 16 x 20 voxels of 10 x 10 x 10 mm."


def test_missing_views_are_named_unless_the_model_does_without(build_pipeline, pipeline, images):
    lateral = {"lateral": images["lateral"]}
    with pytest.raises(ValueError, match="needs all of its views; missing: frontal"):
        generate(pipeline, lateral, Settings())
    flexible = build_pipeline(view_dropout=0.5, context_dropout=0.1)
    generated = generate(flexible, lateral, Settings(num_inference_steps=2, guidance_scale=2.0))
    assert len(generated.samples) == 1
    with pytest.raises(ValueError, match="needs at least one of its views; missing: frontal, lateral"):
        generate(flexible, {}, Settings())


def test_a_class_is_asked_for_where_the_model_needs_one(build_pipeline, images):
    classes = build_pipeline(num_classes=2, id2label={0: "left", 1: "right"})
    with pytest.raises(ValueError, match=r"needs a class, one of \['left', 'right'\]"):
        generate(classes, images, Settings(num_inference_steps=1))
    assert len(generate(classes, images, Settings(num_inference_steps=1, class_number=1)).samples) == 1


def test_a_scheduler_that_draws_for_the_whole_batch_gets_one_generator(build_pipeline, images):
    pipeline = build_pipeline()
    pipeline.register_modules(scheduler=AmusedScheduler(mask_token_id=11))
    runs = [generate(pipeline, images, Settings(num_inference_steps=2, num_volumes=2, seed=1)) for _ in range(2)]
    for one, two in zip(*(run.samples for run in runs), strict=True):
        np.testing.assert_array_equal(one.hu, two.hu)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_inference_steps", 0, "Steps: found 0"),
        ("num_inference_steps", MAX_STEPS + 1, "Steps: found 257"),
        ("num_volumes", MAX_VOLUMES + 1, "Samples: found 9"),
        ("num_volumes", 1.5, "Samples: found 1.5, expected a whole number from 1 to 8"),
        ("seed", -1, "Seed: found -1"),
        ("seed", MAX_SEED + 1, "Seed: found 2147483648"),
        ("seed", None, "Seed: found None"),
        ("guidance_scale", float("nan"), "Guidance: found nan"),
        ("guidance_scale", 10.5, "Guidance: found 10.5"),
    ],
)
def test_settings_beyond_the_controls_are_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        Settings(**{field: value})
