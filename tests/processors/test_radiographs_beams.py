"""Oblique and cone-beam radiographs against the laws of projection and the chords of spheres and boxes."""

import itertools
import math

import numpy as np
import pytest
import torch

from hf_vq.data import BeamGeometry, line_integrals, render_views
from hf_vq.processors import radiographs
from hf_vq.processors.geometry import find_view
from hf_vq.processors.radiographs import WATER_ATTENUATION, march_rays

STEP = 2.0
SIZE = 128
CENTER, RADIUS = np.array([10.3, -20.1, 15.7]), 60.0
LOWEST, HIGHEST = np.array([-70.0, -40.0, -50.5]), np.array([33.0, 61.0, 45.2])
PARALLEL = BeamGeometry(detector_size=(300.0, 320.0))
CONE = BeamGeometry(1000.0, 700.0, (430.0, 450.0))


@pytest.fixture(scope="module")
def phantoms() -> torch.Tensor:
    """A sphere and a box off the centre of a grid of 128^3, each voxel the fraction of it that they fill."""
    axis = (torch.arange(SIZE) - (SIZE - 1) / 2) * STEP
    squares = [(axis - float(middle)).square() for middle in CENTER]
    distance = (squares[0][:, None, None] + squares[1][:, None] + squares[2]).sqrt()
    sphere = ((RADIUS - distance) / STEP + 0.5).clamp(0, 1)
    sides = [
        ((axis + STEP / 2).clamp(max=high) - (axis - STEP / 2).clamp(min=low)).clamp_min(0) / STEP
        for low, high in zip(LOWEST.tolist(), HIGHEST.tolist(), strict=True)
    ]
    return torch.stack([sphere, sides[0][:, None, None] * sides[1][:, None] * sides[2]])


def rays(view: str, beam: BeamGeometry, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Origin and unit direction of each ray, (rows, columns, 3) in (superior, anterior, right) order, mm."""
    towards, down, across = find_view(view).directions()
    rows, columns = ((np.arange(n) + 0.5 - n / 2) * side / n for n, side in zip(shape, beam.detector_size, strict=True))
    lateral = rows[:, None, None] * down + columns[:, None] * across
    if not beam.is_cone:
        return lateral - 5000 * towards, np.broadcast_to(towards, lateral.shape)
    source = -beam.source_isocentre_distance * towards
    direction = lateral + beam.source_detector_distance * towards
    return np.broadcast_to(source, direction.shape), direction / np.linalg.norm(direction, axis=-1, keepdims=True)


def sphere_chords(origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    along = ((origin - CENTER) * direction).sum(axis=-1)
    squares = along**2 - ((origin - CENTER) ** 2).sum(axis=-1) + RADIUS**2
    return 2 * np.sqrt(squares.clip(0))


def box_chords(origin: np.ndarray, direction: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Lengths within the box, made smaller by `margin` on each side."""
    direction = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    ends = np.stack([LOWEST + margin - origin, HIGHEST - margin - origin]) / direction
    return (ends.max(axis=0).min(axis=-1) - ends.min(axis=0).max(axis=-1)).clip(0)


@pytest.mark.parametrize("view", ["azimuth_0", "azimuth_30", "azimuth_90", "azimuth_-135_elevation_20"])
@pytest.mark.parametrize("beam", [PARALLEL, CONE], ids=["parallel", "cone"])
def test_line_integrals_are_the_chords_of_a_sphere_and_a_box(phantoms, view, beam):
    shape = (36, 40)
    found = march_rays(phantoms, (STEP,) * 3, find_view(view), beam, shape).double().numpy()
    origin, direction = rays(view, beam, shape)
    sphere, box = sphere_chords(origin, direction), box_chords(origin, direction)
    # Voxels spread what lies in them over as much as one and a half of them: rays that pass an edge of the box within
    # that distance, where the chord jumps, are set aside, and so are all with less than a quarter of the longest chord.
    # The measure is the relative L2 error of the others; single ones near an edge may be off by some percent.
    inner = box_chords(origin, direction, margin=1.5 * STEP)
    for integrals, chords, through in ((found[0], sphere, sphere), (found[1], box, inner)):
        chosen = through > chords.max() / 4
        assert chosen.sum() > 100
        error = integrals[chosen] - chords[chosen]
        assert np.linalg.norm(error) < 0.01 * np.linalg.norm(chords[chosen])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 2.0, 1.5)])
