"""Numbers of a report, computed by hand."""

import csv
import io
import json
import math

import pytest

from hf_vq.evaluation.report import (
    ROW_MEAN_VOLUME,
    ROW_NEAREST,
    ROW_ONE_SAMPLE,
    ROW_SHUFFLED,
    EvaluationSettings,
    ProgramSettings,
    build_report,
    compared_rows,
    summarize,
)
from hf_vq.evaluation.report_text import per_subject_csv, report_markdown

SETTINGS = EvaluationSettings("cohort", "test", (-1000.0, 1000.0), 4, 1, 7, "generated")
SUBJECTS = ["a", "b", "c", "d"]
ROWS = {
    ROW_ONE_SAMPLE: [{"psnr_3d": value, "mae_hu": 50.0} for value in (20.0, 22.0, 24.0, 26.0)],
    ROW_SHUFFLED: [{"psnr_3d": value} for value in (19.0, 20.0, 21.0, 22.0)],
}


def test_mean_spread_and_standard_error() -> None:
    """20, 22, 24, 26: mean 23, squares of deviations 9 + 1 + 1 + 9 = 20, variance 20 / 3."""
    summary = summarize([20.0, 22.0, 24.0, 26.0])
    assert summary["mean"] == 23.0
    assert summary["std"] == pytest.approx(math.sqrt(20 / 3))
    assert summary["standard_error"] == pytest.approx(math.sqrt(20 / 3) / 2)
    assert summary["count"] == 4


def test_one_subject_has_no_spread() -> None:
    assert summarize([3.0]) == {"mean": 3.0, "std": None, "standard_error": None, "count": 1}


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_scores_must_be_finite(values: list[float]) -> None:
    with pytest.raises(ValueError, match="one finite number per subject"):
        summarize(values)


def test_differences_are_paired_by_subject() -> None:
    """Right minus shuffled: 1, 2, 3, 4."""
    report = build_report(SETTINGS, SUBJECTS, ROWS)
    difference = report["paired_differences"][ROW_SHUFFLED]["psnr_3d"]
    assert difference["mean"] == 2.5
    assert difference["std"] == pytest.approx(math.sqrt(5 / 3))


def test_a_wrong_pairing_changes_the_spread_but_not_the_mean() -> None:
    turned = {ROW_ONE_SAMPLE: ROWS[ROW_ONE_SAMPLE], ROW_SHUFFLED: ROWS[ROW_SHUFFLED][::-1]}
    right, wrong = (build_report(SETTINGS, SUBJECTS, rows)["paired_differences"] for rows in (ROWS, turned))
    assert right[ROW_SHUFFLED]["psnr_3d"]["mean"] == wrong[ROW_SHUFFLED]["psnr_3d"]["mean"]
    assert right[ROW_SHUFFLED]["psnr_3d"]["std"] < wrong[ROW_SHUFFLED]["psnr_3d"]["std"]


