"""Encoding and decoding in tiles: the result of the whole, inputs and outputs in files, what is refused."""

import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tokenizers import AUTHORS, QUANTIZER, SMALL
from torch import nn

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.models import activations
from hf_vq.models.activations import Moments, boxes
from hf_vq.models.tiling import shares, spans

CASES = {
    "2d": {"spatial_dims": 2},
    "3d": {"spatial_dims": 3},
    "3d, full-resolution stem": {"spatial_dims": 3, "stem_stride": 1},
    "2d, attention": {"spatial_dims": 2, "attention_levels": [0, 1], "mid_attention": True, "in_channels": 3},
    "3d, strides": {"spatial_dims": 3, "level_strides": [3], "stem_stride": 2},
    "2d, depthwise blocks": {"spatial_dims": 2, "encoder_block_type": "depthwise", "output_activation": None},
    "2d, nearest resampling": {
        "spatial_dims": 2,
        "stem_stride": 1,
        "resampling": "nearest",
        "channel_multipliers": [2, 1, 3],
    },
    "3d, as the ICCV 2023 authors": {"spatial_dims": 3, **AUTHORS},
}
GRID = (3, 5, 2)


def make_model(dtype=torch.float64, **fields):
    """A tokenizer whose parameters, norms and biases too, are not what they are initialised to."""
    torch.manual_seed(0)
    model = VQTokenizer(VQTokenizerConfig(**{**SMALL, **fields})).eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_input(model, grid=GRID, batch=2):
    config = model.config
    sides = [config.downsampling_factor * side for side in grid[: config.spatial_dims]]
    return torch.randn(batch, config.in_channels, *sides, dtype=model.dtype)


@torch.no_grad()
def both(model, pixel_values):
    """Latents, codes and reconstruction."""
    output = model.encode(pixel_values)
    return output.latents, output.codes, model.decode(output.codes).sample


