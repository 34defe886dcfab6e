"""Scaled dot-product attention, by whichever way is fast on the machine."""

import torch
import torch.nn.functional as F

# Scores of one call that may stand in memory: 64 MiB in half precision, and as much again for their softmax.
MAX_SCORES = 1 << 25


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attended: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    r"""Softmax attention \(softmax(q k^T / \sqrt{C}) v\).

    torch's fused kernel, except for half precision on a CPU: there the kernel gives away what half precision gains,
    and two matrix products around a softmax take a third of its time in training. The scores, of limited number, are
    rounded to half precision then; the softmax is computed in float32 either way.

    Args:
        query: `(B, heads, N, C)`.
        key: `(B, heads, M, C)`.
        value: `(B, heads, M, C)`.
        attended: bool, to be broadcast to `(B, heads, N, M)`: False where a query does not attend to a key. Each query
            attends to one key at least. All to all by default.
        dropout: share of the attention weights that are dropped.

    Returns:
        `(B, heads, N, C)`.
    """
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    half_on_cpu = query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)
    if not half_on_cpu or dropout or scores > MAX_SCORES:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attended, dropout_p=dropout)
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if attended is not None:
        logits = logits.masked_fill(~attended, -torch.inf)
    return logits.softmax(dim=-1) @ value
