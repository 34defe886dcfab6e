"""`scripts/benchmark_sampling.py` with a small untrained pipeline: its figures, what it keeps, its errors."""

import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from script_calls import load

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.evaluation.metrics import prdc, psnr_3d

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_sampling.py"
SUBJECTS, SIDE = 5, 12


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A paired folder of noise, with one view."""
    folder, rng = tmp_path_factory.mktemp("sampling") / "data", np.random.default_rng(0)
    for split in ("test", "validation"):
        (folder / split).mkdir(parents=True)
        lines = ["file_name,frontal,subject"]
        for name in (f"{split}{number}" for number in range(SUBJECTS)):
            voxels = rng.integers(-1000, 1000, (SIDE,) * 3, dtype=np.int16)
            affine = np.diag([4.0, 4.0, 4.0, 1.0])
            nibabel.Nifti1Image(voxels, affine).to_filename(folder / split / f"{name}.nii.gz")
            Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / split / f"{name}.png")
            lines.append(f"{name}.nii.gz,{name}.png,{name}")
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A saved pipeline of 3 x 3 x 3 codes for the view `frontal`."""
    torch.manual_seed(0)
    fields = {"base_channels": 8, "channel_multipliers": [1], "stem_stride": 4, "num_res_blocks": 1}
    quantizer = {"codebook_size": 11, "codebook_dim": 3}
    volume_tokenizer, view_tokenizer = (
        VQTokenizer(VQTokenizerConfig(spatial_dims=dims, quantizer=quantizer, num_norm_groups=4, **fields)).eval()
        for dims in (3, 2)
    )
    grids = {"code_grid": (3, 3, 3), "context_grid": (4, 4), "view_axes": {"frontal": ("inferior", "left")}}
    transformer = CodeTransformer(num_codes=11, context_dim=3, hidden_size=16, num_layers=1, num_heads=2, **grids)
    transformer.head.weight.data.normal_()
    whole = ViewsToVolumePipeline(
        volume_tokenizer,
        view_tokenizer,
        transformer.eval(),
        AbsorbingScheduler(11),
        CTVolumeProcessor(size=[SIDE] * 3, spacing=[4.0] * 3),
        XrayImageProcessor(size={"height": 16, "width": 16}),
    )
    folder = tmp_path_factory.mktemp("sampling") / "pipeline"
    whole.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flags(pipeline, data):
    common = [
        "--pipeline",
        pipeline,
        "--data",
        data,
        "--nearest_k",
        2,
        "--batch_size",
        2,
        "--reference",
        "ancestral:60",
    ]
    return [str(flag) for flag in common]


@pytest.fixture(scope="module")
def finished(script, flags, tmp_path_factory):
    """Output of two calls, the second of which adds to the first."""
    folder = tmp_path_factory.mktemp("sampling") / "out"
    script.main([*flags, "--output_dir", str(folder), "--samplers", "ancestral", "--steps", "60"])
    script.main([*flags, "--output_dir", str(folder), "--samplers", "halton", "amused", "--steps", "2", "40"])
    return folder


def rows_of(folder):
    report = json.loads((folder / "sampling.json").read_text())
    return {(row["sampler"], row["steps"]): row for row in report["rows"]}


def test_every_combination_has_its_row_and_its_evaluations(finished):
    rows = rows_of(finished)
    assert list(rows) == [("amused", 2), ("amused", 40), ("ancestral", 60), ("halton", 2), ("halton", 40)]
    evaluations = {key: row["network_evaluations"] for key, row in rows.items()}
    assert evaluations["halton", 2] == 2
    assert evaluations["halton", 40] == 27  # one for each code
    assert evaluations["amused", 40] == 40
    assert 27 / 2 < evaluations["ancestral", 60] < 60
    assert all(row["seconds_per_volume"] > 0 for row in rows.values())


def test_scores_are_those_of_the_volumes_that_the_pipeline_makes(script, finished, pipeline, data):
    row = rows_of(finished)["halton", 2]
    pipe = ViewsToVolumePipeline.from_pretrained(pipeline)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = AbsorbingScheduler.from_config(pipe.scheduler.config, sampling="halton")
    sources = [script.generator_of(0, 3, sample) for sample in range(2)]
    view = str(data / "test" / "test3.png")
    volumes = pipe(
        {"frontal": view}, num_inference_steps=2, num_volumes_per_prompt=2, generator=sources, output_type="hu"
    ).volumes
    truth = np.asarray(nibabel.load(data / "test" / "test3.nii.gz").dataobj).transpose(2, 1, 0)
    expected = np.mean([psnr_3d(truth, volume) for volume in volumes])
    assert row["one_sample"][3]["psnr_3d"] == pytest.approx(expected, abs=0.01)
    assert row["mean_of_samples"][3]["psnr_3d"] == pytest.approx(psnr_3d(truth, volumes.mean(0)), abs=0.01)