@pytest.mark.parametrize("view", ["frontal", "lateral", "azimuth_180", "azimuth_270", "azimuth_0_elevation_90"])
def test_marched_rays_at_right_angles_give_the_sums_of_voxels(generator, view, spacing):
    volume = torch.randn(2, 1, 5, 6, 7, generator=generator, dtype=torch.float64) * 500
    sums = line_integrals(volume, spacing, view)
    marched = line_integrals(volume, spacing, view, detector_shape=tuple(sums.shape[1:]))
    torch.testing.assert_close(marched, sums, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("view", ["azimuth_0", "azimuth_40_elevation_-15"])
def test_far_sources_give_parallel_rays(generator, view):
    volume = torch.randn(1, 1, 8, 9, 10, generator=generator) * 300
    size = (20.0, 22.0)
    parallel = line_integrals(volume, (2.0,) * 3, view, beam=BeamGeometry(detector_size=size), detector_shape=(11, 12))
    errors = []
    for distance in (1e2, 1e4, 1e8):
        beam = BeamGeometry(distance, distance, size)
        errors.append((line_integrals(volume, (2.0,) * 3, view, beam=beam, detector_shape=(11, 12)) - parallel).abs())
    first, second, last = (float(error.max()) for error in errors)
    assert first > 20 * second
    assert last < 1e-5


@pytest.mark.parametrize(
    ("view", "across", "towards"), [("frontal", (0, 0, 1), (0, 1, 0)), ("lateral", (0, 1, 0), (0, 0, -1))]
)
@pytest.mark.parametrize("depth", [-12, 0, 12])
def test_what_is_nearer_to_the_source_is_magnified_more(view, across, towards, depth):
    """Two markers 40 mm apart; the detector stands in front of the patient or at the left."""
    step, beam = 2.5, BeamGeometry(600.0, 400.0, (120.0, 120.0))
    volume = torch.full((1, 1, 33, 33, 33), -1000.0)
    for side in (-8, 8):
        volume[(0, 0, *(16 + side * a + depth * b for a, b in zip(across, towards, strict=True)))] = 1000.0
    image = line_integrals(volume, (step,) * 3, view, beam=beam, detector_shape=(30, 240))[0]
    places = (torch.arange(240) + 0.5 - 120) * 120 / 240
    left, right = image.sum(dim=0).split(120)
    distance = (places[120:] * right).sum() / right.sum() - (places[:120] * left).sum() / left.sum()
    expected = 40 * 600 / (400 + depth * step)
    assert float(distance) == pytest.approx(expected, rel=5e-3)
    assert float(beam.magnification(depth * step)) * 40 == pytest.approx(expected)


@pytest.mark.parametrize("beam", [None, BeamGeometry(40.0, 25.0)], ids=["parallel", "cone"])
def test_gradients_of_oblique_views_are_those_of_differences(generator, beam):
    volume = (torch.rand(1, 1, 3, 4, 5, generator=generator, dtype=torch.float64) * 900 - 500).requires_grad_()

    def project(volume_hu: torch.Tensor) -> torch.Tensor:
        return line_integrals(volume_hu, (1.0, 1.5, 2.0), "azimuth_25_elevation_10", 0.1, beam, (3, 4))

    assert torch.autograd.gradcheck(project, (volume,), eps=1e-2)


def test_few_rows_at_once_change_nothing_and_keep_no_samples(generator, monkeypatch):
    volume = (torch.randn(2, 1, 12, 12, 12, generator=generator) * 300).requires_grad_()
    beam = BeamGeometry(300.0, 250.0)
    whole = render_views(volume, (2.0,) * 3, ["azimuth_30"], beam=beam)
    (gradient,) = torch.autograd.grad(whole.square().sum(), volume)
    monkeypatch.setattr(radiographs, "VALUES_AT_ONCE", 1000)
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        parts = render_views(volume, (2.0,) * 3, ["azimuth_30"], beam=beam)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), volume)[0], gradient)
    assert max(kept) <= volume.numel()


