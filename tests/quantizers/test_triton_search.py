"""The Triton kernel of the search: on a GPU where there is one, else in Triton's interpreter."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton has no build for this platform")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from hf_vq.quantizers import triton_search  # noqa: E402
from hf_vq.quantizers.triton_search import error_bound, make_keys, nearest_codes_kernel, search_pass  # noqa: E402

# Rows and codes below, at and above the borders of blocks (128 rows, 64 codes); channels in one block and in several.
SIZES = [(1, 4, 1), (5, 3, 2), (127, 8, 63), (128, 4, 64), (129, 16, 65), (130, 65, 300), (64, 128, 130), (40, 512, 70)]

PROGRAM = """
import itertools
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hf_vq.quantizers.triton_kernels import search_kernel
from hf_vq.quantizers.triton_search import kernel_runs, launch_shape

names = search_kernel.arg_names
types = {name: "*fp32" for name in names if not name.startswith(("num_", "codes_", "vector_s"))}
types |= {name: "i32" for name in names if name not in types}
types |= {"row_list": "*i64", "row_count": "*i64", "best_codes": "*i32", "num_channels": "constexpr"}
for capability, channels in itertools.product((86, 90), (8, 64, 512)):
    for listed in (False, True):
        launch = launch_shape(channels, listed)
        constants = {"num_channels": channels, "listed": listed, "BLOCK_ROWS": launch.rows,
                     "BLOCK_CODES": launch.codes, "BLOCK_CHANNELS": launch.channels}
        signature = {name: "constexpr" if name in constants else types[name] for name in names}
        source = ASTSource(search_kernel, signature, {(names.index(k),): v for k, v in constants.items()})
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        print(capability, channels, listed, "tf32" in kernel.asm["ptx"], kernel.metadata.shared)
print("on", "cpu", kernel_runs(torch.device("cpu")), kernel_runs(torch.device("cpu")))
"""


def distances(vectors, codebook):
    return (vectors.double()[:, None] - codebook.double()).square().sum(-1)


def assert_nearest(codes, vectors, codebook):
    """Each code is as near as the nearest in float64, up to the rounding of float32."""
    found = distances(vectors, codebook)
    excess = found.gather(1, codes[:, None]).squeeze(1) - found.min(dim=1).values
    scale = (vectors.double() - codebook.double().mean(0)).square().sum(1) + codebook.double().square().sum(1).max()
    assert bool((excess <= 1e-6 * scale).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_codes_are_the_nearest(size, dtype, generator):
    rows, channels, num_codes = size
    vectors = torch.randn(rows, channels, generator=generator).to(DEVICE, dtype)
    codebook = torch.randn(num_codes, channels, generator=generator).to(DEVICE)
    codes = nearest_codes_kernel(vectors, codebook)
    assert codes.dtype == torch.int64
    assert codes.shape == (rows,)
    assert_nearest(codes, vectors, codebook)


def test_near_ties_are_told_apart_in_float32(generator):
    """Codes closer to each other than TF32 can tell: its first pass is wrong, the result is not."""
    centres = torch.randn(8, 16, generator=generator)
    codebook = (centres.repeat(16, 1) + 1e-4 * torch.randn(128, 16, generator=generator)).to(DEVICE)
    vectors = codebook[torch.randint(128, (200,), generator=generator)] + 1e-5
    first = search_pass(vectors, make_keys(codebook)).codes
    nearest = distances(vectors, codebook).argmin(dim=1)
    assert int((first != nearest).sum()) > 20
    assert_nearest(nearest_codes_kernel(vectors, codebook), vectors, codebook)


def test_scores_are_off_by_no_more_than_the_bound(generator):
    vectors = 3 + torch.randn(200, 48, generator=generator).to(DEVICE)
    codebook = 3 + torch.randn(100, 48, generator=generator).to(DEVICE)
    keys = make_keys(codebook)
    found = search_pass(vectors, keys)
    shifted, exact = (vectors - keys.centre).double(), keys.exact.double()
    scores = shifted @ exact.T - exact.square().sum(dim=1) / 2
    off = (found.best - scores.gather(1, found.codes[:, None]).squeeze(1)).abs()
    bound = error_bound(found, keys, 48)
    assert bool((off <= bound).all())
    assert float(bound.max()) < 0.01 * float(scores.abs().max())


def test_far_from_the_origin_the_result_stays_exact(generator):
    vectors = 1000 + torch.randn(100, 8, generator=generator).to(DEVICE)
    codebook = 1000 + torch.randn(90, 8, generator=generator).to(DEVICE)
    nearest = distances(vectors, codebook).sort(dim=1)
    codes = nearest_codes_kernel(vectors, codebook)
    clear = nearest.values[:, 1] - nearest.values[:, 0] > 1e-3
    assert int(clear.sum()) > 90
    assert torch.equal(codes[clear], nearest.indices[clear, 0])


@pytest.mark.parametrize("num_rows", [3, 200])
def test_between_equal_codes_the_lowest_wins(num_rows, generator):
    """With few rows the codes are shared out among programs, with many they are not. Equal codes lie a block apart,
    where the interpreter's matrix product, too, rounds them alike."""
    codebook = torch.randn(64, 6, generator=generator).repeat(5, 1).to(DEVICE)
    picks = torch.randint(64, (num_rows,), generator=generator)
    assert nearest_codes_kernel(codebook[picks], codebook).tolist() == picks.tolist()


