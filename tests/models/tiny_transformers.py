"""Tiny transformers over the codes of volumes with views and of images, and inputs for them."""

import itertools

import torch

from hf_vq import CodeTransformer

FIELDS = {
    "num_codes": 11,
    "code_grid": (2, 3, 4),
    "context_dim": 5,
    "context_grid": (4, 6),
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
}
CASES = list(itertools.product(("axial", "axial_rotary", "learned"), ("full", "prefix")))
IMAGE_FIELDS = {"num_codes": 11, "code_grid": (3, 4), "context_dim": None, "hidden_size": 16, "num_heads": 2}
CLASSES = {"num_classes": 3, "label_dropout": 0.5, "id2label": {0: "shirt", 1: "bag", 2: "boot"}}


def make(position_embedding="axial", context_attention="full", **fields):
    torch.manual_seed(0)
    model = CodeTransformer(
        **{**FIELDS, "position_embedding": position_embedding, "context_attention": context_attention, **fields}
    )
    for parameter in model.parameters():  # away from zero-initialised tables
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 12, (batch, 2, 3, 4), generator=generator)
    return codes, torch.randn(batch, 2, 24, 5, generator=generator)


def make_for_images(**fields):
    torch.manual_seed(0)
    model = CodeTransformer(**{**IMAGE_FIELDS, "num_layers": 2, **fields})
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def image_codes(batch=2):
    return torch.randint(0, 12, (batch, 3, 4), generator=torch.Generator().manual_seed(1))
