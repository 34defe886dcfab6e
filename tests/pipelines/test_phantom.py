"""Left is left: a marker in a known octant of the patient, from NIfTI through views and codes back to NIfTI."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.data import render_views

SIDE, SPACING = 16, 30.0
OCTANTS = list(itertools.product((-1, 1), repeat=3))  # signs of x (right), y (anterior), z (superior)
ORIENTATIONS = itertools.cycle(("LPS", "RAS", "PIR", "SLA"))


def phantom(octant, orientation):
    """Cube of lung with one dense block in an octant, stored in any orientation, its centre at the world's origin."""
    centre = (SIDE - 1) / 2
    affine = np.diag([SPACING] * 3 + [1.0])
    affine[:3, 3] = -SPACING * centre
    x, y, z = np.meshgrid(*[np.arange(SIDE) - centre] * 3, indexing="ij")
    body = np.maximum(np.maximum(abs(x), abs(y)), abs(z)) < 7
    block = np.all([abs(axis - 3.5 * sign) < 2.1 for axis, sign in zip((x, y, z), octant, strict=True)], axis=0)
    image = nib.Nifti1Image(np.where(block, 900, np.where(body, -700, -1000)).astype(np.int16), affine)
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    return image.as_reoriented(transform)


def world_of_the_marker(image):
    """Centre of mass in RAS+ mm of what is denser than 500 HU."""
    voxels = np.argwhere(np.asanyarray(image.dataobj) > 500)
    assert len(voxels) > 0
    return nib.affines.apply_affine(image.affine, voxels).mean(axis=0)


def fit(parameters, loss, steps, learning_rate):
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def phantoms():
    return [phantom(octant, next(ORIENTATIONS)) for octant in OCTANTS]


def tokenizer(dims, pixels, steps):
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        spatial_dims=dims,
        base_channels=16,
        channel_multipliers=[1],
        stem_stride=4,
        num_res_blocks=1,
        num_norm_groups=4,
        reconstruction_loss="l2",
        quantizer={"codebook_size": 16, "codebook_dim": 4},
    )
    model = VQTokenizer(config).train()
    fit(model.parameters(), lambda: model(pixels).loss, steps, 1e-2)
    return model.eval()


@pytest.fixture(scope="module")
def pipeline(phantoms):
    """A pipeline that has learned the eight phantoms from their views."""
    volume_processor = CTVolumeProcessor(size=[SIDE] * 3, spacing=[SPACING] * 3)
    view_processor = XrayImageProcessor(size={"height": SIDE, "width": SIDE})
    pixels = volume_processor(phantoms)["pixel_values"]
    views = render_views(1000 * pixels, [SPACING] * 3)
    volume_tokenizer = tokenizer(3, pixels, 400)
    view_tokenizer = tokenizer(2, 2 * views.flatten(0, 1) - 1, 400)
    with torch.no_grad():
        codes = volume_tokenizer.encode(pixels).codes.flatten(1)
        view_codes = view_tokenizer.encode(2 * views.flatten(0, 1) - 1).codes
        context = view_tokenizer.quantizer.decode(view_codes).flatten(2).transpose(1, 2).unflatten(0, (8, 2))
    fields = {"num_codes": 16, "code_grid": (4, 4, 4), "context_dim": 4, "context_grid": (4, 4)}
    transformer = CodeTransformer(**fields, hidden_size=32, num_layers=2, num_heads=2)
    codebooks = (part.quantizer.effective_codebook.detach() for part in (volume_tokenizer, view_tokenizer))
    transformer.initialize_from_codebooks(*codebooks)
    scheduler = AbsorbingScheduler(16)
    generator = torch.Generator().manual_seed(0)

    def loss():
        noisy = scheduler.add_noise(codes, 1 - torch.rand(8, generator=generator) ** 2, generator)
        return F.cross_entropy(transformer(noisy, context).sample.transpose(1, 2), codes)

    fit(transformer.parameters(), loss, 300, 3e-3)
    pipe = ViewsToVolumePipeline(
        volume_tokenizer, view_tokenizer, transformer.eval(), scheduler, volume_processor, view_processor
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pixels):
    views = render_views(1000 * pixels, [SPACING] * 3)[0, :, 0]
    return {
        name: Image.fromarray((255 * view).byte().numpy())
        for name, view in zip(("frontal", "lateral"), views, strict=True)
    }


def test_generated_markers_lie_in_the_octant_that_the_views_show(pipeline, phantoms):
    for octant, true in zip(OCTANTS, phantoms, strict=True):
        np.testing.assert_array_equal(np.sign(world_of_the_marker(true)), octant)
        views = images_of(pipeline.volume_processor(true)["pixel_values"])
        generator = torch.Generator().manual_seed(0)
        generated = pipeline(views, num_inference_steps=8, temperature=0.0, generator=generator).volumes[0]
        np.testing.assert_allclose(world_of_the_marker(generated), world_of_the_marker(true), atol=1.5 * SPACING)


@pytest.mark.parametrize("octant", OCTANTS)
def test_views_show_the_marker_as_radiologists_hang_films(octant):
    pixels = CTVolumeProcessor(size=[SIDE] * 3, spacing=[SPACING] * 3)(phantom(octant, "LPS"))["pixel_values"]
    right, anterior, superior = octant
    for name, towards_first_column in (("frontal", right), ("lateral", anterior)):
        image = np.asarray(images_of(pixels)[name]).astype(float)
        rows, columns = np.nonzero(image > 0.97 * image.max())
        assert (rows.mean() < SIDE / 2) == (superior > 0), name
        assert (columns.mean() < SIDE / 2) == (towards_first_column > 0), name


def test_a_reconstruction_overlays_its_scan(pipeline, phantoms):
    for true in phantoms:
        inputs = pipeline.volume_processor(true)
        with torch.no_grad():
            codes = pipeline.volume_tokenizer.encode(inputs["pixel_values"]).codes
            pixels = pipeline.volume_tokenizer.decode(codes).sample
        restored = pipeline.volume_processor.postprocess(pixels, geometry=inputs["geometry"])[0]
        np.testing.assert_array_equal(restored.affine, true.affine)
        assert restored.shape == true.shape
        np.testing.assert_allclose(world_of_the_marker(restored), world_of_the_marker(true), atol=SPACING)
