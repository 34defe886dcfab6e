"""Quantizer layers: torch only, usable in any network."""

from .codebook import Codebook, CodebookUsage
from .configuration import VectorQuantizerConfig
from .functional import nearest_codes
from .vector_quantizer import VectorQuantizer, VectorQuantizerOutput

__all__ = [
    "Codebook",
    "CodebookUsage",
    "VectorQuantizer",
    "VectorQuantizerConfig",
    "VectorQuantizerOutput",
    "nearest_codes",
]
