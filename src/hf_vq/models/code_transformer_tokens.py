"""The tokens of a code transformer: what they hold, where they stand and what they attend to."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .axial_positions import AxialPositions, AxialRotation
from .code_transformer_block import KeyValue


class CodeTransformerTokens:
    """Methods of `CodeTransformer` that turn codes, views and labels into tokens, angles and attention masks."""

    config: Any
    training: bool
    code_embedding: nn.Embedding
    class_embedding: nn.Embedding
    view_embedding: nn.Embedding
    context_projection: nn.Linear
    positions: AxialPositions
    rotation: AxialRotation
    position_table: nn.Parameter

    @property
    def mask_token_id(self) -> int:
        """Id of the mask, `num_codes`."""
        return self.config.num_codes

    @property
    def view_names(self) -> list[str]:
        """Views that the model knows, sorted; a view's id is its place here."""
        return sorted(self.config.view_axes)

    @property
    def _num_code_tokens(self) -> int:
        return math.prod(self.config.code_grid)

    def _code_angles(self, device: torch.device) -> torch.Tensor | None:
        """`(1, 1, N, pairs)`, in the order of the code tokens."""
        if self.config.position_embedding != "axial_rotary":
            return None
        angles = self.rotation(self.config.volume_axes, self.config.code_grid, device)
        return (angles[self._order(device)] if self.config.causal else angles)[None, None]

    def _context_angles(self, context: torch.Tensor, view_ids: torch.Tensor | None) -> torch.Tensor | None:
        """`(B or 1, 1, V * context_tokens, pairs)`."""
        if self.config.position_embedding != "axial_rotary":
            return None
        axes = [self.config.view_axes[name] for name in self.view_names]
        angles = torch.stack([self.rotation(one, self.config.context_grid, context.device) for one in axes])
        ids = torch.arange(context.shape[1], device=context.device)[None] if view_ids is None else view_ids
        return angles[ids].flatten(1, 2)[:, None]

    def _shown_tokens(
        self, view_mask: torch.Tensor | None, hidden_states: torch.Tensor, num_view_tokens: int
    ) -> torch.Tensor | None:
        """`(B, V * context_tokens)` bool of a view mask, on the device of the tokens."""
        if view_mask is None:
            return None
        batch_size = hidden_states.shape[0]
        if view_mask.ndim != 2 or view_mask.shape[0] != batch_size or view_mask.dtype != torch.bool:
            raise ValueError(
                f"view_mask must be (B, V) booleans with B={batch_size}; got {view_mask.dtype} {tuple(view_mask.shape)}"
            )
        tokens_per_view = math.prod(self.config.context_grid)
        if view_mask.shape[1] * tokens_per_view != num_view_tokens:
            raise ValueError(
                f"view_mask has {view_mask.shape[1]} views, the context {num_view_tokens // tokens_per_view}; give one "
                "entry for each"
            )
        return view_mask.to(hidden_states.device).repeat_interleave(tokens_per_view, dim=1)

    def _attended_tokens(
        self, view_mask: torch.Tensor | None, hidden_states: torch.Tensor, key_values: list[KeyValue] | None
    ) -> torch.Tensor | None:
        """Which tokens each one attends to: the shown view tokens and all codes, or those up to itself."""
        prefix_length = key_values[0][0].shape[2] if key_values is not None else 0
        num_codes = self._num_code_tokens
        num_view_tokens = prefix_length + hidden_states.shape[1] - num_codes
        shown = self._shown_tokens(view_mask, hidden_states, num_view_tokens)
        if shown is None and not self.config.causal:
            return None
        if shown is None:
            shown = torch.ones(1, num_view_tokens, dtype=torch.bool, device=hidden_states.device)
        attended = F.pad(shown, (0, num_codes), value=True)[:, None, None]
        if not self.config.causal:
            return attended
        earlier = torch.ones(num_codes, num_codes, dtype=torch.bool, device=hidden_states.device).tril()
        return attended & F.pad(earlier, (num_view_tokens, 0), value=True)

    def _queries(self, positions: torch.Tensor | None, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Tokens whose last hidden states are read, in the order of their places: `(B or 1, M)` of each row, `(n,)` of
        all rows for positions that are booleans; nothing for all."""
        num_codes, device = self._num_code_tokens, hidden_states.device
        num_view_tokens = hidden_states.shape[1] - num_codes
        if positions is not None:
            self._check_positions(positions, hidden_states.shape[0])
        places: torch.Tensor = torch.arange(num_codes, device=device)[None]
        first: torch.Tensor | int = num_view_tokens
        if positions is not None and positions.dtype == torch.bool:
            rows, places = positions.to(device).nonzero(as_tuple=True)
            first = rows * hidden_states.shape[1] + num_view_tokens
        elif positions is not None:
            places = positions.to(device)
        elif not num_view_tokens and not self.config.causal:
            return None
        if self.config.causal:
            places = self._order(device).argsort()[places]
        return places + first

    def _check_positions(self, positions: torch.Tensor, batch_size: int) -> None:
        num_codes = self._num_code_tokens
        width = (num_codes,) if positions.dtype == torch.bool else positions.shape[1:2]
        fits = positions.ndim == 2 and positions.shape == (batch_size, *width)
        if positions.dtype not in (torch.bool, torch.int64) or not fits:
            raise ValueError(
                f"positions must be ({batch_size}, M) int64 or ({batch_size}, {num_codes}) bool; got {positions.dtype} "
                f"{tuple(positions.shape)}"
            )
        if positions.dtype == torch.int64:
            _check_ids("positions", positions, num_codes)

    def _embed_codes(self, sample: torch.Tensor) -> torch.Tensor:
        grid = tuple(self.config.code_grid)
        if tuple(sample.shape[1:]) not in (grid, (self._num_code_tokens,)):
            raise ValueError(
                f"sample must hold {self._num_code_tokens} codes per volume or image, (B, {self._num_code_tokens}) or "
                f"(B, *code_grid) with code_grid={grid}; got shape {tuple(sample.shape)}"
            )
        tokens = sample.flatten(1)
        _check_ids("sample", tokens, self.mask_token_id + 1)
        if self.config.position_embedding != "learned":
            positions = self.positions(self.config.volume_axes, self.config.code_grid)
        else:
            positions = self.position_table[-self._num_code_tokens :]
        if not self.config.causal:
            return self.code_embedding(tokens) + positions
        # Each token stands at the place that it predicts and holds the code before it; in front of all is the mask.
        order = self._order(tokens.device)
        preceding = F.pad(tokens[:, order[:-1]], (1, 0), value=self.mask_token_id)
        return self.code_embedding(preceding) + positions[order]

    def _order(self, device: torch.device) -> torch.Tensor:
        """`(N,)` places of the flattened grid in the order in which a causal model takes them."""
        order = self.config.code_order
        return torch.arange(self._num_code_tokens, device=device) if order is None else torch.tensor(order).to(device)

    def _embed_labels(self, class_labels: torch.Tensor | None, sample: torch.Tensor) -> torch.Tensor | float:
        """`(B, 1, hidden)`, or nothing to add for a model without classes."""
        num_classes, batch_size = self.config.num_classes, sample.shape[0]  # len() would fix it in an exported graph
        if num_classes is None:
            if class_labels is not None:
                raise ValueError("class_labels are given to a model without classes; leave them out or set num_classes")
            return 0.0
        if class_labels is None:
            class_labels = torch.full((batch_size,), num_classes, device=sample.device)
        whole = class_labels.dtype in (torch.int32, torch.int64)
        if not whole or class_labels.shape != (batch_size,) or _some_out_of_range(class_labels, num_classes):
            raise ValueError(
                f"class_labels must be ({batch_size},) integers from 0 to {num_classes - 1}, or -1 for no label; got "
                f"{class_labels.tolist()}"
            )
        return self.class_embedding(class_labels.masked_fill(class_labels < 0, num_classes))[:, None]

    def _embed_context(self, context: torch.Tensor, view_ids: torch.Tensor | None) -> torch.Tensor:
        num_tokens = math.prod(self.config.context_grid)
        if context.ndim != 4 or context.shape[2:] != (num_tokens, self.config.context_dim):
            raise ValueError(
                f"context must be (B, V, {num_tokens}, {self.config.context_dim}): views, tokens of context_grid="
                f"{tuple(self.config.context_grid)}, channels; got shape {tuple(context.shape)}"
            )
        if view_ids is None:
            view_ids = torch.arange(context.shape[1], device=context.device).expand(context.shape[:2])
        if view_ids.shape != context.shape[:2]:
            raise ValueError(f"view_ids must be (B, V) = {tuple(context.shape[:2])}; got {tuple(view_ids.shape)}")
        _check_ids("view_ids", view_ids, len(self.view_names))
        tokens = self.context_projection(context) + self._view_positions(view_ids)
        return self._drop(tokens.flatten(1, 2))

    def _view_positions(self, view_ids: torch.Tensor) -> torch.Tensor:
        """`(B, V, context_tokens, hidden)`."""
        if self.config.position_embedding == "learned":
            return self.position_table[: -self._num_code_tokens].unflatten(0, (len(self.view_names), -1))[view_ids]
        axes = [self.config.view_axes[name] for name in self.view_names]
        grids = [self.positions(directions, self.config.context_grid) for directions in axes]
        return torch.stack(grids)[view_ids] + self.view_embedding(view_ids)[:, :, None]

    def _drop(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.dropout(tokens, self.config.dropout, self.training)


def _check_ids(name: str, ids: torch.Tensor, count: int) -> None:
    """Refuses what no row of a table belongs to; values on the CPU only, others would have to be waited for."""
    if ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int64; got {ids.dtype}")
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < 0 or high >= count:
        raise ValueError(f"{name} must lie in [0, {count}); got values from {low} to {high}")


def _some_out_of_range(class_labels: torch.Tensor, num_classes: int) -> bool:
    # A branch on values cannot be compiled into one graph.
    if torch.compiler.is_compiling():
        return False
    return bool(((class_labels < -1) | (class_labels > num_classes)).any())


def joined_angles(of_views: torch.Tensor | None, of_codes: torch.Tensor | None) -> torch.Tensor | None:
    if of_views is None or of_codes is None:
        return None
    return torch.cat((of_views, of_codes.expand(of_views.shape[0], -1, -1, -1)), dim=2)
