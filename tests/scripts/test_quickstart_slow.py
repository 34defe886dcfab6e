"""The whole quickstart on the real scan, held to what the project promises. Downloads a package; some 15 minutes."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    root = tmp_path_factory.mktemp("quickstart")
    subprocess.run([sys.executable, str(SCRIPTS / "quickstart.py"), "--output_dir", str(root)], check=True)
    return root


@pytest.mark.slow
def test_generated_volumes_beat_the_trivial_baselines_and_read_their_views(quickstart):
    metrics = json.loads((quickstart / "metrics.json").read_text())

    def mean(row, name="psnr_3d"):
        return metrics["summary"][row][name]["mean"]

    for baseline in ("mean volume", "nearest subject"):
        assert mean("one sample") > mean(baseline)
        assert mean("mean of 8 samples") > mean(baseline) + 1.2
        assert mean("one sample", "ssim_3d") > mean(baseline, "ssim_3d")
    assert mean("one sample") > mean("shuffled views, one sample") + 1.5
    assert mean("tokenizer reconstruction (ceiling)") > 25
    assert metrics["codebook"]["test"]["used_fraction"] >= 0.9


@pytest.mark.slow
def test_the_cards_are_complete(quickstart):
    for name in ("pipeline", "volume-tokenizer", "view-tokenizer"):
        text = (quickstart / name / "README.md").read_text(encoding="utf-8")
        assert "not recorded" not in text.lower()
        assert "license: apache-2.0" in text and "model-index:" in text and "](codebook.png)" in text
        assert str(quickstart) not in text


@pytest.mark.slow
def test_another_process_generates_the_same_volumes(quickstart, tmp_path):
    again = tmp_path / "again"
    flags = ["--pipeline", quickstart / "pipeline", "--data", quickstart / "cohort", "--output_dir", again]
    flags += ["--num_volumes_per_prompt", 8, "--batch_size", 6]
    subprocess.run([sys.executable, str(SCRIPTS / "generate.py"), *map(str, flags)], check=True)
    names = sorted(path.name for path in (quickstart / "generated").glob("*.nii.gz"))
    assert len(names) == 24 * 8
    for name in names:
        one, two = (np.asanyarray(nib.load(folder / name).dataobj) for folder in (quickstart / "generated", again))
        np.testing.assert_array_equal(one, two)
