"""The benchmark of tiling at a tiny size: its figures, its table, its errors."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_tiling.py"
MODEL = {"spatial_dims": 3, "base_channels": 8, "quantizer": {"codebook_size": 16, "codebook_dim": 4}}


@pytest.fixture(scope="module")
def script():
    """The names that the script defines."""
    return runpy.run_path(str(SCRIPT), run_name="benchmark_tiling")


def test_measures_and_compares(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train_batch_size": 8, "model": MODEL}))
    flags = ["--config", tmp_path / "config.yaml", "--sizes", "8,16,12", "--tile", "8", "--threads", "1"]
    flags += ["--modes", "untiled", "exact", "--output", tmp_path / "new" / "out.json"]
    # The script measures in processes of its own, so it needs a real one itself.
    command = [sys.executable, *map(str, [SCRIPT, *flags])]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    report = json.loads((tmp_path / "new" / "out.json").read_text())
    assert report["machine"]["threads"] == 1
    whole, exact = report["results"]
    assert (whole["mode"], exact["mode"]) == ("untiled", "exact")
    assert whole["difference"] is None
    assert exact["size"] == [8, 16, 12]
    assert exact["largest_difference"] < 1e-4
    assert exact["other_codes"] == 0
    assert exact["reconstruction_error"] == pytest.approx(whole["reconstruction_error"], abs=1e-5)
    table = (tmp_path / "new" / "out.md").read_text()
    assert table in process.stdout
    assert table.count("\n| 8 x 16 x 12 | ") == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sizes", "8,8"], "--sizes 8,8: expected three sides"),
        (["--scan", "scan.nii.gz"], "--scan scan.nii.gz needs the trained --tokenizer"),
    ],
)
def test_what_it_cannot_do_is_named(script, flags, words):
    with pytest.raises(ValueError, match=words):
        script["main"](flags)
