import nibabel
import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from hf_vq import CTVolumeProcessor
from hf_vq.processors.geometry import grid_affine


@pytest.fixture
def processor():
    return CTVolumeProcessor(size=[4, 5, 6], spacing=[3.0, 2.0, 1.0])


@pytest.fixture
def scan(generator):
    """A scan on the processor's own grid."""
    voxels = torch.randint(-1000, 1001, (6, 5, 4), generator=generator).numpy().astype(np.int16)
    return nibabel.Nifti1Image(voxels, grid_affine((4, 5, 6), (3.0, 2.0, 1.0), np.array([7.0, -8.0, 9.0])))


def test_a_scan_on_the_grid_passes_unchanged_both_ways(processor, scan):
    inputs = processor(scan)
    assert inputs["pixel_values"].shape == (1, 1, 4, 5, 6)
    assert inputs["pixel_values"].dtype == torch.float32
    voxels = np.asarray(scan.dataobj)
    expected = torch.from_numpy(voxels.transpose(2, 1, 0).astype(np.float32)) / 1000
    torch.testing.assert_close(inputs["pixel_values"][0, 0], expected, rtol=0, atol=1e-6)
    (restored,) = processor.postprocess(inputs["pixel_values"], geometry=inputs["geometry"])
    np.testing.assert_array_equal(np.asarray(restored.dataobj), voxels)
    np.testing.assert_array_equal(restored.affine, scan.affine)
    assert restored.get_data_dtype() == np.int16


def test_the_geometry_describes_both_grids(processor, scan):
    (geometry,) = processor(scan)["geometry"]
    np.testing.assert_array_equal(geometry.input_affine, scan.affine)
    np.testing.assert_allclose(geometry.affine, scan.affine)
    assert geometry.input_shape == (6, 5, 4)
    assert geometry.shape == (4, 5, 6)


@pytest.mark.parametrize(
    ("hu", "pixel"), [(-2048, 0.0), (-1000, 0.0), (-500, 0.25), (0, 0.5), (1000, 1.0), (3071, 1.0)]
)
def test_the_window_maps_to_the_output_range_and_clips(hu, pixel):
    processor = CTVolumeProcessor(output_range=[0, 1])
    pixel_values = processor(np.full((2, 2, 2), hu), affines=np.eye(4))["pixel_values"]
    torch.testing.assert_close(pixel_values, torch.full((1, 1, 2, 2, 2), pixel))
    restored = processor.postprocess(pixel_values, output_type="hu")
    np.testing.assert_allclose(restored, min(max(hu, -1000), 1000), atol=1e-3)


def test_the_window_never_depends_on_the_volume():
    processor = CTVolumeProcessor()
    dark, bright = np.full((2, 2, 2), -700), np.linspace(-1000, 1000, 8).reshape(2, 2, 2)
    together = processor([dark, bright], affines=[np.eye(4)] * 2)["pixel_values"]
    torch.testing.assert_close(together[:1], processor(dark, affines=np.eye(4))["pixel_values"])
    torch.testing.assert_close(together[0], torch.full((1, 2, 2, 2), -0.7))


