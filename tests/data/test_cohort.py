import dataclasses
import sys

import nibabel
import numpy as np
import pytest
import torch

from hf_vq import CTVolumeProcessor
from hf_vq.data.body import body_mask
from hf_vq.data.cohort import (
    CohortConfig,
    PreparedScan,
    add_nodules,
    cubic_spline_weights,
    jitter_tissue,
    load_scan,
    make_subject,
    random_affine,
    random_displacement,
    random_grid,
    write_subject,
)
from hf_vq.processors.radiographs import BeamGeometry, render_views

STILL = {
    "translation": 0.0,
    "rotation": 0.0,
    "scale": 0.0,
    "axis_scale": 0.0,
    "deformation": 0.0,
    "lung_jitter": 0.0,
    "soft_jitter": 0.0,
    "bone_jitter": 0.0,
    "max_nodules": 0,
}


@pytest.fixture
def config():
    return CohortConfig(size=12, image_size=16, field_of_view=96.0)


@pytest.fixture
def scan(phantom_scan, config):
    return load_scan(phantom_scan, config)


def equal_subjects(first, second) -> bool:
    return np.array_equal(first.volume_hu, second.volume_hu) and all(
        np.array_equal(first.views[name], second.views[name]) for name in first.views
    )


def test_the_table_falls_away_and_the_lungs_are_found(scan):
    volume = scan.volume_hu[0, 0]
    assert (volume[:, : volume.shape[1] // 10] == -1000).all()
    assert scan.lungs.sum() > 0
    assert (scan.volume_hu[scan.lungs > 0.5] < -600).all()


def test_the_scan_is_brought_to_the_conventions_whatever_its_storage_order(scan):
    lungs = scan.lungs[0, 0]
    left, right = lungs.tensor_split(2, dim=2)
    assert right.sum() > 1.3 * left.sum()
    bone = torch.nonzero(scan.volume_hu[0, 0] > 400).float().mean(dim=0)
    assert bone[1] < (scan.volume_hu.shape[3] - 1) / 2


def test_without_randomness_a_subject_is_the_scan(phantom_scan, config):
    still = dataclasses.replace(config, **STILL)
    subject = make_subject(load_scan(phantom_scan, still), "train", 0, still)
    processor = CTVolumeProcessor(size=[12] * 3, spacing=[8.0] * 3, hu_window=[-1000, 1000])
    expected = processor.postprocess(processor(phantom_scan)["pixel_values"], output_type="hu")[0]
    body = np.s_[:, 3:]
    assert np.abs(subject.volume_hu - expected)[body].mean() < 40


def test_the_views_are_those_of_the_working_volume(phantom_scan, config):
    still = dataclasses.replace(config, **STILL, image_size=24, oversampling=2)
    subject = make_subject(load_scan(phantom_scan, still), "train", 0, still)
    volume = torch.from_numpy(subject.volume_hu).float()[None, None]
    expected = render_views(volume, (8.0, 8.0, 8.0), image_size=(12, 12))[0, :, 0]
    for view, image in zip(subject.views.values(), expected, strict=True):
        assert view.dtype == np.uint16
        reduced = torch.from_numpy(view.astype(np.float32) / 65535)[None].unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
        torch.testing.assert_close(reduced[0], image, rtol=0, atol=2e-3)


def test_a_subject_depends_on_seed_split_and_index_alone(scan, config):
    first = make_subject(scan, "train", 3, config)
    for index in range(3):
        make_subject(scan, "train", index, config)
    assert equal_subjects(first, make_subject(scan, "train", 3, config))
    assert first.name == "train_0003"
    others = [
        make_subject(scan, "train", 4, config),
        make_subject(scan, "test", 3, config),
        make_subject(scan, "train", 3, dataclasses.replace(config, seed=1)),
    ]
    assert not any(equal_subjects(first, other) for other in others)


def test_spline_weights_sum_to_one_and_reproduce_a_line():
    weights = cubic_spline_weights(20, 7)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20))
    line = weights @ torch.arange(7.0)
    torch.testing.assert_close(line.diff(), torch.full((19,), 4 / 20), rtol=0, atol=1e-5)


def test_deformation_is_smooth_bounded_and_folds_nothing():
    config = CohortConfig(size=16)
    step = config.field_of_view / config.working_size
    for seed in range(4):
        field = random_displacement(np.random.default_rng(seed), config)
        assert field.shape == (32, 32, 32, 3)
        assert field.abs().max() <= 2 * config.deformation
        grid = random_grid(np.random.default_rng(seed), config)
        columns = [torch.stack(torch.gradient(grid[..., axis], spacing=step), dim=-1) for axis in range(3)]
        assert torch.linalg.det(torch.stack(columns, dim=-2)).min() > 0


def test_the_affine_is_a_rotation_times_positive_scales(config):
    matrix, shift = random_affine(np.random.default_rng(0), dataclasses.replace(config, scale=0.0, axis_scale=0.0))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), rtol=0, atol=1e-5)
    assert torch.linalg.det(matrix) > 0
    assert shift.abs().max() <= 2 * config.translation


