"""`hf-vq reconstruct` with small untrained tokenizers: geometry, figures, codes, and what is refused."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from hf_vq import CTVolumeProcessor, VQTokenizer, XrayImageProcessor
from hf_vq.commands.reconstruct import codes_in_use, main
from hf_vq.evaluation import mae_hu, psnr_3d, ssim_3d

PHANTOM = Path(__file__).parents[1] / "data" / "dicom_phantom.py"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A CT of 20 x 18 x 24 voxels of 2.5 mm, stored LPS, somewhere in the world."""
    random = np.random.default_rng(0).integers(-900, 300, (5, 6, 6)).repeat(4, 0).repeat(3, 1).repeat(4, 2)
    affine = np.diag([-2.5, -2.5, 2.5, 1.0])
    affine[:3, 3] = 40, 130, -700
    nibabel.Nifti1Image(random.astype(np.int16), affine).to_filename(tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def xray(tmp_path: Path) -> Path:
    """A 16-bit grey image of 40 x 30 pixels."""
    pixels = np.random.default_rng(0).integers(0, 65535, (10, 10)).repeat(4, 0).repeat(3, 1)
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "xray.png")
    return tmp_path / "xray.png"


def reconstruct(tokenizer: Path, source: Path, output: Path, *flags: object) -> Path:
    main([str(flag) for flag in ("--tokenizer", tokenizer, "--input", source, "--output", output, *flags)])
    return output


def numbers(text: str, pattern: str) -> list[float]:
    """The numbers that the groups of a pattern find in the output."""
    found = re.search(pattern, text)
    assert found, text
    return [float(number) for number in found.groups()]


def by_hand(tokenizer: Path, scan: Path) -> tuple[torch.Tensor, np.ndarray, np.ndarray, nibabel.Nifti1Image]:
    """Codes, HU that the model sees and makes, and the reconstruction, step by step."""
    model, processor = VQTokenizer.from_pretrained(tokenizer).eval(), CTVolumeProcessor.from_pretrained(tokenizer)
    inputs = processor(scan)
    with torch.no_grad():
        codes = model.encode(inputs["pixel_values"]).codes
        sample = model.decode(codes).sample
    seen, made = (processor.postprocess(values, "hu")[0] for values in (inputs["pixel_values"], sample))
    return codes[0], seen, made, processor.postprocess(sample, geometry=inputs["geometry"])[0]


def test_a_volume_comes_back_on_its_own_grid_with_its_figures(volume_tokenizer, scan, tmp_path, capsys):
    output = reconstruct(volume_tokenizer, scan, tmp_path / "out.nii.gz", "--codes", tmp_path / "codes.npz")
    codes, seen, made, expected = by_hand(volume_tokenizer, scan)
    written, original = nibabel.load(output), nibabel.load(scan)
    np.testing.assert_array_equal(written.affine, original.affine)
    np.testing.assert_array_equal(written.dataobj, expected.dataobj)
    text = capsys.readouterr().out
    assert f"3 x 3 x 3 codes, {len(codes.unique())} of 11 in use" in text
    assert "window -1000 to 1000 HU" in text
    own = r"model's grid 12 x 12 x 12: PSNR (\S+) dB, SSIM (\S+), MAE (\S+) HU"
    scores = (psnr_3d(seen, made), ssim_3d(seen, made), mae_hu(seen, made))
    assert numbers(text, own) == pytest.approx(scores, abs=0.06)
    whole = (np.asarray(original.dataobj), np.asarray(written.dataobj))
    figures = numbers(text, r"input's grid 20 x 18 x 24: PSNR (\S+) dB, MAE (\S+) HU")
    assert figures == pytest.approx((psnr_3d(*whole), mae_hu(*whole)), abs=0.06)
    with np.load(tmp_path / "codes.npz") as saved:
        np.testing.assert_array_equal(saved["codes"], codes)
        assert saved["codebook_size"] == 11


def test_codes_as_safetensors_decode_to_the_reconstruction(volume_tokenizer, scan, tmp_path):
    reconstruct(volume_tokenizer, scan, tmp_path / "out.nii", "--codes", tmp_path / "codes.safetensors")
    codes, _, made, _ = by_hand(volume_tokenizer, scan)
    with safe_open(tmp_path / "codes.safetensors", "pt") as file:
        assert file.metadata() == {"codebook_size": "11"}
        saved = file.get_tensor("codes")
    assert torch.equal(saved.long(), codes)
    model, processor = (kind.from_pretrained(volume_tokenizer) for kind in (VQTokenizer, CTVolumeProcessor))
    with torch.no_grad():
        decoded = model.eval().decode(saved.long()[None]).sample
    np.testing.assert_allclose(processor.postprocess(decoded, "hu")[0], made, atol=1e-3)


def test_a_dicom_series_is_a_volume_and_two_are_not(volume_tokenizer, tmp_path):
    spec = importlib.util.spec_from_file_location("dicom_phantom", PHANTOM)
    phantom = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(phantom)
    first = phantom.write_series(tmp_path / "scans" / "first", shape=(16, 14, 12), spacing=(3.0, 3.0, 4.0))
    output = reconstruct(volume_tokenizer, first, tmp_path / "out.nii.gz")
    image = nibabel.load(output)
    assert image.shape == (16, 14, 12)
    np.testing.assert_allclose(nibabel.affines.voxel_sizes(image.affine), [3, 3, 4])
    phantom.write_series(tmp_path / "scans" / "second", shape=(16, 14, 12), spacing=(3.0, 3.0, 4.0))
    with pytest.raises(ValueError, match=r"found 2 DICOM series \(.*\), expected exactly one"):
        reconstruct(volume_tokenizer, tmp_path / "scans", tmp_path / "both.nii.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found 0 DICOM series, expected exactly one"):
        reconstruct(volume_tokenizer, tmp_path / "empty", tmp_path / "none.nii.gz")


