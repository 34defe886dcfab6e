"""Transformer over a grid of codes of a volume or an image, conditional on the codes of 2D views or on a class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..sharing import PushedWithCard
from .axial_positions import DEFAULT_VOLUME_AXES, IMAGE_AXES, AxialPositions, AxialRotation
from .code_transformer_block import CodeTransformerBlock, KeyValue
from .code_transformer_checks import (
    check_choice,
    check_classes,
    check_grids,
    check_order,
    check_sizes,
    check_view_dropout,
    check_width,
)
from .code_transformer_tokens import CodeTransformerTokens, joined_angles
from .code_transformer_training import HEAD_INIT_STD, CodeTransformerTraining

DEFAULT_VIEW_AXES = {"frontal": ("inferior", "left"), "lateral": ("inferior", "posterior")}
POSITION_EMBEDDINGS = ("axial", "axial_rotary", "learned")
CONTEXT_ATTENTIONS = ("full", "prefix")


@dataclass
class CodeTransformerOutput(BaseOutput):
    """What `CodeTransformer.forward` returns.

    Args:
        sample: `(B, N, num_codes)` logits of the codes, or those of the `positions` that were asked for; the mask is
            never predicted.
    """

    sample: torch.Tensor


class CodeTransformer(CodeTransformerTokens, CodeTransformerTraining, PushedWithCard, ModelMixin, ConfigMixin):
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
        check_sizes(num_codes, hidden_size, num_layers, num_heads, mlp_ratio, dropout, context_dim, num_classes)
        if volume_axes is None:
            volume_axes = IMAGE_AXES if len(code_grid) == len(IMAGE_AXES) else DEFAULT_VOLUME_AXES
        if view_axes is None:
            view_axes = DEFAULT_VIEW_AXES if context_dim is not None else {}
        # diffusers takes arguments given by position for defaults, which `from_config` leaves out.
        self.register_to_config(volume_axes=volume_axes, view_axes=view_axes, _use_default_values=[])
        check_grids(code_grid, context_dim, context_grid, view_axes, volume_axes)
        check_width(hidden_size, num_heads)
        check_classes(num_classes, label_dropout, id2label)
        check_view_dropout(context_dim, view_dropout, context_dropout)
        check_order(causal, code_order, code_grid, context_dim, context_attention)
        check_choice("position_embedding", position_embedding, POSITION_EMBEDDINGS)
        check_choice("context_attention", context_attention, CONTEXT_ATTENTIONS)
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

    @property
    def label2id(self) -> dict[str, int]:
        """Number of each class by its name; empty where the classes have no names."""
        return {name: int(number) for number, name in (self.config.id2label or {}).items()}

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
        nobody = torch.empty(1, 0, dtype=torch.int64, device=hidden_states.device)  # reads the last hidden states
        for index, block in enumerate(self.blocks):
            asked_for = nobody if index + 1 == len(self.blocks) else None
            hidden_states, key_value = self._run(block, hidden_states, None, shown, angles, asked_for)
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
        positions: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> CodeTransformerOutput | tuple[torch.Tensor]:
        """Logits of every code or of some, a causal model's from the codes before it.

        Args:
            sample: `(B, N)` or `(B, *code_grid)` int64 in `[0, num_codes]`; `num_codes` is the mask.
            context: `(B, V, context_tokens, context_dim)` embeddings of the views' codes; a model trained with
                `context_dropout` does without, and knows no view then.
            view_ids: `(B, V)` int64, which view each is; the model's views in order by default.
            view_mask: `(B, V)` bool, False where a view is missing: nothing attends to it, as if it were left out.
            context_key_values: instead of `context`, what `encode_context` returned.
            class_labels: `(B,)` int64 in `[0, num_classes)`; -1 or `num_classes`, as leaving them out, means no label.
            positions: places of the flattened grid whose logits are wanted, all by default. `(B, M)` int64: M of each
                row, for which alone the last block's queries and the head are computed. `(B, N)` bool: any number, for
                which alone the last block's MLP and the head are computed.
            return_dict: `False` for a plain tuple.

        Returns:
            `CodeTransformerOutput` with logits `(B, N, num_codes)`; with `positions` `(B, M, num_codes)`, or of
            booleans `(number of them, num_codes)`, row by row.

        Raises:
            ValueError: if shapes do not fit, a label is out of range, both `context` and `context_key_values` are
                given, `view_mask` comes without them, a model without views or classes gets them, or one with views
                that never trained without gets none.
        """
        self._check_condition(sample, context, context_key_values, view_mask)
        hidden_states = self._drop(self._embed_codes(sample) + self._embed_labels(class_labels, sample))
        if context is not None and self.config.context_attention == "prefix":
            context_key_values = self._encode_context(context, view_ids, view_mask)
        elif context is not None:
            hidden_states = torch.cat((self._embed_context(context, view_ids), hidden_states), dim=1)
        angles = self._code_angles(sample.device)
        if context is not None and self.config.context_attention == "full":
            angles = joined_angles(self._context_angles(context, view_ids), angles)
        queries = self._queries(positions, hidden_states)
        attended = self._attended_tokens(view_mask, hidden_states, context_key_values)
        for index, block in enumerate(self.blocks):
            prefix = context_key_values[index] if context_key_values is not None else None
            asked_for = queries if index + 1 == len(self.blocks) else None
            hidden_states, _ = self._run(block, hidden_states, prefix, attended, angles, asked_for)
        logits = self.head(self.norm_out(hidden_states))
        return CodeTransformerOutput(sample=logits) if return_dict else (logits,)

    def _run(
        self,
        block: nn.Module,
        hidden_states: torch.Tensor,
        prefix: KeyValue | None,
        attended: torch.Tensor | None,
        angles: torch.Tensor | None,
        queries: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, hidden_states, prefix, attended, angles, queries)
        return block(hidden_states, prefix, attended, angles, queries)

    def _check_condition(
        self,
        sample: torch.Tensor,
        context: torch.Tensor | None,
        context_key_values: list[KeyValue] | None,
        view_mask: torch.Tensor | None,
    ) -> None:
        if context is not None or context_key_values is not None:
            self._check_has_views()
            if context is not None and context_key_values is not None:
                raise ValueError("both `context` and `context_key_values` are given; give one of them")
            self._check_views_per_sample(sample, context, context_key_values)
        elif view_mask is not None:
            raise ValueError("view_mask is given without views; give `context` or `context_key_values` too")
        elif self.config.context_dim is not None and not self.config.context_dropout:
            raise ValueError(
                "neither `context` nor `context_key_values` is given, and this model was trained with "
                "context_dropout=0: give it views, or train with context_dropout above 0"
            )

    def _check_views_per_sample(
        self, sample: torch.Tensor, context: torch.Tensor | None, key_values: list[KeyValue] | None
    ) -> None:
        given = [context] if context is not None else [tensor for pair in key_values or () for tensor in pair]
        # Number by number: comparing lists of them would fix the batch size in an exported graph.
        if any(tensor.ndim == 0 or tensor.shape[0] != sample.shape[0] for tensor in given):
            raise ValueError(
                "context and context_key_values must hold the views of each sample; got "
                f"{[list(tensor.shape[:1]) for tensor in given]} for samples of shape {tuple(sample.shape)}"
            )
        if key_values is not None and len(key_values) != len(self.blocks):
            raise ValueError(
                f"context_key_values must hold a pair for each of {len(self.blocks)} blocks; got {len(key_values)}"
            )

    def _check_has_views(self) -> None:
        if self.config.context_dim is None:
            raise ValueError("context is given to a model without views; leave it out or set context_dim")


def _group_offloading_hook(model: nn.Module) -> Any:
    """What brings the weights of a model for its `forward` alone where diffusers' group offloading is on."""
    hooks = getattr(model, "_diffusers_hook", None)
    return None if hooks is None else hooks.get_hook("group_offloading")
