"""`scripts/evaluate.py` from a folder of volumes to its three files, and its one-line errors."""

import csv
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import CTVolumeProcessor, VQTokenizer, VQTokenizerConfig
from hf_vq.data import render_views
from hf_vq.evaluation import mean_volume, psnr_3d

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
SIDE, SPACING = 12, 25.0
COUNTS = {"train": 6, "validation": 4, "test": 5}
AFFINE = np.diag([SPACING] * 3 + [1.0])
Run = Callable[..., dict]


def _truth(number: int) -> np.ndarray:
    """A ball of tissue at a random place, (D, H, W), 20 HU away from either end of the window."""
    generator = np.random.default_rng(number)
    axes = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 3, indexing="ij")
    centre = generator.uniform(-0.4, 0.4, size=3)
    distance = sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True))
    return np.where(distance < 0.4, generator.integers(0, 400), -900).astype(np.int16)


def _save_volume(path: Path, hu: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(np.ascontiguousarray(hu.transpose(2, 1, 0)).astype(np.int16), affine), path)


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def truths() -> dict[str, np.ndarray]:
    numbers = iter(range(100))
    return {f"{split}_{index}": _truth(next(numbers)) for split, count in COUNTS.items() for index in range(count)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, truths: dict[str, np.ndarray]) -> Path:
    """A paired folder whose views are rendered from its volumes."""
    root = tmp_path_factory.mktemp("cohort")
    for split in COUNTS:
        folder = root / split
        folder.mkdir()
        rows = []
        for name in (one for one in truths if one.startswith(split)):
            _save_volume(folder / f"{name}.nii.gz", truths[name])
            volume = torch.from_numpy(truths[name]).float()[None, None]
            images = render_views(volume, [SPACING] * 3, image_size=(16, 16))[0, :, 0].numpy()
            row = {"file_name": f"{name}.nii.gz"}
            for view, image in zip(("frontal", "lateral"), images, strict=True):
                row[view] = f"{name}_{view}.png"
                Image.fromarray((image * 65535).round().astype(np.uint16)).save(folder / row[view])
            rows.append(row | {"subject": name})
        _write_csv(folder / "metadata.csv", rows)
    return root


def _test_names() -> list[str]:
    return [f"test_{index}" for index in range(COUNTS["test"])]


def _write_generated(folder: Path, truths: dict[str, np.ndarray], sources: list[str], num_samples: int = 2) -> Path:
    """Volumes that miss by +20 HU in even samples and by -20 HU in odd ones; `sources` says whose volumes they are."""
    folder.mkdir()
    rows = []
    for name, source in zip(_test_names(), sources, strict=True):
        for sample in range(num_samples):
            file_name = f"{name}_{sample}.nii.gz"
            _save_volume(folder / file_name, truths[source] + 20 * (-1) ** sample)
            rows.append({"file_name": file_name, "subject": name, "sample": sample})
    _write_csv(folder / "metadata.csv", rows)
    return folder


@pytest.fixture
def generated(tmp_path: Path, truths: dict[str, np.ndarray]) -> Path:
    return _write_generated(tmp_path / "generated", truths, _test_names())


