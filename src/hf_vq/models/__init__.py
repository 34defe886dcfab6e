"""Models: VQ tokenizers and the transformer over their codes."""

from .configuration_vq_tokenizer import VQTokenizerConfig
from .loading import load_tokenizer
from .modeling_code_transformer import CodeTransformer, CodeTransformerOutput
from .modeling_vq_tokenizer import (
    VQTokenizer,
    VQTokenizerDecoderOutput,
    VQTokenizerEncoderOutput,
    VQTokenizerOutput,
)

__all__ = [
    "CodeTransformer",
    "CodeTransformerOutput",
    "VQTokenizer",
    "VQTokenizerConfig",
    "VQTokenizerDecoderOutput",
    "VQTokenizerEncoderOutput",
    "VQTokenizerOutput",
    "load_tokenizer",
]
