"""Loading a tokenizer that other parts are going to rely on."""

from pathlib import Path

import torch
from transformers import PreTrainedConfig

from .configuration_vq_tokenizer import VQTokenizerConfig
from .modeling_vq_tokenizer import VQTokenizer


def load_tokenizer(path: str | Path, spatial_dims: int, device: torch.device | str | None = None) -> VQTokenizer:
    """A trained tokenizer in eval mode, refused unless it is what was asked for.

    `from_pretrained` alone turns the folder of any model into a tokenizer with random weights and a warning.

    Args:
        path: folder or Hub id.
        spatial_dims: 2 or 3.
        device: where to put it.

    Raises:
        ValueError: if it is another model type, has the other dimension, or lacks weights.
    """
    model_type = PreTrainedConfig.get_config_dict(str(path))[0].get("model_type")
    if model_type != VQTokenizerConfig.model_type:
        raise ValueError(
            f"{path} holds a model of type {model_type!r}; expected a VQTokenizer "
            f"({VQTokenizerConfig.model_type!r}), as train_tokenizer.py writes it"
        )
    tokenizer, info = VQTokenizer.from_pretrained(path, output_loading_info=True)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(
            f"{path} lacks weights of its model: {sorted(info['missing_keys'])[:3]} ...; train or copy it again"
        )
    if tokenizer.config.spatial_dims != spatial_dims:
        raise ValueError(
            f"{path} is a {tokenizer.config.spatial_dims}D tokenizer; expected a {spatial_dims}D one. Are the "
            "volume and the view tokenizer swapped?"
        )
    return tokenizer.to(device).eval()