@pytest.fixture
def evaluate(cohort: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script as the command line does and returns its figures."""

    def call(**flags: object) -> dict:
        values = {
            "data": cohort,
            "generated": generated,
            "output_dir": tmp_path / "out",
            "num_sheet_subjects": 1,
        } | flags
        argv = [str(SCRIPT)]
        for name, value in values.items():
            argv += [f"--{name}", *(str(part) for part in (value if isinstance(value, tuple) else (value,)))]
        monkeypatch.setattr(sys, "argv", argv)
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return call


def _mean(report: dict, row: str, metric: str = "psnr_3d") -> float:
    return report["summary"][row][metric]["mean"]


def test_figures_are_those_of_the_known_errors(
    evaluate: Run, truths: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """±20 HU of 2000 is 40 dB; two samples of opposite sign average to the truth; the mean volume by hand."""
    names = _test_names()
    shuffled = _write_generated(tmp_path / "shuffled", truths, [*names[1:], names[0]], num_samples=1)
    report = evaluate(shuffled=shuffled)
    assert _mean(report, "one sample") == pytest.approx(40.0)
    assert _mean(report, "one sample", "mae_hu") == pytest.approx(20.0)
    assert _mean(report, "one sample, scores averaged over 2 samples") == pytest.approx(40.0)
    assert _mean(report, "mean of 2 samples") == 100.0
    mean = mean_volume(np.stack([volume for name, volume in truths.items() if name.startswith("train")]))
    by_hand = np.mean([psnr_3d(truths[name], mean) for name in names])
    assert _mean(report, "mean volume") == pytest.approx(by_hand, rel=1e-5)
    assert _mean(report, "shuffled views, one sample") < 30
    difference = report["paired_differences"]["shuffled views, one sample"]["psnr_3d"]["mean"]
    assert difference == pytest.approx(40 - _mean(report, "shuffled views, one sample"))
    floor = _mean(report, "true volume (floor of the re-projection error)", "reprojection")
    assert floor < 1e-4 < _mean(report, "one sample", "reprojection")
    assert report["subjects"] == names
    assert report["settings"]["window"] == [-1000.0, 1000.0]
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "out" / "metrics.md").read_text().strip()
    assert "tokenizer reconstruction (ceiling)" not in report["summary"]
    assert any("no --pipeline" in note for note in report["notes"])
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert min(image.size) > 200
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["metrics.json", "metrics.md", "sheet.png", "subjects.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generated", "out", "shuffled"]  # no scratch is left


def test_the_window_sets_the_data_range(evaluate: Run) -> None:
    report = evaluate(window=(-1000, 0))
    assert report["settings"]["window"] == [-1000.0, 0.0]
    assert report["per_subject"]["one sample"][0]["psnr_3d"] != pytest.approx(40.0)


def test_a_wrong_subject_changes_the_score(evaluate: Run, truths: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = _test_names()
    turned = _write_generated(tmp_path / "turned", truths, [*names[1:], names[0]])
    assert _mean(evaluate(generated=turned), "one sample") < 30


def test_a_split_in_one_folder_without_metadata(evaluate: Run, truths: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Files of any other program, stored left to right and with another origin, still meet their subjects."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in _test_names():
        affine = np.diag([-SPACING, SPACING, SPACING, 1.0])
        affine[:3, 3] = (500, -20, 3)
        _save_volume(folder / f"{name}.nii.gz", truths[name][:, :, ::-1] + 20, affine)
    report = evaluate(generated=folder)
    assert _mean(report, "one sample") == pytest.approx(40.0)
    assert report["settings"]["num_samples"] == 1
    assert not any("resampled" in note for note in report["notes"])


def test_another_grid_is_resampled_and_said(evaluate: Run, truths: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = tmp_path / "fine"
    folder.mkdir()
    for name in _test_names():
        fine = np.kron(truths[name], np.ones((2, 2, 2), dtype=np.int16))
        _save_volume(folder / f"{name}.nii.gz", fine, np.diag([SPACING / 2] * 3 + [1.0]))
    report = evaluate(generated=folder)
    assert "5 generated volumes lay on another grid and were resampled onto the true one." in report["notes"]
    assert _mean(report, "one sample") > _mean(report, "mean volume")


def test_the_pipeline_adds_ceiling_usage_and_distributions(evaluate: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        spatial_dims=3,
        base_channels=8,
        channel_multipliers=[1, 1],
        num_res_blocks=1,
        quantizer={"codebook_size": 16, "codebook_dim": 4, "init": "random"},
    )
    VQTokenizer(config).save_pretrained(tmp_path / "pipeline" / "volume_tokenizer")
    CTVolumeProcessor(size=[SIDE] * 3, spacing=[SPACING] * 3).save_pretrained(
        tmp_path / "pipeline" / "volume_processor"
    )
    report = evaluate(pipeline=tmp_path / "pipeline", nearest_k=3, num_sheet_subjects=99)
    assert "tokenizer reconstruction (ceiling)" in report["summary"]
    assert list(report["codebook"]) == ["test + validation", "test"]
    assert report["codebook"]["test"]["codes_used"] <= report["codebook"]["test + validation"]["codes_used"] <= 16
    assert report["distribution"]["num_real"] == 9
    assert "NOT learned" in report["distribution"]["features"]
    counts = {name: row["num_generated"] for name, row in report["distribution"]["rows"].items()}
    assert counts == {
        "generated, all samples": 10,
        "generated, one sample per subject": 5,
        "mean volume": 5,
        "nearest subject": 5,
        "ridge regression": 5,
        "training volumes, as if generated": 5,
    }
    assert {row["reliable"] for row in report["distribution"]["rows"].values()} == {False}


def test_features_of_another_tokenizer(evaluate: Run, tmp_path: Path) -> None:
    """Without a pipeline: distributions but no ceiling, and the report says whose features they are."""
    torch.manual_seed(1)
    quantizer = {"codebook_size": 16, "codebook_dim": 4, "init": "random"}
    config = VQTokenizerConfig(spatial_dims=3, base_channels=8, channel_multipliers=[1], quantizer=quantizer)
    VQTokenizer(config).save_pretrained(tmp_path / "tokenizer")
    CTVolumeProcessor(size=[SIDE] * 3, spacing=[SPACING] * 3).save_pretrained(tmp_path / "tokenizer")
    report = evaluate(features=tmp_path / "tokenizer", nearest_k=3)
    assert str(tmp_path / "tokenizer") in report["distribution"]["features"]
    assert report["codebook"] is None
    assert "tokenizer reconstruction (ceiling)" not in report["summary"]
    assert any(
        note.startswith("Tokenizer reconstruction (ceiling), codebook usage left out") for note in report["notes"]
    )


def test_two_programs_stand_in_one_table(evaluate: Run, truths: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The other one misses by 40 HU, on another scale; it is 20 log10 2 dB worse, and every subject says so."""
    other = tmp_path / "other"
    other.mkdir()
    for name in _test_names():
        volume = np.ascontiguousarray((truths[name] + 1040).transpose(2, 1, 0)).astype(np.float32) / 2500
        nib.save(nib.Nifti1Image(volume, AFFINE), other / f"{name}.nii.gz")
    shuffled = _write_generated(tmp_path / "shuffled", truths, _test_names()[::-1], num_samples=1)
    report = evaluate(
        generated=(f"ours={tmp_path / 'generated'}", "--generated", f"theirs={other}"),
        value_range="theirs=0,1,-1000,1500",
        shuffled=f"theirs={shuffled}",
    )
    assert list(report["summary"])[:5] == [
        "ours: one sample",
        "ours: one sample, scores averaged over 2 samples",
        "ours: mean of 2 samples",
        "theirs: one sample",
        "theirs: shuffled views, one sample",
    ]
    assert _mean(report, "ours: one sample") == pytest.approx(40.0)
    assert _mean(report, "theirs: one sample", "mae_hu") == pytest.approx(40.0, abs=1e-3)
    pairs = {(one["minuend"], one["subtrahend"]): one["scores"]["psnr_3d"] for one in report["comparisons"]}
    difference = pairs["theirs: one sample", "ours: one sample"]
    assert difference["mean"] == pytest.approx(-20 * np.log10(2), abs=1e-3)
    np.testing.assert_allclose(difference["confidence_interval"], difference["mean"], atol=1e-3)
    assert ("theirs: one sample", "theirs: shuffled views, one sample") in pairs
    assert report["settings"]["programs"][1]["values"] == [0.0, 1.0, -1000.0, 1500.0]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["metrics.json", "metrics.md", "sheet-theirs.png", "sheet.png", "subjects.csv"]
    with (tmp_path / "out" / "subjects.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(report["summary"]) * 5
    assert {line["subject"] for line in lines} == set(_test_names())


def test_the_common_subjects_are_used_for_all_rows(
    evaluate: Run, truths: dict[str, np.ndarray], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("test_3", "test_1"):
        _save_volume(other / f"{name}.nii.gz", truths[name] + 10)
    report = evaluate(generated=(f"ours={tmp_path / 'generated'}", "--generated", f"theirs={other}", "--allow_missing"))
    assert report["subjects"] == ["test_1", "test_3"]
    assert all(len(scores) == 2 for scores in report["per_subject"].values())
    assert report["settings"]["num_subjects"] == 2
    assert "'theirs' has no volumes of 3 of 5 subjects (test_0, test_2, test_4)." in report["notes"]
    assert "All rows are over the 2 subjects that all programs made volumes of." in report["notes"]


def test_numbers_do_not_depend_on_the_workers(evaluate: Run) -> None:
    one, three = (evaluate(num_workers=count)["per_subject"] for count in (1, 3))
    assert one == three


def test_volumes_that_are_hardly_hu_are_noted(evaluate: Run, truths: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    folder.mkdir()
    for name in _test_names():
        _save_volume(folder / f"{name}.nii.gz", truths[name] > 0)
    assert any("between 0 and 1" in note and "--value_range" in note for note in evaluate(generated=folder)["notes"])


def test_views_that_the_pipeline_does_not_know_are_said(evaluate: Run, tmp_path: Path) -> None:
    """The pipeline reads the frontal view alone; the baselines use both unless told otherwise."""
    torch.manual_seed(0)
    quantizer = {"codebook_size": 16, "codebook_dim": 4, "init": "random"}
    config = VQTokenizerConfig(spatial_dims=3, base_channels=8, channel_multipliers=[1], quantizer=quantizer)
    VQTokenizer(config).save_pretrained(tmp_path / "pipeline" / "volume_tokenizer")
    CTVolumeProcessor(size=[SIDE] * 3, spacing=[SPACING] * 3).save_pretrained(
        tmp_path / "pipeline" / "volume_processor"
    )
    (tmp_path / "pipeline" / "transformer").mkdir()
    axes = {"view_axes": {"frontal": ["inferior", "left"]}}
    (tmp_path / "pipeline" / "transformer" / "config.json").write_text(json.dumps(axes))
    both = evaluate(pipeline=tmp_path / "pipeline")
    sentence = "The pipeline knows the views frontal; the baselines and the re-projection error use frontal, lateral"
    assert any(note.startswith(sentence) for note in both["notes"])
    alone = evaluate(pipeline=tmp_path / "pipeline", views="frontal")
    assert not any("The pipeline knows" in note for note in alone["notes"])
    assert alone["settings"]["views"] == ["frontal"]
    assert _mean(alone, "ridge regression") != _mean(both, "ridge regression")


def test_the_same_seed_draws_the_same_sheet(evaluate: Run, tmp_path: Path) -> None:
    pictures = []
    for seed in (3, 3):
        evaluate(seed=seed, num_sheet_subjects=2)
        with Image.open(tmp_path / "out" / "sheet.png") as image:
            pictures.append(np.asarray(image))
    np.testing.assert_array_equal(*pictures)


def _break_nothing(folder: Path) -> dict:
    return {}


def _drop_subject(folder: Path) -> dict:
    rows = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join(row for row in rows if "test_3" not in row) + "\n")
    return {}


def _empty_folder(folder: Path) -> dict:
    (folder.parent / "empty").mkdir()
    return {"generated": folder.parent / "empty"}


def _two_without_names(folder: Path) -> dict:
    return {"generated": (f"a={folder}", "--generated", folder)}


def _the_same_name_twice(folder: Path) -> dict:
    return {"generated": (f"a={folder}", "--generated", f"a={folder}")}


def _a_control_of_nobody(folder: Path) -> dict:
    return {"shuffled": f"nobody={folder}"}


def _four_axes(folder: Path) -> dict:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), dtype=np.int16), AFFINE), folder / "test_0_0.nii.gz")
    return {}


