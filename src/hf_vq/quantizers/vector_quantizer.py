"""The vector quantizer layer."""

import warnings
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .codebook import Codebook
from .configuration import VectorQuantizerConfig
from .distributed import all_reduce_sum, joined_mean_factor
from .fields import config_or_fields, shown_fields
from .functional import (
    active_fraction,
    as_float,
    codebook_loss,
    count_codes,
    nearest_codes,
    perplexity,
    quantization_losses,
    rotation,
    straight_through,
)

ESTIMATORS = {"straight_through": straight_through, "rotation": rotation}
SHOWN_FIELDS = (
    *("codebook_size", "codebook_dim", "parameterization", "update", "estimator", "sync_weight", "distance", "init"),
    *("replace_after", "structure", "num_codebooks"),
)
# So many training batches may pass before somebody has to take charge of the codes of alternating optimisation.
PATIENCE = 2


@dataclass
class VectorQuantizerOutput:
    """What a quantizer returns.

    Attributes:
        quantized: same shape and dtype as the input; carries the estimator's gradient.
        codes: the input's shape without its channel axis, int64 in `[0, K)`; with several codebooks there is an axis
            for them behind the batch axis.
        loss: scalar, `commitment_weight * commitment_loss + codebook_weight * codebook_loss`, float32; without the
            second term where something else than the optimizer's gradient moves the codes. A quantizer's own penalty
            comes on top (`LookupFreeQuantizer`).
        commitment_loss: scalar `mean |z - sg(z_q)|^2`.
        codebook_loss: scalar `mean |sg(z) - z_q|^2`.
        perplexity: scalar, of this batch (in training over all processes); an epoch's is what `CodebookUsage` reports.
            The mean over the codebooks.
        active_fraction: scalar, share of the codes that this batch uses (in training over all processes).
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    commitment_loss: torch.Tensor
    codebook_loss: torch.Tensor
    perplexity: torch.Tensor
    active_fraction: torch.Tensor


@dataclass
class CodebookLookUp:
    """One codebook's part in quantising a batch of N vectors.

    Attributes:
        codebook: the codebook.
        vectors: `(N, c)` what it saw: the encoder's outputs, their share of the channels, or what was left over; of
            length 1 with `distance="cosine"`.
        codes: `(N,)` int64, what it chose.
        quantized: `(N, c)` the effective codes chosen.
    """

    codebook: Codebook
    vectors: torch.Tensor
    codes: torch.Tensor
    quantized: torch.Tensor


class VectorQuantizer(nn.Module):
    """Replaces each vector of a feature map by its nearest code, with a gradient for what came before.

    Implements van den Oord et al., 2017 (vector quantisation with a straight-through gradient), the techniques of Huh
    et al., 2023 (affine re-parameterised codes, alternating optimisation, synchronised update) and those that they are
    compared with; see `VectorQuantizerConfig` for the choices. Arithmetic is float32 or better under any autocast. In
    training mode the codes may be initialised, averaged or replaced at the start of `forward`; in eval mode nothing
    changes.

    Args:
        config: a `VectorQuantizerConfig` or its plain dict; alternatively give its fields as keywords.

    Example:
        >>> quantizer = VectorQuantizer(codebook_size=512, codebook_dim=64)
        >>> output = quantizer(torch.randn(2, 64, 8, 8))
        >>> output.codes.shape
        torch.Size([2, 8, 8])
    """

    def __init__(self, config: VectorQuantizerConfig | dict[str, Any] | None = None, **fields: object) -> None:
        super().__init__()
        self.config = config_or_fields(VectorQuantizerConfig, config, fields)
        self._unattended_batches = 0
        if self.config.structure == "single":
            self.codebook = Codebook(self.config)
        else:
            self.codebooks = nn.ModuleList(Codebook(self.config, index) for index in range(self.config.num_codebooks))

    @property
    def all_codebooks(self) -> list[Codebook]:
        """The codebooks in order: one with `structure="single"`."""
        return [self.codebook] if self.config.structure == "single" else list(self.codebooks)  # type: ignore[arg-type]

    @property
    def effective_codebook(self) -> torch.Tensor:
        """`(K, C)` codes as used for look-up and decoding; with several codebooks `(num_codebooks, K, channels)`."""
        effective = [codebook.effective() for codebook in self.all_codebooks]
        return effective[0] if self.config.structure == "single" else torch.stack(effective)

    def forward(self, features: torch.Tensor) -> VectorQuantizerOutput:
        """Quantises `(B, C, *spatial)`, or `(B, ..., C)` with `channel_last`.

        Raises:
            ValueError: if the channel axis is not `codebook_dim` wide, features are no floating-point numbers, or the
                first training batch, from which codes are initialised, holds NaN or infinity; no state has changed.
        """
        if self.training and self.config.update == "alternating":
            self._look_for_code_optimizer()
        with torch.autocast(features.device.type, enabled=False):
            vectors, shape = self._flatten(features)
            look_ups = self._look_up(vectors, learn=self.training)
            counts, factor = self._count(look_ups)
            losses = [quantization_losses(part.vectors, part.quantized) for part in look_ups]
            commitment, codebook = (factor * _mean(list(parts)) for parts in zip(*losses, strict=True))
            output = self._estimate(vectors, look_ups)
        return VectorQuantizerOutput(
            quantized=self._unflatten(output, shape).to(features.dtype),
            codes=self._stack([part.codes for part in look_ups], shape),
            loss=self.config.commitment_weight * commitment + self._codebook_weight * codebook,
            commitment_loss=commitment,
            codebook_loss=codebook,
            perplexity=_mean([perplexity(count) for count in counts]),
            active_fraction=_mean([active_fraction(count) for count in counts]),
        )

    @property
    def awaits_vectors(self) -> bool:
        """True if `begin_batch` needs the features of the batch: codes are to be placed, or moments to be taken."""
        return any(codebook.awaits_vectors for codebook in self.all_codebooks)

    @torch.no_grad()
    def begin_batch(self, features: torch.Tensor | None = None) -> None:
        """Declares that the coming forwards are parts of one training batch, as in gradient accumulation.

        The codes are initialised, averaged and replaced once, from all of it, and its counts are those of all parts: in
        training mode the state afterwards is that of one forward of the joined batch. Call `next_part` before each
        forward but the first, and `end_batch` after the last.

        Args:
            features: `(B, C, *spatial)` of all parts joined, this process's share; needed where `awaits_vectors`.

        Raises:
            ValueError: if features are needed and not given, and as `forward` does.
        """
        self.end_batch()
        if self.awaits_vectors and features is None:
            raise ValueError("the codes await the features of the whole batch; call begin_batch(features)")
        if features is None:
            return
        with torch.autocast(features.device.type, enabled=False):
            self._look_up(self._flatten(features)[0], learn=self.training)
        for codebook in self.all_codebooks:
            codebook.is_prepared = True

    def next_part(self) -> None:
        """Declares that the next forward goes on with the training batch of the last one."""
        for codebook in self.all_codebooks:
            codebook.continues_batch = True

    def end_batch(self) -> None:
        """Declares that the next forward is a training batch of its own."""
        for codebook in self.all_codebooks:
            codebook.is_prepared = codebook.continues_batch = False

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes of `(B, C, *spatial)` features, int64: `(B, *spatial)`, or `(B, num_codebooks, *spatial)` with several
        codebooks. Changes no state, in training mode either.

        Raises:
            ValueError: as `forward`, and if a feature is NaN or infinite.
        """
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            vectors, shape = self._flatten(features)
            check_numbers(vectors)
            return self._stack([part.codes for part in self._look_up(vectors, learn=False)], shape)

    def inspect(self, features: torch.Tensor) -> list[CodebookLookUp]:
        """What each codebook does with `(B, C, *spatial)` features; no gradient, no change of state."""
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            return self._look_up(self._flatten(features)[0], learn=False)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Effective vectors of codes: `(B, *spatial)` int64 (with several codebooks `(B, num_codebooks, *spatial)`)
        -> `(B, C, *spatial)`, or `(B, ..., C)` with `channel_last`.

        Raises:
            ValueError: if a code is outside `[0, K)`, codes are no integers, or the axis of the codebooks has another
                length.
        """
        check_codes(codes, self.config.codebook_size)
        parts = [codes] if self.config.structure == "single" else list(codes.unbind(dim=1))
        if len(parts) != self.config.num_codebooks:
            raise ValueError(
                f"codes must be (B, {self.config.num_codebooks}, ...), one entry per codebook; got {tuple(codes.shape)}"
            )
        books = self.all_codebooks
        vectors = [F.embedding(part, book.effective().to(part.device)) for part, book in zip(parts, books, strict=True)]
        joined = self._join(vectors).to(books[0].weight.dtype)
        return joined if self.config.channel_last else joined.movedim(-1, 1)

    def codebook_objective(self, features: torch.Tensor) -> torch.Tensor:
        """What the codes minimise in alternating optimisation: `mean |sg(z) - z_q|^2` with the assignments of now.

        Args:
            features: encoder outputs, as for `forward`.

        Returns:
            Scalar, differentiable in the codebook's parameters only. Changes no state.
        """
        with torch.autocast(features.device.type, enabled=False):
            vectors, _ = self._flatten(features.detach())
            look_ups = self._look_up(vectors, learn=False)
            loss = _mean([codebook_loss(part.vectors, part.quantized) for part in look_ups])
            rows = torch.tensor(len(vectors), device=vectors.device)
            return joined_mean_factor(len(vectors), all_reduce_sum(rows)) * loss

    def freeze_codebook(self) -> None:
        """Freezes codes, parameterisation, averages, counters and replacement."""
        for codebook in self.all_codebooks:
            codebook.freeze()

    def extra_repr(self) -> str:
        """The main fields of the config, for `repr`."""
        return shown_fields(self.config, SHOWN_FIELDS)

    def _look_for_code_optimizer(self) -> None:
        """Warns once if training batches have passed and nothing moves the codes."""
        if self._unattended_batches > PATIENCE:
            return
        self._unattended_batches += 1
        if self._unattended_batches <= PATIENCE or all(book.has_own_optimizer for book in self.all_codebooks):
            return
        if not all(codebook.frozen for codebook in self.all_codebooks):
            warnings.warn(
                f"{PATIENCE} training batches have passed with update='alternating' and no AlternatingOptimizer: the "
                "codes stand still. Make a hf_vq.training.alternating.AlternatingOptimizer of the model and call its "
                "step(features) before each forward, or choose update='gradient'.",
                stacklevel=3,
            )

    @property
    def _codebook_weight(self) -> float:
        # A factor 0 keeps the codes in the graph: data-parallel training waits for a gradient of every parameter.
        return self.config.codebook_weight if self.config.update == "gradient" else 0.0

    def _look_up(self, vectors: torch.Tensor, learn: bool) -> list[CodebookLookUp]:
        batch = vectors.detach() if learn else None
        if self.config.structure != "residual":
            parts = vectors.chunk(self.config.num_codebooks, dim=1)
            return [_choose(book, part, batch) for book, part in zip(self.all_codebooks, parts, strict=True)]
        look_ups: list[CodebookLookUp] = []
        for codebook in self.all_codebooks:
            look_ups.append(_choose(codebook, vectors, batch))
            vectors = vectors - look_ups[-1].quantized.detach()
        return look_ups

    def _count(self, look_ups: list[CodebookLookUp]) -> tuple[list[torch.Tensor], torch.Tensor | float]:
        """Usage of each codebook, noted if in training, and the factor that makes local means joined ones."""
        counts = [count_codes(part.codes, self.config.codebook_size) for part in look_ups]
        if not self.training:
            return counts, 1.0
        counts = list(all_reduce_sum(torch.stack(counts)))
        for count, part in zip(counts, look_ups, strict=True):
            part.codebook.record(count, part.vectors.detach(), part.codes)
        return counts, joined_mean_factor(len(look_ups[0].codes), counts[0].sum())

    def _estimate(self, vectors: torch.Tensor, look_ups: list[CodebookLookUp]) -> torch.Tensor:
        estimator = ESTIMATORS[self.config.estimator]
        if self.config.structure == "residual":  # one gradient for the sum: every stage sees the same vector
            return estimator(vectors, self._join([part.quantized for part in look_ups]), self.config.sync_weight)
        return self._join([estimator(part.vectors, part.quantized, self.config.sync_weight) for part in look_ups])

    def _join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        if len(parts) == 1:
            return parts[0]
        return reduce(torch.add, parts) if self.config.structure == "residual" else torch.cat(parts, dim=-1)

    def _stack(self, codes: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
        if self.config.structure == "single":
            return codes[0].view(shape)
        return torch.stack([part.view(shape) for part in codes], dim=1)

    def _flatten(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
        return flatten_features(features, self.config.codebook_dim, self.config.channel_last)

    def _unflatten(self, vectors: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return unflatten_vectors(vectors, shape, self.config.channel_last)


def _choose(codebook: Codebook, vectors: torch.Tensor, batch: torch.Tensor | None) -> CodebookLookUp:
    vectors = codebook.normalize(vectors)
    if batch is not None:
        codebook.prepare(vectors.detach(), batch)
    # Where a model is spread over devices, the codes come to the features, as no hook brings the features to the codes.
    effective = codebook.effective().to(vectors.device)
    codes = nearest_codes(vectors, effective)
    return CodebookLookUp(codebook, vectors, codes, F.embedding(codes, effective))


def _mean(values: list[torch.Tensor]) -> torch.Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(dim=0)


def flatten_features(
    features: torch.Tensor, num_channels: int, channel_last: bool = False
) -> tuple[torch.Tensor, torch.Size]:
    """Rows of a feature map in float32 or better.

    Args:
        features: `(B, C, *spatial)`, or `(B, ..., C)` with `channel_last`.
        num_channels: C, the codebook's dimension.
        channel_last: where the channels are.

    Returns:
        `(N, C)` rows and the shape `(B, *spatial)`.

    Raises:
        ValueError: if the channel axis has another width, or features are no floating-point numbers.
    """
    if not features.is_floating_point():
        raise ValueError(f"features have dtype {features.dtype}; expected a floating-point one: pass features.float()")
    channel_axis = -1 if channel_last else 1
    if features.ndim < 2 or features.shape[channel_axis] != num_channels:
        raise ValueError(
            f"expected {num_channels} channels (codebook_dim) on axis {channel_axis}; got shape {tuple(features.shape)}"
        )
    channels_last = features.movedim(channel_axis, -1)
    return as_float(channels_last.reshape(-1, num_channels)), channels_last.shape[:-1]


def unflatten_vectors(vectors: torch.Tensor, shape: torch.Size, channel_last: bool = False) -> torch.Tensor:
    """Inverse of `flatten_features`: `(N, C)` rows -> `(B, C, *spatial)`, or `(B, ..., C)` with `channel_last`."""
    output = vectors.view(*shape, vectors.shape[-1])
    return output if channel_last else output.movedim(-1, 1)


def check_numbers(vectors: torch.Tensor) -> None:
    """Refuses vectors to which no code is nearest, in eager mode only, as in `check_codes`.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    if torch.compiler.is_compiling() or vectors.is_meta or bool(vectors.isfinite().all()):
        return
    raise ValueError(
        "features hold NaN or infinite values, to which no code is nearest; look for them in the input, or encode in a "
        "wider dtype"
    )


def check_codes(codes: torch.Tensor, codebook_size: int) -> None:
    """Refuses codes that no codebook row belongs to.

    Values are looked at in eager mode only, not in compiled and exported graphs.

    Raises:
        ValueError: if a code is outside `[0, codebook_size)`, or codes are no integers.
    """
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(
            f"codes have dtype {codes.dtype}; expected integers, as encode returns them. Are these features?"
        )
    # A branch on values cannot be traced into one graph.
    if torch.compiler.is_compiling() or codes.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(codes))
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"codes must lie in [0, {codebook_size}); got values from {low} to {high}. Masked positions must be filled "
            "before decoding."
        )
