"""A scan through the volume tokenizer."""

import numpy as np
import pytest
import torch

from hf_vq.app.reconstruction import reconstruct
from hf_vq.evaluation.volumes import GridVolume
from hf_vq.processors.geometry import grid_affine


@pytest.fixture(scope="module")
def pipeline(build_pipeline):
    return build_pipeline()


def scan_of(shape, spacing):
    hu = np.random.default_rng(0).uniform(-1500, 1500, shape).astype(np.float32)
    return GridVolume(hu, grid_affine(shape, spacing))


def test_a_scan_on_the_models_grid_is_only_clipped(pipeline):
    scan = scan_of((12, 16, 20), (10.0, 10.0, 10.0))
    result = reconstruct(pipeline, scan)
    np.testing.assert_allclose(result.scan.hu, scan.hu.clip(-1000, 1000), atol=0.01)
    np.testing.assert_allclose(result.scan.affine, scan.affine)
    assert result.codes.shape == (3, 4, 5)
    assert result.num_codes_used == len(set(result.codes.ravel().tolist()))


def test_the_reconstruction_comes_from_the_codes_alone(pipeline):
    result = reconstruct(pipeline, scan_of((12, 16, 20), (10.0, 10.0, 10.0)))
    with torch.no_grad():
        decoded = pipeline.volume_tokenizer.decode(torch.from_numpy(result.codes)[None]).sample
    expected = decoded.clamp(-1, 1)[0, 0].numpy() * 1000
    np.testing.assert_allclose(result.reconstructed.hu, expected, atol=0.01)


def test_any_scan_is_brought_to_the_models_grid(pipeline):
    result = reconstruct(pipeline, scan_of((9, 30, 24), (20.0, 5.0, 7.0)))
    assert result.scan.hu.shape == result.reconstructed.hu.shape == (12, 16, 20)
    assert result.scan.spacing == (10, 10, 10)


def test_the_figures_are_those_of_their_definitions(pipeline):
    result = reconstruct(pipeline, scan_of((12, 16, 20), (10.0, 10.0, 10.0)))
    difference = result.scan.hu.astype(np.float64) - result.reconstructed.hu
    psnr = 10 * np.log10(2000**2 / np.square(difference).mean())
    text = result.summary()
    assert f"PSNR {psnr:.2f} dB" in text
    assert f"mean absolute error {np.abs(difference).mean():.0f} HU" in text
    assert "12 x 16 x 20 voxels of 10 x 10 x 10 mm, window [-1000, 1000] HU" in text
    assert f"60 codes (3 x 4 x 5), **{result.num_codes_used} different ones** of the codebook's 11" in text


def test_a_scan_that_does_not_fit_is_refused_in_words(build_pipeline):
    pipeline = build_pipeline()
    pipeline.volume_processor.size = None
    with pytest.raises(ValueError, match="multiples of 4"):
        reconstruct(pipeline, scan_of((9, 16, 20), (10.0, 10.0, 10.0)))
