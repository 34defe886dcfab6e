import dicom_phantom as phantom
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import CTVolumeProcessor, VQTokenizer, VQTokenizerConfig
from hf_vq.data import render_views
from hf_vq.data.dicom import anonymous_name
from hf_vq.data.patient_splits import assign_splits, check_splits, read_patient_table, split_sizes
from hf_vq.data.preparation import PreparationConfig, load_source, prepare_volume, write_prepared
from hf_vq.data.scan_search import by_patient, find_scans, rename_patients
from hf_vq.processors.geometry import grid_affine

SMALL = {"shape": (24, 20, 6), "spacing": (3.5, 3.4, 10.0)}
OFFSET = np.array([20.0, 10.0, 5.0])
CONFIG = PreparationConfig(size=(36, 32, 44), spacing=(2.0, 2.0, 2.0), image_size=(24, 20))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """The phantom as a feet-first DICOM series of non-cubic size and anisotropic spacing, read."""
    folder = phantom.write_series(tmp_path_factory.mktemp("scan"), orientation=phantom.FEET_FIRST)
    (source,), _ = find_scans(folder)
    return load_source(source, CONFIG)


def write_nifti(path, affine=None, shape=(12, 10, 8), codes="RAS"):
    """The phantom on a coarse grid, stored in the axis order `codes`."""
    affine = grid_affine(shape[::-1], (9.0, 7.0, 7.0), phantom.CENTER) if affine is None else affine
    hu = phantom.phantom_hu(phantom.world_points(affine, shape)).round().astype(np.int16)
    canonical, stored = (nibabel.orientations.axcodes2ornt(axes) for axes in ("RAS", codes))
    image = nibabel.Nifti1Image(hu, affine).as_reoriented(nibabel.orientations.ornt_transform(canonical, stored))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def overfitted_tokenizer(pixel_values):
    """A tiny tokenizer trained on one volume until it reconstructs it."""
    torch.manual_seed(0)
    architecture = {"base_channels": 8, "channel_multipliers": [1], "stem_stride": 2, "num_res_blocks": 1}
    quantizer = {"codebook_size": 128, "codebook_dim": 4}
    config = VQTokenizerConfig(**architecture, num_norm_groups=4, reconstruction_loss="l2", quantizer=quantizer)
    tokenizer = VQTokenizer(config).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        tokenizer(pixel_values).loss.backward()
        optimizer.step()
    return tokenizer.eval()


@pytest.mark.parametrize("orientation", [phantom.HEAD_FIRST, phantom.FEET_FIRST], ids=["head-first", "feet-first"])
def test_landmarks_of_an_anisotropic_scan_keep_their_places_through_codes(tmp_path, orientation):
    """DICOM -> prepare -> processor -> codes -> volume -> NIfTI; the bright spheres are looked for everywhere."""
    size, spacing = (22, 20, 28), (3.0, 3.0, 3.0)
    (source,), _ = find_scans(phantom.write_series(tmp_path / "scan", orientation=orientation, in_water=True))
    config = PreparationConfig(size=size, spacing=spacing, image_size=(16, 16))
    scan = load_source(source, config)
    write_prepared(prepare_volume(*scan, config), "subject", tmp_path)

    processor = CTVolumeProcessor(size=list(size), spacing=list(spacing))
    inputs = processor(tmp_path / "subject.nii.gz")
    tokenizer = overfitted_tokenizer(inputs["pixel_values"])
    with torch.no_grad():
        codes = tokenizer.encode(inputs["pixel_values"]).codes
        decoded = tokenizer.decode(codes).sample
    assert codes.shape == (1, 11, 10, 14)
    (image,) = processor.postprocess(decoded, geometry=inputs["geometry"])
    image.to_filename(tmp_path / "decoded.nii.gz")

    loaded = nibabel.load(tmp_path / "decoded.nii.gz")
    places = phantom.landmark_places(np.asarray(loaded.dataobj), loaded.affine)
    for expected in (phantom.landmark_places(*scan), phantom.true_places()):
        assert len(places) == len(expected)
        # one voxel of the finer of the two grids along each axis: the scan's in the plane, the model's across it
        assert (np.abs(places - expected) <= np.minimum(phantom.SPACING, spacing)).all()


