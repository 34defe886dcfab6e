"""Triton kernels of the search for the nearest code; importing this module needs triton."""

import triton
import triton.language as tl


@triton.jit
def _to_tf32(values):
    """Float32 rounded to the 10 bits of mantissa that TF32 keeps, ties away from zero; NaN and infinity stay.

    Tensor cores would cut the other bits off by themselves, but nobody could say then what was lost.
    """
    bits = values.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where((bits & 0x7F800000) == 0x7F800000, values, rounded)


@triton.jit
def _loaded(pointer, rows, row_stride, row_mask, columns, num_channels):
    """Block `(rows, columns)` of a row-major matrix, zero outside."""
    mask = row_mask[:, None] & (columns < num_channels)[None, :]
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _shifted(vectors, rows, row_stride, row_mask, centre, columns, num_channels):
    """Block of the vectors in float32, less the centre, zero outside."""
    shift = tl.load(centre + columns, mask=columns < num_channels, other=0.0)
    return _loaded(vectors, rows, row_stride, row_mask, columns, num_channels).to(tl.float32) - shift[None, :]


@triton.jit
def search_kernel(
    vectors,
    keys,
    bias,
    centre,
    row_list,
    row_count,
    best_scores,
    second_scores,
    best_codes,
    row_norms,
    row_errors,
    num_rows,
    num_codes,
    codes_per_share,
    vector_stride,
    num_channels: tl.constexpr,
    listed: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Greatest and second greatest `z.e - |e|^2 / 2` of each row over a share of the codes, and the greatest's code.

    The scores of a block live in registers only. Program `(i, j)` takes block i of the rows and share j of the codes;
    it writes to row i of share j in the three outputs, each `(shares, num_rows)`; share 0 writes also the norms of the
    rounded rows and of what the rounding took away. With `listed` the rows are those in `row_list`, of which only the
    first `row_count` count: programs beyond them end at once, no norms are written, and the product is that of float32
    and not of TF32.
    """
    slots = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    share = tl.program_id(1)
    live = slots < num_rows
    rows = slots
    if listed:
        count = tl.load(row_count)
        if tl.program_id(0).to(tl.int64) * BLOCK_ROWS >= count:
            return
        live = slots < count
        rows = tl.load(row_list + slots, mask=live, other=0)
    single: tl.constexpr = num_channels <= BLOCK_CHANNELS
    columns = tl.arange(0, BLOCK_CHANNELS)
    precision: tl.constexpr = "ieee" if listed else "tf32"
    if single:
        exact = _shifted(vectors, rows, vector_stride, live, centre, columns, num_channels)
        queries = exact if listed else _to_tf32(exact)
    if not listed and share == 0:
        norms = tl.zeros((BLOCK_ROWS,), tl.float32)
        errors = tl.zeros((BLOCK_ROWS,), tl.float32)
        for channel in range(0, num_channels, BLOCK_CHANNELS):
            exact = _shifted(vectors, rows, vector_stride, live, centre, channel + columns, num_channels)
            kept = _to_tf32(exact)
            norms += tl.sum(kept * kept, axis=1)
            errors += tl.sum((exact - kept) * (exact - kept), axis=1)
        tl.store(row_norms + slots, tl.sqrt(norms), mask=live)
        tl.store(row_errors + slots, tl.sqrt(errors), mask=live)
    # Every lane of the tile keeps its own running best, and lanes meet once, after the loop: comparing across lanes for
    # each tile would cost more than a product of few channels.
    best = tl.full((BLOCK_ROWS, BLOCK_CODES), float("-inf"), tl.float32)
    second = tl.full((BLOCK_ROWS, BLOCK_CODES), float("-inf"), tl.float32)
    winner = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.int32)
    first_code = share * codes_per_share
    last_code = tl.minimum(first_code + codes_per_share, num_codes)
    for start in range(first_code, last_code, BLOCK_CODES):
        codes = start + tl.arange(0, BLOCK_CODES)
        code_mask = codes < last_code
        offsets = tl.load(bias + codes, mask=code_mask, other=float("-inf"))
        if single:
            block = _loaded(keys, codes, num_channels, code_mask, columns, num_channels)
            products = tl.dot(queries, tl.trans(block), input_precision=precision)
        else:
            products = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.float32)
            for channel in range(0, num_channels, BLOCK_CHANNELS):
                part = channel + columns
                exact = _shifted(vectors, rows, vector_stride, live, centre, part, num_channels)
                queries = exact if listed else _to_tf32(exact)
                block = _loaded(keys, codes, num_channels, code_mask, part, num_channels)
                products = tl.dot(queries, tl.trans(block), products, input_precision=precision)
        scores = products + offsets[None, :]
        second = tl.maximum(second, tl.minimum(best, scores))
        winner = tl.where(scores > best, codes[None, :], winner)  # not at equality, so that the lowest code stays
        best = tl.maximum(best, scores)
    top = tl.max(best, axis=1)
    code = tl.min(tl.where(best == top[:, None], winner, num_codes), axis=1)
    rest = tl.maximum(second, tl.where(winner == code[:, None], float("-inf"), best))
    target = share.to(tl.int64) * num_rows + slots
    tl.store(best_scores + target, top, mask=live)
    tl.store(second_scores + target, tl.max(rest, axis=1), mask=live)
    tl.store(best_codes + target, tl.where(code < num_codes, code, 0), mask=live)  # a row of NaN has no best
