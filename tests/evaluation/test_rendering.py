"""Volume rendering: where things land, what hides what, and the shape of what is drawn."""

import math

import numpy as np
import pytest
import torch

from hf_vq.evaluation.rendering import (
    AIR_HU,
    MODES,
    TRANSFER_FUNCTIONS,
    Camera,
    isolate_body,
    limit_resolution,
    render,
    turntable_angles,
)
from hf_vq.evaluation.volumes import GridVolume
from hf_vq.processors.geometry import grid_affine
from hf_vq.processors.radiographs import render_views


def volume_of(hu: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> GridVolume:
    return GridVolume(hu.astype(np.float32), grid_affine(hu.shape, spacing))


def air(*shape: int) -> np.ndarray:
    return np.full(shape, AIR_HU, dtype=np.float32)


def coordinates(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[np.ndarray]:
    """Distance of each voxel's centre from the middle along D, H and W, mm."""
    axes = [(np.arange(count) - (count - 1) / 2) * step for count, step in zip(shape, spacing, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij"))


def grey(images: torch.Tensor) -> np.ndarray:
    return images.float().mean(dim=-1).numpy()


def centroid(image: np.ndarray) -> tuple[float, float]:
    """Row and column of the middle of an image's light."""
    rows, columns = np.indices(image.shape)
    return float((rows * image).sum() / image.sum()), float((columns * image).sum() / image.sum())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.5, 1.0)])
def test_a_bright_voxel_lands_where_the_rotation_says(spacing):
    """At angle a the columns grow along cos(a) left + sin(a) posterior, whatever the size of the voxels."""
    hu, index = air(9, 11, 13), (6, 8, 3)
    hu[index] = 3000
    superior, anterior, right = ((i - (n - 1) / 2) * s for i, n, s in zip(index, hu.shape, spacing, strict=True))
    camera = Camera(extent=30, depth=30, size=60)
    angles = [0, 30, 90, 135, 180, 251, 270]
    images = grey(render(volume_of(hu, spacing), "mip", angles, camera, window=(AIR_HU, 3000)))
    for angle, image in zip(angles, images, strict=True):
        turn = math.radians(angle)
        column = 29.5 - (math.cos(turn) * right + math.sin(turn) * anterior) / camera.pixel
        row = 29.5 - superior / camera.pixel
        assert centroid(image) == pytest.approx((row, column), abs=0.3)
        peak = np.unravel_index(image.argmax(), image.shape)
        assert max(abs(peak[0] - row), abs(peak[1] - column)) <= 1


@pytest.mark.parametrize("mode", MODES)
def test_a_full_turn_is_the_identity(mode):
    random = np.random.default_rng(0)
    volume = volume_of(random.uniform(-1000, 1500, (8, 10, 9)), (20.0, 10.0, 15.0))
    images = render(volume, mode, [17, 377, -343, 197], Camera.around([volume], 32)).int()
    assert (images[0] - images[1]).abs().max() <= 1
    assert (images[0] - images[2]).abs().max() <= 1
    assert (images[0] - images[3]).abs().max() > 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("superior", [True, False])
@pytest.mark.parametrize("anterior", [True, False])
@pytest.mark.parametrize("right", [True, False])
def test_the_first_and_the_quarter_frame_are_oriented_as_the_views(mode, superior, anterior, right):
    """Every mode, seen from the front and from the patient's left, agrees with the rendered radiographs."""
    hu = air(12, 12, 12)
    block = tuple(slice(7, 11) if upper else slice(1, 5) for upper in (superior, anterior, right))
    hu[block] = 0
    if mode in ("mip", "bone"):
        hu[block] = 800
    images = grey(render(volume_of(hu), mode, [0, 90], Camera(12, 20, 24)))
    views = render_views(torch.from_numpy(hu)[None, None], (1, 1, 1), image_size=(24, 24))[0, :, 0].numpy()
    for image, view in zip(images, views, strict=True):
        assert centroid(image) == pytest.approx(centroid(view), abs=0.5)
    row, column = centroid(images[0])
    assert (row < 11.5) == superior
    assert (column < 11.5) == right
    assert (centroid(images[1])[1] < 11.5) == anterior


@pytest.mark.parametrize("mode", ["mip", "bone"])
@pytest.mark.parametrize(("shape", "spacing"), [((12, 40, 40), (5.0, 1.5, 1.5)), ((40, 24, 40), (1.5, 2.5, 1.5))])
def test_a_sphere_stays_round_whatever_the_voxels(mode, shape, spacing):
    """Its silhouette has the radius of the sphere along rows and columns, from every side."""
    radius = 20.0
    distance = np.sqrt(sum(axis**2 for axis in coordinates(shape, spacing)))
    hu = np.clip(500 + (radius - distance) * 1500 / max(spacing), AIR_HU, 2000)
    camera = Camera(extent=64, depth=64, size=64)
    for image in grey(render(volume_of(hu, spacing), mode, [0, 45, 90], camera, window=(499, 501))):
        seen = image > 60
        area = seen.sum() * camera.pixel**2
        assert math.sqrt(area / math.pi) == pytest.approx(radius, abs=1.5)
        height, width = (np.ptp(indices) + 1 for indices in np.nonzero(seen))
        assert abs(height - width) <= 3


def test_an_opaque_slab_hides_what_is_behind_it():
    """A block behind a dense slab is seen from the back only."""
    hu = air(16, 16, 16)
    hu[:, 12:14, :] = 2500
    block = hu.copy()
    block[6:10, 3:6, 6:10] = 700
    with_block, alone = (
        render(volume_of(voxels, (10, 10, 10)), "bone", [0, 180], Camera(160, 240, 32)).int() for voxels in (block, hu)
    )
    assert (with_block[0] - alone[0]).abs().max() <= 1
    assert (with_block[1] - alone[1]).abs().max() > 20


def test_light_through_a_uniform_slab_is_beer_lambert():
    """The background shines through a slab of extinction s and thickness d with exp(-s d)."""
    hu = air(8, 40, 8)
    hu[:, 10:30] = 0
    function = TRANSFER_FUNCTIONS["lung"]
    extinctions, _ = function.table()
    volume, camera = volume_of(hu), Camera(4, 60, 8)
    dark, light = (
        render(volume, "lung", [0], camera, background=(level,) * 3).float()[0, 3:5, 3:5].mean() for level in (0.0, 1.0)
    )
    expected = math.exp(-20 * float(extinctions[1000]))
    assert float(light - dark) / 255 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_air_shows_the_background_only(mode):
    volume = volume_of(air(5, 6, 7))
    images = render(volume, mode, [0, 50], Camera.around([volume], 16), background=(1.0, 0.0, 0.2))
    assert torch.equal(images, torch.tensor([255, 0, 51], dtype=torch.uint8).expand(2, 16, 16, 3))


@pytest.mark.parametrize("mode", MODES)
def test_an_image_depends_neither_on_the_other_angles_nor_on_the_blocks(mode, monkeypatch):
    volume = volume_of(np.random.default_rng(0).uniform(-1000, 1500, (12, 8, 8)))
    camera = Camera.around([volume], 24)
    together = render(volume, mode, [0, 40, 80], camera).int()
    monkeypatch.setattr("hf_vq.evaluation.rendering._MAX_SAMPLES", 20000)
    apart = torch.cat([render(volume, mode, [angle], camera) for angle in (0, 40, 80)]).int()
    assert (together - apart).abs().max() <= 1


def test_the_camera_sees_all_of_the_body_from_every_side():
    """A rod far from the axis stays inside the image while the volume turns."""
    hu = air(6, 20, 30)
    hu[:, 9:11, :3] = 1000
    volume = volume_of(hu)
    camera = Camera.around([volume], 64)
    assert camera.extent == pytest.approx(1.04 * 2 * math.hypot(15, 1))
    for image in grey(render(volume, "mip", turntable_angles(8), camera)):
        assert image.max() > 200
        assert image[:, 0].max() == image[:, -1].max() == 0


def test_volumes_of_unequal_size_have_one_camera():
    small, large = air(4, 4, 4) + 1000, air(8, 8, 8) + 1000
    camera = Camera.around([volume_of(small), volume_of(large, (2.0, 1.0, 1.0))], 32)
    assert camera == Camera.around([volume_of(large, (2.0, 1.0, 1.0))], 32)


def test_the_angles_of_a_turntable_divide_the_circle():
    assert turntable_angles(4) == [0, 90, 180, 270]


def test_a_volume_is_averaged_down_to_the_limit_and_kept_below_it():
    hu = np.random.default_rng(0).uniform(-1000, 1000, (10, 40, 20)).astype(np.float32)
    volume = volume_of(hu, (4.0, 1.0, 2.0))
    same = limit_resolution(volume, 40)
    assert np.array_equal(same.hu, hu)
    np.testing.assert_allclose(same.affine, volume.affine)
    half = limit_resolution(volume, 20)
    assert half.hu.shape == (10, 20, 20)
    assert half.spacing == pytest.approx((4, 2, 2))
    assert half.hu.mean() == pytest.approx(hu.mean(), abs=5)


def test_an_oblique_volume_is_set_upright():
    """A bar along the world's superior-inferior axis, stored on a tilted grid, stands upright afterwards."""
    turn = math.radians(20)
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0, 0], [0, math.cos(turn), -math.sin(turn)], [0, math.sin(turn), math.cos(turn)]]
    affine[:3, 3] = -affine[:3, :3] @ np.full(3, 15.5)
    world = np.einsum("ij,jzyx->izyx", affine[:3, :3], np.indices((32, 32, 32))[::-1]) + affine[:3, 3, None, None, None]
    hu = np.where((np.abs(world[0]) < 3) & (np.abs(world[1]) < 3) & (np.abs(world[2]) < 10), 1000.0, AIR_HU)
    volume = limit_resolution(GridVolume(hu.astype(np.float32), affine), 64)
    lateral = grey(render(volume, "mip", [90], Camera(40, 40, 40), window=(-200, 200)))[0]
    rows, columns = np.nonzero(lateral > 128)
    assert np.ptp(rows) > 15
    assert np.ptp(columns) < 8