def test_the_report_has_both_tables(finished):
    text = (finished / "sampling.md").read_text()
    assert "5 subjects, 2 samples of each, seed 0; window [-1000, 1000] HU" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table.splitlines()) for table in tables] == [7, 6]
    for title in ("evaluations", "PSNR 3D (dB)", "SSIM, mean of 2", "density", "coverage", "s / volume"):
        assert title in tables[0].splitlines()[0]
    assert "Differences to ancestral with 60 steps" in text
    assert {line.split("|")[-2].strip() for line in tables[1].splitlines()[2:]} <= {"yes", "no"}


def test_measured_rows_are_kept_and_only_missing_ones_added(script, flags, finished, capsys):
    before = (finished / "sampling.json").read_text()
    script.main([*flags, "--output_dir", str(finished), "--samplers", "halton", "--steps", "2", "40"])
    assert (finished / "sampling.json").read_text() == before
    assert capsys.readouterr().out.strip() == (finished / "sampling.md").read_text().strip()


def test_rows_under_other_settings_are_not_mixed(script, flags, finished):
    with pytest.raises(ValueError, match="num_samples=2, now it is 3"):
        script.main([*flags, "--output_dir", str(finished), "--num_samples", "3"])


def test_settings_of_a_sampler_make_rows_of_their_own(script, flags, tmp_path):
    common = [*flags, "--output_dir", str(tmp_path), "--samplers", "confidence", "--steps", "2", "--num_samples", "1"]
    common += ["--num_subjects", "2"]
    for more in ([], ["--choice_temperature", "0"], ["--schedule", "cosine", "--top_p", "0.9"]):
        script.main([*common, *more])
    labels = [line.split("|")[1].strip() for line in (tmp_path / "sampling.md").read_text().splitlines() if "|" in line]
    assert labels[2:] == [
        "confidence",
        "confidence, choice_temperature 0.0",
        "confidence, schedule cosine, top_p 0.9",
    ]
    rows = json.loads((tmp_path / "sampling.json").read_text())["rows"]
    assert all(row["mean_of_samples"] is None for row in rows)  # of one sample
    assert all(row["distribution"] is None for row in rows)  # too few volumes


def test_errors_of_a_mean_by_the_jackknife_are_its_standard_errors(script):
    rng = np.random.default_rng(0)
    values, others = rng.normal(size=(2, 9))
    left_out = [[np.delete(each, index).mean() for index in range(9)] for each in (values, others)]
    rows = [
        {"distribution": {"density": {"value": each.mean(), "left_out": parts}}}
        for each, parts in zip((values, others), left_out, strict=True)
    ]
    value, error = script.estimate(rows[0], "distribution", "density")
    assert (value, error) == pytest.approx((values.mean(), values.std(ddof=1) / 3))
    value, error = script.estimate(rows[0], "distribution", "density", rows[1])
    difference = values - others
    assert (value, error) == pytest.approx((difference.mean(), difference.std(ddof=1) / 3))


def test_differences_of_scores_are_paired_by_subject(script):
    psnrs = [[20.0, 24.0, 19.0], [19.5, 23.4, 18.6]]
    rows = [{"one_sample": [{"psnr_3d": value} for value in each]} for each in psnrs]
    value, error = script.estimate(rows[0], "one_sample", "psnr_3d", rows[1])
    assert (value, error) == pytest.approx((0.5, 0.1 / 3**0.5))


def test_a_subject_is_left_out_with_its_samples_and_its_true_volume(script):
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(12, 4)), rng.normal(size=(6, 3, 4))
    found = script.distribution(real, generated, 3)
    assert found["density"]["value"] == prdc(real, generated.reshape(18, 4), 3)["density"]
    kept = [number for number in range(12) if number != 2]
    rest = np.concatenate([generated[:2], generated[3:]]).reshape(15, 4)
    assert found["coverage"]["left_out"][2] == prdc(real[kept], rest, 3)["coverage"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "0"], "--steps: found 0"),
        (["--evaluations", "0"], "--evaluations: found 0"),
        (["--cost"], "expected --pipeline and --data, or --cost and neither of them"),
        (["--num_samples", "0"], "--num_samples: found 0"),
        (["--num_subjects", "0"], "--num_subjects: found 0"),
        (["--reference", "ancestral"], "--reference: found 'ancestral'"),
        (["--samplers", "amused", "--top_p", "0.9"], "no --temperature and no --top_p"),
    ],
)
def test_bad_flags_are_named_before_anything_is_loaded(script, tmp_path, more, words):
    with pytest.raises(ValueError, match=words):
        script.main(["--pipeline", "none", "--data", "none", "--output_dir", str(tmp_path / "out"), *more])
    assert not list(tmp_path.iterdir())


def test_the_commands_in_the_help_are_whole(script):
    commands = script.__doc__.split("\n\n")[1].replace("\\\n", "")
    known = set(itertools.chain.from_iterable(action.option_strings for action in script.make_parser()._actions))
    for line in commands.splitlines():
        assert line.strip().startswith("python scripts/benchmark_sampling.py")
        assert {word for word in line.split() if word.startswith("--")} <= known
