import nibabel
import numpy as np
import pytest
import torch

from hf_vq.processors.geometry import (
    VIEW_ANGLES,
    VIEW_AXES,
    VOLUME_AXES,
    RadiographView,
    canonical_grid,
    check_affine,
    field_of_view,
    find_view,
    from_canonical,
    grid_affine,
    is_view,
    to_array_axes,
    to_canonical,
    to_tensor_axes,
    view_axes,
    view_layout,
    voxel_spacing,
)


def stored_affine(codes: str, spacing: tuple[float, float, float]) -> np.ndarray:
    """An affine whose array axes point to the directions in `codes`."""
    orientation = nibabel.orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign) in enumerate(orientation):
        affine[int(axis), column] = sign * spacing[column]
    affine[:3, 3] = (12.0, -30.5, 101.0)
    return affine


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PIR", "SAL", "IPR"])
def test_canonical_axes_point_right_anterior_superior_and_every_voxel_keeps_its_place(codes):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    affine = stored_affine(codes, (1.0, 2.0, 3.0))
    canonical, canonical_affine = to_canonical(array, affine)
    assert nibabel.aff2axcodes(canonical_affine) == ("R", "A", "S")
    for value in (0, 7, 23):
        stored_index = np.argwhere(array == value)[0]
        canonical_index = np.argwhere(canonical == value)[0]
        np.testing.assert_allclose(
            affine @ [*stored_index, 1], canonical_affine @ [*canonical_index, 1], rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PIR", "SAL", "IPR"])
def test_from_canonical_undoes_to_canonical(codes):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    affine = stored_affine(codes, (1.0, 2.0, 3.0))
    canonical, canonical_affine = to_canonical(array, affine)
    np.testing.assert_array_equal(from_canonical(canonical, affine), array)
    grid, shape = canonical_grid(affine, array.shape)
    np.testing.assert_array_equal(grid, canonical_affine)
    assert shape == canonical.shape[::-1]


def test_tensor_axes_are_the_canonical_axes_reversed():
    assert VOLUME_AXES == ("superior", "anterior", "right")
    array = np.zeros((2, 3, 4), dtype=np.int16)
    array[1, 2, 3] = 5
    volume = to_tensor_axes(array)
    assert volume.shape == (1, 1, 4, 3, 2)
    assert volume.dtype == torch.float32
    assert volume[0, 0, 3, 2, 1] == 5
    np.testing.assert_array_equal(to_array_axes(volume[0, 0]), array)


def test_a_grid_lies_about_its_centre_with_its_spacing():
    affine = grid_affine((4, 5, 6), (1.0, 2.0, 3.0), center=np.array([10.0, 20.0, 30.0]))
    np.testing.assert_allclose(voxel_spacing(affine), [3.0, 2.0, 1.0])
    center, extent = field_of_view(affine, (6, 5, 4))
    np.testing.assert_allclose(center, [10.0, 20.0, 30.0])
    np.testing.assert_allclose(extent, [18.0, 10.0, 4.0])


def test_field_of_view_does_not_depend_on_the_storage_order():
    shape = (4, 5, 6)
    affine = stored_affine("PIR", (1.0, 2.0, 3.0))
    canonical, canonical_affine = to_canonical(np.zeros(shape), affine)
    for stored, reordered in zip(
        field_of_view(affine, shape), field_of_view(canonical_affine, canonical.shape), strict=True
    ):
        np.testing.assert_allclose(stored, reordered)


def test_views_look_along_the_axis_they_leave_out():
    assert VIEW_AXES == {"frontal": ("inferior", "left"), "lateral": ("inferior", "posterior")}
    assert view_layout("frontal") == (1, (0, 2), [0, 2])
    assert view_layout("lateral") == (2, (0, 1), [0, 1])
    assert view_layout("azimuth_180") == (1, (0, 2), [0])
    assert view_layout("azimuth_0_elevation_90") == (0, (1, 2), [2])


def test_the_angles_of_the_named_views_give_their_axes():
    assert set(VIEW_ANGLES) == set(VIEW_AXES)
    for name, axes in VIEW_AXES.items():
        assert find_view(name).axes == axes == view_axes(name)
        assert find_view(name).is_axis_aligned


@pytest.mark.parametrize(
    ("name", "angles"),
    [
        ("azimuth_30", (30.0, 0.0)),
        ("azimuth_-22.5", (-22.5, 0.0)),
        ("azimuth_30_elevation_-10.5", (30.0, -10.5)),
        ("azimuth_123.4567891", (123.4567891, 0.0)),
        ("azimuth_0.00001_elevation_0.00002", (1e-5, 2e-5)),
    ],
)
def test_a_name_says_its_angles_and_angles_their_name(name, angles):
    assert find_view(name) == RadiographView(*angles)
    assert RadiographView(*angles).name == name
    assert is_view(name)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("azimuth_44", ("inferior", "left")),
        ("azimuth_45", ("inferior", "left")),
        ("azimuth_46", ("inferior", "posterior")),
        ("azimuth_-46", ("inferior", "anterior")),
        ("azimuth_170", ("inferior", "right")),
        ("azimuth_270", ("inferior", "anterior")),
        ("azimuth_30_elevation_44", ("inferior", "left")),
        ("azimuth_30_elevation_60", ("anterior", "left")),
        ("azimuth_45_elevation_-60", ("posterior", "left")),
        ("azimuth_90_elevation_60", ("left", "posterior")),
    ],
)
def test_oblique_views_have_the_nearest_directions_of_two_axes(name, axes):
    assert view_axes(name) == axes


