"""A tiny untrained pipeline from views to volumes, views for it, and what its transformer is given and answers."""

import numpy as np
import torch
from PIL import Image

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)

TOKENIZER = {
    "base_channels": 8,
    "channel_multipliers": [1],
    "stem_stride": 4,
    "num_res_blocks": 1,
    "num_norm_groups": 4,
}


def make(context_attention="full", **transformer):
    torch.manual_seed(0)
    volume_tokenizer, view_tokenizer = (
        VQTokenizer(
            VQTokenizerConfig(spatial_dims=dims, quantizer={"codebook_size": 11, "codebook_dim": 3}, **TOKENIZER)
        )
        for dims in (3, 2)
    )
    fields = {"num_codes": 11, "code_grid": (2, 3, 4), "context_dim": 3, "context_grid": (4, 4), "hidden_size": 16}
    pipeline = ViewsToVolumePipeline(
        volume_tokenizer=volume_tokenizer.eval(),
        view_tokenizer=view_tokenizer.eval(),
        transformer=CodeTransformer(
            **{**fields, "num_layers": 1, "num_heads": 2, "context_attention": context_attention, **transformer}
        ).eval(),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=[8, 12, 16], spacing=[4.0, 3.0, 2.0]),
        view_processor=XrayImageProcessor(size={"height": 16, "width": 16}),
    )
    # far enough from their small initial values that other inputs give other codes, and other codes other volumes
    pipeline.view_tokenizer.quantizer.codebook.weight.data.normal_()
    codebooks = (part.quantizer.effective_codebook.detach() for part in (volume_tokenizer, view_tokenizer))
    pipeline.transformer.initialize_from_codebooks(*codebooks)
    pipeline.transformer.head.weight.data.normal_()
    pipeline.volume_tokenizer.quantizer.codebook.weight.data.normal_()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def views(subjects=2):
    rng = np.random.default_rng(0)
    return {
        name: [Image.fromarray(rng.integers(0, 255, (20, 16), dtype=np.uint8)) for _ in range(subjects)]
        for name in ("frontal", "lateral")
    }


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def first_logits(pipe, given, **arguments):
    """`(volumes, 24, K)` that the scheduler gets in the first step, where all codes are masks."""
    seen, step = [], pipe.scheduler.step

    def record(logits, *rest, **keywords):
        seen.append(logits.unflatten(0, (-1, 24)))
        return step(logits, *rest, **keywords)

    pipe.scheduler.step = record
    try:
        pipe(given, **{"num_inference_steps": 1, "generator": generator(), "output_type": "latent", **arguments})
    finally:
        del pipe.scheduler.step
    return seen[0]


def context_of(pipe, images):
    """`(subjects, 1, tokens, channels)` of the images of one view, step by step."""
    pixel_values = pipe.view_processor(images)["pixel_values"]
    return pipe.view_tokenizer.embed_codes(pipe.view_tokenizer.encode(pixel_values).codes)[:, None]


def logits_of(pipe, subjects=2, **arguments):
    """The transformer's own logits for volumes of masks alone."""
    return pipe.transformer(torch.full((subjects, 24), 11), **arguments).sample