def test_a_pipeline_lends_the_tokenizer_of_the_input(pipeline, volume_tokenizer, view_tokenizer, scan, xray, tmp_path):
    whole = [
        reconstruct(source, scan, tmp_path / f"{source.parent.name}.nii") for source in (pipeline, volume_tokenizer)
    ]
    np.testing.assert_array_equal(*(nibabel.load(path).dataobj for path in whole))
    flat = [reconstruct(source, xray, tmp_path / f"{source.parent.name}.png") for source in (pipeline, view_tokenizer)]
    np.testing.assert_array_equal(*(np.asarray(Image.open(path)) for path in flat))


def test_an_xray_comes_back_with_16_bits_in_its_size(view_tokenizer, xray, tmp_path, capsys):
    image = Image.open(reconstruct(view_tokenizer, xray, tmp_path / "out.png"))
    assert (image.mode, image.size) == ("I;16", (30, 40))
    model, processor = (kind.from_pretrained(view_tokenizer) for kind in (VQTokenizer, XrayImageProcessor))
    pixel_values = processor(xray)["pixel_values"]
    with torch.no_grad():
        made = model.eval().decode(model.encode(pixel_values).codes).sample.clamp(-1, 1)
    text = capsys.readouterr().out
    (decibels,) = numbers(text, r"model's grid 16 x 16: PSNR (\S+) dB, SSIM \S+, MAE")
    assert decibels == pytest.approx(-10 * torch.log10(((made - pixel_values) / 2).square().mean()).item(), abs=0.01)
    assert "4 x 4 codes" in text
    smaller = np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float64) / 65535
    assert np.corrcoef(smaller.ravel(), made.flatten().numpy())[0, 1] > 0.9


def test_a_picture_comes_back_in_colour(picture_tokenizer, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    image = Image.open(reconstruct(picture_tokenizer, tmp_path / "picture.png", tmp_path / "out.png"))
    assert (image.mode, image.size) == ("RGB", (24, 20))
    Image.fromarray(np.zeros((20, 24), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: found more than 8 bits a channel"):
        reconstruct(picture_tokenizer, tmp_path / "deep.png", tmp_path / "again.png")


def test_small_grids_have_no_ssim(volume_tokenizer, scan, tmp_path, capsys):
    small = shutil.copytree(volume_tokenizer, tmp_path / "small")
    CTVolumeProcessor(size=[8, 8, 8], spacing=[6.0, 6.0, 6.0]).save_pretrained(small)
    reconstruct(small, scan, tmp_path / "out.nii")
    assert "SSIM none below 11 voxels a side" in capsys.readouterr().out


def test_tiles_change_nothing_but_the_memory(volume_tokenizer, scan, tmp_path, capsys):
    whole = nibabel.load(reconstruct(volume_tokenizer, scan, tmp_path / "whole.nii"))
    expected = capsys.readouterr().out.replace("whole.nii", "tiled.nii")
    tiled = nibabel.load(reconstruct(volume_tokenizer, scan, tmp_path / "tiled.nii", "--tile", 4))
    assert capsys.readouterr().out == expected
    np.testing.assert_allclose(tiled.get_fdata(), whole.get_fdata(), atol=1)  # rounded to whole HU
    with pytest.raises(ValueError, match=r"tile_sample_size=5 must be .* multiple of the downsampling factor 4"):
        reconstruct(volume_tokenizer, scan, tmp_path / "no.nii", "--tile", 5)


def test_codes_of_several_codebooks_count_apart():
    codes = torch.tensor([[[0, 1], [1, 1]], [[0, 1], [2, 3]]])
    assert codes_in_use(codes, num_codebooks=2) == 6
    assert codes_in_use(codes[1], num_codebooks=1) == 4


def test_what_cannot_be_done_is_refused_in_one_line(volume_tokenizer, view_tokenizer, scan, xray, tmp_path):
    bare = shutil.copytree(
        volume_tokenizer, tmp_path / "bare", ignore=shutil.ignore_patterns("preprocessor_config.json")
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    before = sorted(path.name for path in tmp_path.iterdir())
    out = tmp_path / "out"
    cases = [
        (volume_tokenizer, tmp_path / "no.nii.gz", f"{out}.nii", "found no such file or folder"),
        (volume_tokenizer, scan, f"{out}.png", r"--output: found .*out\.png, expected a name with \.nii\.gz or \.nii"),
        (view_tokenizer, xray, f"{out}.nii.gz", r"expected a name with \.png"),
        (
            volume_tokenizer,
            xray,
            f"{out}.png",
            "found a 3D tokenizer and an image as --input, expected a volume",
        ),
        (view_tokenizer, scan, f"{out}.nii", "found a 2D tokenizer and a volume as --input, expected an image"),
        (bare, scan, f"{out}.nii", r"found no preprocessor_config\.json beside the tokenizer"),
        (other, scan, f"{out}.nii", "found a DDPMPipeline, expected a tokenizer"),
        (tmp_path / "nowhere", scan, f"{out}.nii", "found no such folder"),
        (volume_tokenizer, scan, scan, "found a file, expected a new name"),
    ]
    for tokenizer, source, output, words in cases:
        with pytest.raises(ValueError, match=words) as error:
            reconstruct(tokenizer, source, output)
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
