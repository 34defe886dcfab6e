"""The search for the nearest code: the cost of a matrix product, without the matrix."""

import torch
import torch.nn.functional as F

from .triton_search import is_supported, nearest_codes_kernel

# A tile of scores is written by the matrix product and read by the maximum, so it should still be in the cache then:
# codes by (vectors of one thread) make 4 MiB of float32 for each thread.
TILE_CODES = 1024
# Vectors come in strips: three registers of 16 floats, in which the maximum keeps its running best. 22 strips are
# 1056 vectors; rows of a power of two (1024) would fall on the same cache lines and cost twice the time for small C.
STRIP = 48
STRIPS_PER_THREAD = 22
# Threads that enlarge the tile: with more of them each gets less, so that the memory stays bounded (33 MiB).
MAX_TILE_THREADS = 8
# Elements of one block of scores where the search runs without tiles (accelerators, compiled graphs).
BLOCK_ELEMENTS = 1 << 22


def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the Euclidean-nearest codebook row for each vector: `argmin_k |z - e_k|^2`.

    Computed in float32 or better under any autocast (float64 stays float64), tile by tile, so memory grows neither
    with N nor with K beyond the result and a copy of the codebook. Both sides are shifted by the codebook's mean
    first, which keeps the expanded square `|e|^2 - 2 z.e` accurate far from the origin. Between codes at the same
    computed distance the lowest index wins. Equal vectors get equal codes, wherever they stand in the batch, as long
    as the linear algebra library rounds equal products equally (MKL does). A vector with
    a NaN gets some code in `[0, K)`. On CUDA devices a Triton kernel does it (`hf_vq.quantizers.triton_search`): tensor
    cores first, in TF32, and float32 for the vectors whose nearest two codes TF32 cannot tell apart.

    Args:
        vectors: `(N, C)` floating point.
        codebook: `(K, C)` floating point, K >= 1.

    Returns:
        `(N,)` int64 codes in `[0, K)`.

    Raises:
        ValueError: if the shapes do not fit together or there is no code.
    """
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1] or codebook.shape[0] == 0:
        raise ValueError(
            f"vectors must be (N, C) and codebook (K, C) with the same C and K >= 1; got {tuple(vectors.shape)} and "
            f"{tuple(codebook.shape)}"
        )
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        if not _is_exporting() and is_supported(vectors, codebook):
            return nearest_codes_kernel(vectors, codebook)
        dtype = torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)
        codebook = codebook.to(dtype)
        centre = codebook.mean(dim=0)
        codebook = codebook - centre
        # |z - e|^2 is least where z.e - |e|^2 / 2 is greatest. The second term is one more channel of the codes, met by
        # a channel of ones in the vectors: then the product alone gives the scores, with no pass over them to add it.
        bias = codebook.square().sum(dim=1, keepdim=True).mul_(-0.5)
        keys = torch.cat((codebook, bias), dim=1)
        tiled = vectors.device.type == "cpu" and not torch.compiler.is_compiling()
        return _search_in_tiles(vectors, keys, centre) if tiled else _search_in_blocks(vectors, keys, centre)


def _search_in_blocks(vectors: torch.Tensor, keys: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """All codes at once for a block of vectors, for accelerators without the kernel and for compiled graphs."""
    block = max(1, BLOCK_ELEMENTS // keys.shape[0])
    # A loop over blocks would tie a traced graph to one number of vectors.
    if _is_exporting() or vectors.shape[0] <= block:
        return _search_block(vectors, keys, centre)
    codes = torch.empty(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for start in range(0, vectors.shape[0], block):
        codes[start : start + block] = _search_block(vectors[start : start + block], keys, centre)
    return codes


def _search_block(vectors: torch.Tensor, keys: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    return torch.addmm(keys[:, -1], vectors.to(keys.dtype) - centre, keys[:, :-1].T).argmax(dim=1)


def _is_exporting() -> bool:
    """True while torch.export traces (`torch.compiler.is_exporting` is not in every torch that we support)."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def _search_in_tiles(vectors: torch.Tensor, keys: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Tiles of codes by vectors that stay in the cache, in buffers made once."""
    codes = torch.empty(vectors.shape[0], dtype=torch.int64)
    strips = min(STRIPS_PER_THREAD * min(torch.get_num_threads(), MAX_TILE_THREADS), -(-vectors.shape[0] // STRIP))
    queries = keys.new_ones(strips * STRIP, keys.shape[1])
    buffer = keys.new_empty(min(TILE_CODES, keys.shape[0]) * queries.shape[0])
    for start in range(0, vectors.shape[0], max(1, queries.shape[0])):
        rows = vectors[start : start + queries.shape[0]]
        count = rows.shape[0]
        torch.sub(rows, centre, out=queries[:count, :-1])
        # Whole strips, whose last rows may be older vectors: libraries take a differently rounding path for few rows.
        filled = queries[: -(-count // STRIP) * STRIP]
        codes[start : start + count] = _best_keys(filled, keys, buffer)[:count]
    return codes


def _best_keys(queries: torch.Tensor, keys: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Index of the key with the greatest product for each query: `(n,)` from `(n, C + 1)` and `(K, C + 1)`."""
    best_scores, best = _tile_maximum(queries, keys[:TILE_CODES], buffer)
    for first in range(TILE_CODES, keys.shape[0], TILE_CODES):
        scores, codes = _tile_maximum(queries, keys[first : first + TILE_CODES], buffer)
        better = scores > best_scores  # not at equality, so the lowest index stays
        best_scores = torch.where(better, scores, best_scores)
        best = torch.where(better, codes + first, best)
    return best


def _tile_maximum(queries: torch.Tensor, keys: torch.Tensor, buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Greatest product of each query with the keys of one tile, and the (lowest) index of the key that gives it.

    torch's `argmax` goes through a tile one number at a time. Its max pooling with indices does the same work with
    vector instructions if the channels are last in memory; so the tile `(codes, vectors)` is shown to it as an image of
    height `codes`, width `vectors / STRIP` and `STRIP` channels, and pooled over its whole height. The columns are
    shared between the threads.
    """
    num_queries, num_keys = queries.shape[0], keys.shape[0]
    tile = buffer[: num_keys * num_queries].view(num_keys, num_queries)
    torch.mm(keys, queries.T, out=tile)
    strips = num_queries // STRIP
    image = tile.view(1, num_keys, strips, STRIP).permute(0, 3, 1, 2)
    scores, positions = F.max_pool2d(image, kernel_size=(num_keys, 1), return_indices=True)
    # Positions count along the rows of the image, which are `strips` wide.
    codes = positions.permute(0, 2, 3, 1).flatten().div_(strips, rounding_mode="floor")
    return scores.permute(0, 2, 3, 1).flatten(), codes
