"""Transformer over a grid of codes of a volume or an image, conditional on the codes of 2D views or on a class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..sharing import PushedWithCard
from .axial_positions import DEFAULT_VOLUME_AXES, DIRECTIONS, IMAGE_AXES, AxialPositions, AxialRotation, axis_of, rotate

DEFAULT_VIEW_AXES = {"frontal": ("inferior", "left"), "lateral": ("inferior", "posterior")}
POSITION_EMBEDDINGS = ("axial", "axial_rotary", "learned")
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

    def forward(
        self,
        hidden_states: torch.Tensor,
        prefix: KeyValue | None = None,
        attended: torch.Tensor | None = None,
        angles: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        """Attention to the tokens themselves and to `prefix`, then the MLP.

        Args:
            hidden_states: `(B, N, hidden)`.
            prefix: keys and values of further tokens, each `(B, heads, M, head_dim)`.
            attended: `(B or 1, 1, N or 1, M + N)` bool, which tokens, the prefix's first, each of the N tokens attends
                to; all by default.
            angles: `(B or 1, 1, N, pairs)` by which queries and keys are turned; not at all by default.

        Returns:
            The new hidden states, and the keys and values of these N tokens.
        """
        query, key, value = (
            self._split_heads(part) for part in self.to_qkv(self.norm1(hidden_states)).chunk(3, dim=-1)
        )
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        own = (key, value)
        if prefix is not None:
            key, value = torch.cat((prefix[0], key), dim=2), torch.cat((prefix[1], value), dim=2)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attended, dropout_p=dropout)
        hidden_states = hidden_states + self.to_out(mixed.transpose(1, 2).flatten(2))
        return hidden_states + self.mlp(self.norm2(hidden_states)), own

    @torch.no_grad()
    def start_with_keys_equal_to_queries(self) -> None:
        """Makes tokens attend to tokens like themselves (Trockman & Kolter, 2023); with positions on shared axes, to
        those that see the same place. Training is free to move away from it."""
        query, key, _ = self.to_qkv.weight.chunk(3)
        key.copy_(query)

    def _split_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class CodeTransformer(PushedWithCard, ModelMixin, ConfigMixin):
    r"""Predicts the masked codes of a volume or an image from its settled codes, its views and its class.

    The denoising network of absorbing discrete diffusion (Bond-Taylor et al., 2022; Corona-Figueroa et al., 2023).
    Its tokens are [view tokens ; code tokens], and it needs no timestep, since the number of masks tells it. Views and
    class are optional; a class label is a learned vector added to every code token.

    Args:
        num_codes (`int`): codebook size K of the tokenizer; id K is the mask.
        code_grid (`tuple[int, ...]`): sides of the code grid, (D, H, W) of a volume or (rows, columns) of an image.
        context_dim (`int`, *optional*): channels of the view tokenizer's codes; `None` for a model without views.
        context_grid (`tuple[int, int]`): sides of a view's code grid, (rows, columns).
        view_axes (`dict[str, tuple[str, str]]`, *optional*): for each view that the model knows, the directions in the
            patient in which its rows and columns grow; by default a frontal and a lateral view, none if `context_dim`
            is `None`. View ids are positions in the sorted names: saving does not keep a dict's order.
        volume_axes (`tuple[str, ...]`, *optional*): directions in which the code grid's sides grow; by default
            (superior, anterior, right) for a volume and (rows, columns) for an image.
        hidden_size (`int`): width.
        num_layers (`int`): blocks.
        num_heads (`int`): attention heads; divides `hidden_size`.
        mlp_ratio (`float`): width of the blocks' hidden layer relative to `hidden_size`.
        dropout (`float`): dropout on embeddings, attention and MLP output, in training mode.
        position_embedding (`str`): `"axial"`: vectors of the axes that volume and views share, plus a vector per view;
            `"axial_rotary"`: the same, and queries and keys turned along these axes; `"learned"`: the paper's free
            table, one vector per token.
        context_attention (`str`): `"full"`: all tokens attend to all (the paper); `"prefix"`: view tokens attend to
            view tokens only, so `encode_context` is computed once and serves every sampling step exactly.
        keys_start_as_queries (`bool`): start training with each block's keys equal to its queries: tokens attend to
            tokens like themselves.
        causal (`bool`): predict each code from the codes before it only, one after another: the autoregressive
            baseline. View tokens never see the codes then (`context_attention="prefix"`).
        code_order (`list[int]`, *optional*): order in which a causal model takes the places of the flattened grid; row
            by row by default.
        view_dropout (`float`): share of the views that `drop_views` hides in training, one by one, never all of a
            subject; a model trained so works with any of its views.
        context_dropout (`float`): share of the subjects all of whose views `drop_views` hides in training, which
            classifier-free guidance (Ho & Salimans, 2022) needs.
        num_classes (`int`, *optional*): classes of a class-conditional model; label `num_classes` means no label.
        label_dropout (`float`): share of the labels that `drop_labels` replaces by no label in training, which
            guidance by class and samples without a label need.
        id2label (`dict[int, str]`, *optional*): name of every class.
    """

    _supports_gradient_checkpointing = True
    # The base class reads these as they stand.
    _no_split_modules = ["CodeTransformerBlock"]  # noqa: RUF012
    _repeated_blocks = ["CodeTransformerBlock"]  # noqa: RUF012
    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        num_codes: int = 512,
        code_grid: Sequence[int] = (8, 8, 8),
        context_dim: int | None = 8,
        context_grid: Sequence[int] = (8, 8),
        view_axes: Mapping[str, Sequence[str]] | None = None,
        volume_axes: Sequence[str] | None = None,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        position_embedding: str = "axial",
        context_attention: str = "full",
        keys_start_as_queries: bool = True,
        causal: bool = False,
        code_order: Sequence[int] | None = None,
        view_dropout: float = 0.0,
        context_dropout: float = 0.0,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        id2label: Mapping[int | str, str] | None = None,
    ) -> None:
        super().__init__()
        if volume_axes is None:
            volume_axes = IMAGE_AXES if len(code_grid) == len(IMAGE_AXES) else DEFAULT_VOLUME_AXES
        if view_axes is None:
            view_axes = DEFAULT_VIEW_AXES if context_dim is not None else {}
        # diffusers takes arguments given by position for defaults, which `from_config` leaves out.
        self.register_to_config(volume_axes=volume_axes, view_axes=view_axes, _use_default_values=[])
        _check_config(code_grid, context_dim, context_grid, view_axes, volume_axes)
        _check_width(hidden_size, num_heads)
        _check_classes(num_classes, label_dropout, id2label)
        _check_view_dropout(context_dim, view_dropout, context_dropout)
        _check_order(causal, code_order, code_grid, context_dim, context_attention)
        _check_choice("position_embedding", position_embedding, POSITION_EMBEDDINGS)
        _check_choice("context_attention", context_attention, CONTEXT_ATTENTIONS)
        self.code_embedding = nn.Embedding(num_codes + 1, hidden_size)
        if context_dim is not None:
            self.context_projection = nn.Linear(context_dim, hidden_size)
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        if position_embedding == "axial_rotary":
            self.rotation = AxialRotation(code_grid, volume_axes, hidden_size // num_heads)
        if position_embedding != "learned":
            self.positions = AxialPositions(code_grid, volume_axes, hidden_size)
            if context_dim is not None:
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
            if isinstance(module, CodeTransformerBlock) and self.config.keys_start_as_queries:
                module.start_with_keys_equal_to_queries()
        nn.init.normal_(self.head.weight, std=HEAD_INIT_STD)

    @torch.no_grad()
    def initialize_from_codebooks(self, codes: torch.Tensor, context_codes: torch.Tensor | None = None) -> None:
        """Starts training from what the tokenizers' codebooks already know; call it once, on a new model.

        Codes that lie close together in the codebook get similar input vectors and similar output weights, by one
        random projection each. The context projection is scaled so that view content has unit variance, the size of the
        position vectors, whatever the scale of the codebook: position does not drown content at the start.

        Args:
            codes: `(num_codes, C)` effective codebook of the tokenizer, any C.
            context_codes: `(K, context_dim)` effective codebook of the view tokenizer, for a model with views.

        Raises:
            ValueError: if a shape does not fit, or `context_codes` are missing or of no use.
        """
        if codes.ndim != 2 or len(codes) != self.config.num_codes:
            raise ValueError(f"codes must be ({self.config.num_codes}, C); got {tuple(codes.shape)}")
        if (context_codes is None) != (self.config.context_dim is None):
            raise ValueError(
                f"context_codes belong to a model with views: context_dim is {self.config.context_dim}, and they are "
                f"{'missing' if context_codes is None else 'given'}"
            )
        if context_codes is not None and context_codes.shape[1:] != (self.config.context_dim,):
            raise ValueError(f"context_codes must be (K, {self.config.context_dim}); got {tuple(context_codes.shape)}")
        hidden_size = self.config.hidden_size
        mean, scale = _mean_and_scale(codes)
        standardized = (codes - mean) / scale
        self.code_embedding.weight[:-1] = standardized @ _random_projection(codes, hidden_size)
        self.head.weight.copy_(HEAD_INIT_STD * standardized @ _random_projection(codes, hidden_size))
        if context_codes is None:
            return
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

    @property
    def label2id(self) -> dict[str, int]:
        """Number of each class by its name; empty where the classes have no names."""
        return {name: int(number) for number, name in (self.config.id2label or {}).items()}

    def drop_labels(self, class_labels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Labels of a training batch with the share `label_dropout` of them, at random, replaced by -1, no label.

        Args:
            class_labels: `(B,)` int64.
            generator: source of randomness.
        """
        source = generator.device if generator is not None else class_labels.device
        draws = torch.rand(class_labels.shape, generator=generator, device=source).to(class_labels.device)
        return class_labels.masked_fill(draws < self.config.label_dropout, -1)

    def drop_views(self, batch_size: int, generator: torch.Generator | None = None) -> torch.Tensor | None:
        """Which views a training batch shows: `(B, V)` bool, False where `view_dropout` or `context_dropout` hides one.

        `view_dropout` alone leaves each subject at least one view, drawn at random. `None` if both are 0.

        Args:
            batch_size: subjects.
            generator: source of randomness.
        """
        config = self.config
        if not config.view_dropout and not config.context_dropout:
            return None
        device = generator.device if generator is not None else None
        draws = torch.rand(batch_size, len(self.view_names) + 1, generator=generator, device=device)
        views, whole = draws[:, :-1], draws[:, -1:]
        shown = (views >= config.view_dropout) | (views == views.amax(dim=1, keepdim=True))
        return shown & (whole >= config.context_dropout)

    @apply_forward_hook
    def encode_context(
        self,
        context: torch.Tensor,
        view_ids: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
    ) -> list[KeyValue]:
        """Keys and values of the view tokens in every block, with `context_attention="prefix"`.

        Args:
            context: `(B, V, context_tokens, context_dim)` embeddings of the views' codes.
            view_ids: `(B, V)` int64; the model's views in order by default.
            view_mask: `(B, V)` bool, False where a view is missing; give it to `forward` again.

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
        self._check_has_views()
        hook = _group_offloading_hook(self)
        if hook is None:
            return self._encode_context(context, view_ids, view_mask)
        hook.pre_forward(self)
        return hook.post_forward(self, self._encode_context(context, view_ids, view_mask))

    def _encode_context(
        self, context: torch.Tensor, view_ids: torch.Tensor | None, view_mask: torch.Tensor | None
    ) -> list[KeyValue]:
        hidden_states, key_values = self._embed_context(context, view_ids), []
        shown = self._shown_tokens(view_mask, hidden_states, hidden_states.shape[1])
        if shown is not None:
            # A row of attention needs something to attend to. Where all views are missing nobody reads the result.
            shown = (shown | ~shown.any(dim=1, keepdim=True))[:, None, None]
        angles = self._context_angles(context, view_ids)
        for block in self.blocks:
            hidden_states, key_value = self._run(block, hidden_states, None, shown, angles)
            key_values.append(key_value)
        return key_values

    def forward(
        self,
        sample: torch.Tensor,
        context: torch.Tensor | None = None,
        view_ids: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        context_key_values: list[KeyValue] | None = None,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> CodeTransformerOutput | tuple[torch.Tensor]:
        """Logits of every code, a causal model's from the codes before it.

        Args:
            sample: `(B, N)` or `(B, *code_grid)` int64 in `[0, num_codes]`; `num_codes` is the mask.
            context: `(B, V, context_tokens, context_dim)` embeddings of the views' codes; a model trained with
                `context_dropout` does without, and knows no view then.
            view_ids: `(B, V)` int64, which view each is; the model's views in order by default.
            view_mask: `(B, V)` bool, False where a view is missing: nothing attends to it, as if it were left out.
            context_key_values: instead of `context`, what `encode_context` returned.
            class_labels: `(B,)` int64 in `[0, num_classes)`; -1 or `num_classes`, as leaving them out, means no label.
            return_dict: `False` for a plain tuple.

        Returns:
            `CodeTransformerOutput` with logits `(B, N, num_codes)`.

        Raises:
            ValueError: if shapes do not fit, a label is out of range, both `context` and `context_key_values` are
                given, `view_mask` comes without them, a model without views or classes gets them, or one with views
                that never trained without gets none.
        """
        self._check_condition(context, context_key_values, view_mask)
        hidden_states = self._drop(self._embed_codes(sample) + self._embed_labels(class_labels, sample))
        if context is not None and self.config.context_attention == "prefix":
            context_key_values = self._encode_context(context, view_ids, view_mask)
        elif context is not None:
            hidden_states = torch.cat((self._embed_context(context, view_ids), hidden_states), dim=1)
        angles = self._code_angles(sample.device)
        if context is not None and self.config.context_attention == "full":
            angles = _joined_angles(self._context_angles(context, view_ids), angles)
        attended = self._attended_tokens(view_mask, hidden_states, context_key_values)
        for index, block in enumerate(self.blocks):
            prefix = context_key_values[index] if context_key_values is not None else None
            hidden_states, _ = self._run(block, hidden_states, prefix, attended, angles)
        logits = self.head(self.norm_out(hidden_states[:, -self._num_code_tokens :]))
        if self.config.causal:
            logits = logits[:, self._order(sample.device).argsort()]
        return CodeTransformerOutput(sample=logits) if return_dict else (logits,)

    @property
    def _num_code_tokens(self) -> int:
        return math.prod(self.config.code_grid)

    def _run(
        self,
        block: nn.Module,
        hidden_states: torch.Tensor,
        prefix: KeyValue | None,
        attended: torch.Tensor | None,
        angles: torch.Tensor | None,
    ) -> tuple[torch.Tensor, KeyValue]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, hidden_states, prefix, attended, angles)
        return block(hidden_states, prefix, attended, angles)

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

    def _embed_codes(self, sample: torch.Tensor) -> torch.Tensor:
        tokens = sample.flatten(1)
        if tokens.shape[1] != self._num_code_tokens:
            raise ValueError(
                f"sample must hold {self._num_code_tokens} codes per volume or image "
                f"(code_grid={tuple(self.config.code_grid)}); got shape {tuple(sample.shape)}"
            )
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
        if class_labels.shape != (batch_size,) or _some_out_of_range(class_labels, num_classes):
            raise ValueError(
                f"class_labels must be ({batch_size},) integers from 0 to {num_classes - 1}, or -1 for no label; got "
                f"{class_labels.tolist()}"
            )
        return self.class_embedding(class_labels.masked_fill(class_labels < 0, num_classes))[:, None]

    def _check_condition(
        self,
        context: torch.Tensor | None,
        context_key_values: list[KeyValue] | None,
        view_mask: torch.Tensor | None,
    ) -> None:
        if context is not None or context_key_values is not None:
            self._check_has_views()
            if context is not None and context_key_values is not None:
                raise ValueError("both `context` and `context_key_values` are given; give one of them")
        elif view_mask is not None:
            raise ValueError("view_mask is given without views; give `context` or `context_key_values` too")
        elif self.config.context_dim is not None and not self.config.context_dropout:
            raise ValueError(
                "neither `context` nor `context_key_values` is given, and this model was trained with "
                "context_dropout=0: give it views, or train with context_dropout above 0"
            )

    def _check_has_views(self) -> None:
        if self.config.context_dim is None:
            raise ValueError("context is given to a model without views; leave it out or set context_dim")

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


def _group_offloading_hook(model: nn.Module) -> Any:
    """What brings the weights of a model for its `forward` alone where diffusers' group offloading is on."""
    hooks = getattr(model, "_diffusers_hook", None)
    return None if hooks is None else hooks.get_hook("group_offloading")


