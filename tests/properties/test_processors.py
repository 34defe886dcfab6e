"""Any array, affine and window: tensors by the window's formula on the scan's grid, or an error naming the fault."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_vq import CTVolumeProcessor, XrayImageProcessor

seeds = st.integers(0, 2**31 - 1)
sides = st.tuples(*[st.integers(1, 5)] * 3)
steps = st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3)
dtypes = st.sampled_from([np.int16, np.uint16, np.float32, np.float64, np.int32])
orders = st.permutations([0, 1, 2])
signs = st.tuples(*[st.sampled_from([-1, 1])] * 3)
not_finite = st.sampled_from([math.nan, math.inf, -math.inf])
nonsense = st.one_of(
    st.sampled_from(
        [-1, math.nan, "nonsense", b"", [], {}, object, True, [1, 2, "3"], [None, 1], [1j, 2], [1, 10**400]]
    ),
    st.lists(st.integers(-5, 0), min_size=1, max_size=4).map(lambda each: [max(each), min(each)]),
    st.lists(st.integers(1, 5), min_size=4, max_size=6),
)


def hounsfield(shape, seed, spread=1000.0):
    return np.random.default_rng(seed).normal(0, spread, shape).round().clip(-30000, 30000)


def turned(order, signs, spacing, offset=(0.0, 0.0, 0.0)):
    """An affine whose axis i runs along world axis `order[i]`, forwards or backwards."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign, step) in enumerate(zip(order, signs, spacing, strict=True)):
        affine[world, axis] = sign * step
    affine[:3, 3] = offset
    return affine


@given(shape=sides, order=orders, signs=signs, spacing=steps, dtype=dtypes, seed=seeds)
def test_a_scan_on_its_own_grid_follows_the_window_and_comes_back(shape, order, signs, spacing, dtype, seed):
    array = np.abs(hounsfield(shape, seed)).astype(dtype)
    affine = turned(order, signs, spacing)
    processor = CTVolumeProcessor(hu_window=[-1000.0, 1000.0], output_range=[-1.0, 1.0])
    batch = processor(array, affines=affine)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.float64), affine))
    expected = np.clip(canonical.get_fdata().transpose(2, 1, 0), -1000, 1000) / 1000
    np.testing.assert_allclose(batch["pixel_values"][0, 0].numpy(), expected, atol=1e-6)
    back = processor.postprocess(batch["pixel_values"], geometry=batch["geometry"])[0]
    assert back.shape == array.shape
    np.testing.assert_allclose(back.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.clip(array.astype(np.int64), -1000, 1000))


@given(
    shape=sides,
    order=orders,
    signs=signs,
    spacing=steps,
    size=st.none() | st.lists(st.integers(1, 6), min_size=3, max_size=3),
    target=st.none() | st.lists(st.sampled_from([0.7, 2.0, 5.0]), min_size=3, max_size=3),
    value=st.sampled_from([-1000.0, 0.0, 1e30, -1e30]),
)
def test_an_even_scan_stays_even_on_any_grid(shape, order, signs, spacing, size, target, value):
    processor = CTVolumeProcessor(size=size, spacing=target)
    batch = processor(np.full(shape, value), affines=turned(order, signs, spacing))
    pixels = batch["pixel_values"]
    assert bool(((pixels >= -1) & (pixels <= 1)).all())
    assert batch["geometry"][0].input_shape == shape
    if size is not None:
        assert tuple(pixels.shape[2:]) == tuple(size)
    if target is None:
        expected = np.clip(value, -1000, 1000) / 1000
        np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-5)
    back = processor.postprocess(pixels, geometry=batch["geometry"])[0]
    assert back.shape == shape


@given(
    low=st.floats(-5000, 5000),
    width=st.floats(1, 10000),
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    output=st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)]),
)
def test_a_window_is_a_straight_line_between_its_ends(low, width, values, output):
    processor = CTVolumeProcessor(hu_window=[low, low + width], output_range=list(output))
    pixels = processor(np.array(values).reshape(-1, 1, 1), affines=np.eye(4))["pixel_values"]
    # what no scanner measures is cut off first: below -1024 and above what 16 bits hold
    cut = np.clip(np.array(values), min(-1024.0, low), max(32767.0, low + width))
    fraction = (np.clip(cut, low, low + width) - low) / width
    np.testing.assert_allclose(
        pixels.flatten().numpy(), output[0] + fraction * (output[1] - output[0]), atol=1e-2 * max(1, 1 / width)
    )
    hu = processor.postprocess(pixels, output_type="hu")
    np.testing.assert_allclose(hu.flatten(), np.clip(np.array(values), low, low + width), atol=max(1e-2, 1e-5 * width))


