"""Tiny sizes and transformers for tests of what models become outside of plain PyTorch."""

import torch

from hf_vq import CodeTransformer

TOKENIZER = {"base_channels": 8, "channel_multipliers": [1], "stem_stride": 4, "num_res_blocks": 1}
TRANSFORMER = {
    "num_codes": 11,
    "code_grid": (2, 3, 4),
    "context_dim": 5,
    "context_grid": (4, 6),
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
}
# The same for the view tokenizers of pipelines: 4 numbers for each of 4 x 4 codes.
OF_PIPELINES = {**TRANSFORMER, "context_dim": 4, "context_grid": (4, 4)}


def untrained_transformer(**fields):
    """A transformer in training mode whose parameters are away from their zero-initialised tables."""
    torch.manual_seed(0)
    model = CodeTransformer(**fields)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model