def test_the_prepared_volume_is_the_scan_on_the_grid_asked_for(scan):
    prepared = prepare_volume(*scan, CONFIG)
    assert prepared.volume_hu.shape == CONFIG.size
    assert prepared.volume_hu.dtype == np.int16
    np.testing.assert_allclose(np.diag(prepared.affine), [2, 2, 2, 1])
    points = phantom.world_points(prepared.affine, (44, 32, 36))
    errors = np.abs(prepared.volume_hu.transpose(2, 1, 0) - phantom.phantom_hu(points))
    assert errors.mean() < 25
    places = phantom.landmark_places(prepared.volume_hu.transpose(2, 1, 0), prepared.affine)
    np.testing.assert_allclose(places, phantom.true_places(), atol=1.0)


def test_outside_the_scan_lies_air(scan):
    prepared = prepare_volume(*scan, PreparationConfig(size=(20, 20, 20), spacing=(9.0, 9.0, 9.0), image_size=(8, 8)))
    assert (prepared.volume_hu[[0, -1]] == -1000).all()
    assert (prepared.volume_hu[:, [0, -1]] == -1000).all()
    assert (prepared.volume_hu[10, 10, 10]) == pytest.approx(0, abs=30)


def test_shrinking_a_scan_averages_it():
    """Every other slice is bright: sampling without a filter would show it, an average does not."""
    array = np.zeros((40, 40, 40), dtype=np.float32)
    array[:, :, ::2] = 800
    config = PreparationConfig(size=(8, 8, 8), spacing=(4.0, 4.0, 4.0), image_size=(8, 8))
    prepared = prepare_volume(array, np.eye(4), config)
    assert np.abs(prepared.volume_hu[1:-1] - 400.0).max() < 20


def test_a_scan_that_lies_on_the_grid_is_kept_exactly():
    random = np.random.default_rng(0).integers(-1000, 1500, (6, 8, 4)).astype(np.float32)
    affine = grid_affine((4, 8, 6), (3.0, 2.0, 2.0), np.array([1.0, 2.0, 3.0]))
    config = PreparationConfig(size=(4, 8, 6), spacing=(3.0, 2.0, 2.0), image_size=(8, 8))
    prepared = prepare_volume(random, affine, config)
    np.testing.assert_array_equal(prepared.volume_hu.transpose(2, 1, 0), random)
    np.testing.assert_allclose(prepared.affine, affine)


def test_the_window_clips_the_volume_and_not_the_views(scan):
    plain = prepare_volume(*scan, CONFIG)
    clipped = prepare_volume(*scan, PreparationConfig(**{**vars(CONFIG), "hu_window": (-500.0, 300.0)}))
    np.testing.assert_array_equal(clipped.volume_hu, plain.volume_hu.clip(-500, 300))
    for view, image in plain.views.items():
        np.testing.assert_array_equal(clipped.views[view], image)


def test_the_views_show_the_volumes_field_of_view(scan):
    prepared = prepare_volume(*scan, CONFIG)
    volume = torch.from_numpy(prepared.volume_hu).float()[None, None]
    expected = render_views(volume, CONFIG.spacing, CONFIG.views, CONFIG.image_size)[0, :, 0]
    for image, other in zip(prepared.views.values(), expected, strict=True):
        assert image.dtype == np.uint16
        assert image.shape == CONFIG.image_size
        np.testing.assert_allclose(image / 65535, other, atol=0.01)


