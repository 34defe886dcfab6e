"""Transformer over a grid of codes, conditional on the codes of 2D views."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

# Each axis of space may be walked in two directions; a position is stored under the first of the pair.
OPPOSITE_DIRECTIONS = {"inferior": "superior", "posterior": "anterior", "left": "right"}
DIRECTIONS = (*OPPOSITE_DIRECTIONS.values(), *OPPOSITE_DIRECTIONS)
DEFAULT_VIEW_AXES = {"frontal": ("inferior", "left"), "lateral": ("inferior", "posterior")}
POSITION_EMBEDDINGS = ("axial", "learned")
CONTEXT_ATTENTIONS = ("full", "prefix")
HEAD_INIT_STD = 0.05

KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass
class CodeTransformerOutput(BaseOutput):
    """What `CodeTransformer.forward` returns.

    Args:
        sample: `(B, N, num_codes)` logits of the codes; the mask is never predicted.
    """

    sample: torch.Tensor


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

    def forward(self, hidden_states: torch.Tensor, prefix: KeyValue | None = None) -> tuple[torch.Tensor, KeyValue]:
        """Attention to the tokens themselves and to `prefix`, then the MLP.

        Args:
            hidden_states: `(B, N, hidden)`.
            prefix: keys and values of further tokens, each `(B, heads, M, head_dim)`.

        Returns:
            The new hidden states, and the keys and values of these N tokens.
        """
        query, key, value = (
            self._split_heads(part) for part in self.to_qkv(self.norm1(hidden_states)).chunk(3, dim=-1)
        )
        own = (key, value)
        if prefix is not None:
            key, value = torch.cat((prefix[0], key), dim=2), torch.cat((prefix[1], value), dim=2)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        hidden_states = hidden_states + self.to_out(attended.transpose(1, 2).flatten(2))
        return hidden_states + self.mlp(self.norm2(hidden_states)), own

    @torch.no_grad()
    def start_with_keys_equal_to_queries(self) -> None:
        """Makes tokens attend to tokens like themselves (Trockman & Kolter, 2023); with positions on shared axes, to
        those that see the same place. Training is free to move away from it."""
        query, key, _ = self.to_qkv.weight.chunk(3)
        key.copy_(query)

    def _split_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class AxialPositions(nn.Module):
    """Position vectors built from one learned table per axis of space, shared by the volume's codes and by the views.

    A code at (d, h, w) gets the sum of three rows, one of each axis; a token of a view gets the sum of the rows of the
    two axes that the view shows. So a frontal row and the volume's superior-inferior coordinate are the same thing from
    the first step, and training is free to move the tables away from that.

    Args:
        grid: sides of the code grid, one table of that length for each.
        axes: directions in which the grid's indices grow.
        hidden_size: width of a position vector.
    """

    def __init__(self, grid: Sequence[int], axes: Sequence[str], hidden_size: int) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.tables = nn.ParameterDict(
            {
                _axis(axis): nn.Parameter(torch.randn(side, hidden_size) / math.sqrt(len(grid)))
                for axis, side in zip(axes, grid, strict=True)
            }
        )

    def forward(self, axes: Sequence[str], sides: Sequence[int]) -> torch.Tensor:
        """`(prod(sides), hidden)` positions, row-major, of a grid whose indices grow in the directions `axes`."""
        parts = [
            self._along(axis, side).view(*[side if i == index else 1 for i in range(len(sides))], -1)
            for index, (axis, side) in enumerate(zip(axes, sides, strict=True))
        ]
        return reduce(torch.add, parts).flatten(0, -2)

    def _along(self, axis: str, side: int) -> torch.Tensor:
        table = self.tables[_axis(axis)]
        same_direction = axis in self.axes
        if side != table.shape[0]:
            table = F.interpolate(table.T[None], size=side, mode="linear", align_corners=False)[0].T
        return table if same_direction else table.flip(0)


def _axis(direction: str) -> str:
    return OPPOSITE_DIRECTIONS.get(direction, direction)


class CodeTransformer(ModelMixin, ConfigMixin):
    r"""Predicts the masked codes of a volume from its settled codes and from all codes of its views.

    The denoising network of absorbing discrete diffusion (Bond-Taylor et al., 2022; Corona-Figueroa et al., 2023).
    Its tokens are [view tokens ; code tokens], and it needs no timestep, since the number of masks tells it.

    Args:
        num_codes (`int`): codebook size K of the volume tokenizer; id K is the mask.
        code_grid (`tuple[int, int, int]`): sides of the volume's code grid, (D, H, W).
        context_dim (`int`): channels of the view tokenizer's codes.
        context_grid (`tuple[int, int]`): sides of a view's code grid, (rows, columns).
        view_axes (`dict[str, tuple[str, str]]`): for each view that the model knows, the directions in the patient in
            which its rows and columns grow. View ids are positions in the sorted names: saving does not keep a dict's
            order.
        volume_axes (`tuple[str, str, str]`): directions in which the code grid's D, H and W grow.
        hidden_size (`int`): width.
        num_layers (`int`): blocks.
        num_heads (`int`): attention heads; divides `hidden_size`.
        mlp_ratio (`float`): width of the blocks' hidden layer relative to `hidden_size`.
        dropout (`float`): dropout on embeddings, attention and MLP output, in training mode.
        position_embedding (`str`): `"axial"`: vectors of the axes that volume and views share, plus a vector per view;
            `"learned"`: the paper's free table, one vector per token.
        context_attention (`str`): `"full"`: all tokens attend to all (the paper); `"prefix"`: view tokens attend to
            view tokens only, so `encode_context` is computed once and serves every sampling step exactly.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CodeTransformerBlock"]  # noqa: RUF012  (read by the base class as it stands)
    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        num_codes: int = 512,
        code_grid: Sequence[int] = (8, 8, 8),
        context_dim: int = 8,
        context_grid: Sequence[int] = (8, 8),
        view_axes: Mapping[str, Sequence[str]] = DEFAULT_VIEW_AXES,
        volume_axes: Sequence[str] = ("superior", "anterior", "right"),
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        position_embedding: str = "axial",
        context_attention: str = "full",
    ) -> None:
        super().__init__()
        _check_config(code_grid, context_grid, view_axes, volume_axes, hidden_size, num_heads)
        _check_choice("position_embedding", position_embedding, POSITION_EMBEDDINGS)
        _check_choice("context_attention", context_attention, CONTEXT_ATTENTIONS)
        self.code_embedding = nn.Embedding(num_codes + 1, hidden_size)
        self.context_projection = nn.Linear(context_dim, hidden_size)
        if position_embedding == "axial":
            self.positions = AxialPositions(code_grid, volume_axes, hidden_size)
            self.view_embedding = nn.Embedding(len(view_axes), hidden_size)
        else:
            tokens = math.prod(code_grid) + len(view_axes) * math.prod(context_grid)
            self.position_table = nn.Parameter(torch.zeros(tokens, hidden_size))
        self.blocks = nn.ModuleList(
            CodeTransformerBlock(hidden_size, num_heads, mlp_ratio, dropout) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_codes, bias=False)
        self.gradient_checkpointing = False
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0)
        for module in self.modules():
            if isinstance(module, CodeTransformerBlock):
                module.start_with_keys_equal_to_queries()
        nn.init.normal_(self.head.weight, std=HEAD_INIT_STD)

    @torch.no_grad()
    def initialize_from_codebooks(self, codes: torch.Tensor, context_codes: torch.Tensor) -> None:
        """Starts training from what the tokenizers' codebooks already know; call it once, on a new model.

        Codes that lie close together in the codebook get similar input vectors and similar output weights, by one
        random projection each. The context projection is scaled so that view content has unit variance, the size of the
        position vectors, whatever the scale of the codebook: position does not drown content at the start.

        Args:
            codes: `(num_codes, C)` effective codebook of the volume tokenizer, any C.
            context_codes: `(K, context_dim)` effective codebook of the view tokenizer.

        Raises:
            ValueError: if a shape does not fit.
        """
        if codes.ndim != 2 or len(codes) != self.config.num_codes:
            raise ValueError(f"codes must be ({self.config.num_codes}, C); got {tuple(codes.shape)}")
        if context_codes.ndim != 2 or context_codes.shape[1] != self.config.context_dim:
            raise ValueError(f"context_codes must be (K, {self.config.context_dim}); got {tuple(context_codes.shape)}")
        hidden_size = self.config.hidden_size
        mean, scale = _mean_and_scale(codes)
        standardized = (codes - mean) / scale
        self.code_embedding.weight[:-1] = standardized @ _random_projection(codes, hidden_size)
        self.head.weight.copy_(HEAD_INIT_STD * standardized @ _random_projection(codes, hidden_size))
        mean, scale = _mean_and_scale(context_codes)
        weight = _random_projection(context_codes, hidden_size).T / scale
        self.context_projection.weight.copy_(weight)
        self.context_projection.bias.copy_(-weight @ mean)

    @property
    def mask_token_id(self) -> int:
        """Id of the mask, `num_codes`."""
        return self.config.num_codes

    @property
    def view_names(self) -> list[str]:
        """Views that the model knows, sorted; a view's id is its place here."""
        return sorted(self.config.view_axes)

    @apply_forward_hook
    def encode_context(self, context: torch.Tensor, view_ids: torch.Tensor | None = None) -> list[KeyValue]:
        """Keys and values of the view tokens in every block, with `context_attention="prefix"`.

        Args:
            context: `(B, V, context_tokens, context_dim)` embeddings of the views' codes.
            view_ids: `(B, V)` int64; the model's views in order by default.

        Returns:
            For each block a pair of `(B, heads, V * context_tokens, head_dim)`.

        Raises:
            ValueError: with `context_attention="full"`, where view tokens depend on the codes, or if shapes do not fit.
        """
        if self.config.context_attention != "prefix":
            raise ValueError(
                "encode_context needs context_attention='prefix'; this model has "
                f"{self.config.context_attention!r}, whose view tokens "
                "depend on the codes. Pass `context` to forward instead."
            )
        hidden_states, key_values = self._embed_context(context, view_ids), []
        for block in self.blocks:
            hidden_states, key_value = self._run(block, hidden_states, None)
            key_values.append(key_value)
        return key_values

    def forward(
        self,
        sample: torch.Tensor,
        context: torch.Tensor | None = None,
        view_ids: torch.Tensor | None = None,
        context_key_values: list[KeyValue] | None = None,
        return_dict: bool = True,
    ) -> CodeTransformerOutput | tuple[torch.Tensor]:
        """Logits of every code.

        Args:
            sample: `(B, N)` or `(B, *code_grid)` int64 in `[0, num_codes]`; `num_codes` is the mask.
            context: `(B, V, context_tokens, context_dim)` embeddings of the views' codes.
            view_ids: `(B, V)` int64, which view each is; the model's views in order by default.
            context_key_values: instead of `context`, what `encode_context` returned.
            return_dict: `False` for a plain tuple.

        Returns:
            `CodeTransformerOutput` with logits `(B, N, num_codes)`.

        Raises:
            ValueError: if shapes do not fit or not exactly one of `context` and `context_key_values` is given.
        """
        if (context is None) == (context_key_values is None):
            raise ValueError("give exactly one of `context` and `context_key_values`")
        hidden_states = self._embed_codes(sample)
        if context is not None and self.config.context_attention == "prefix":
            context_key_values = self.encode_context(context, view_ids)
        elif context is not None:
            hidden_states = torch.cat((self._embed_context(context, view_ids), hidden_states), dim=1)
        for index, block in enumerate(self.blocks):
            prefix = context_key_values[index] if context_key_values is not None else None
            hidden_states, _ = self._run(block, hidden_states, prefix)
        logits = self.head(self.norm_out(hidden_states[:, -self._num_code_tokens :]))
        return CodeTransformerOutput(sample=logits) if return_dict else (logits,)

    @property
    def _num_code_tokens(self) -> int:
        return math.prod(self.config.code_grid)

    def _run(
        self, block: nn.Module, hidden_states: torch.Tensor, prefix: KeyValue | None
    ) -> tuple[torch.Tensor, KeyValue]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, hidden_states, prefix)
        return block(hidden_states, prefix)

    def _embed_codes(self, sample: torch.Tensor) -> torch.Tensor:
        tokens = sample.flatten(1)
        if tokens.shape[1] != self._num_code_tokens:
            raise ValueError(
                f"sample must hold {self._num_code_tokens} codes per volume "
                f"(code_grid={tuple(self.config.code_grid)}); got shape "
                f"{tuple(sample.shape)}"
            )
        if self.config.position_embedding == "axial":
            positions = self.positions(self.config.volume_axes, self.config.code_grid)
        else:
            positions = self.position_table[-self._num_code_tokens :]
        return self._drop(self.code_embedding(tokens) + positions)

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
        tokens = self.context_projection(context) + self._view_positions()[view_ids]
        return self._drop(tokens.flatten(1, 2))

    def _view_positions(self) -> torch.Tensor:
        """`(views, context_tokens, hidden)`."""
        if self.config.position_embedding == "learned":
            return self.position_table[: -self._num_code_tokens].unflatten(0, (len(self.view_names), -1))
        axes = [self.config.view_axes[name] for name in self.view_names]
        grids = [self.positions(directions, self.config.context_grid) for directions in axes]
        return torch.stack(grids) + self.view_embedding.weight[:, None]

    def _drop(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.dropout(tokens, self.config.dropout, self.training)


def _mean_and_scale(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return vectors.mean(dim=0), vectors.std(dim=0, correction=0).clamp(min=1e-6)


def _random_projection(vectors: torch.Tensor, hidden_size: int) -> torch.Tensor:
    return torch.randn(vectors.shape[1], hidden_size).to(vectors) / math.sqrt(vectors.shape[1])


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {tuple(choices)}")


def _check_config(
    code_grid: Sequence[int],
    context_grid: Sequence[int],
    view_axes: Mapping[str, Sequence[str]],
    volume_axes: Sequence[str],
    hidden_size: int,
    num_heads: int,
) -> None:
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(f"num_heads={num_heads} must be at least 1 and divide hidden_size={hidden_size}")
    if len(code_grid) != len(volume_axes) or len(set(map(_axis, volume_axes))) != len(volume_axes):
        raise ValueError(
            f"volume_axes must name one axis of its own for each side of code_grid={tuple(code_grid)}; got "
            f"{tuple(volume_axes)}"
        )
    known = set(map(_axis, volume_axes))
    for name, axes in view_axes.items():
        if len(axes) != len(context_grid) or any(_axis(axis) not in known for axis in axes):
            raise ValueError(
                f"view_axes[{name!r}] must name {len(context_grid)} directions out of {DIRECTIONS} along "
                f"volume_axes={tuple(volume_axes)}; "
                f"got {tuple(axes)}"
            )
