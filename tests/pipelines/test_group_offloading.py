"""Weights of which diffusers' group offloading brings a part at a time, from the disk, which needs no accelerator."""

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from tiny_views_to_volume import generator, make, views


def take_away(model, kind, folder):
    """Leaves the weights of a model on the disk until a hook brings them: what is read without one is not a number."""
    folder.mkdir()
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(model, cpu, cpu, offload_type=kind, offload_to_disk_path=str(folder), **blocks)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_volumes_are_the_same_with_weights_on_the_disk(kind, context_attention, tmp_path):
    pipe = make(context_attention)
    arguments = {"views": views(), "num_inference_steps": 3, "output_type": "pt"}
    expected = pipe(**arguments, generator=generator()).volumes
    take_away(pipe.transformer, kind, tmp_path / "transformer")
    if kind == "leaf_level":  # the only kind that reaches methods other than forward, which tokenizers are used by
        take_away(pipe.view_tokenizer, kind, tmp_path / "view_tokenizer")
        take_away(pipe.volume_tokenizer, kind, tmp_path / "volume_tokenizer")
    assert bool(pipe.transformer.head.weight.isnan().all())
    assert torch.equal(pipe(**arguments, generator=generator()).volumes, expected)
