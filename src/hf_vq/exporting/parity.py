"""How far ONNX files give what their model gives in PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..quantizers import VectorQuantizer, nearest_codes
from .graphs import Graph, TokenizerEncoderGraph
from .onnx_files import model_parts
from .optional import import_onnx_extra
from .programs import eval_mode

TOLERANCE = 1e-4


@dataclass(frozen=True)
class OutputParity:
    """One output of one ONNX file beside PyTorch's.

    Attributes:
        file: the ONNX file, relative to its folder.
        output: its name.
        count: numbers compared.
        largest_difference: absolute, of floating-point numbers; where a code differs, its vector is left out.
        differing_codes: codes that differ.
        far_codes: those of them that no near tie explains: see `near_ties`.
    """

    file: str
    output: str
    count: int
    largest_difference: float = 0.0
    differing_codes: int = 0
    far_codes: int = 0

    @property
    def passes(self) -> bool:
        """Whether numbers agree within `TOLERANCE` and codes but for near ties."""
        return self.largest_difference <= TOLERANCE and self.far_codes == 0

    def __str__(self) -> str:
        if self.output != "codes":
            return (
                f"{self.file} {self.output}: largest difference {self.largest_difference:.1e} of {self.count:,} numbers"
            )
        near = self.differing_codes - self.far_codes
        return f"{self.file} codes: {self.differing_codes} of {self.count:,} differ, {near} of them near ties"


def check_onnx(
    model: Any,
    folder: str | Path,
    spatial: tuple[int, ...] | None = None,
    batch_size: int = 3,
    generator: torch.Generator | None = None,
) -> list[OutputParity]:
    """Runs the files that `export_onnx` wrote through onnxruntime, on the CPU, and compares them with the model.

    Args:
        model: what was exported.
        folder: where it was written.
        spatial: sides of a tokenizer's random input; as in the export where they were fixed then.
        batch_size: size of the batch, 1 or more.
        generator: source of the random inputs; seeded with 0 by default.

    Returns:
        An entry for each output of each file.

    Raises:
        ImportError: if the extra `onnx` is not installed.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    results: list[OutputParity] = []
    for name, graph in model_parts(model, spatial).items():
        results.extend(_check(graph, Path(folder) / f"{name}.onnx", f"{name}.onnx", batch_size, generator))
    return results


def run_onnx(path: str | Path, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of an ONNX file by name, from inputs by name, computed by onnxruntime on the CPU."""
    onnxruntime = import_onnx_extra("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: value.cpu().numpy() for name, value in inputs.items()})
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}


def run_graph(graph: Graph, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of a graph by name, on the CPU, computed by PyTorch in eval mode."""
    device = next(graph.module.parameters()).device
    with torch.no_grad(), eval_mode(graph.module):
        outputs = graph.module(**{name: value.to(device) for name, value in inputs.items()})
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    return {name: value.cpu() for name, value in zip(graph.outputs, outputs, strict=True)}


def near_ties(quantizer: Any, latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Which codes their latents could have been given had they been rounded otherwise; the right ones always.

    Args:
        quantizer: any quantizer of this package.
        latents: `(B, C, *grid)`, its input.
        codes: int64 in `[0, K)`, of the shape that it gives them.

    Returns:
        Bools of the codes' shape (without the axis of the codebooks, if a quantizer without a codebook has one). With
        a codebook: the squared distance is greater than the least by at most 1e-4 of the squared spread. Without one:
        each channel has a level that it would have after a shift by at most 1e-4.
    """
    if isinstance(quantizer, VectorQuantizer):
        return _nearly_nearest(quantizer, latents, codes)
    low, high = (quantizer.decode(quantizer.encode(latents + shift)) for shift in (-TOLERANCE, TOLERANCE))
    vectors = quantizer.decode(codes)
    return ((low <= vectors) & (vectors <= high)).all(dim=1)


@torch.no_grad()
def _nearly_nearest(quantizer: VectorQuantizer, latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    structure, near = quantizer.config.structure, []
    left_over: torch.Tensor | float = 0.0  # what a residual codebook sees more, because of other codes before it
    books = [codes] if structure == "single" else list(codes.unbind(dim=1))
    for part, book in zip(quantizer.inspect(latents), books, strict=True):
        vectors, effective = part.vectors + left_over, part.codebook.effective()
        chosen = F.embedding(book.flatten(), effective)
        nearest = F.embedding(nearest_codes(vectors, effective), effective)
        excess = _squared_distance(vectors, chosen) - _squared_distance(vectors, nearest)
        spread = _squared_distance(vectors, effective.mean(dim=0)) + effective.double().var(dim=0, correction=0).sum()
        near.append((excess <= TOLERANCE * spread).view(book.shape))
        if structure == "residual":
            left_over = left_over + part.quantized - chosen
    return near[0] if structure == "single" else torch.stack(near, dim=1)


def _squared_distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.double() - right.double()).square().sum(dim=1)


def _check(graph: Graph, path: Path, file: str, batch_size: int, generator: torch.Generator) -> Iterator[OutputParity]:
    inputs = graph.make_inputs(batch_size, generator)
    found, expected = run_onnx(path, inputs), run_graph(graph, inputs)
    if isinstance(graph.module, TokenizerEncoderGraph):
        yield _compare_codes(graph, file, found["codes"], expected)
        same = (found["codes"] == expected["codes"]).reshape(batch_size, -1, expected["embeddings"].shape[1]).all(dim=1)
        found["embeddings"] = torch.where(same[..., None], found["embeddings"], expected["embeddings"])
    for name in graph.outputs:
        if name != "codes":
            difference = (found[name] - expected[name]).abs()
            yield OutputParity(file, name, difference.numel(), float(difference.max()))


def _compare_codes(graph: Graph, file: str, codes: torch.Tensor, expected: dict[str, torch.Tensor]) -> OutputParity:
    device = next(graph.module.parameters()).device
    quantizer: Any = graph.module.quantizer
    differs = codes != expected["codes"]
    far = differs & ~near_ties(quantizer, expected["latents"].to(device), codes.to(device)).cpu()
    return OutputParity(file, "codes", codes.numel(), 0.0, int(differs.sum()), int(far.sum()))
