"""The search for the nearest code: exact up to rounding, indifferent to blocks, and small."""

import itertools
import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hf_vq.quantizers import nearest_codes, search

# Rows and codes below, at and above the borders of strips, tiles and blocks.
ROWS = [0, 1, 47, 48, 49, 1056, 1057, 2500]
CODEBOOKS = [(1, 1), (2, 1), (2, 5), (33, 3), (1000, 8), (1024, 4), (1025, 4), (3000, 65)]


def distances(vectors, codebook):
    """Float64 squared distances by the definition, `(N, K)`, a few rows at a time."""
    rows = vectors.double().split(64)
    parts = [(part[:, None] - codebook.double()).square().sum(-1) for part in rows]
    return torch.cat(parts) if parts else torch.empty(0, len(codebook), dtype=torch.float64)


def assert_nearest(codes, vectors, codebook, tolerance):
    """Each chosen code is as near as the nearest, up to `tolerance` times the squared spread of the problem."""
    all_distances = distances(vectors, codebook)
    chosen = all_distances.gather(1, codes[:, None]).squeeze(1)
    centred = vectors.double() - codebook.double().mean(0)
    scale = centred.square().sum(1) + codebook.double().var(0, correction=0).sum()
    assert bool((chosen - all_distances.min(dim=1).values <= tolerance * scale).all())


@pytest.fixture(params=["tiles", "blocks"])
def find_codes(request):
    """The search as it runs on a CPU, and as it runs on accelerators and in compiled graphs."""
    if request.param == "tiles":
        return nearest_codes
    return compiled()


def compiled():
    torch.compiler.reset()  # it stops compiling a function anew after a few shapes
    return torch.compile(nearest_codes, backend="eager", fullgraph=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("num_codes", "channels"), CODEBOOKS)