def test_shares_of_the_codes_give_what_one_program_finds(monkeypatch, generator):
    vectors = torch.randn(70, 5, generator=generator).to(DEVICE)
    codebook = torch.randn(700, 5, generator=generator).to(DEVICE)
    codes = []
    for programs in (1, 8):
        monkeypatch.setattr(triton_search, "_processors", lambda device, programs=programs: programs)
        codes.append(nearest_codes_kernel(vectors, codebook))
    assert torch.equal(*codes)


def test_vectors_that_are_no_numbers_get_some_code(generator):
    vectors = torch.randn(6, 4, generator=generator).to(DEVICE)
    vectors[1, 2], vectors[2, 0], vectors[3, 1] = torch.nan, torch.inf, -torch.inf
    codebook = torch.randn(9, 4, generator=generator).to(DEVICE)
    codes = nearest_codes_kernel(vectors, codebook)
    assert bool(((codes >= 0) & (codes < 9)).all())
    finite = vectors.isfinite().all(dim=1)
    assert_nearest(codes[finite], vectors[finite], codebook)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_are_float32_whatever_torch_makes_by_default(dtype, generator):
    vectors = torch.randn(50, 4, generator=generator).to(DEVICE)
    codebook = torch.randn(90, 4, generator=generator).to(DEVICE)
    expected = nearest_codes_kernel(vectors, codebook)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert search_pass(vectors, make_keys(codebook)).best.dtype == torch.float32
        assert torch.equal(nearest_codes_kernel(vectors, codebook), expected)
    finally:
        torch.set_default_dtype(usual)


def test_no_vectors_have_no_codes():
    assert nearest_codes_kernel(torch.zeros(0, 4, device=DEVICE), torch.zeros(3, 4, device=DEVICE)).shape == (0,)


def test_operator_passes_the_checks_of_torch(generator):
    vectors = torch.randn(20, 4, generator=generator).to(DEVICE)
    codebook = torch.randn(7, 4, generator=generator).to(DEVICE)
    torch.library.opcheck(nearest_codes_kernel, (vectors, codebook))


def test_operator_is_part_of_one_compiled_graph(generator):
    vectors = torch.randn(20, 4, generator=generator).to(DEVICE)
    codebook = torch.randn(7, 4, generator=generator).to(DEVICE)
    compiled = torch.compile(lambda *args: nearest_codes_kernel(*args) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(vectors, codebook), nearest_codes_kernel(vectors, codebook) + 1)


def test_cpu_tensors_and_wide_types_are_left_to_torch():
    assert not triton_search.is_supported(torch.zeros(4096, 4), torch.zeros(4096, 4))
    assert not triton_search.is_supported(torch.zeros(4096, 4).double(), torch.zeros(4096, 4))


@pytest.fixture(scope="module")
def without_interpreter():
    """What a program prints and warns of that has the real Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()], done.stderr


def test_kernel_compiles_for_gpus_within_their_shared_memory(without_interpreter):
    """Ahead of time, which needs no GPU, for compute capabilities with little (8.6; 8.9 and 12.0 have as much) and with
    much of it: TF32 in the first pass, none in the second."""
    rows = without_interpreter[0][:-1]
    expected = itertools.product(("86", "90"), ("8", "64", "512"), (False, True))
    assert [row[:4] for row in rows] == [[*sizes, str(listed), str(not listed)] for *sizes, listed in expected]
    limits = {"86": 99 * 1024, "90": 227 * 1024}
    assert all(int(row[4]) <= limits[row[0]] for row in rows)


def test_kernel_that_cannot_be_started_is_done_without(without_interpreter):
    assert triton_search.kernel_runs(torch.device(DEVICE))
    rows, warned = without_interpreter
    assert rows[-1] == ["on", "cpu", "False", "False"]
    assert warned.count("goes without its Triton kernel on cpu") == 1