def test_the_table_falls_away_from_volume_and_views(scan):
    array, affine = scan
    offsets = phantom.world_points(affine, array.shape) - phantom.CENTER
    body = np.where(np.linalg.norm(offsets, axis=-1) < 20, 40, -1000).astype(np.float32)
    on_table = np.where((offsets[..., 1] < -28) & (np.abs(offsets[..., 0]) < 20), 500, body)
    cleared = prepare_volume(on_table, affine, PreparationConfig(**{**vars(CONFIG), "remove_table": True}))
    plain = prepare_volume(body, affine, CONFIG)
    assert prepare_volume(on_table, affine, CONFIG).volume_hu[18, 1, 22] > 0
    np.testing.assert_array_equal(cleared.volume_hu, plain.volume_hu)
    for view, image in plain.views.items():
        np.testing.assert_array_equal(cleared.views[view], image)


def test_the_grid_may_lie_about_the_body(scan):
    array, affine = scan
    points = phantom.world_points(affine, array.shape)
    shifted = np.where(np.linalg.norm(points - phantom.CENTER - OFFSET, axis=-1) < 12, 50, -1000)
    config = PreparationConfig(**{**vars(CONFIG), "center": "body"})
    prepared = prepare_volume(shifted.astype(np.float32), affine, config)
    middle = prepared.affine[:3, :3] @ ((np.array([44, 32, 36]) - 1) / 2) + prepared.affine[:3, 3]
    np.testing.assert_allclose(middle, phantom.CENTER + OFFSET, atol=2.5)


def test_a_scan_without_a_body_is_refused_where_one_is_asked_for():
    config = PreparationConfig(**{**vars(CONFIG), "remove_table": True})
    with pytest.raises(ValueError, match="found no object above -300 HU"):
        prepare_volume(np.full((8, 8, 8), -1000.0, dtype=np.float32), np.eye(4), config)


def test_radiographs_on_disk_take_the_place_of_rendered_ones(scan, tmp_path):
    pixels = {"frontal": np.full((48, 40), 20000, np.uint16), "lateral": np.full((24, 20), 65535, np.uint16)}
    paths = {view: tmp_path / f"{view}.png" for view in pixels}
    for view, image in pixels.items():
        Image.fromarray(image).save(paths[view])
    prepared = prepare_volume(*scan, CONFIG, paths)
    for view, image in pixels.items():
        np.testing.assert_array_equal(prepared.views[view], np.full((24, 20), image[0, 0]))
    with pytest.raises(ValueError, match=r"found no radiograph for \['lateral'\], expected one of each view"):
        prepare_volume(*scan, CONFIG, {"frontal": paths["frontal"]})


def test_the_files_of_a_subject_keep_volume_place_and_views(scan, tmp_path):
    prepared = prepare_volume(*scan, CONFIG)
    write_prepared(prepared, "a", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "a_frontal.png", "a_lateral.png"]
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine, prepared.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj), prepared.volume_hu.transpose(2, 1, 0))
    with Image.open(tmp_path / "a_frontal.png") as view:
        np.testing.assert_array_equal(np.asarray(view), prepared.views["frontal"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (8, 8)}, r"size: found \(8, 8\), expected 3 numbers above 0"),
        ({"spacing": (1.0, 0.0, 1.0)}, r"spacing: found \(1.0, 0.0, 1.0\), expected 3 numbers above 0"),
        ({"image_size": (8, -1)}, r"image_size: found \(8, -1\), expected 2 numbers above 0"),
        ({"center": "heart"}, r"center: found 'heart', expected one of \['scan', 'body'\]"),
        ({"hu_window": (300.0, -500.0)}, r"hu_window: found \(300.0, -500.0\), expected two numbers"),
        ({"views": ()}, r"views: found \[\], expected at least one and each once"),
        ({"views": ("frontal", "subject")}, r"views: found \['subject'\], which metadata.csv calls other columns by"),
        ({"oversampling": 0}, "oversampling: found 0, expected 1 or more"),
    ],
)
def test_malformed_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        PreparationConfig(**fields)