def test_a_report_is_plain_json() -> None:
    report = build_report(SETTINGS, SUBJECTS, ROWS, notes=["a note"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["settings"]["window"] == [-1000.0, 1000.0]
    assert report["per_subject"][ROW_ONE_SAMPLE][2] == {"psnr_3d": 24.0, "mae_hu": 50.0}


def test_a_row_needs_one_score_per_subject() -> None:
    with pytest.raises(ValueError, match="'mean volume' has 3 scores"):
        build_report(SETTINGS, SUBJECTS, {ROW_MEAN_VOLUME: [{"psnr_3d": 1.0}] * 3})


def test_markdown_says_what_the_numbers_depend_on() -> None:
    text = report_markdown(build_report(SETTINGS, SUBJECTS, ROWS, notes=["Something was left out."]))
    for piece in ("`cohort`", "`test`", "4 subjects", "seed 7", "[-1000, 1000] HU", "data range 2000 HU"):
        assert piece in text
    assert "23.00 ± 1.29 [" in text
    assert "paired by subject: 2.50 ± 0.65 [" in text
    assert "95% interval" in text and "10000 bootstrap resamples" in text
    assert "one sample − shuffled views, one sample" in text
    assert "\n- Something was left out.\n" in text


def test_markdown_leaves_a_gap_where_a_row_lacks_a_metric() -> None:
    lines = report_markdown(build_report(SETTINGS, SUBJECTS, ROWS)).splitlines()
    header, shuffled = (next(line for line in lines if start in line) for start in ("PSNR 3D", ROW_SHUFFLED))
    assert header.count("|") == shuffled.count("|") == 4
    assert shuffled.split("|")[3].strip() == ""


def test_markdown_names_features_and_warns_about_few_subjects() -> None:
    scores = {"num_generated": 8, "num_subjects": 4, "reliable": False, "precision": 0.5, "recall": 0.25}
    scores |= {"density": 1.125, "coverage": 0.75}
    distribution = {"features": "pooled latents", "real_set": "test", "num_real": 4, "left_out": ["'few' left out."]}
    distribution["rows"] = {"mean volume": scores, "many": scores | {"reliable": True}}
    usage = {"test": {"codes_used": 3, "codebook_size": 4, "used_fraction": 0.75, "perplexity": 2.5}}
    report = build_report(SETTINGS, SUBJECTS, ROWS, distribution=distribution, codebook=usage)
    text = report_markdown(report)
    for piece in (
        "pooled latents",
        "few subjects they say little",
        "nearest_k = 5",
        "1.125",
        "mean volume †",
        "† Not reliable: fewer than 200",
        "the mean volume, scores density 1.125 and coverage 0.750",
        "'few' left out.",
        "3 / 4",
        "75.0%",
    ):
        assert piece in text
    assert "many †" not in text


def test_every_mean_and_difference_has_its_interval() -> None:
    """All means of resamples lie between the least and the greatest score, and around the mean."""
    report = build_report(SETTINGS, SUBJECTS, ROWS)
    low, high = report["summary"][ROW_ONE_SAMPLE]["psnr_3d"]["confidence_interval"]
    assert 20 <= low < 23 < high <= 26
    low, high = report["paired_differences"][ROW_SHUFFLED]["psnr_3d"]["confidence_interval"]
    assert 1 <= low < 2.5 < high <= 4
    assert any("4 subjects, fewer than 10" in note for note in report["notes"])


def test_one_subject_has_no_interval() -> None:
    rows = {name: scores[:1] for name, scores in ROWS.items()}
    report = build_report(SETTINGS, SUBJECTS[:1], rows)
    assert report["summary"][ROW_ONE_SAMPLE]["psnr_3d"]["confidence_interval"] is None
    (line,) = (line for line in report_markdown(report).splitlines() if line.startswith("| one sample  "))
    assert [cell.strip() for cell in line.split("|")[1:4]] == ["one sample", "20.00", "50.0"]


def test_rows_that_are_compared() -> None:
    """Each program with its control and the baselines, and further programs with the first one, sample by sample."""
    programs = [ProgramSettings("ours", "a", 8), ProgramSettings("theirs", "b", 1)]
    rows = ["ours: one sample", "ours: mean of 8 samples", "ours: shuffled views, one sample", "theirs: one sample"]
    assert compared_rows(programs, [*rows, ROW_NEAREST]) == [
        ("ours: one sample", "ours: shuffled views, one sample"),
        ("ours: one sample", ROW_NEAREST),
        ("ours: mean of 8 samples", ROW_NEAREST),
        ("theirs: one sample", "ours: one sample"),
        ("theirs: one sample", ROW_NEAREST),
    ]


def test_differences_of_programs_are_taken_from_the_first() -> None:
    programs = (ProgramSettings("ours", "a", 1), ProgramSettings("theirs", "b", 1))
    settings = EvaluationSettings("cohort", "test", (-1000.0, 1000.0), 4, 1, 7, "a", programs=programs)
    rows = {f"{name}: {ROW_ONE_SAMPLE}": scores for name, scores in zip(("ours", "theirs"), ROWS.values(), strict=True)}
    report = build_report(settings, SUBJECTS, rows)
    (comparison,) = report["comparisons"]
    assert (comparison["minuend"], comparison["subtrahend"]) == ("theirs: one sample", "ours: one sample")
    assert comparison["scores"]["psnr_3d"]["mean"] == -2.5
    assert report["paired_differences"]["theirs: one sample"]["psnr_3d"]["mean"] == 2.5
    assert "ours: 1, theirs: 1 sample(s) per subject" in report_markdown(report)


def test_every_subject_has_its_lines_in_the_csv() -> None:
    lines = list(csv.DictReader(io.StringIO(per_subject_csv(build_report(SETTINGS, SUBJECTS, ROWS)))))
    assert len(lines) == 8
    assert lines[1] == {"subject": "b", "row": ROW_ONE_SAMPLE, "psnr_3d": "22.0", "mae_hu": "50.0"}
    assert lines[7] == {"subject": "d", "row": ROW_SHUFFLED, "psnr_3d": "22.0", "mae_hu": ""}