def test_tissue_jitter_keeps_air_and_the_order_of_densities(config):
    before = torch.linspace(-1000, 3071, 500)
    for seed in range(10):
        after = jitter_tissue(before, np.random.default_rng(seed), config)
        assert after[0] == -1000
        assert (after.diff() > 0).all()
        water = jitter_tissue(torch.zeros(1), np.random.default_rng(seed), config)
        assert 0 < water.abs() <= 2 * config.soft_jitter


def test_nodules_are_soft_tissue_about_places_in_the_lungs(config):
    n = config.working_size
    lungs = torch.zeros(1, 1, n, n, n)
    lungs[..., 8:16, 8:16, 8:16] = 1
    volume = torch.full((1, 1, n, n, n), -850.0)
    found = [add_nodules(volume, lungs, np.random.default_rng(seed), config) for seed in range(30)]
    assert any(torch.equal(one, volume) for one in found)
    changed = [one for one in found if not torch.equal(one, volume)]
    assert changed
    for one in changed:
        assert -100 < one.max() <= 60
        reach = int(config.nodule_radius[1] / (config.field_of_view / n)) + 2
        assert (one[..., : 8 - reach, :, :] == -850).all()


def test_a_scan_without_lungs_gets_no_nodules(config):
    n = config.working_size
    air = torch.full((1, 1, n, n, n), -1000.0)
    for seed in range(5):
        assert torch.equal(add_nodules(air, torch.zeros_like(air), np.random.default_rng(seed), config), air)


def test_beyond_the_scan_its_edge_goes_on(config):
    still = dataclasses.replace(config, **STILL)
    water = torch.zeros(1, 1, 6, 24, 24)
    scan = PreparedScan(water, torch.tensor([24.0, 96.0, 96.0]), torch.zeros_like(water))
    assert (make_subject(scan, "train", 0, still).volume_hu == 0).all()


def test_a_written_subject_reads_back_and_passes_the_processor_unchanged(scan, config, tmp_path):
    subject = make_subject(scan, "test", 0, config)
    row = write_subject(subject, tmp_path, config)
    assert row == {
        "file_name": "test_0000.nii.gz",
        "frontal": "test_0000_frontal.png",
        "lateral": "test_0000_lateral.png",
        "subject": "test_0000",
    }
    image = nibabel.load(tmp_path / row["file_name"])
    assert image.get_data_dtype() == np.int16
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asarray(image.dataobj), subject.volume_hu.transpose(2, 1, 0))
    processor = CTVolumeProcessor(size=[12] * 3, spacing=[8.0] * 3)
    inputs = processor(image)
    (restored,) = processor.postprocess(inputs["pixel_values"], geometry=inputs["geometry"])
    np.testing.assert_array_equal(np.asarray(restored.dataobj), np.asarray(image.dataobj).clip(-1000, 1000))
    np.testing.assert_array_equal(restored.affine, image.affine)


def test_a_scan_without_a_body_is_refused():
    with pytest.raises(ValueError, match=r"found no object above -300 HU \(largest value -1000\), expected a body"):
        body_mask(np.full((8, 8, 8), -1000.0))


def test_a_broken_scan_is_named(tmp_path, config):
    array = np.zeros((8, 8, 8), dtype=np.float32)
    array[0, 0, 0] = np.nan
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "nan.nii.gz")
    with pytest.raises(ValueError, match=r"nan.nii.gz: found 1 NaN or infinite voxels"):
        load_scan(tmp_path / "nan.nii.gz", config)


def test_views_and_beam_are_chosen_and_change_no_volume(scan, config, tmp_path):
    beam = BeamGeometry(900.0, 700.0, (120.0, 130.0))
    chosen = dataclasses.replace(config, views=("azimuth_30", "frontal"), beam=beam)
    subject, default = make_subject(scan, "train", 0, chosen), make_subject(scan, "train", 0, config)
    np.testing.assert_array_equal(subject.volume_hu, default.volume_hu)
    assert list(subject.views) == ["azimuth_30", "frontal"]
    assert not np.array_equal(subject.views["frontal"], default.views["frontal"])
    row = write_subject(subject, tmp_path, chosen)
    assert row["azimuth_30"] == "train_0000_azimuth_30.png"
    assert (tmp_path / row["azimuth_30"]).is_file()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": ()}, r"views: found \[\], expected at least one and each once"),
        ({"views": ("frontal", "frontal")}, r"views: found \['frontal', 'frontal'\], expected at least one and each"),
        ({"views": ("top",)}, "found view 'top', expected one of"),
        ({"size": 0}, "size: found 0, expected more than 0"),
        ({"field_of_view": -1.0}, "field_of_view: found -1.0, expected more than 0"),
        ({"seed": -1}, "seed: found -1, expected 0 or more"),
    ],
)
def test_malformed_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CohortConfig(**fields)


def test_a_missing_scikit_image_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install hf-vq\[medical\]"):
        body_mask(np.zeros((8, 8, 8)))