def test_scans_of_both_kinds_are_found_and_their_patients_told(tmp_path):
    phantom.write_series(tmp_path / "p1" / "deep" / "a", **SMALL)
    phantom.write_series(tmp_path / "p1" / "b", **SMALL)
    write_nifti(tmp_path / "p2" / "two.nii.gz")
    write_nifti(tmp_path / "p3" / "mask.nii.gz")
    write_nifti(tmp_path / ".hidden" / "three.nii.gz")
    (tmp_path / "notes.txt").write_text("")
    sources, num_ignored = find_scans(tmp_path, nifti_pattern="*two*")
    assert num_ignored == 2
    assert [source.kind for source in sources] == ["dicom", "dicom", "nifti"]
    assert [source.patient for source in sources] == [anonymous_name(phantom.PATIENT_ID)] * 2 + ["two"]
    assert len({source.subject for source in sources}) == len({source.key for source in sources}) == 3
    assert sources[2].subject == "two"
    of_folders, _ = find_scans(tmp_path, patient_from="folder", nifti_pattern="*two*")
    assert [source.patient for source in of_folders] == [anonymous_name("p1")] * 2 + [anonymous_name("p2")]
    assert [source.subject for source in find_scans(tmp_path, nifti_pattern="*two*")[0]] == [
        source.subject for source in sources
    ]


def test_nifti_files_of_one_name_are_not_taken_for_different_patients(tmp_path):
    for patient in ("p1", "p2"):
        write_nifti(tmp_path / patient / "ct.nii.gz")
    sources, _ = find_scans(tmp_path)
    assert all("found 2 files called 'ct', expected different names" in source.problem for source in sources)
    sources, _ = find_scans(tmp_path, patient_from="folder")
    assert [source.patient for source in sources] == [anonymous_name("p1"), anonymous_name("p2")]
    assert not any(source.problem for source in sources)


def test_both_kinds_of_scan_in_one_folder_are_of_one_patient(tmp_path):
    for folder in ("p1", "p2"):
        phantom.write_series(tmp_path / folder / "dicom", **SMALL, patient_id="the same in both")
        write_nifti(tmp_path / folder / "nifti" / "ct.nii.gz")
    sources, _ = find_scans(tmp_path, patient_from="folder", salt="s")
    names = [anonymous_name(folder, "s") for folder in ("p1", "p2") for _ in range(2)]
    assert [source.patient for source in sources] == names
    assert len({source.subject for source in sources}) == 4


def test_names_of_files_and_folders_are_not_to_be_guessed_from_keys_without_the_salt(tmp_path):
    write_nifti(tmp_path / "p1" / "ct.nii.gz")
    (tmp_path / "p1" / "cut.dcm").touch()
    keys = [{source.key for source in find_scans(tmp_path, salt=salt)[0]} for salt in ("", "secret")]
    assert len(keys[0]) == 2
    assert not keys[0] & keys[1]


def test_linked_folders_are_searched_once(tmp_path):
    write_nifti(tmp_path / "elsewhere" / "far.nii.gz")
    write_nifti(tmp_path / "scans" / "near.nii.gz")
    for name in ("a", "b"):
        (tmp_path / "scans" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "scans")
    sources, num_ignored = find_scans(tmp_path / "scans")
    assert [source.name for source in sources] == ["a/far.nii.gz", "near.nii.gz"]
    assert not any(source.problem for source in sources)
    assert num_ignored == 0


def test_a_folder_without_scans_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="found no scan in 1 files, expected DICOM series or NIfTI files"):
        find_scans(tmp_path)
    with pytest.raises(ValueError, match="found no such folder, expected one with scans"):
        find_scans(tmp_path / "none")


