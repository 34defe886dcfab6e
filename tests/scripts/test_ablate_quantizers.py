"""`scripts/ablate_quantizers.py` on tiny images: pairing, stages, resuming, and its one-line errors."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from script_calls import load

from hf_vq.evaluation.ablation import append_run, read_runs
from hf_vq.evaluation.ablation_arms import ARMS
from hf_vq.training.arguments import run

SCRIPT = Path(__file__).parents[2] / "scripts" / "ablate_quantizers.py"
SIDE, SIZE, STEPS = 8, 16, 3
COUNTS = {"train": 60, "t10k": 12}


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The four files of MNIST's format, with images of smooth blobs."""
    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for prefix, count in COUNTS.items():
        centres = rng.uniform(0, SIDE, (count, 2, 1, 1))
        images = 255 * np.exp(-((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2) / 8)
        sides = b"".join(side.to_bytes(4, "big") for side in images.shape)
        content = bytes([0, 0, 8, 3]) + sides + images.astype(np.uint8).tobytes()
        (root / f"{prefix}-images-idx3-ubyte").write_bytes(content)
        labels = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(count)
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return root


@pytest.fixture(scope="module")
def budget(script, data):
    return script.Budget(str(data), STEPS, 8, 4e-3, 6, 12)


@pytest.fixture
def call(script, data, tmp_path, monkeypatch):
    """The script's main with small sizes; K of the stress setting too."""
    monkeypatch.setattr(script, "STRESS_SIZE", SIZE)

    def main(*flags):
        small = ["--data", data, "--codebook_sizes", SIZE, "--seeds", 0, 1, "--search_seeds", 7, "--steps", STEPS]
        files = ["--batch_size", 8, "--results", tmp_path / "runs.csv", "--output", tmp_path / "out" / "report.md"]
        script.main([str(flag) for flag in (*small, *files, *flags)])

    return main


def without_times(rows):
    return [replace(row, wall_seconds=0.0, cpu_seconds=0.0) for row in rows]


def job(script, arm, stage="main", seed=0, size=SIZE):
    return script.Job(stage, arm, size, seed, script.search_grid(arm)[0])


def test_all_stages_and_then_nothing_is_left_to_do(call, tmp_path, capsys):
    call("--arms", "vq", "kmeans+alternating", "none")
    runs = read_runs(tmp_path / "runs.csv")
    assert [sum(run.stage == stage for run in runs) for stage in ("search", "main", "stress")] == [4 + 3, 6, 6]
    assert all(run.test_mse is None for run in runs if run.stage == "search")
    assert all(0 < run.test_mse < 1 for run in runs if run.stage != "search")
    assert all(run.perplexity is None for run in runs if run.arm == "none")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"report.md", "report-error.png", "report-stress.png"}
    written = (tmp_path / "runs.csv").read_bytes()
    capsys.readouterr()
    call("--arms", "vq", "kmeans+alternating", "none")
    assert (tmp_path / "runs.csv").read_bytes() == written
    printed = capsys.readouterr().out
    for line in ("search: 7 trainings, 7 of", "main: 6 trainings, 6 of", "stress: 6 trainings, 6 of"):
        assert line in printed


@pytest.mark.parametrize("rows_left", [2, 5])
def test_an_interrupted_file_is_completed_with_the_same_figures(call, tmp_path, rows_left):
    """Cut in the middle of a row, once in the search and once in the main stage."""
    path = tmp_path / "runs.csv"
    flags = ["--arms", "vq", "--stage", "search", "main", "--search_seeds", 7, 8]
    call(*flags, "--seeds", 0)
    whole = read_runs(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: 1 + rows_left]) + lines[1 + rows_left][:40])
    call(*flags, "--seeds", 0)
    assert without_times(read_runs(path)) == without_times(whole)


def test_the_main_stage_uses_the_weights_that_the_search_chose(call, tmp_path):
    call("--arms", "vq", "--stage", "search")
    found = read_runs(tmp_path / "runs.csv")
    best = min(found, key=lambda row: row.validation_mse).weights
    call("--arms", "vq", "--stage", "main")
    assert {row.weights for row in read_runs(tmp_path / "runs.csv") if row.stage == "main"} == {best}


def test_rows_made_under_other_conditions_are_refused(call, tmp_path, capsys):
    call("--arms", "none", "--stage", "main")
    before = (tmp_path / "runs.csv").read_bytes()
    for flags in (("--steps", 4), ("--learning_rate", 0.5)):
        with pytest.raises(SystemExit) as failure:
            run(lambda flags=flags: call("--arms", "none", "--stage", "main", *flags))
        assert failure.value.code == 2
        assert "found main of none, seed 0, with (steps, settings)" in capsys.readouterr().err
    assert (tmp_path / "runs.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--stage", "main", "--arms", "vq"), "found no search of vq, K = 16; run --stage search first"),
        (("--seeds", "7"), r"--search_seeds \[7\] share some with --seeds \[7\]"),
        (("--workers", "0"), "--workers: found 0, expected at least 1"),
        (("--arms", "fsq"), r"no levels for K = 16"),
        (("--stage", "tables"), "holds no runs"),
    ],
)
def test_bad_flags_are_errors(call, flags, message):
    with pytest.raises(ValueError, match=message):
        call(*flags)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("stage", ["search", "stress"])
def test_every_arm_trains_and_is_scored(script, budget, arm, stage):
    row = script.run_job(job(script, arm, stage, size=256), budget)
    assert 0 < row.validation_mse < 1
    assert (row.test_mse is None) == (stage == "search")
    assert (row.active_fraction is None) == (arm == "none")
    assert (row.quantization_error is None) == (arm in ("none", "fsq"))


