"""Small untrained models and pipelines of every kind, as trainings leave them: among what nobody wants to publish."""

from pathlib import Path

import torch

from hf_vq import (
    AbsorbingScheduler,
    CodeGenerationPipeline,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQForImageClassification,
    VQImageClassifierConfig,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)

ARCHITECTURE = {"base_channels": 8, "channel_multipliers": [1], "stem_stride": 4, "num_res_blocks": 1}
SIZE, SPACING = [8, 12, 16], [4.0, 3.0, 2.0]
# What lies in the output folder of a training beside the model.
LITTER = (
    *("logs.jsonl", "notes.txt", "mask.png", "pytorch_model.bin", "training_args.bin", ".cache/model.safetensors"),
    *("checkpoint-0000010/model.safetensors", "checkpoint-0000010/optimizer.bin", "checkpoint-0000010/config.json"),
    *("validation/step-0000005.png", "validation/step-0000010.png"),
)


def make_tokenizer(spatial_dims: int, codebook_size: int = 11, codebook_dim: int = 3) -> VQTokenizer:
    """A tokenizer whose codes differ enough to give other images and volumes."""
    torch.manual_seed(spatial_dims)
    quantizer = {"codebook_size": codebook_size, "codebook_dim": codebook_dim}
    config = VQTokenizerConfig(spatial_dims=spatial_dims, quantizer=quantizer, num_norm_groups=4, **ARCHITECTURE)
    tokenizer = VQTokenizer(config).eval()
    tokenizer.quantizer.codebook.weight.data.normal_()
    return tokenizer


def make_views_to_volume() -> ViewsToVolumePipeline:
    """A pipeline for the views `frontal` and `lateral` of 16 x 16 pixels; its volumes have `SIZE` and `SPACING`."""
    volume_tokenizer, view_tokenizer = make_tokenizer(3), make_tokenizer(2)
    grids = {"code_grid": (2, 3, 4), "context_grid": (4, 4)}
    transformer = CodeTransformer(num_codes=11, context_dim=3, hidden_size=16, num_layers=1, num_heads=2, **grids)
    transformer.head.weight.data.normal_()
    return ViewsToVolumePipeline(
        volume_tokenizer=volume_tokenizer,
        view_tokenizer=view_tokenizer,
        transformer=transformer.eval(),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=SIZE, spacing=SPACING),
        view_processor=XrayImageProcessor(size={"height": 16, "width": 16}),
    )


def make_code_generation() -> CodeGenerationPipeline:
    """A pipeline for images of 8 x 12 pixels in two classes."""
    classes = {"num_classes": 2, "label_dropout": 0.1, "id2label": {0: "shirt", 1: "bag"}}
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    transformer = CodeTransformer(num_codes=11, code_grid=(2, 3), context_dim=None, **sizes, **classes)
    return CodeGenerationPipeline(make_tokenizer(2), transformer.eval(), AbsorbingScheduler(11))


def make_classifier() -> VQForImageClassification:
    """A classifier of 24 x 24 pixels into two classes."""
    torch.manual_seed(0)
    config = VQImageClassifierConfig(
        backbone="resnet",
        backbone_config={"embedding_size": 4, "hidden_sizes": [4, 6, 8], "depths": [1, 1, 1]},
        image_size=24,
        num_channels=1,
        num_labels=2,
        quantizer={"codebook_size": 16},
    )
    return VQForImageClassification(config).eval()


def save(kind: str, folder: Path) -> Path:
    """Writes one of `KINDS` into a folder, with its processor where a training writes one, and the litter."""
    if kind == "volume-tokenizer":
        make_tokenizer(3).save_pretrained(folder)
        CTVolumeProcessor(size=SIZE, spacing=SPACING).save_pretrained(folder)
    elif kind == "classifier":
        make_classifier().save_pretrained(folder)
        XrayImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    elif kind == "code-generation":
        make_code_generation().save_pretrained(folder)
    else:
        make_views_to_volume().save_pretrained(folder)
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not to be published")
    return folder


_MODEL = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
_PARTS = {
    "scheduler": ("scheduler_config.json",),
    "transformer": ("config.json", "diffusion_pytorch_model.safetensors"),
    **{name: ("config.json", "model.safetensors") for name in ("tokenizer", "view_tokenizer", "volume_tokenizer")},
    **{name: ("preprocessor_config.json",) for name in ("view_processor", "volume_processor")},
}


def _pipeline(*parts: str) -> set[str]:
    return {"README.md", "model_index.json", *(f"{part}/{name}" for part in parts for name in _PARTS[part])}


KINDS = {
    "volume-tokenizer": {*_MODEL, "reconstructions.png"},
    "classifier": set(_MODEL),
    "code-generation": {*_pipeline("scheduler", "tokenizer", "transformer"), "samples.png"},
    "views-to-volume": _pipeline(*(name for name in _PARTS if name != "tokenizer")),
}
"""What belongs to each kind, by path; the last validation's picture is part of the card of some."""