def test_patients_are_renamed_by_either_of_their_names(tmp_path):
    phantom.write_series(tmp_path / "a", **SMALL)
    phantom.write_series(tmp_path / "b", **SMALL, patient_id="other")
    sources, _ = find_scans(tmp_path, salt="s")
    names = {phantom.PATIENT_ID: "first", anonymous_name("other", "s"): "second"}
    renamed = rename_patients(sources, names, "s")
    assert [source.patient for source in renamed] == ["first", "second"]
    assert all(source.subject.startswith(source.patient) for source in renamed)
    with pytest.raises(ValueError, match="found 2 patients to be named 'same', expected one"):
        rename_patients(sources, {"a": "same", "b": "same"})
    with pytest.raises(ValueError, match=r"to be named '../x', expected one and a name that can be a file's"):
        rename_patients(sources, {"a": "../x"})


@pytest.mark.parametrize("count", [3, 4, 10, 37, 1010])
@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.01, 0.495, 0.495)])
def test_splits_have_the_sizes_asked_for_and_none_is_empty(count, shares):
    fractions = dict(zip(("train", "validation", "test"), shares, strict=True))
    sizes = split_sizes(count, fractions)
    assert sum(sizes.values()) == count
    assert min(sizes.values()) >= 1
    assert all(abs(sizes[name] - fractions[name] * count) <= 2 for name in sizes)


def test_a_split_of_fraction_zero_stays_empty():
    assert split_sizes(5, {"train": 1.0, "validation": 0.0, "test": 0.0}) == {"train": 5, "validation": 0, "test": 0}


@pytest.mark.parametrize(
    ("count", "shares", "message"),
    [
        (2, (0.8, 0.1, 0.1), "found 2 patients, expected at least 3 to fill the splits"),
        (9, (0.8, 0.1, 0.2), r"fractions: found \[0.8, 0.1, 0.2\], expected shares that sum to 1"),
        (9, (1.2, -0.1, -0.1), "expected shares that sum to 1"),
    ],
)
def test_a_division_that_cannot_be_made_is_named(count, shares, message):
    with pytest.raises(ValueError, match=message):
        split_sizes(count, dict(zip(("train", "validation", "test"), shares, strict=True)))


def test_a_division_depends_on_the_seed_and_keeps_those_who_are_divided():
    fractions = {"train": 0.6, "validation": 0.2, "test": 0.2}
    patients = [f"p{number}" for number in range(20)]
    splits = assign_splits(patients, fractions, seed=0)
    assert splits == assign_splits(reversed(patients), fractions, seed=0)
    assert splits != assign_splits(patients, fractions, seed=1)
    assert sorted(splits.values()).count("test") == sorted(splits.values()).count("validation") == 4
    more = assign_splits([*patients, *(f"q{number}" for number in range(10))], fractions, seed=0, known=splits)
    assert {name: more[name] for name in patients} == splits
    assert list(more.values()).count("test") == list(more.values()).count("validation") == 6


def test_tables_of_patients_are_checked(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("patient,split,name\nA,train,\nB,test,bee\n")
    table = read_patient_table(path, ["split"])
    assert table == {"A": {"split": "train"}, "B": {"split": "test", "name": "bee"}}
    assert check_splits(table, path) == {"A": "train", "B": "test"}
    assert by_patient({"A": "train"}) == {"A": "train", anonymous_name("A"): "train"}
    for text, message in (
        ("patient\nA\n", r"found columns \['patient'\], expected \['split'\] too; add them"),
        ("patient,split\nA,train\nA,test\n", "found patient 'A' in row 3, expected each patient once"),
        ("patient,split\n,train\n", "found patient '' in row 2, expected each patient once"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_patient_table(path, ["split"])
    with pytest.raises(ValueError, match=r"found split 'dev' of patient 'A', expected one of \['train'"):
        check_splits({"A": {"split": "dev"}}, path)
    with pytest.raises(ValueError, match="found no such file, expected a CSV file"):
        read_patient_table(tmp_path / "none.csv", [])
