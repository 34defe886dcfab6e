"""Quantizer layers: torch only, usable in any network."""

from .build import build_quantizer, quantizer_config
from .codebook import Codebook, CodebookUsage
from .configuration import VectorQuantizerConfig
from .fields import QuantizerConfig
from .finite_scalar import FiniteScalarQuantizer, FiniteScalarQuantizerConfig
from .functional import nearest_codes
from .lookup_free import LookupFreeQuantizer, LookupFreeQuantizerConfig
from .vector_quantizer import CodebookLookUp, VectorQuantizer, VectorQuantizerOutput

__all__ = [
    "Codebook",
    "CodebookLookUp",
    "CodebookUsage",
    "FiniteScalarQuantizer",
    "FiniteScalarQuantizerConfig",
    "LookupFreeQuantizer",
    "LookupFreeQuantizerConfig",
    "QuantizerConfig",
    "VectorQuantizer",
    "VectorQuantizerConfig",
    "VectorQuantizerOutput",
    "build_quantizer",
    "nearest_codes",
    "quantizer_config",
]