def cylinder(table: bool) -> np.ndarray:
    """A body of 0 HU with a lung of -800 HU that reaches the top slice, in air, above a thin table."""
    hu = air(8, 32, 32)
    _, anterior, right = coordinates(hu.shape, (1, 1, 1))
    hu[np.hypot(anterior - 2, right) < 11] = 0
    hu[np.hypot(anterior - 2, right) < 6] = -800
    if table:
        hu[:, 2, 4:28] = 100
    return hu


def test_the_body_is_told_from_table_and_air():
    hu = cylinder(table=True)
    isolated = isolate_body(volume_of(hu), 1000.0).hu
    body = cylinder(table=False)
    assert (isolated[body == AIR_HU] == 1000).all()
    assert (isolated[body == -800] == -800).all()
    assert (isolated[body == 0] == 0).mean() > 0.9  # a piece without corners of single voxels


def test_a_narrow_gap_in_the_wall_does_not_open_the_lung():
    hu = cylinder(table=False)
    hu[4, :, 16] = np.where(hu[4, :, 16] == 0, -900, hu[4, :, 16])
    isolated = isolate_body(volume_of(hu), 1000.0).hu
    assert (isolated[hu == -800] == -800).mean() > 0.95


def test_lungs_are_seen_through_the_body_and_the_air_around_is_not():
    body = cylinder(table=False)
    camera = Camera(32, 40, 32)
    lung, solid = (
        grey(render(volume_of(hu), "lung", [0], camera))[0] for hu in (body, np.where(body == -800, 0, body))
    )
    middle = slice(14, 18)
    assert lung[middle, 14:18].mean() > 2 * solid[middle, 14:18].mean()
    np.testing.assert_allclose(lung[middle, 6:8], solid[middle, 6:8], atol=1)
    assert lung[:, :3].max() == 0


