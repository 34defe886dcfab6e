"""`scripts/benchmark_training.py` and `scripts/benchmark_tokenizer.py`: what they count, check and refuse."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from script_calls import load

SCRIPTS = Path(__file__).parents[2] / "scripts"
MODEL = {
    **{"spatial_dims": 3, "base_channels": 8, "channel_multipliers": [1, 2], "stem_stride": 2, "num_res_blocks": 1},
    "quantizer": {"codebook_size": 8, "codebook_dim": 4},
}


@pytest.fixture(scope="module")
def script():
    return load(SCRIPTS / "benchmark_training.py")


def run_script(name, *flags):
    command = [sys.executable, str(SCRIPTS / name), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def row(script, **fields):
    usual = {"training": "view-tokenizer", "variant": script.OURS, "share": 0.9, "ratio": 1.2}
    return {**usual, **fields}


def test_operations_of_products_and_convolutions_are_counted(script):
    with script.OperationCount() as count:
        torch.ones(3, 4) @ torch.ones(4, 5)
        torch.conv2d(torch.ones(1, 2, 6, 6), torch.ones(7, 2, 3, 3))
    assert count.total == 2 * 3 * 4 * 5 + 2 * (7 * 4 * 4) * (2 * 3 * 3)


def test_a_step_is_the_sum_of_its_parts(script):
    turns = []
    watch = script.Stopwatch(turns.append, chunk=2)
    loader = watch._batches([1, 2])
    for _ in range(2):
        next(loader)
        watch._note("forward", watch._forward_began)
        watch._timed("backward", lambda: None)()
        watch._end_step()
    (steps,) = turns
    assert len(steps) == 2
    for step in steps:
        assert step["step"] == pytest.approx(sum(step.get(part, 0.0) for part in script.PARTS))
        assert step["other"] >= 0


def test_check_finds_low_shares_and_lost_speed(script):
    assert script.failures([row(script), row(script, variant="float32", share=0.0)]) == []
    assert "share 0.01 is below" in script.failures([row(script, share=0.01)])[0]
    assert "0.50 times as fast" in script.failures([row(script, ratio=0.5)])[0]


def test_total_is_that_of_all_planned_steps(script):
    rows = [
        row(script, variant=name, step=step, planned_steps=steps)
        for name, factor in (("baseline", 3.0), (script.OURS, 1.0))
        for step, steps in ((factor * 0.1, 100), (factor * 0.5, 20))
    ]
    lines = [line.split("|")[1:-1] for line in script.totals(rows).splitlines()[2:]]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["baseline", "60", "1.00"],
        [script.OURS, "20", "3.00"],
    ]


def test_turns_below_one_are_refused(tmp_path):
    result = run_script("benchmark_training.py", "--root", tmp_path, "--turns", 0, "--output_dir", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.strip() == "benchmark_training.py: error: --turns: found 0, expected at least 1"


@pytest.mark.slow
def test_tokenizers_are_measured_and_saved(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": MODEL}))
    flags = ["--config", config, "--sides", 8, 16, "--precisions", "float32", "--repeats", 1]
    result = run_script("benchmark_tokenizer.py", *flags, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    own = [one for one in report["rows"] if one["model"] == "hf_vq VQTokenizer"]
    assert [(one["task"], one["side"]) for one in own if not one["channels_last"]] == [
        *(("encode", 8), ("encode", 16)),
        *(("decode", 8), ("decode", 16)),
    ]
    # Convolutions cost so much for each voxel, whatever the side.
    small, large = (one["flops"] for one in own[:4:2])
    assert large == pytest.approx(8 * small, rel=0.05)
    assert "encode 16^3" in (tmp_path / "out" / "tokenizer.md").read_text()


def test_a_side_that_does_not_fit_is_refused(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": MODEL}))
    result = run_script("benchmark_tokenizer.py", "--config", config, "--sides", 6)
    assert result.returncode == 2
    assert "--sides: found 6, expected multiples of the downsampling factor 4" in result.stderr
