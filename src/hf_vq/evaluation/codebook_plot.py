"""The picture of a codebook: how often each code is used, and where codes and encoder outputs lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_file
from ..quantizers import CodebookLookUp
from ..quantizers.functional import perplexity
from .optional import import_extra

MAX_POINTS = 4000
OUTPUT_COLOUR, USED_COLOUR, UNUSED_COLOUR = "#9aa0a6", "#1a73e8", "#d93025"


def principal_axes(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `(C,)` and the two directions of largest variance `(C, 2)` of vectors `(N, C)`; zeros where C or N is 1."""
    mean = vectors.mean(dim=0)
    directions = torch.linalg.svd(vectors - mean, full_matrices=False).Vh[:2].T
    return mean, torch.nn.functional.pad(directions, (0, 2 - directions.shape[1]))


def save_codebook_plot(look_ups: Sequence[CodebookLookUp], path: str | Path, title: str = "") -> None:
    """Draws one row for each codebook: usage, sorted, and the first two principal components of the encoder outputs
    with the effective codes among them, used and unused.

    Args:
        look_ups: what the codebooks did with some data, from `VectorQuantizer.inspect`.
        path: file to write, in a format that matplotlib knows by its suffix.
        title: shown on top.
    """
    plt = import_extra("matplotlib.pyplot")
    figure, rows = plt.subplots(len(look_ups), 2, figsize=(11, 4.2 * len(look_ups)), squeeze=False)
    for (left, right), look_up in zip(rows, look_ups, strict=True):
        effective = look_up.codebook.effective().detach().float()
        counts = torch.bincount(look_up.codes, minlength=len(effective))
        _draw_usage(left, counts)
        _draw_vectors(right, look_up.vectors.float(), effective, counts > 0)
    figure.suptitle(title)
    figure.tight_layout()
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, dpi=130, format=Path(path).suffix.removeprefix(".") or "png")
    plt.close(figure)


def _draw_usage(axes: Any, counts: torch.Tensor) -> None:
    shares = counts.sort(descending=True).values / counts.sum().clamp(min=1)
    axes.bar(range(len(shares)), shares.tolist(), width=1.0, color=USED_COLOUR)
    axes.axhline(1 / len(shares), color="black", linewidth=0.8, linestyle=":", label="even use")
    axes.set(xlabel="codes, most used first", ylabel="share of the vectors", xlim=(-0.5, len(shares) - 0.5))
    active = int((counts > 0).sum())
    axes.set_title(f"{active} of {len(shares)} codes used, perplexity {float(perplexity(counts)):.0f}")
    axes.legend()


def _draw_vectors(axes: Any, vectors: torch.Tensor, effective: torch.Tensor, used: torch.Tensor) -> None:
    mean, directions = principal_axes(vectors)
    shown = vectors[:: max(1, len(vectors) // MAX_POINTS)]
    layers = (
        (shown, OUTPUT_COLOUR, 3, "encoder outputs"),
        (effective[~used], UNUSED_COLOUR, 14, "unused codes"),
        (effective[used], USED_COLOUR, 14, "used codes"),
    )
    for points, colour, size, label in layers:
        first, second = ((points - mean) @ directions).T.tolist()
        axes.scatter(first, second, s=size, color=colour, label=f"{label} ({len(points)})", linewidths=0)
    total = (vectors - mean).square().sum().clamp(min=torch.finfo(vectors.dtype).tiny)
    explained = ((vectors - mean) @ directions).square().sum() / total
    axes.set(xlabel="first component", ylabel="second component")
    axes.set_title(f"principal components ({100 * float(explained):.0f} % of the outputs' variance)")
    axes.legend()
