"""How many numbers a saved model holds, read from the headers of its safetensors files."""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

WEIGHT_FILE = re.compile(r"(diffusion_pytorch_)?model(\.(?P<variant>[^.]+?))?(-\d{5}-of-\d{5})?\.safetensors")
"""Weight files as transformers and diffusers name them: perhaps of a variant, perhaps one of several shards."""

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The names in safetensors of the types that parameters have; counters and flags of a codebook are whole numbers."""


@dataclass(frozen=True)
class Weights:
    """The floating-point tensors of a saved model.

    Attributes:
        count: numbers in them: parameters, and what a model keeps beside them, such as the running means of batch norm.
        types: their types, sorted.
    """

    count: int
    types: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.count:,} numbers in {', '.join(self.types)}"


def read_weights(folder: str | Path) -> Weights:
    """Counts the numbers of a model that `save_pretrained` wrote, in one file or several; of variants the plain one.

    Raises:
        ValueError: if there are no weights, or a file is damaged.
    """
    variants: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        match = WEIGHT_FILE.fullmatch(path.name)
        if match:
            variants.setdefault(match["variant"] or "", []).append(path)
    if not variants:
        raise ValueError(f"{folder}: found no safetensors file with weights, expected one; save the model again")
    chosen = variants[min(variants)]
    tensors = [tensor for path in chosen for tensor in read_header(path)]
    floats = [(FLOATS[kind], math.prod(shape)) for kind, shape in tensors if kind in FLOATS]
    return Weights(sum(count for _, count in floats), tuple(sorted({kind for kind, _ in floats})))


def read_header(path: Path) -> list[tuple[str, list[int]]]:
    """Type and shape of each tensor of a safetensors file; raises ValueError when it is damaged."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
        return [(value["dtype"], value["shape"]) for name, value in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: found no header of safetensors ({error}); copy or save the file again") from error