def test_one_seed_gives_all_arms_the_same_network(script):
    states = {
        arm: script.build_model(job(script, arm, size=256), 1).state_dict() for arm in ("vq", "all", "none", "fsq")
    }
    for name, value in states["vq"].items():
        if not name.startswith("quantizer."):
            for arm, state in states.items():
                narrower = arm == "fsq" and state[name].shape != value.shape
                assert narrower or torch.equal(state[name], value), (arm, name)
    narrow = [name for name, value in states["fsq"].items() if value.shape != states["vq"][name].shape]
    assert narrow == ["encoder.conv_out.weight", "encoder.conv_out.bias", "decoder.blocks.0.weight"]
    other = script.build_model(job(script, "vq", seed=1), 1).state_dict()
    assert not torch.equal(other["encoder.conv_out.weight"], states["vq"]["encoder.conv_out.weight"])


def test_batches_pass_through_all_images_in_an_order_of_the_seed(script):
    first, again, other = (list(script.batches(10, 4, 5, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert sorted(torch.cat(first)[:10].tolist()) == sorted(torch.cat(first)[10:].tolist()) == list(range(10))


def test_learning_rate_rises_and_falls(script):
    factors = [script.decay(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.05)
    assert max(factors) == factors[script.WARMUP_STEPS - 1]
    assert factors[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("arm", ["vq", "kmeans", "kmeans+affine", "ema+replacement", "simvq"])
def test_stress_moves_all_codes_by_one_standard_deviation(script, arm):
    model = script.build_model(job(script, arm), 1)
    pixels = torch.rand(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    vectors = model.encode_latents(pixels).movedim(1, -1).flatten(0, -2).detach()
    model.quantizer.codebook.prepare(vectors)
    before = model.quantizer.effective_codebook.detach().clone()
    script.move_codes(model, pixels, seed=0)
    moved = (model.quantizer.effective_codebook.detach() - before) / vectors.std(dim=0)
    torch.testing.assert_close(moved.abs(), torch.ones_like(moved), rtol=1e-4, atol=1e-4)
    assert torch.equal(moved.sign(), moved.sign()[:1].expand_as(moved))
    assert len(moved[0].sign().unique()) == 2


def test_stress_raises_the_learning_rate_of_the_encoder_alone(script, budget):
    """Adam's first step is its learning rate, whatever the gradient: 10 times as far in the encoder."""
    images = script.load_images(budget.data)["train"]
    steps = {}
    for stage in ("main", "stress"):
        model = script.build_model(job(script, "none"), 1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert script.train(model, job(script, "none", stage), images, replace(budget, steps=1))
        steps[stage] = {
            name: float((value - before[name]).abs().median()) for name, value in model.state_dict().items()
        }
    for name, factor in {"encoder.conv_out.weight": 10.0, "decoder.blocks.0.weight": 1.0}.items():
        assert steps["stress"][name] / steps["main"][name] == pytest.approx(factor, rel=0.02)


def test_alternating_arms_move_their_codes(script, budget):
    images = script.load_images(budget.data)["train"]
    codes = []
    for steps in (1, 3):
        model = script.build_model(job(script, "kmeans+alternating"), 1)
        assert script.train(model, job(script, "kmeans+alternating"), images, replace(budget, steps=steps))
        codes.append(model.quantizer.effective_codebook.detach())
    assert not torch.allclose(codes[0], codes[1], atol=1e-6)


def test_figures_of_an_evaluation_by_hand(script):
    model = script.build_model(job(script, "vq"), 1)
    pixels = torch.randint(0, 256, (7, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = script.evaluate(model, pixels)
    with torch.no_grad():
        images = pixels.float() / 127.5 - 1
        encoded = model.encode(images)
        sample = model.decode(encoded.codes).sample.clamp(-1, 1)
        difference = encoded.latents - model.quantizer.decode(encoded.codes)
    mse = ((sample - images) / 2).square().mean(dim=(1, 2, 3))
    assert found["mse"] == pytest.approx(float(mse.mean()), rel=1e-5)
    assert found["psnr"] == pytest.approx(float((10 * (1 / mse).log10()).mean()), rel=1e-5)
    assert found["active_fraction"] == len(encoded.codes.unique()) / SIZE
    assert found["quantization_error"] == pytest.approx(float(difference.square().mean()), rel=1e-4)
    variance = encoded.latents.var(dim=(0, 2, 3), correction=0).mean()
    assert found["relative_quantization_error"] == pytest.approx(float(difference.square().mean() / variance), rel=1e-4)


def test_a_training_that_diverges_is_a_row_too(script, budget, tmp_path):
    """A learning rate that overflows after one step."""
    row = script.run_job(job(script, "none"), replace(budget, learning_rate=1e38))
    assert math.isnan(row.validation_mse)
    assert math.isnan(row.test_mse)
    append_run(tmp_path / "runs.csv", row)
    assert math.isnan(read_runs(tmp_path / "runs.csv")[0].test_mse)


@pytest.mark.slow
def test_processes_side_by_side_give_the_same_figures(script, budget, tmp_path):
    path = tmp_path / "runs.csv"
    flags = ["--data", budget.data, "--results", path, "--stage", "main", "--arms", "none", "--seeds", 0, 1, 2]
    limits = ["--steps", STEPS, "--batch_size", 8, "--validation_images", 6, "--test_images", 12, "--workers", 2]
    subprocess.run([sys.executable, str(SCRIPT), *map(str, (*flags, *limits))], check=True)
    expected = [script.run_job(script.Job("main", "none", 0, seed, (None, None)), budget) for seed in range(3)]
    found = sorted(read_runs(path), key=lambda row: row.seed)
    assert [row.test_mse for row in found] == pytest.approx([row.test_mse for row in expected], rel=1e-5)