@given(bad=not_finite, index=st.integers(0, 26))
def test_voxels_that_are_not_finite_are_refused(bad, index):
    array = np.zeros((3, 3, 3))
    array.flat[index] = bad
    with pytest.raises(ValueError, match="1 NaN or infinite voxels"):
        CTVolumeProcessor()(array, affines=np.eye(4))


@given(shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3), as_tensor=st.booleans())
def test_arrays_of_another_shape_are_refused(shape, as_tensor):
    array = torch.zeros(shape) if as_tensor else np.zeros(shape)
    if len(shape) >= 3 and 0 not in shape and set(shape[3:]) <= {1}:
        assert CTVolumeProcessor()(array, affines=np.eye(4))["pixel_values"].shape == (1, 1, *shape[2::-1])
    else:
        with pytest.raises(ValueError, match="shape"):
            CTVolumeProcessor()(array, affines=np.eye(4))


@given(dtype=st.sampled_from([np.bool_, np.complex64, "U3", "datetime64[s]", object]))
def test_voxels_that_are_no_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match="voxels of type"):
        CTVolumeProcessor()(np.zeros((2, 2, 2), dtype=dtype), affines=np.eye(4))


@given(bad=not_finite, index=st.integers(0, 11))
def test_affines_that_are_not_finite_are_refused(bad, index):
    affine = np.eye(4)
    affine.flat[index] = bad
    with pytest.raises(ValueError, match="expected finite numbers"):
        CTVolumeProcessor()(np.zeros((2, 2, 2)), affines=affine)


@given(axis=st.integers(0, 2), other=st.integers(0, 2), factor=st.sampled_from([0.0, 1.0, -2.5]))
def test_singular_affines_are_refused(axis, other, factor):
    affine = np.eye(4)
    affine[:3, axis] = factor * affine[:3, other] if other != axis else 0.0
    with pytest.raises(ValueError, match=r"spacing above 0|singular"):
        CTVolumeProcessor()(np.zeros((2, 2, 2)), affines=affine)


@given(axis=st.integers(0, 2), step=st.one_of(st.floats(1e5, 1e300), st.floats(1e-300, 9e-5)), offset=st.booleans())
def test_voxels_of_a_size_that_nothing_has_are_refused(axis, step, offset):
    affine = np.eye(4)
    if offset:
        affine[axis, 3] = 1e7 + step
    else:
        affine[axis, axis] = step
    with pytest.raises(ValueError, match=r"expected spacing from|spacing above 0"):
        CTVolumeProcessor()(np.zeros((2, 2, 2)), affines=affine)


@given(shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5).filter(lambda each: each != (4, 4)))
def test_affines_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="affine"):
        CTVolumeProcessor()(np.zeros((2, 2, 2)), affines=np.zeros(shape))


@given(shear=st.floats(-3, 3), shape=sides, value=st.floats(-1000, 1000), axes=st.permutations([0, 1, 2]))
def test_sheared_scans_come_within_the_range_of_their_voxels(shear, shape, value, axes):
    affine = np.eye(4)
    affine[axes[0], axes[1]] = shear
    batch = CTVolumeProcessor(spacing=[1.0, 1.0, 1.0])(np.full(shape, value), affines=affine)
    pixels = batch["pixel_values"]
    assert bool(pixels.isfinite().all())
    assert float(pixels.min()) >= -1 - 1e-6
    assert float(pixels.max()) <= max(value / 1000, -1) + 1e-5


@given(value=nonsense, field=st.sampled_from(["size", "spacing", "hu_window", "output_range"]))
def test_nonsense_in_a_field_is_refused(value, field):
    with pytest.raises(ValueError, match=field):
        CTVolumeProcessor(**{field: value})
    if field in ("size", "output_range"):
        with pytest.raises(ValueError, match=field):
            XrayImageProcessor(**{field: value})


