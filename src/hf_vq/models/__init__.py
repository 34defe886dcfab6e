"""Models: VQ tokenizers, the transformer over their codes, and VQ image classifiers."""

from .configuration_vq_image_classifier import AlexNetConfig, VQImageClassifierConfig
from .configuration_vq_tokenizer import VQTokenizerConfig
from .loading import load_tokenizer, read_config
from .modeling_code_transformer import CodeTransformer, CodeTransformerOutput
from .modeling_vq_image_classifier import VQForImageClassification, VQImageClassifierOutput
from .modeling_vq_tokenizer import (
    VQTokenizer,
    VQTokenizerDecoderOutput,
    VQTokenizerEncoderOutput,
    VQTokenizerOutput,
)

__all__ = [
    "AlexNetConfig",
    "CodeTransformer",
    "CodeTransformerOutput",
    "VQForImageClassification",
    "VQImageClassifierConfig",
    "VQImageClassifierOutput",
    "VQTokenizer",
    "VQTokenizerConfig",
    "VQTokenizerDecoderOutput",
    "VQTokenizerEncoderOutput",
    "VQTokenizerOutput",
    "load_tokenizer",
    "read_config",
]
