"""The few collective operations that quantizers need; each is the identity in a single process."""

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """True when a process group with more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of `tensor` over all processes (a new tensor; any shape, equal on all ranks)."""
    if not is_distributed():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def broadcast_from_main(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's value of `tensor` (a new tensor, equal shapes on all ranks).

    For results that every rank computes from equal inputs but that parallel float sums may round differently.
    """
    if not is_distributed():
        return tensor
    shared = tensor.detach().clone()
    dist.broadcast(shared, src=0)
    return shared


def average_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of `tensor` over all processes (any shape, equal on all ranks)."""
    return all_reduce_sum(tensor) / dist.get_world_size() if is_distributed() else tensor


def joined_mean_factor(num_rows: int, total_rows: torch.Tensor) -> torch.Tensor | float:
    """Factor on this rank's mean that makes the average over ranks the mean over the joined batch.

    Data-parallel training averages gradients over ranks with equal weight; with unequal batches that is not the
    gradient of the joined batch's mean unless each rank's mean is weighted by its share of the rows.

    Args:
        num_rows: rows held by this rank.
        total_rows: scalar, rows on all ranks.
    """
    return num_rows * dist.get_world_size() / total_rows if is_distributed() else 1.0


def row_offset(num_rows: int, device: torch.device) -> tuple[int, int]:
    """Where this rank's rows start in the batch joined in rank order, and how many rows that batch has.

    Args:
        num_rows: rows held by this rank; may differ between ranks.
        device: device of the communication.

    Returns:
        `(offset, total)` in rows.
    """
    if not is_distributed():
        return 0, num_rows
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = num_rows
    dist.all_reduce(counts)
    return int(counts[: dist.get_rank()].sum()), int(counts.sum())


def gather_global_rows(rows: torch.Tensor, indices: torch.Tensor, offset: int) -> torch.Tensor:
    """Rows of the joined batch by their global index, equal on all ranks.

    Each rank fills in the rows it owns and zeros elsewhere; the sum over ranks is the answer. So N processes draw
    exactly what one process would draw from the joined batch, and only the wanted rows travel.

    Args:
        rows: `(n, C)`, this rank's rows.
        indices: `(m,)` int64, global indices, equal on all ranks.
        offset: where this rank's rows start in the joined batch, from `row_offset`.

    Returns:
        `(m, C)`.
    """
    local = indices - offset
    owned = (local >= 0) & (local < rows.shape[0])
    picked = (
        rows[local.clamp(0, max(rows.shape[0] - 1, 0))]
        if rows.shape[0]
        else rows.new_zeros(len(indices), rows.shape[1])
    )
    return all_reduce_sum(torch.where(owned[:, None], picked, torch.zeros_like(picked)))


def global_moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and biased variance of each channel over the joined batch, or `None` if it has no rows.

    Args:
        rows: `(n, C)`, this rank's rows.

    Returns:
        `(mean, variance)`, each `(C,)`, equal on all ranks.
    """
    total = float(rows.shape[0])  # known to the host, and asked of the device only where there are several
    if is_distributed():
        total = float(all_reduce_sum(torch.tensor(total, device=rows.device)))
    if total == 0:
        return None
    mean = all_reduce_sum(rows.sum(dim=0)) / total
    return mean, all_reduce_sum((rows - mean).square().sum(dim=0)) / total