def test_codes_are_the_nearest(rows, num_codes, channels, generator):
    vectors = torch.randn(min(rows, 400) if num_codes > 2000 else rows, channels, generator=generator)
    codebook = torch.randn(num_codes, channels, generator=generator)
    codes = nearest_codes(vectors, codebook)
    assert codes.dtype == torch.int64
    assert codes.shape == vectors.shape[:1]
    assert_nearest(codes, vectors, codebook, 1e-5)


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_codes_are_the_nearest_everywhere(find_codes, rows, generator):
    vectors, codebook = torch.randn(rows, 4, generator=generator), torch.randn(1100, 4, generator=generator)
    codes = find_codes(vectors, codebook)
    assert codes.shape == (rows,)
    assert_nearest(codes, vectors, codebook, 1e-5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_number_of_threads_does_not_matter(threads, generator):
    vectors, codebook = torch.randn(3000, 16, generator=generator), torch.randn(1500, 16, generator=generator)
    expected, before = nearest_codes(vectors, codebook), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(nearest_codes(vectors, codebook), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("vector_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("codebook_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_accuracy_is_float32_or_better_under_autocast(vector_dtype, codebook_dtype, find_codes, generator):
    vectors = (300 * torch.randn(200, 8, generator=generator)).to(vector_dtype)  # 300^2 overflows float16
    codebook = (300 * torch.randn(50, 8, generator=generator)).to(codebook_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = find_codes(vectors, codebook)
    assert_nearest(codes, vectors, codebook, 1e-13 if torch.float64 in (vector_dtype, codebook_dtype) else 1e-6)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_accuracy_holds_far_from_the_origin(offset, find_codes, generator):
    vectors = offset + torch.randn(500, 6, generator=generator)
    codebook = offset + torch.randn(64, 6, generator=generator)
    assert_nearest(find_codes(vectors, codebook), vectors, codebook, 1e-5)


@pytest.mark.parametrize("num_codes", [2, 40, 5000])
def test_lowest_index_wins_a_tie(num_codes, find_codes, generator):
    codebook = torch.randint(-3, 4, (num_codes, 3), generator=generator).float()
    codebook = torch.cat((codebook, -codebook))  # mean 0: every score is a whole number or a half, so exact
    vectors = torch.randint(-3, 4, (500, 3), generator=generator).float()
    expected = torch.cat([(part[:, None] - codebook).square().sum(-1).argmin(1) for part in vectors.split(50)])
    assert torch.equal(find_codes(vectors, codebook), expected)


@pytest.mark.parametrize(("num_codes", "channels"), [(33, 3), (777, 9), (2048, 64)])
def test_equal_vectors_get_equal_codes_wherever_they_stand(num_codes, channels, generator):
    # Codes in close pairs: nearly all vectors lie so near to a border that rounding alone decides.
    codebook = torch.randn(num_codes, channels, generator=generator)
    codebook[1::2] = codebook[: num_codes // 2 * 2 : 2] * (1 + 1e-7)
    vectors = torch.randn(61, channels, generator=generator)
    alone = torch.cat([nearest_codes(vector[None], codebook) for vector in vectors])
    together = nearest_codes(vectors.repeat(70, 1), codebook).view(70, 61)
    assert bool((together == alone).all())


def test_search_in_many_blocks_equals_search_in_one(monkeypatch, generator):
    vectors, codebook = torch.randn(1000, 4, generator=generator), torch.randn(133, 4, generator=generator)
    whole = nearest_codes(vectors, codebook)
    for name, value in {"TILE_CODES": 10, "STRIPS_PER_THREAD": 1, "STRIP": 16, "BLOCK_ELEMENTS": 133 * 7}.items():
        monkeypatch.setattr(search, name, value)
        assert torch.equal(nearest_codes(vectors, codebook), whole)
    assert torch.equal(compiled()(vectors[:50], codebook), whole[:50])


def test_strides_of_the_vectors_do_not_matter(generator):
    features = torch.randn(2, 6, 700, generator=generator)
    codebook = torch.randn(20, 12, generator=generator)[:, ::2]
    vectors = features[1].T
    assert torch.equal(nearest_codes(vectors, codebook), nearest_codes(vectors.contiguous(), codebook.contiguous()))


@pytest.mark.parametrize("num_codes", [1, 3, 2500])
def test_numbers_that_are_not_finite_stay_in_range_and_in_their_row(num_codes, find_codes, generator):
    vectors, codebook = torch.randn(200, 4, generator=generator), torch.randn(num_codes, 4, generator=generator)
    expected = find_codes(vectors, codebook)
    broken = vectors.clone()
    broken[3], broken[50, 2], broken[70], broken[90] = torch.nan, torch.inf, -torch.inf, 1e38
    codes = find_codes(broken, codebook)
    assert bool(((codes >= 0) & (codes < num_codes)).all())
    whole = broken.eq(vectors).all(dim=1)
    assert torch.equal(codes[whole], expected[whole])


def test_no_gradient_is_recorded(generator):
    vectors = torch.randn(10, 4, generator=generator, requires_grad=True)
    assert not nearest_codes(vectors, torch.randn(5, 4, generator=generator, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("vectors", "codebook"), [((4, 3), (5, 2)), ((4,), (5, 4)), ((2, 4, 3), (5, 3)), ((4, 3), (0, 3)), ((4, 3), (3,))]
)
def test_shapes_that_do_not_fit_are_named(vectors, codebook):
    with pytest.raises(ValueError, match="vectors must be") as error:
        nearest_codes(torch.zeros(vectors), torch.zeros(codebook))
    assert str(vectors) in str(error.value)
    assert str(codebook) in str(error.value)


def peak_bytes(function, folder):
    """The most memory that tensors made inside `function` take at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_does_not_grow_with_the_number_of_vectors(dtype, tmp_path, generator):
    threads = min(torch.get_num_threads(), search.MAX_TILE_THREADS)
    codebook, rows = torch.randn(1200, 4, generator=generator), (9000, 40000)
    peaks = []
    for count in rows:
        vectors = torch.randn(count, 4, generator=generator).to(dtype)
        peaks.append(peak_bytes(lambda vectors=vectors: nearest_codes(vectors, codebook), tmp_path))
    tile = 4 * search.TILE_CODES * search.STRIPS_PER_THREAD * search.STRIP * threads
    assert tile <= peaks[0] < 2 * tile
    assert peaks[1] - peaks[0] == 8 * (rows[1] - rows[0])  # the result
