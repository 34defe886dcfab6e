"""Exporting saved models from the command line."""

from functools import partial

import pytest
import torch
from script_calls import call

from hf_vq import AbsorbingScheduler, CodeGenerationPipeline, CodeTransformer, VQTokenizer, VQTokenizerConfig

export = partial(call, "export_onnx.py")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        spatial_dims=2, base_channels=8, num_res_blocks=1, quantizer={"codebook_size": 7, "codebook_dim": 4}
    )
    tokenizer = VQTokenizer(config)
    tokenizer(torch.randn(8, 1, 16, 16))  # in training mode: places the codes among the outputs
    transformer = CodeTransformer(7, (2, 2), None, hidden_size=16, num_layers=1, num_heads=2)
    folder = tmp_path_factory.mktemp("pipeline")
    CodeGenerationPipeline(tokenizer.eval(), transformer, AbsorbingScheduler(7)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_pipeline_and_its_parts_are_exported(pipeline, tmp_path, capsys):
    export("--model", pipeline, "--output_dir", tmp_path / "all")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("3 files, opset 20")
    assert "tokenizer/encoder.onnx codes: 0 of 12 differ, 0 of them near ties" in lines
    assert sum("largest difference" in line for line in lines) == 4
    export("--model", pipeline / "tokenizer", "--size", 16, 8, "--output_dir", tmp_path / "tokenizer", "--opset", 18)
    assert "encoder.onnx codes: 0 of 24 differ, 0 of them near ties" in capsys.readouterr().out
    export("--model", pipeline / "transformer", "--output_dir", tmp_path / "transformer", "--batch_size", 1)
    assert (tmp_path / "transformer" / "transformer.onnx").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "nowhere/at/all"), "found no such folder"),
        (("--model", "PIPELINE", "--size", 16, 16), "given for a pipeline"),
        (("--model", "PIPELINE/tokenizer", "--size", 16, 15), "multiples of 4"),
        (("--model", "PIPELINE/tokenizer", "--batch_size", 0), "--batch_size must be at least 1"),
        (("--model", "PIPELINE/tokenizer", "--opset", 7), "opset=7"),
        (("--model", "PIPELINE/scheduler"), "without config.json"),
    ],
)
def test_bad_input_is_one_line(pipeline, tmp_path, capsys, flags, words):
    given = [str(flag).replace("PIPELINE", str(pipeline)) for flag in flags]
    with pytest.raises(SystemExit, match="2"):
        export(*given, "--output_dir", tmp_path / "onnx")
    error = capsys.readouterr().err.splitlines()[-1]  # diffusers shows its progress above
    assert error.startswith("export_onnx.py: error: ")
    assert words in error
    assert not (tmp_path / "onnx").exists()