def test_a_surface_that_faces_the_light_is_brighter():
    """The light comes from above, so of a dense ball the upper half is brighter than the lower."""
    distance = np.sqrt(sum(axis**2 for axis in coordinates((24, 24, 24), (1, 1, 1))))
    image = grey(render(volume_of(np.clip((9 - distance) * 500, AIR_HU, 2500)), "bone", [0], Camera(24, 30, 48)))[0]
    assert image[10:20].mean() > 1.1 * image[28:38].mean()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "skin"}, "mode is 'skin'"),
        ({"angles": []}, "at least one angle"),
        ({"window": (100, 100)}, "lower HU first"),
        ({"background": (0, 0, 2)}, "from 0 to 1"),
    ],
)
def test_what_cannot_be_rendered_is_named(values, message):
    arguments = {"mode": "mip", "angles": [0], **values}
    with pytest.raises(ValueError, match=message):
        render(volume_of(air(2, 2, 2)), camera=Camera(2, 2, 2), **arguments)


def test_impossible_cameras_and_numbers_are_named():
    with pytest.raises(ValueError, match="extent and depth"):
        Camera(0, 1)
    with pytest.raises(ValueError, match="size is 0"):
        Camera(1, 1, 0)
    with pytest.raises(ValueError, match="frames is 0"):
        turntable_angles(0)
    with pytest.raises(ValueError, match="max_size is 0"):
        limit_resolution(volume_of(air(2, 2, 2)), 0)
