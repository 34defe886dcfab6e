"""The search for the nearest code as one Triton kernel: the N x K matrix of scores never leaves the registers."""

import importlib.util
import warnings
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import torch

TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None
# With fewer scores than this the whole matrix stays in an accelerator's cache, and three launches do.
MIN_SCORES = 1 << 22
MAX_CHANNELS = 512
MAX_CODES = 1 << 18
# Capability from which tensor cores multiply TF32 and bfloat16.
MIN_CAPABILITY = (8, 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Programs for each multiprocessor: with fewer, the codes are shared out among more programs.
PROGRAMS_PER_PROCESSOR = 2
# Accumulation in float32 of C products, relative to the sum of their sizes; tensor cores cut where others round.
ACCUMULATION_ERROR = 2.0**-22


class Launch(NamedTuple):
    """Shape of the blocks of one kernel launch."""

    rows: int
    codes: int
    channels: int
    warps: int
    stages: int


class Keys(NamedTuple):
    """A codebook as the kernel reads it.

    Attributes:
        exact: `(K, C)` float32, shifted by the centre.
        rounded: `(K, C)` float32, the same rounded to TF32, as the first pass multiplies it.
        bias: `(K,)` float32, `-|e|^2 / 2`.
        centre: `(C,)` float32, mean of the codes.
        greatest: scalar, greatest norm of an exact key.
        error: scalar, greatest norm of what the rounding of a key took away.
    """

    exact: torch.Tensor
    rounded: torch.Tensor
    bias: torch.Tensor
    centre: torch.Tensor
    greatest: torch.Tensor
    error: torch.Tensor


class Found(NamedTuple):
    """What one pass finds.

    Attributes:
        best: `(N,)` greatest score.
        second: `(N,)` second greatest score.
        codes: `(N,)` int64, the lowest code with the greatest score.
        row_norms: `(N,)` norms of the shifted and rounded vectors; zero in the second pass.
        row_errors: `(N,)` norms of what the rounding took away; zero in the second pass.
    """

    best: torch.Tensor
    second: torch.Tensor
    codes: torch.Tensor
    row_norms: torch.Tensor
    row_errors: torch.Tensor


def is_supported(vectors: torch.Tensor, codebook: torch.Tensor) -> bool:
    """Whether the kernel can do this search and is worth it: on a CUDA device with TF32, up to 512 channels and 262,144
    codes, in float32 or less.

    Args:
        vectors: `(N, C)`.
        codebook: `(K, C)`.
    """
    (num_rows, channels), num_codes = vectors.shape, codebook.shape[0]
    dtypes = vectors.dtype in DTYPES and codebook.dtype in DTYPES
    fits = channels <= MAX_CHANNELS and num_codes <= MAX_CODES
    return dtypes and fits and num_rows * num_codes >= MIN_SCORES and _device_has_kernel(vectors.device)


@torch.compiler.assume_constant_result
def _device_has_kernel(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None or not TRITON_IS_INSTALLED:
        return False
    return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY and kernel_runs(device)


@cache
def kernel_runs(device: torch.device) -> bool:
    """Whether the kernel can be built and started here; warns once if not: Triton needs more than to be installed."""
    try:
        nearest_codes_kernel(torch.zeros(1, 16, device=device), torch.zeros(2, 16, device=device))
    except Exception as error:  # of Triton, of the compilers that it calls, or of the driver
        reason = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"the search for the nearest code goes without its Triton kernel on {device}, as that cannot be built or "
            f"started ({type(error).__name__}: {reason}). Codes are as near but take longer. Triton needs a C compiler "
            "and Python's header files: install them, on Debian gcc and python3-dev",
            stacklevel=2,
        )
        return False
    return True


@torch.library.custom_op("hf_vq::nearest_codes", mutates_args=())
def nearest_codes_kernel(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    r"""Index of the nearest code in two passes: tensor cores with rounded factors, then float32 for near ties.

    With \(z'\) and \(e'\) the factors rounded to TF32, the score of a code is off by at most
    \(|z - z'| \max_k |e_k| + |z'| \max_k |e_k - e'_k|\) and the rounding of sums, all of which is known. A row whose
    best two scores lie within twice this bound is searched again in float32. Such rows are gathered on the device, so
    nothing waits for the host; where there are none, the second pass ends at once.

    Args:
        vectors: `(N, C)` float32, float16 or bfloat16, C up to 512.
        codebook: `(K, C)` of one of the same types, K up to 262,144.

    Returns:
        `(N,)` int64 codes in `[0, K)`; between codes at the same computed distance the lowest.
    """
    if vectors.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=vectors.device)
    vectors, keys = vectors.contiguous(), make_keys(codebook.float())
    found = search_pass(vectors, keys)
    close = found.best - found.second <= 2 * error_bound(found, keys, vectors.shape[1])
    return _search_again(vectors, keys, found.codes, close)


@nearest_codes_kernel.register_fake
def _(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return vectors.new_empty(vectors.shape[0], dtype=torch.int64)


def round_to_tf32(values: torch.Tensor) -> torch.Tensor:
    """Float32 rounded to the numbers that TF32 holds, ties away from zero; NaN and infinity stay."""
    bits = values.view(torch.int32)
    rounded = ((bits + 0x1000) & -0x2000).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)


def make_keys(codebook: torch.Tensor) -> Keys:
    """What the kernel reads of a codebook `(K, C)` in float32."""
    centre = codebook.mean(dim=0)
    exact = (codebook - centre).contiguous()
    rounded = round_to_tf32(exact)
    norms = exact.norm(dim=1)
    errors = (exact - rounded).norm(dim=1)
    return Keys(exact, rounded, -0.5 * exact.square().sum(dim=1), centre, norms.max(), errors.max())


def error_bound(found: Found, keys: Keys, channels: int) -> torch.Tensor:
    """`(N,)` greatest error that a score of the first pass can have."""
    of_factors = found.row_errors * keys.greatest + found.row_norms * keys.error
    of_sums = ACCUMULATION_ERROR * channels * found.row_norms * keys.greatest
    return of_factors + of_sums


def _search_again(vectors: torch.Tensor, keys: Keys, codes: torch.Tensor, close: torch.Tensor) -> torch.Tensor:
    """Replaces the codes of the rows that are `close` `(N,)` by those of a search in float32."""
    num_rows = vectors.shape[0]
    places = close.cumsum(0)
    count = places[-1:]
    every = torch.arange(num_rows, device=vectors.device)
    # Rows that are not close all write to one slot behind the end.
    row_list = every.new_zeros(num_rows + 1).scatter_(0, torch.where(close, places - 1, num_rows), every)[:num_rows]
    again = search_pass(vectors, keys, row_list, count).codes
    targets = torch.where(every < count, row_list, num_rows)
    return torch.cat((codes, codes.new_zeros(1))).scatter_(0, targets, again)[:num_rows]


def _merged(
    best: torch.Tensor, second: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Best score, second best and code of each row from those of the shares, each `(shares, N)`."""
    if best.shape[0] == 1:
        return best[0], second[0], codes[0].long()
    top = best.max(dim=0).values
    code = torch.where(best == top, codes, torch.iinfo(torch.int32).max).min(dim=0).values
    rest = torch.where(codes == code, second, best).max(dim=0).values
    # A row of NaN has no best.
    return top, rest, torch.where(code < torch.iinfo(torch.int32).max, code, 0).long()


def search_pass(
    vectors: torch.Tensor,
    keys: Keys,
    row_list: torch.Tensor | None = None,
    row_count: torch.Tensor | None = None,
) -> Found:
    """One pass, the codes shared out among programs: with rounded factors over all rows, with exact ones over a list.

    Args:
        vectors: `(N, C)`, contiguous.
        keys: the codebook.
        row_list: `(N,)` int64, rows of `vectors` that entry i of the results is about; all in order by default.
        row_count: `(1,)` int64, how many rows of the list count.
    """
    from .triton_kernels import search_kernel

    num_rows, num_codes = vectors.shape[0], keys.exact.shape[0]
    exact = row_list is not None
    launch = launch_shape(vectors.shape[1], exact)
    row_blocks, shares, codes_per_share = _division(num_rows, num_codes, launch, vectors.device)
    best = torch.full((shares, num_rows), -torch.inf, dtype=torch.float32, device=vectors.device)
    second, codes = torch.full_like(best, -torch.inf), torch.zeros_like(best, dtype=torch.int32)
    row_norms, row_errors = torch.zeros_like(best[0]), torch.zeros_like(best[0])
    nothing = torch.zeros(1, dtype=torch.int64, device=vectors.device)
    with nullcontext() if not vectors.is_cuda else torch.cuda.device(vectors.device):
        search_kernel[(row_blocks, shares)](
            vectors,
            keys.exact if exact else keys.rounded,
            keys.bias,
            keys.centre,
            nothing if row_list is None else row_list,
            nothing if row_count is None else row_count,
            best,
            second,
            codes,
            row_norms,
            row_errors,
            num_rows,
            num_codes,
            codes_per_share,
            vectors.stride(0),
            num_channels=vectors.shape[1],
            listed=exact,
            BLOCK_ROWS=launch.rows,
            BLOCK_CODES=launch.codes,
            BLOCK_CHANNELS=launch.channels,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return Found(*_merged(best, second, codes), row_norms, row_errors)


def launch_shape(channels: int, exact: bool) -> Launch:
    """Blocks whose factors fit the shared memory and whose running bests fit the registers."""
    width = max(16, 1 << (channels - 1).bit_length())
    if exact:  # no tensor cores: smaller blocks, few rows
        return Launch(rows=32, codes=64, channels=min(width, 32), warps=4, stages=2)
    return Launch(rows=128, codes=64, channels=min(width, 64), warps=8, stages=3)


def _division(num_rows: int, num_codes: int, launch: Launch, device: torch.device) -> tuple[int, int, int]:
    """Blocks of rows, shares of codes, and codes in a share: enough programs for all multiprocessors."""
    row_blocks = -(-num_rows // launch.rows)
    wanted = PROGRAMS_PER_PROCESSOR * _processors(device)
    code_blocks = -(-num_codes // launch.codes)
    shares = min(code_blocks, max(1, wanted // row_blocks))
    codes_per_share = -(-code_blocks // shares) * launch.codes
    return row_blocks, -(-num_codes // codes_per_share), codes_per_share


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
