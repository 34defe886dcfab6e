"""Any pixels and codes: a reconstruction of the right shape, whole or in tiles, or an error naming the fault."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_vq import VQTokenizer, VQTokenizerConfig

K, FACTOR = 7, 4
seeds = st.integers(0, 2**31 - 1)
dims = st.sampled_from([2, 3])
batches = st.integers(0, 2)


@functools.cache
def make(axes):
    """A tokenizer of images or volumes with 2 channels and 7 codes."""
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        spatial_dims=axes,
        in_channels=2,
        base_channels=4,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        num_norm_groups=2,
        quantizer={"codebook_size": K, "codebook_dim": 3},
    )
    tokenizer = VQTokenizer(config).eval()
    tokenizer.quantizer.codebook.weight.data.normal_()
    return tokenizer


def sides(axes, smallest=1, largest=2):
    return st.tuples(*[st.integers(smallest, largest)] * axes)


def source(seed):
    return torch.Generator().manual_seed(seed)


@given(data=st.data(), axes=dims, batch=batches, seed=seeds, scale=st.sampled_from([0.0, 1e-20, 1.0, 1e4]))
def test_codes_and_reconstruction_have_the_shapes_of_the_grid(data, axes, batch, seed, scale):
    tokenizer, grid = make(axes), data.draw(sides(axes))
    pixels = torch.randn(batch, 2, *(FACTOR * side for side in grid), generator=source(seed)) * scale
    with torch.no_grad():
        encoded, output = tokenizer.encode(pixels), tokenizer(pixels)
    assert encoded.codes.shape == (batch, *grid)
    assert encoded.codes.dtype == torch.int64
    assert encoded.latents.shape == (batch, 3, *grid)
    assert bool(((encoded.codes >= 0) & (encoded.codes < K)).all())
    assert torch.equal(output.codes, encoded.codes)
    assert output.sample.shape == pixels.shape
    torch.testing.assert_close(output.sample, tokenizer.decode(encoded.codes).sample)
    if batch:
        expected = (output.sample - pixels).abs().mean() + output.quantizer_loss
        torch.testing.assert_close(output.loss, expected)


@given(data=st.data(), axes=dims, batch=st.integers(1, 2), mode=st.sampled_from(["exact", "blended"]), seed=seeds)
def test_tiles_change_nothing_in_exact_mode_and_no_shape_in_either(data, axes, batch, mode, seed):
    tokenizer, grid = make(axes), data.draw(sides(axes, largest=4))
    tile = [FACTOR * side for side in data.draw(sides(axes, largest=3))]
    pixels = torch.randn(batch, 2, *(FACTOR * side for side in grid), generator=source(seed))
    codes = torch.randint(0, K, (batch, *grid), generator=source(seed))
    with torch.no_grad():
        latents, sample = tokenizer.encode(pixels).latents, tokenizer.decode(codes).sample
        tokenizer.enable_tiling(tile, mode=mode)
        try:
            encoded, decoded = tokenizer.encode(pixels), tokenizer.decode(codes).sample
        finally:
            tokenizer.disable_tiling()
    assert encoded.codes.shape == codes.shape
    assert decoded.shape == pixels.shape
    if mode == "exact":
        torch.testing.assert_close(encoded.latents, latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(decoded, sample, rtol=1e-4, atol=1e-4)
    else:
        assert bool(decoded.isfinite().all())


@given(
    axes=dims,
    call=st.sampled_from(["encode", "encode_latents", "forward"]),
    channels=st.integers(0, 5).filter(lambda count: count != 2),
)
def test_another_number_of_channels_is_refused(axes, call, channels):
    with pytest.raises(ValueError, match=r"pixel_values must be \(B, 2, "):
        getattr(make(axes), call)(torch.zeros(1, channels, *[FACTOR] * axes))


@given(axes=dims, count=st.integers(0, 6), call=st.sampled_from(["encode", "encode_latents", "forward"]))
def test_another_number_of_axes_is_refused(axes, count, call):
    if count == axes + 2:
        return
    with pytest.raises(ValueError, match="pixel_values"):
        getattr(make(axes), call)(torch.zeros([2] * min(count, 2) + [FACTOR] * (count - 2)))


@given(data=st.data(), axes=dims, call=st.sampled_from(["encode", "encode_latents", "forward", "code_grid"]))
def test_sides_that_do_not_divide_are_refused(data, axes, call):
    wrong = data.draw(sides(axes, 0, 13).filter(lambda each: any(side % FACTOR or side == 0 for side in each)))
    argument = wrong if call == "code_grid" else torch.zeros(1, 2, *wrong)
    with pytest.raises(ValueError, match=f"multiples of {FACTOR}"):
        getattr(make(axes), call)(argument)


@given(axes=dims, bad=st.sampled_from([math.nan, math.inf, -math.inf]), place=st.integers(0, 15), tiled=st.booleans())
def test_pixels_that_are_not_finite_are_refused(axes, bad, place, tiled):
    tokenizer, pixels = make(axes), torch.zeros(1, 2, *[2 * FACTOR] * axes)
    pixels.view(-1)[place] = bad
    if tiled:
        tokenizer.enable_tiling(FACTOR)
    try:
        with pytest.raises(ValueError, match="NaN or infinite"):
            tokenizer.encode(pixels)
    finally:
        tokenizer.disable_tiling()


@given(axes=dims, dtype=st.sampled_from([torch.int64, torch.uint8, torch.bool, torch.complex64]), call=st.booleans())
def test_pixels_that_are_no_floats_are_refused(axes, dtype, call):
    with pytest.raises(ValueError, match=str(dtype)):
        getattr(make(axes), "encode" if call else "forward")(torch.zeros(1, 2, *[FACTOR] * axes, dtype=dtype))


@given(
    axes=dims,
    code=st.one_of(st.integers(-(2**60), -1), st.integers(K, 2**60)),
    place=st.integers(0, 3),
    tiled=st.booleans(),
)
def test_codes_out_of_range_and_masks_left_are_refused(axes, code, place, tiled):
    tokenizer, codes = make(axes), torch.zeros(1, *[2] * axes, dtype=torch.int64)
    codes.view(-1)[place] = code
    if tiled:
        tokenizer.enable_tiling(FACTOR)
    try:
        for call in (tokenizer.decode, tokenizer.embed_codes):
            with pytest.raises(ValueError, match=str(code)):
                call(codes)
    finally:
        tokenizer.disable_tiling()


@given(axes=dims, dtype=st.sampled_from([torch.float16, torch.float32, torch.float64, torch.bool, torch.complex64]))
def test_codes_that_are_no_integers_are_refused(axes, dtype):
    for call in (make(axes).decode, make(axes).embed_codes):
        with pytest.raises(ValueError, match=str(dtype)):
            call(torch.zeros(1, *[2] * axes, dtype=dtype))


@given(axes=dims, shape=st.lists(st.integers(0, 2), max_size=5))
def test_codes_of_another_shape_are_refused(axes, shape):
    codes = torch.zeros(shape, dtype=torch.int64)
    if len(shape) == axes + 1 and 0 not in shape[1:]:
        assert make(axes).decode(codes).sample.shape == (shape[0], 2, *(FACTOR * side for side in shape[1:]))
    else:
        with pytest.raises(ValueError, match="codes must be"):
            make(axes).decode(codes)


@given(axes=dims, shape=st.lists(st.integers(0, 9), max_size=5), dtype=st.sampled_from([torch.float32, torch.int64]))
def test_a_place_for_the_result_that_does_not_fit_is_refused(axes, shape, dtype):
    codes, right = torch.zeros(1, *[2] * axes, dtype=torch.int64), [1, 2, *[2 * FACTOR] * axes]
    for wrong in (shape, right):
        if wrong == right and dtype == torch.float32:
            continue
        with pytest.raises(ValueError, match="out must be"):
            make(axes).decode_into(codes, torch.zeros(wrong, dtype=dtype))


@given(
    axes=dims,
    tile=st.one_of(st.integers(-9, 9), st.lists(st.integers(-9, 9), max_size=4), st.floats(), st.text(), st.booleans()),
)
def test_tiles_that_make_no_sense_are_refused(axes, tile):
    each = tile if isinstance(tile, list) else [tile] * axes
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in each)
    if len(each) == axes and whole and all(side > 0 and side % FACTOR == 0 for side in each):
        make(axes).enable_tiling(tile)
        assert list(make(axes).tiling.tile) == each
        make(axes).disable_tiling()
    else:
        with pytest.raises(ValueError, match="tile_sample_size"):
            make(axes).enable_tiling(tile)
    assert make(axes).tiling is None


@given(axes=dims, mode=st.text(max_size=9).filter(lambda text: text not in ("exact", "blended")))
def test_unknown_modes_of_tiling_are_refused(axes, mode):
    with pytest.raises(ValueError, match="mode="):
        make(axes).enable_tiling(FACTOR, mode=mode)


@given(axes=dims, overlap=st.integers(-20, 20))
def test_overlaps_are_whole_codes_and_at_most_half_a_tile(axes, overlap):
    tokenizer = make(axes)
    if overlap % FACTOR == 0 and 0 <= overlap <= 8:
        tokenizer.enable_tiling(16, overlap=overlap, mode="blended")
        assert set(tokenizer.tiling.overlap) == {overlap}
        tokenizer.disable_tiling()
    else:
        with pytest.raises(ValueError, match="overlap="):
            tokenizer.enable_tiling(16, overlap=overlap, mode="blended")