@given(
    shape=st.lists(st.integers(0, 3), max_size=6),
    output_type=st.sampled_from(["nifti", "hu", "pt"]),
)
def test_model_output_of_another_shape_is_refused(shape, output_type):
    processor = CTVolumeProcessor(spacing=[1.0, 1.0, 1.0])
    if len(shape) == 5 and shape[1] == 1:
        assert len(processor.postprocess(torch.zeros(shape), output_type=output_type)) == shape[0]
    else:
        with pytest.raises(ValueError, match="pixel_values"):
            processor.postprocess(torch.zeros(shape), output_type=output_type)


@given(bad=not_finite, output_type=st.sampled_from(["nifti", "hu"]))
def test_model_output_that_is_not_finite_is_refused(bad, output_type):
    pixels = torch.zeros(1, 1, 2, 2, 2)
    pixels[0, 0, 1, 0, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        CTVolumeProcessor(spacing=[1.0, 1.0, 1.0]).postprocess(pixels, output_type=output_type)


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64, ">u2"]),
    output=st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-2.0, 6.0)]),
    place=st.sampled_from(["none", "first", "last"]),
    seed=seeds,
)
def test_images_run_from_black_to_white(shape, dtype, output, place, seed):
    white = float(np.iinfo(dtype).max) if np.dtype(dtype).kind == "u" else 1.0
    image = (np.random.default_rng(seed).random(shape) * white).astype(dtype)
    given_image = {"none": image, "first": image[None], "last": image[..., None]}[place]
    pixels = XrayImageProcessor(output_range=list(output))(given_image)["pixel_values"]
    expected = output[0] + image.astype(np.float64) / white * (output[1] - output[0])
    np.testing.assert_allclose(pixels[0, 0].numpy(), expected, atol=1e-5)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=seeds,
)
def test_resized_images_keep_within_their_range(shape, size, seed):
    image = np.random.default_rng(seed).random(shape).astype(np.float32)
    processor = XrayImageProcessor(size={"height": size[0], "width": size[1]}, output_range=[0.0, 1.0])
    pixels = processor(image)["pixel_values"]
    assert tuple(pixels.shape) == (1, 1, *size)
    assert image.min() - 1e-5 <= float(pixels.min())
    assert float(pixels.max()) <= image.max() + 1e-5


@given(value=st.one_of(st.floats(max_value=-1e-3), st.floats(min_value=1.001), st.just(math.nan)), seed=seeds)
def test_brightness_out_of_range_is_refused(value, seed):
    image = np.random.default_rng(seed).random((3, 4))
    image[1, 2] = value
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        XrayImageProcessor()(image)


@given(shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3), as_tensor=st.booleans())
def test_images_of_another_shape_are_refused(shape, as_tensor):
    image = torch.zeros(shape) if as_tensor else np.zeros(shape)
    grey = len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2]))
    if grey and 0 not in shape:
        assert XrayImageProcessor()(image)["pixel_values"].ndim == 4
    else:
        with pytest.raises(ValueError, match="image"):
            XrayImageProcessor()(image)


@given(dtype=st.sampled_from([np.int8, np.int16, np.int64, np.uint32, np.bool_, np.complex64, "U3", object]))
def test_images_of_another_type_are_refused(dtype):
    with pytest.raises(ValueError, match="values of type"):
        XrayImageProcessor()(np.zeros((2, 2), dtype=dtype))


@given(first=st.tuples(st.integers(1, 3), st.integers(1, 3)), second=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_images_of_one_batch_have_one_size(first, second):
    images = [np.zeros(first), np.zeros(second)]
    if first == second:
        assert XrayImageProcessor()(images)["pixel_values"].shape == (2, 1, *first)
    else:
        with pytest.raises(ValueError, match="exactly one size"):
            XrayImageProcessor()(images)
    assert XrayImageProcessor(size={"height": 2, "width": 2})(images)["pixel_values"].shape == (2, 1, 2, 2)


@given(
    processor=st.sampled_from([CTVolumeProcessor, XrayImageProcessor]),
    junk=st.sampled_from([[], None, 1, {}, [None], "nowhere"]),
)
def test_what_is_no_picture_is_refused(processor, junk):
    with pytest.raises(ValueError, match=r"found|expected"):
        processor()(junk)