@pytest.mark.parametrize(
    ("damage", "flags", "message"),
    [
        (_drop_subject, {}, r"no volume for 1 of 5 subjects \(test_3\)"),
        (_empty_folder, {}, "no volumes"),
        (_four_axes, {}, r"test_0_0\.nii\.gz.*three axes"),
        (_break_nothing, {"split": "holdout"}, "holdout"),
        (_break_nothing, {"data": "no/such/cohort"}, "no/such/cohort"),
        (_break_nothing, {"shuffled": "no/such/folder"}, "no/such/folder"),
        (_break_nothing, {"pipeline": "no/such/pipeline"}, "no/such/pipeline"),
        (_break_nothing, {"window": (5, -5)}, "--window"),
        (_break_nothing, {"features": "no/such/tokenizer"}, "no/such/tokenizer"),
        (_break_nothing, {"value_range": "0,1,2"}, "--value_range"),
        (_break_nothing, {"num_workers": 0}, "--num_workers"),
        (_break_nothing, {"views": "oblique"}, "oblique"),
        (_two_without_names, {}, "expected a name for each"),
        (_the_same_name_twice, {}, "'a' twice"),
        (_a_control_of_nobody, {}, "'nobody', expected one of --generated"),
        (_break_nothing, {"num_sheet_subjects": 0}, "--num_sheet_subjects"),
    ],
)
def test_bad_input_is_one_line(
    evaluate: Run,
    generated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], dict],
    flags: dict,
    message: str,
) -> None:
    with pytest.raises(SystemExit) as failure:
        evaluate(**(damage(generated) | flags))
    assert failure.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("evaluate.py: error: ")
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
