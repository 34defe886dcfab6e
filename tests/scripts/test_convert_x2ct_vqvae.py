"""The converter of the ICCV 2023 authors' checkpoints, from files to a pipeline that loads and runs."""

import json
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from script_calls import call
from transformers import AutoImageProcessor, AutoModel

from hf_vq import CodeTransformer, CTVolumeProcessor, ViewsToVolumePipeline, VQTokenizer, XrayImageProcessor
from hf_vq.models import load_tokenizer

ROOT = Path(__file__).parents[2]
LAYOUT = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "x2ct_layout.py")))
AUTOENCODER = {"nf": 4, "ch_mult": (1, 2), "res_blocks": 1, "attention": (1,), "emb": 6, "seed": 1}
VIEW_SHAPE = (6, 6)
convert = partial(call, "convert_x2ct_vqvae.py")


def fails(capsys, *flags):
    """The one line that the script ends with."""
    with pytest.raises(SystemExit) as exit_info:
        convert(*flags)
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def states():
    """Their three state dicts, of a volume side of 4 and an image side of 6."""
    volume = LAYOUT.autoencoder_state(spatial_dims=3, codes=12, depthwise=True, **AUTOENCODER)
    view = LAYOUT.autoencoder_state(spatial_dims=2, codes=16, depthwise=False, **AUTOENCODER)
    sampler = LAYOUT.sampler_state(codes=12, emb=6, n_emb=16, layers=2, block_size=2 * 9 + 8, volume_codes=8)
    return {"volume": volume, "view": view, "sampler": sampler}


@pytest.fixture(scope="module")
def checkpoints(states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, state in states.items():
        torch.save(state if name == "sampler" else LAYOUT.vqgan_state(state), folder / f"{name}.th")
    return folder


@pytest.fixture(scope="module")
def converted(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "all"
    flags = [f"--{name}_checkpoint={checkpoints / f'{name}.th'}" for name in ("volume", "view", "sampler")]
    convert(*flags, "--output_dir", folder, "--view_names", "lateral", "frontal", "--spacing", 2, 3, 4)
    return folder


def test_tokenizers_load_with_their_processors(converted):
    volume, view = converted / "volume-tokenizer", converted / "view-tokenizer"
    assert load_tokenizer(volume, 3).config.encoder_block_type == "depthwise"
    assert load_tokenizer(view, 2).config.encoder_block_type == "residual"
    assert isinstance(AutoModel.from_pretrained(volume), VQTokenizer)
    processor = AutoImageProcessor.from_pretrained(volume)
    assert isinstance(processor, CTVolumeProcessor)
    assert (processor.size, processor.spacing, processor.output_range) == ([4, 4, 4], [2, 3, 4], [0, 1])
    processor = AutoImageProcessor.from_pretrained(view)
    assert isinstance(processor, XrayImageProcessor)
    assert (processor.size, processor.output_range) == ({"height": 6, "width": 6}, [0, 1])


def test_pipeline_is_complete_and_reads_the_views(converted, states, generator):
    pipeline = ViewsToVolumePipeline.from_pretrained(converted / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.sampling == "ancestral"
    views = {name: torch.rand(VIEW_SHAPE, generator=generator) for name in ("frontal", "lateral")}
    outputs = [
        pipeline(views, num_inference_steps=4, output_type="pt", generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    ]
    assert torch.equal(outputs[0].volumes, outputs[1].volumes)
    reference = LAYOUT.Reference(states["volume"], 3)
    torch.testing.assert_close(outputs[0].volumes, reference.decode(outputs[0].codes), rtol=1e-4, atol=1e-4)
    (image,) = pipeline(views, num_inference_steps=2).volumes
    assert image.shape == (4, 4, 4)
    assert image.header.get_zooms() == (4, 3, 2)


def test_pipeline_predicts_what_the_authors_networks_do(converted, states, generator):
    """From images to logits: view tokenizer, order of the views, context and transformer."""
    pipeline = ViewsToVolumePipeline.from_pretrained(converted / "pipeline")
    views = {name: torch.rand(VIEW_SHAPE, generator=generator) for name in ("frontal", "lateral")}
    codes = torch.randint(0, 13, (1, 8), generator=generator)
    reference, table = LAYOUT.Reference(states["view"], 2), states["view"]["quantize.embedding.weight"]
    with torch.no_grad():
        theirs = [reference.codes(reference.encode(views[name][None, None])) for name in ("lateral", "frontal")]
        context = torch.cat([table[view.flatten(1)] for view in theirs], dim=1)
        expected = LAYOUT.reference_logits(states["sampler"], codes, context, num_heads=4)
        logits = pipeline.transformer(codes, context=pipeline.encode_views(views)).sample
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_report_accounts_for_every_key(converted, checkpoints):
    report = json.loads((converted / "conversion.json").read_text())["checkpoints"]
    for folder, name in (("volume-tokenizer", "volume"), ("view-tokenizer", "view"), ("transformer", "sampler")):
        keys = set(torch.load(checkpoints / f"{name}.th", weights_only=True))
        used, unused = set(report[folder]["used_keys"]), set(report[folder]["unused_keys"])
        assert used | unused == keys
        assert not used & unused


def test_each_checkpoint_converts_alone(checkpoints, tmp_path, capsys):
    convert("--sampler_checkpoint", checkpoints / "sampler.th", "--output_dir", tmp_path / "one")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"transformer", "conversion.json"}
    assert CodeTransformer.from_pretrained(tmp_path / "one" / "transformer").config.num_layers == 2
    assert "scale each volume by its own minimum and maximum" in capsys.readouterr().out
    flags = ["--volume_checkpoint", checkpoints / "volume.th", "--output_dir", tmp_path / "two", "--overwrite"]
    convert(*flags)
    assert CTVolumeProcessor.from_pretrained(tmp_path / "two" / "volume-tokenizer").size == [16, 16, 16]
    convert(*flags, "--code_grid", 2, 4, 6)
    assert CTVolumeProcessor.from_pretrained(tmp_path / "two" / "volume-tokenizer").size == [4, 8, 12]


def test_bad_requests_end_with_one_line_and_write_nothing(checkpoints, states, tmp_path, capsys):
    output = ["--output_dir", tmp_path / "output"]
    assert "found no checkpoint" in fails(capsys, *output)
    assert "swapped" in fails(capsys, "--volume_checkpoint", checkpoints / "view.th", *output)
    assert "no such file" in fails(capsys, "--view_checkpoint", tmp_path / "none.th", *output)
    torch.save({**states["volume"], "perceptual.weight": torch.zeros(1)}, tmp_path / "more.th")
    line = fails(capsys, "--volume_checkpoint", tmp_path / "more.th", *output)
    assert "Unknown keys: ['perceptual.weight']; missing keys: []" in line
    assert not (tmp_path / "output").exists()
    convert("--volume_checkpoint", tmp_path / "more.th", *output, "--unused", "perceptual.")
    assert (tmp_path / "output" / "volume-tokenizer" / "model.safetensors").is_file()