@pytest.mark.parametrize("beam", [None, BeamGeometry(900.0, 700.0)], ids=["parallel", "cone"])
def test_everything_is_made_on_the_device_of_the_volume(beam):
    # operations between a meta tensor and one on another device are errors
    volume = torch.zeros(2, 1, 6, 7, 8, device="meta")
    images = render_views(volume, (2.0,) * 3, ["frontal", "azimuth_20"], image_size=(5, 4), beam=beam)
    assert images.device.type == "meta"
    assert images.shape == (2, 2, 1, 5, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_marched_in_float32(generator, dtype):
    volume = torch.randn(1, 1, 8, 8, 8, generator=generator).to(dtype) * 200
    half = line_integrals(volume, (2.0,) * 3, "azimuth_30")
    assert half.dtype == dtype
    attenuation = (WATER_ATTENUATION * (1 + volume[:, 0] / 1000).clamp_min(0)).float()
    full = march_rays(attenuation, (2.0,) * 3, find_view("azimuth_30"), BeamGeometry())
    torch.testing.assert_close(half, full.to(dtype))


@pytest.mark.parametrize("view", ["azimuth_30", "azimuth_45_elevation_30", "frontal"])
@pytest.mark.parametrize("beam", [BeamGeometry(), BeamGeometry(50.0, 40.0)], ids=["parallel", "cone"])
def test_a_detector_of_no_given_size_just_shows_the_whole_volume(generator, view, beam):
    volume, spacing = torch.rand(1, 1, 10, 12, 14, generator=generator) * 500, np.array([2.0, 1.5, 1.0])
    towards, down, across = find_view(view).directions()
    corners = np.stack([sign * spacing * volume.shape[2:] / 2 for sign in itertools.product((-1, 1), repeat=3)])
    enlarged = 50 / (40 + corners @ towards) if beam.is_cone else 1
    size = tuple(2 * float(np.abs(corners @ side * enlarged).max()) for side in (down, across))
    given = BeamGeometry(beam.source_detector_distance, beam.source_isocentre_distance, size)
    shown = line_integrals(volume, spacing.tolist(), view, beam=beam, detector_shape=(9, 11))
    torch.testing.assert_close(
        shown, line_integrals(volume, spacing.tolist(), view, beam=given, detector_shape=(9, 11))
    )


def test_opposite_views_are_mirror_images(generator):
    volume = torch.randn(1, 1, 6, 7, 8, generator=generator) * 300
    for front, back in (("frontal", "azimuth_180"), ("lateral", "azimuth_270"), ("azimuth_30", "azimuth_210")):
        images = [line_integrals(volume, (2.0, 3.0, 2.5), view) for view in (front, back)]
        torch.testing.assert_close(images[0], images[1].flip(2), rtol=1e-5, atol=1e-6)


def test_names_of_angles_and_known_names_give_the_same_views(generator):
    volume = torch.randn(1, 1, 6, 6, 6, generator=generator) * 300
    images = render_views(volume, (2.0,) * 3, ["frontal", "azimuth_0", "lateral", "azimuth_90"])[0]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[2], images[3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((1000.0,), "source_isocentre_distance: found None, expected mm above 0, given together with the other"),
        ((None, 700.0), "source_detector_distance: found None"),
        ((0.0, 700.0), "source_detector_distance: found 0.0, expected mm above 0"),
        ((1000.0, math.inf), "source_isocentre_distance: found inf"),
        (
            (None, None, (300.0, -1.0)),
            r"detector_size: found \(300.0, -1.0\), expected \(rows, columns\) in mm above 0",
        ),
        ((None, None, (300.0,)), r"detector_size: found \(300.0,\)"),
    ],
)
def test_malformed_beams_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        BeamGeometry(*fields)


@pytest.mark.parametrize("size", [None, (50.0, 50.0)])
def test_a_source_within_the_volume_is_named(size):
    beam = BeamGeometry(100.0, 15.0, size)
    with pytest.raises(ValueError, match=r"source_isocentre_distance: found 15.0 mm, expected more than 20 mm, where"):
        line_integrals(torch.zeros(1, 1, 10, 10, 10), (4.0,) * 3, "frontal", beam=beam)