@pytest.mark.parametrize(
    ("size", "spacing", "expected_shape", "expected_spacing"),
    [
        (None, None, (8, 6, 4), (3.0, 2.0, 1.0)),
        (None, [6.0, 2.0, 0.5], (4, 6, 8), (6.0, 2.0, 0.5)),
        ([4, 3, 8], None, (4, 3, 8), (6.0, 4.0, 0.5)),
        ([10, 3, 5], [3.0, 2.0, 1.0], (10, 3, 5), (3.0, 2.0, 1.0)),
    ],
)
def test_size_and_spacing_define_the_grid_about_the_scans_centre(size, spacing, expected_shape, expected_spacing):
    affine = grid_affine((8, 6, 4), (3.0, 2.0, 1.0), np.array([1.0, 2.0, 3.0]))
    inputs = CTVolumeProcessor(size=size, spacing=spacing)(np.zeros((4, 6, 8)), affines=affine)
    assert inputs["pixel_values"].shape == (1, 1, *expected_shape)
    (geometry,) = inputs["geometry"]
    expected = grid_affine(expected_shape, expected_spacing, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(geometry.affine, expected)


def test_padding_is_air_and_comes_off_again():
    processor = CTVolumeProcessor(size=[6, 6, 6], spacing=[1.0, 1.0, 1.0])
    inputs = processor(np.full((4, 4, 4), 40), affines=np.eye(4))
    assert (inputs["pixel_values"] == -1).sum() == 6**3 - 4**3
    (restored,) = processor.postprocess(inputs["pixel_values"], geometry=inputs["geometry"])
    np.testing.assert_array_equal(np.asarray(restored.dataobj), 40)


def test_what_the_scanner_did_not_see_does_not_darken_the_average():
    array = np.zeros((4, 4, 4))
    array[0] = -32768
    inputs = CTVolumeProcessor(size=[2, 2, 2])(array, affines=np.eye(4))
    assert inputs["pixel_values"][..., 1].abs().max() < 0.2


def test_without_geometry_nifti_lies_about_the_origin(processor):
    (image,) = processor.postprocess(torch.zeros(1, 1, 4, 5, 6))
    np.testing.assert_array_equal(image.affine, grid_affine((4, 5, 6), (3.0, 2.0, 1.0)))
    assert image.shape == (6, 5, 4)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_model_output_beyond_the_range_is_clipped_and_any_float_type_works(processor):
    pixel_values = torch.full((2, 1, 4, 5, 6), 1.5, dtype=torch.bfloat16, requires_grad=True)
    volumes = processor.postprocess(pixel_values, output_type="hu")
    assert volumes.shape == (2, 4, 5, 6)
    assert volumes.dtype == np.float32
    np.testing.assert_array_equal(volumes, 1000.0)
    assert processor.postprocess(pixel_values, output_type="pt").shape == (2, 1, 4, 5, 6)


def test_an_oblique_scan_comes_back_on_its_own_grid():
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    affine = turn @ grid_affine((16, 16, 16), (2.0, 2.0, 2.0))
    x, y, z = np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij")
    array = -1000 + 1000 * np.exp(-((x - 2) ** 2 + (y + 1) ** 2 + (z - 3) ** 2) / 18)
    processor = CTVolumeProcessor(size=[24, 24, 24], spacing=[2.0, 2.0, 2.0])
    inputs = processor(array, affines=affine)
    (restored,) = processor.postprocess(inputs["pixel_values"], geometry=inputs["geometry"])
    np.testing.assert_array_equal(restored.affine, affine)
    assert np.abs(np.asarray(restored.dataobj) - array).mean() < 10


def test_it_saves_loads_and_passes_through_the_auto_class(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for loaded in (CTVolumeProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is CTVolumeProcessor
        assert loaded.to_dict() == processor.to_dict()
    assert CTVolumeProcessor.from_pretrained(tmp_path, size=[2, 2, 2]).size == [2, 2, 2]


def test_numpy_output(processor, scan):
    pixel_values = processor(scan, return_tensors="np")["pixel_values"]
    assert isinstance(pixel_values, np.ndarray)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": [4, 4]}, r"size: found \[4, 4\], expected three positive whole numbers of voxels"),
        ({"size": 4}, "size: found 4, expected three"),
        ({"size": [4.5, 4, 4]}, "size: found .*, expected three positive whole numbers"),
        ({"spacing": [1.0, 0.0, 1.0]}, "spacing: found .*, expected three positive voxel sizes in mm"),
        ({"spacing": [1.0, float("nan"), 1.0]}, "spacing: found"),
        ({"hu_window": [100, -100]}, "hu_window: found .*, expected \\[low, high\\]"),
        ({"output_range": [0]}, "output_range: found"),
    ],
)
def test_malformed_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=f"{message}.*; correct the config"):
        CTVolumeProcessor(**fields)


def test_volumes_of_different_sizes_need_a_size():
    volumes = [np.zeros((2, 2, 2)), np.zeros((2, 2, 3))]
    with pytest.raises(ValueError, match=r"found volumes of sizes .* in one batch, .* set `size` in the processor"):
        CTVolumeProcessor()(volumes, affines=[np.eye(4)] * 2)
    with pytest.raises(ValueError, match=r"found volumes of sizes \[\]"):
        CTVolumeProcessor()([])


def test_each_volume_needs_its_affine():
    with pytest.raises(ValueError, match="affines: found 1 for 2 volumes, expected one each"):
        CTVolumeProcessor()([np.zeros((2, 2, 2))] * 2, affines=np.eye(4))
    with pytest.raises(ValueError, match=r"volumes\[0\]: found no affine"):
        CTVolumeProcessor()(np.zeros((2, 2, 2)))


def test_a_misspelt_argument_is_named(processor, scan):
    with pytest.raises(ValueError, match=r"found argument \['spacings'\]"):
        processor(scan, spacings=[1, 1, 1])


def test_postprocess_names_what_does_not_fit(processor, scan):
    pixel_values = torch.zeros(1, 1, 4, 5, 6)
    with pytest.raises(ValueError, match="output_type: found 'dicom', expected one of"):
        processor.postprocess(pixel_values, output_type="dicom")
    with pytest.raises(ValueError, match=r"pixel_values: found shape \(4, 5, 6\), expected \(B, 1, D, H, W\)"):
        processor.postprocess(pixel_values[0, 0])
    with pytest.raises(ValueError, match=r"geometry: found grids .* pass what preprocess returned"):
        processor.postprocess(torch.zeros(2, 1, 4, 5, 6), geometry=processor(scan)["geometry"])
    with pytest.raises(ValueError, match=r"spacing: found none, .* pass `geometry`"):
        CTVolumeProcessor().postprocess(pixel_values)