@pytest.mark.parametrize(("codes_per_tile", "largest_in_memory"), [(1, 1 << 40), (2, 0), ((2, 1, 3), 0)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_exact_tiles_give_the_result_of_the_whole(name, codes_per_tile, largest_in_memory, monkeypatch):
    monkeypatch.setattr(activations, "LARGEST_IN_MEMORY", largest_in_memory)
    model = make_model(**CASES[name])
    pixel_values = make_input(model)
    expected = both(model, pixel_values)
    tile = torch.tensor(codes_per_tile) * model.config.downsampling_factor
    model.enable_tiling(tile.tolist() if tile.ndim == 0 else tile.tolist()[: model.config.spatial_dims])
    latents, codes, sample = both(model, pixel_values)
    torch.testing.assert_close(latents, expected[0], rtol=0, atol=1e-12)
    assert torch.equal(codes, expected[1])
    torch.testing.assert_close(sample, expected[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.encode_latents(pixel_values), latents, rtol=0, atol=0)
    model.disable_tiling()
    assert all(torch.equal(a, b) for a, b in zip(both(model, pixel_values), expected, strict=True))


@pytest.mark.parametrize("mode", ["exact", "blended"])
@pytest.mark.parametrize(
    ("quantizer", "axes"),
    [
        ({"quantizer_type": "finite_scalar", "levels": [4, 3]}, ()),
        ({"quantizer_type": "lookup_free", "codebook_dim": 5}, ()),
        ({**QUANTIZER, "structure": "grouped", "num_codebooks": 2}, (2,)),
        ({**QUANTIZER, "structure": "residual", "num_codebooks": 3}, (3,)),
    ],
)
def test_every_quantizer_works_in_tiles(quantizer, axes, mode):
    model = make_model(spatial_dims=2, quantizer=quantizer)
    pixel_values = make_input(model)
    expected = both(model, pixel_values)
    model.enable_tiling(8, mode=mode)
    _, codes, sample = both(model, pixel_values)
    assert codes.shape == (2, *axes, *GRID[:2])
    assert sample.shape == pixel_values.shape
    if mode == "exact":
        assert torch.equal(codes, expected[1])
        torch.testing.assert_close(sample, expected[2])


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(autocast):
    model = make_model(torch.float32 if autocast else torch.bfloat16, spatial_dims=3, mid_attention=True)
    pixel_values = make_input(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        latents, _, sample = both(model, pixel_values)
        codes = model.encode(pixel_values).codes
        model.enable_tiling(8)
        tiled_latents = model.encode(pixel_values).latents
        tiled_sample = model.decode(codes).sample
    for tiled, whole in ((tiled_latents, latents), (tiled_sample, sample)):
        assert tiled.dtype == whole.dtype
        # A few roundings to 8 bits apart, on values of about 1.
        assert float((tiled - whole).abs().mean()) < 0.02 * float(whole.abs().mean())


def test_statistics_far_from_zero_stay_accurate():
    norm, tensor = nn.GroupNorm(2, 6, eps=1e-6), 1e3 + torch.randn(1, 6, 7, 9)
    moments = Moments()
    for box in boxes((7, 9), (3, 4)):
        moments.add(tensor[(..., *box)])
    factor, summand = moments.normalization(norm)
    double = norm.double()(tensor.double())
    whole = tensor.double() * factor.double().view(-1, 1, 1) + summand.double().view(-1, 1, 1)
    torch.testing.assert_close(whole, double, rtol=0, atol=2e-3)  # float32 holds 1000 to 6e-5


def test_volume_and_reconstruction_in_files(tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "LARGEST_IN_MEMORY", 0)
    model = make_model(torch.float32, spatial_dims=3)
    pixel_values = make_input(model, batch=1)
    np.save(tmp_path / "volume.npy", pixel_values.numpy())
    stored = torch.from_numpy(np.load(tmp_path / "volume.npy", mmap_mode="c"))
    spill = tmp_path / "spill"
    spill.mkdir()
    _, codes, sample = both(model, pixel_values)
    model.enable_tiling(8, spill_dir=spill)
    assert torch.equal(model.encode(stored).codes, codes)
    made = model.decode(codes).sample
    torch.testing.assert_close(made, sample)
    assert str(spill) in Path("/proc/self/maps").read_text()
    assert not any(spill.iterdir())  # a file without a name, which nobody has to remove
    out = torch.from_numpy(np.memmap(tmp_path / "out.raw", np.float32, "w+", shape=tuple(pixel_values.shape)))
    assert model.decode_into(codes, out) is out
    torch.testing.assert_close(torch.from_numpy(np.fromfile(tmp_path / "out.raw", np.float32)), sample.flatten())
    del made
    assert str(spill) not in Path("/proc/self/maps").read_text()


def test_what_spill_dir_cannot_hold_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "LARGEST_IN_MEMORY", 0)
    model = make_model(spatial_dims=2)
    model.enable_tiling(8, spill_dir=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(OSError, match=r"found no room for a feature map of .* bytes .*spill_dir"):
            model.encode(make_input(model))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_decode_into_without_tiling():
    model = make_model(spatial_dims=2)
    codes = torch.randint(16, (2, *GRID[:2]))
    out = torch.empty(2, 1, 12, 20)
    model.decode_into(codes, out)
    torch.testing.assert_close(out, model.decode(codes).sample.float())


@pytest.mark.parametrize(
    ("side", "tile", "overlap"), [(9, 4, 1), (9, 4, 2), (5, 4, 2), (7, 3, 1), (3, 4, 2), (2, 4, 2), (4, 4, 0)]
)
@pytest.mark.parametrize("factor", [1, 4])
def test_blended_tiles_cover_a_side_and_share_it(side, tile, overlap, factor):
    tiles = spans(side, tile, overlap)
    assert (tiles[0].start, tiles[-1].stop) == (0, side)
    assert (tiles[0].first, tiles[-1].last) == (0, side)
    for before, after in itertools.pairwise(tiles):
        assert before.stop - before.start <= tile
        assert before.stop - after.start >= overlap
        assert before.last == after.first
        # A code is taken from the tile in which it lies farther from the cut.
        assert abs((before.stop - before.last) - (after.first - after.start)) <= 1
    total = torch.zeros(side * factor, dtype=torch.float64)
    for part, share in zip(tiles, shares(tiles, factor), strict=True):
        assert bool((share > 0).all())
        total[part.start * factor : part.stop * factor] += share
    torch.testing.assert_close(total, torch.ones_like(total))


def test_blended_tiles_give_the_result_of_the_whole_where_their_statistics_do():
    model = make_model(spatial_dims=2)
    for network in (model.encoder, model.decoder):
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.GroupNorm):
                network.set_submodule(name, nn.Identity())
    pixel_values = make_input(model, (40, 40), batch=1)
    latents, codes, sample = both(model, pixel_values)
    # A code depends on 7 codes around it, 6 by convolutions at the codes' scale and less than 1 by finer ones.
    model.enable_tiling(4 * 28, overlap=4 * 14, mode="blended")
    tiled = both(model, pixel_values)
    torch.testing.assert_close(tiled[0], latents)
    assert torch.equal(tiled[1], codes)
    alone = (..., slice(0, 4 * 5), slice(0, 4 * 5))  # in the first tile only, out of reach of its ends
    torch.testing.assert_close(tiled[2][alone], sample[alone])


def test_blended_tiles_have_their_own_statistics_and_no_seams():
    model = make_model(spatial_dims=3)
    pixel_values = make_input(model, (4, 2, 2), batch=1)
    model.enable_tiling(8, overlap=0, mode="blended")
    tiled = model.encode(pixel_values)
    model.disable_tiling()
    halves = [model.encode(half).codes for half in pixel_values.split(8, dim=2)]
    assert torch.equal(tiled.codes, torch.cat(halves, dim=1))


@pytest.mark.parametrize("mode", ["exact", "blended"])
def test_what_fits_into_one_tile_is_taken_whole(mode):
    model = make_model(spatial_dims=3)
    pixel_values = make_input(model, (2, 2, 2))
    expected = both(model, pixel_values)
    model.enable_tiling(8, mode=mode)
    assert all(torch.equal(a, b) for a, b in zip(both(model, pixel_values), expected, strict=True))


def test_an_empty_batch_stays_one():
    model = make_model(spatial_dims=2)
    model.enable_tiling(8)
    latents, codes, sample = both(model, make_input(model, batch=0))
    assert (latents.shape, codes.shape, sample.shape) == ((0, 4, 3, 5), (0, 3, 5), (0, 1, 12, 20))


def test_training_mode_and_forward_take_an_input_whole():
    model = make_model(spatial_dims=2)
    pixel_values = make_input(model)
    expected = model(pixel_values, output_hidden_states=True)
    latents = model.encode_latents(pixel_values)
    model.enable_tiling(8)
    tiled = model(pixel_values, output_hidden_states=True)
    assert torch.equal(tiled.sample, expected.sample)
    assert len(tiled.hidden_states) == len(expected.hidden_states)
    assert not model.encode_latents(pixel_values).requires_grad
    model.train()
    trained = model.encode_latents(pixel_values)
    assert torch.equal(trained, latents)
    assert trained.requires_grad


def test_defaults():
    model = make_model(spatial_dims=3)
    assert model.tiling is None
    model.enable_tiling()
    assert (model.tiling.tile, model.tiling.overlap, model.tiling.mode) == ((64, 64, 64), (0, 0, 0), "exact")
    model.enable_tiling(mode="blended")
    assert model.tiling.overlap == (16, 16, 16)
    model = make_model(spatial_dims=2, stem_stride=3)
    model.enable_tiling(18, mode="blended")
    assert (model.tiling.tile, model.tiling.overlap) == ((18, 18), (6, 6))
    model.disable_tiling()
    assert model.tiling is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tile_sample_size": 6}, "tile_sample_size=6 must be one integer or 2, each a multiple of .* factor 4"),
        ({"tile_sample_size": 0}, "tile_sample_size=0 .* at least 4"),
        ({"tile_sample_size": -8}, "tile_sample_size=-8"),
        ({"tile_sample_size": (8, 8, 8)}, r"tile_sample_size=\(8, 8, 8\)"),
        ({"tile_sample_size": 8.0}, r"tile_sample_size=8\.0"),
        ({"mode": "fast"}, "mode='fast' is unknown"),
        ({"overlap": 4}, "overlap=4 does not go with mode='exact'"),
        ({"mode": "blended", "overlap": 3}, "overlap=3 must be"),
        ({"mode": "blended", "tile_sample_size": 8, "overlap": 8}, "overlap=8 is more than half"),
        ({"spill_dir": "nowhere"}, "spill_dir='nowhere' is no folder"),
    ],
)
def test_what_does_not_fit_is_named(fields, words):
    model = make_model(spatial_dims=2)
    with pytest.raises(ValueError, match=words):
        model.enable_tiling(**fields)
    assert model.tiling is None


def test_true_is_no_size_of_a_tile():
    """diffusers' `enable_tiling` once took whether to do it; where codes are pixels, True would be tiles of one."""
    model = make_model(spatial_dims=2, stem_stride=1, channel_multipliers=[1])
    with pytest.raises(ValueError, match="tile_sample_size=True must be one integer"):
        model.enable_tiling(True)


@pytest.mark.parametrize("tiled", [True, False])
def test_bad_codes_and_outputs_are_named(tiled):
    model = make_model(spatial_dims=2)
    if tiled:
        model.enable_tiling(8)
    out = torch.full((1, 1, 12, 20), 7.0)
    with pytest.raises(ValueError, match=r"out must be .*\(1, 1, 12, 20\)"):
        model.decode_into(torch.zeros(1, 3, 5, dtype=torch.int64), out[..., :-1])
    with pytest.raises(ValueError, match=r"out must be a floating-point"):
        model.decode_into(torch.zeros(1, 3, 5, dtype=torch.int64), out.int())
    with pytest.raises(ValueError, match="grid axes"):
        model.decode_into(torch.zeros(3, 5, dtype=torch.int64), out)
    with pytest.raises(ValueError, match=r"grid axes of at least 1; got shape \(1, 0, 5\)"):
        model.decode(torch.zeros(1, 0, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="values from 0 to 16"):
        model.decode_into(torch.tensor([[[0, 16, 0, 0, 0]] * 3]), out)
    assert bool((out == 7).all())
    with pytest.raises(ValueError, match="multiples of 4"):
        model.encode(torch.zeros(1, 1, 12, 18, dtype=torch.float64))


def test_an_adapter_in_the_place_of_a_convolution_is_refused_by_exact_tiles():
    model = make_model(spatial_dims=2)
    model.encoder.blocks[1].conv1 = nn.Sequential(model.encoder.blocks[1].conv1)
    pixel_values = make_input(model)
    model.enable_tiling(8)
    with pytest.raises(ValueError, match="found a Sequential where it expected a convolution"):
        model.encode(pixel_values)
    model.enable_tiling(8, mode="blended")
    assert model.encode(pixel_values).codes.shape == (2, *GRID[:2])


def test_a_model_on_several_devices_is_refused_by_exact_tiles():
    model = make_model(spatial_dims=2)
    pixel_values = make_input(model)
    model.decoder.to("meta")
    model.enable_tiling(8)
    with pytest.raises(ValueError, match="found a tokenizer on cpu, meta"):
        model.encode(pixel_values)


@pytest.mark.slow
def test_memory_is_set_by_the_tile(tmp_path):
    """Two volumes of 200 and 400 slices, tokenizer of the 64^3 family: under 4 GB, and no more for the larger one."""
    script = Path(__file__).parents[2] / "scripts" / "benchmark_tiling.py"
    flags = ["--modes", "exact", "--sizes", "200,256,256", "400,256,256", "--output", str(tmp_path / "out.json")]
    subprocess.run([sys.executable, str(script), *flags], check=True)
    smaller, larger = json.loads((tmp_path / "out.json").read_text())["results"]
    for kind in ("own", "resident"):
        assert larger[kind] < 4e9
    assert larger["own"] < 1.1 * smaller["own"]