def _some_out_of_range(class_labels: torch.Tensor, num_classes: int) -> bool:
    # A branch on values cannot be compiled into one graph.
    if torch.compiler.is_compiling():
        return False
    return bool(((class_labels < -1) | (class_labels > num_classes)).any())


def _joined_angles(of_views: torch.Tensor | None, of_codes: torch.Tensor | None) -> torch.Tensor | None:
    if of_views is None or of_codes is None:
        return None
    return torch.cat((of_views, of_codes.expand(of_views.shape[0], -1, -1, -1)), dim=2)


def _mean_and_scale(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return vectors.mean(dim=0), vectors.std(dim=0, correction=0).clamp(min=1e-6)


def _random_projection(vectors: torch.Tensor, hidden_size: int) -> torch.Tensor:
    return torch.randn(vectors.shape[1], hidden_size).to(vectors) / math.sqrt(vectors.shape[1])


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {tuple(choices)}")


def _check_config(
    code_grid: Sequence[int],
    context_dim: int | None,
    context_grid: Sequence[int],
    view_axes: Mapping[str, Sequence[str]],
    volume_axes: Sequence[str],
) -> None:
    if len(code_grid) != len(volume_axes) or len(set(map(axis_of, volume_axes))) != len(volume_axes):
        raise ValueError(
            f"volume_axes must name one axis of its own for each side of code_grid={tuple(code_grid)}; got "
            f"{tuple(volume_axes)}"
        )
    if context_dim is None and view_axes:
        raise ValueError(f"view_axes names the views {sorted(view_axes)} of a model without any; set context_dim")
    known = set(map(axis_of, volume_axes))
    for name, axes in view_axes.items():
        if len(axes) != len(context_grid) or any(axis_of(axis) not in known for axis in axes):
            raise ValueError(
                f"view_axes[{name!r}] must name {len(context_grid)} directions out of {DIRECTIONS} along "
                f"volume_axes={tuple(volume_axes)}; got {tuple(axes)}. A model without views has context_dim=None."
            )


def _check_width(hidden_size: int, num_heads: int) -> None:
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(f"num_heads={num_heads} must be at least 1 and divide hidden_size={hidden_size}")


def _check_order(
    causal: bool,
    code_order: Sequence[int] | None,
    code_grid: Sequence[int],
    context_dim: int | None,
    context_attention: str,
) -> None:
    if causal and context_dim is not None and context_attention != "prefix":
        raise ValueError(
            f"causal=True needs context_attention='prefix'; with {context_attention!r} views would tell of later codes"
        )
    if code_order is None:
        return
    if not causal:
        raise ValueError("code_order is given to a model that is not causal; leave it out or set causal=True")
    if sorted(code_order) != list(range(math.prod(code_grid))):
        raise ValueError(
            f"code_order must list each place from 0 to {math.prod(code_grid) - 1} of code_grid={tuple(code_grid)} "
            f"once; got {len(code_order)} entries"
        )


def _check_view_dropout(context_dim: int | None, view_dropout: float, context_dropout: float) -> None:
    for name, value in (("view_dropout", view_dropout), ("context_dropout", context_dropout)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1); got {value}")
        if value and context_dim is None:
            raise ValueError(f"{name}={value} is given to a model without views; leave it at 0 or set context_dim")


def _check_classes(num_classes: int | None, label_dropout: float, id2label: Mapping[int | str, str] | None) -> None:
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, or None for a model without classes; got {num_classes}")
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout must lie in [0, 1); got {label_dropout}")
    if num_classes is None and (label_dropout or id2label):
        raise ValueError(f"label_dropout={label_dropout} and id2label={id2label} need num_classes; set it")
    if id2label is None:
        return
    if sorted(map(int, id2label)) != list(range(num_classes or 0)) or len(set(id2label.values())) != num_classes:
        raise ValueError(
            f"id2label must name each class from 0 to {(num_classes or 0) - 1} once, by names of their own; got "
            f"{dict(id2label)}"
        )
