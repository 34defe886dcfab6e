"""The block of the code transformer."""

import torch
from torch import nn

from .attention import attend
from .axial_positions import rotate

KeyValue = tuple[torch.Tensor, torch.Tensor]


class CodeTransformerBlock(nn.Module):
    """Pre-norm transformer block: `x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(hidden_size)
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.to_out = nn.Linear(hidden_size, hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, inner), nn.GELU(), nn.Linear(inner, hidden_size), nn.Dropout(dropout)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        prefix: KeyValue | None = None,
        attended: torch.Tensor | None = None,
        angles: torch.Tensor | None = None,
        queries: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """Attention to the tokens themselves and to `prefix`, then the MLP.

        Args:
            hidden_states: `(B, N, hidden)`.
            prefix: keys and values of further tokens, each `(B, heads, M, head_dim)`.
            attended: `(B or 1, 1, N or 1, M + N)` bool, which tokens, the prefix's first, each of the N tokens attends
                to; all by default.
            angles: `(B or 1, 1, N, pairs)` by which queries and keys are turned; not at all by default.
            queries: tokens whose new hidden states are wanted, all N by default: `(B or 1, Q)` int64, Q of each row, or
                `(n,)` int64, of the B * N tokens of all rows.

        Returns:
            The new hidden states `(B, Q, hidden)` or `(n, hidden)`, and the keys and values of all N tokens.
        """
        query, key, value = (
            self._split_heads(part) for part in self.to_qkv(self.norm1(hidden_states)).chunk(3, dim=-1)
        )
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        own = (key, value)
        if queries is not None and queries.shape == (1, 0):
            return hidden_states[:, :0], own
        if queries is not None and queries.ndim == 2:
            hidden_states = _taken(hidden_states, queries, 1)
            query = _taken(query, queries, 2)
            if attended is not None and attended.shape[2] > 1:
                attended = _taken(attended, queries, 2)
        if prefix is not None:
            key, value = torch.cat((prefix[0], key), dim=2), torch.cat((prefix[1], value), dim=2)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, attended, dropout).transpose(1, 2).flatten(2)
        if queries is not None and queries.ndim == 1:
            hidden_states, mixed = hidden_states.flatten(0, 1)[queries], mixed.flatten(0, 1)[queries]
        hidden_states = hidden_states + self.to_out(mixed)
        return hidden_states + self.mlp(self.norm2(hidden_states)), own

    @torch.no_grad()
    def start_with_keys_equal_to_queries(self) -> None:
        """Makes tokens attend to tokens like themselves (Trockman & Kolter, 2023); with positions on shared axes, to
        those that see the same place. Training is free to move away from it."""
        query, key, _ = self.to_qkv.weight.chunk(3)
        key.copy_(query)

    def _split_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _taken(tensor: torch.Tensor, tokens: torch.Tensor, dim: int) -> torch.Tensor:
    """Some tokens along one axis of `(B, ..., tokens, channels)`: the same of all rows for `(1, Q)`, else `(B, Q)`."""
    if tokens.shape[0] == 1:  # a gather that is broadcast would fix the batch size in an exported graph
        return tensor.index_select(dim, tokens[0])
    shape = [1] * tensor.ndim
    shape[0], shape[dim] = tokens.shape
    return tensor.take_along_dim(tokens.view(shape), dim=dim)