@pytest.mark.parametrize("azimuth", [0.0, 37.0, 90.0, 200.0])
@pytest.mark.parametrize("elevation", [-90.0, 0.0, 25.0])
def test_every_view_is_the_same_image_turned_and_never_mirrored(azimuth, elevation):
    directions = RadiographView(azimuth, elevation).directions()[:, ::-1]  # right, anterior, superior: right-handed
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), rtol=0, atol=1e-12)
    assert np.linalg.det(directions) == pytest.approx(1)


@pytest.mark.parametrize("name", ["oblique", "azimuth_", "azimuth_30_", "azimuth_1e2", "Azimuth_30", "elevation_10"])
def test_an_unknown_view_is_named(name):
    message = rf"found view '{name}', expected one of \['frontal', 'lateral'\], or azimuth_<degrees>"
    for function in (find_view, view_axes, view_layout):
        with pytest.raises(ValueError, match=message):
            function(name)
    assert not is_view(name)


def test_an_impossible_angle_and_an_oblique_layout_are_named():
    with pytest.raises(ValueError, match=r"found azimuth 0\.0 and elevation 91.0, expected finite degrees"):
        find_view("azimuth_0_elevation_91")
    with pytest.raises(
        ValueError, match="found the oblique view 'azimuth_30', expected angles that are multiples of 90"
    ):
        view_layout("azimuth_30")


def with_entry(row: int, column: int, value: float) -> np.ndarray:
    affine = np.eye(4)
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (None, "scan.nii: found no affine"),
        (np.eye(3), r"scan.nii: found an affine of shape \(3, 3\), expected \(4, 4\)"),
        (with_entry(1, 1, 0.0), r"scan.nii: found voxel spacing \[1.0, 0.0, 1.0\] mm"),
        (with_entry(2, 2, np.nan), r"scan.nii: found voxel spacing \[1.0, 1.0, nan\] mm"),
        (with_entry(0, 3, np.inf), r"scan.nii: found voxel spacing .* and offset \[inf, 0.0, 0.0\] mm"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "scan.nii: found a singular affine"),
    ],
)
def test_an_invalid_affine_is_refused_with_its_file_and_a_remedy(affine, message):
    with pytest.raises(ValueError, match=f"{message}.*; write the scan with its voxel spacing"):
        check_affine(affine, "scan.nii")
