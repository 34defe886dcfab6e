"""The ablation's results file, its statistics, computed by hand, and its report."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hf_vq.evaluation.ablation import (
    ANY_SIZE,
    AblationRun,
    append_run,
    current_runs,
    paired_difference,
    ranked_arms,
    read_runs,
    select_weights,
)
from hf_vq.evaluation.ablation_report import ablation_markdown, plot_errors, plot_stress

SETTINGS = json.dumps({"batch_size": 64, "quantizer": {"init": "kmeans"}})
ROW = AblationRun(
    *("main", "vq", 1024, 0, 0.25, 1.0, 500, SETTINGS, 0.011, 0.012, 19.5, 300.25, 0.95, 0.02, 0.125),
    *(15.5, 14.5, "abc1234", "0.1.0", "2.6.0"),
)
# Test errors of three seeds; the differences to vq are -1, -2 and -3 thousandths for "good".
ERRORS = {"vq": (0.010, 0.012, 0.014), "good": (0.009, 0.010, 0.011), "dead": (0.001, 0.001, 0.001)}
ACTIVE = {"vq": 0.95, "good": 1.0, "dead": 0.5}


def rows(stage: str = "main", size: int = 1024) -> list[AblationRun]:
    return [
        replace(ROW, stage=stage, arm=arm, codebook_size=size, seed=seed, test_mse=error, active_fraction=ACTIVE[arm])
        for arm, errors in ERRORS.items()
        for seed, error in enumerate(errors)
    ]


def ceiling(stage: str = "main") -> list[AblationRun]:
    empty = dict.fromkeys(("commitment_weight", "codebook_weight", "perplexity", "active_fraction"))
    empty |= dict.fromkeys(("quantization_error", "relative_quantization_error"))
    plain = replace(ROW, stage=stage, arm="none", codebook_size=ANY_SIZE, **empty)
    return [replace(plain, seed=seed, test_mse=0.005) for seed in range(3)]


def search(points: dict[tuple[float | None, float | None], tuple[float, ...]]) -> list[AblationRun]:
    found = replace(ROW, stage="search", test_mse=None, test_psnr=None)
    return [
        replace(found, commitment_weight=first, codebook_weight=second, seed=100 + seed, validation_mse=error)
        for (first, second), errors in points.items()
        for seed, error in enumerate(errors)
    ]


def table_row(text: str, title: str, arm: str) -> list[str]:
    """Cells of an arm in the table under a title."""
    lines = text[text.index(f"### {title}") :].splitlines()
    line = next(line for line in lines if line.startswith(f"| {arm} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.csv"
    assert read_runs(path) == []
    written = [ROW, *search({(1.0, None): (math.inf,)}), *ceiling()]
    for run in written:
        append_run(path, run)
    assert read_runs(path) == written


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_without_its_end_is_no_row_and_the_next_one_takes_its_place(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "runs.csv"
    for run in rows()[:2]:
        append_run(path, run)
    path.write_text(path.read_text()[:-cut])
    interrupted = path.read_bytes()
    assert read_runs(path) == rows()[:1]
    assert path.read_bytes() == interrupted
    append_run(path, rows()[2])
    assert read_runs(path) == [rows()[0], rows()[2]]


def test_a_file_cut_in_its_header_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("stage,arm")
    assert read_runs(path) == []
    append_run(path, ROW)
    assert read_runs(path) == [ROW]


def test_a_file_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("name,value\na,1\nb,2")
    with pytest.raises(ValueError, match=r"runs.csv: found the columns 'name,value', expected .*choose another"):
        read_runs(path)
    assert path.read_text() == "name,value\na,1\nb,2"
    path.write_text("name,val")
    with pytest.raises(ValueError, match="found the columns 'name,val'"):
        read_runs(path)


def test_bad_cells_and_doubled_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    append_run(path, ROW)
    good = path.read_text()
    path.write_text(good.replace(",1024,", ",many,"))
    with pytest.raises(ValueError, match="line 2, codebook_size: found 'many', expected int"):
        read_runs(path)
    path.write_text(good.replace(",0.011,", ",,"))
    with pytest.raises(ValueError, match="validation_mse: found '', expected float"):
        read_runs(path)
    path.write_text(good + "main,vq\n")
    with pytest.raises(ValueError, match="line 3: found 2 cells"):
        read_runs(path)
    path.write_text(good)
    append_run(path, ROW)
    with pytest.raises(ValueError, match="two rows of the run"):
        read_runs(path)


def test_the_search_chooses_the_least_mean_validation_error() -> None:
    """Means 2, 1.5 and 3: the second, although the third has the best single run."""
    runs = search({(0.25, 1.0): (2.0, 2.0), (1.0, 4.0): (1.0, 2.0), (0.25, 4.75): (0.5, 5.5)})
    assert select_weights([*rows(), *runs]) == {("vq", 1024): (1.0, 4.0)}


def test_the_search_passes_over_trainings_that_diverged() -> None:
    assert select_weights(search({(1.0, None): (0.1, math.nan), (0.25, None): (9.0, 9.0)})) == {
        ("vq", 1024): (0.25, None)
    }
    with pytest.raises(ValueError, match="search of vq, K = 1024: every training diverged"):
        select_weights(search({(1.0, None): (math.nan,)}))


def test_rows_with_weights_that_were_chosen_before_are_left_out() -> None:
    old, new = (replace(ROW, commitment_weight=weight, codebook_weight=4.0) for weight in (0.25, 1.0))
    runs = [old, new, *search({(0.25, 4.0): (2.0,), (1.0, 4.0): (1.0,)}), *ceiling()]
    assert current_runs(runs) == runs[1:]


def test_an_unfinished_search_is_refused() -> None:
    with pytest.raises(ValueError, match=r"search of vq, K = 1024: found seeds .*\[100, 101\].*\[100\].*finish"):
        select_weights(search({(0.25, 1.0): (2.0, 2.0), (1.0, 4.0): (1.0,)}))


def test_paired_difference_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, variance 5 / 3; Student's t of 3 degrees of freedom at 0.975 is 3.182446."""
    first, second = {0: 11.0, 1: 22.0, 2: 33.0, 3: 44.0}, {3: 40.0, 2: 30.0, 1: 20.0, 0: 10.0}
    difference = paired_difference(first, second)
    error = math.sqrt(5 / 3) / 2
    assert difference.mean == 2.5
    assert difference.standard_error == pytest.approx(error)
    assert difference.interval == pytest.approx((2.5 - 3.182446 * error, 2.5 + 3.182446 * error), rel=1e-6)


def test_paired_difference_of_one_seed_has_no_interval() -> None:
    difference = paired_difference({5: 3.0}, {5: 1.0})
    assert (difference.mean, difference.standard_error, difference.interval) == (2.0, None, None)
    with pytest.raises(ValueError, match=r"\[0, 1\] and \[0\]"):
        paired_difference({0: 1.0, 1: 1.0}, {0: 1.0})


def test_arms_are_ranked_by_error_if_their_codes_are_active() -> None:
    assert ranked_arms(rows(), ["vq", "good", "dead"], 1024) == ["good", "vq"]
    assert ranked_arms(rows(), ["vq", "dead"], 1024) == ["vq"]
    assert ranked_arms(rows(), ["vq", "good"], 256) == []
    diverged = [replace(run, test_mse=math.nan) if run.arm == "good" else run for run in rows()]
    assert ranked_arms(diverged, ["vq", "good"], 1024) == ["vq"]


def test_tables_hold_the_figures() -> None:
    """10, 12, 14 and 9, 10, 11: means 12 and 10, deviations 2 and 1; differences -1, -2, -3: -2 ± 1 / sqrt(3)."""
    text = ablation_markdown([*rows(), *ceiling()], ["vq", "good", "dead", "none"], ["vq", "good", "dead"], ["vq"])
    vq, good, none = (table_row(text, "Main setting, K = 1024", arm) for arm in ("vq", "good", "none"))
    assert vq[:6] == ["vq", "3", "0.25 / 1", "12.00 ± 2.00", "19.50 ± 0.00", "95.0 ± 0.0"]
    assert vq[-1] == "–"
    assert good[3] == "10.00 ± 1.00"
    half = 4.302653 / math.sqrt(3)  # Student's t of 2 degrees of freedom at 0.975
    assert good[-1] == f"-2.00 ± 0.58 [{-2 - half:+.2f}, {-2 + half:+.2f}]"
    assert none[2:4] == ["– / –", "5.00 ± 0.00"]
    assert none[5:8] == ["–", "–", "–"]


def test_the_winner_is_named_with_those_it_cannot_be_told_from() -> None:
    """vq - good: [-0.48, 4.48]; a copy of good that is worse by 1 in every seed leaves out 0."""
    worse = [replace(run, arm="worse", test_mse=run.test_mse + 0.001) for run in rows() if run.arm == "good"]
    arms = ["vq", "good", "dead", "worse"]
    text = ablation_markdown([*rows(), *worse], arms, arms, ["vq"])
    assert "at least 90 % of its codes active, **good** has the least error. By the 95 % interval" in text
    assert "cannot be told from: vq.\n" in text
    text = ablation_markdown([*rows(), *worse], arms, ["good", "worse"], ["vq"])
    assert "**good** has the least error. The 95 % interval of the paired difference to each" in text
    assert "No arm of `VectorQuantizerConfig` has" in ablation_markdown(rows(), arms, ["dead"], ["vq"])


def test_arms_that_diverged_or_lack_seeds_say_so() -> None:
    runs = [replace(run, test_mse=math.nan) if (run.arm, run.seed) == ("good", 1) else run for run in rows()][:-1]
    text = ablation_markdown(runs, ["vq", "good", "dead"], ["vq", "good", "dead"], ["vq"])
    good, dead = (table_row(text, "Main setting, K = 1024", arm) for arm in ("good", "dead"))
    assert good[3] == "diverged (1 of 3)"
    assert good[-1] == dead[-1] == "incomplete"
    assert dead[1] == "2"


def test_report_says_where_the_figures_come_from() -> None:
    runs = [*rows(), *rows("stress"), *search({(0.25, 1.0): (0.02, 0.04), (1.0, 4.0): (0.05, 0.07)})]
    text = ablation_markdown(runs, ["vq", "good", "dead"], ["vq"], ["vq"], notes=["A note."])
    assert "- 22 trainings (search 4, main 9, stress 9), 500 steps each" in text
    assert "Code revision abc1234, hf_vq 0.1.0, PyTorch 2.6.0." in text
    assert "- A note.\n" in text
    assert "- batch_size 64.\n" in text
    assert "| vq | 1024 | **0.25 / 1: 30.00 ± 14.14**; 1 / 4: 60.00 ± 14.14 |" in text
    assert "### Stress setting, K = 1024" in text
    assert table_row(text, "Arms", "good") == ["good", "all", "`init=kmeans`"]
    with pytest.raises(ValueError, match="no runs"):
        ablation_markdown([], ["vq"], ["vq"], ["vq"])


def test_plots_of_errors_and_of_both_settings(tmp_path: Path) -> None:
    runs = [*rows(), *rows(size=256), *ceiling(), *rows("stress")]
    runs.append(replace(ROW, arm="broken", test_mse=math.nan))
    arms = ["vq", "good", "dead", "broken", "none"]
    paths = [plot_errors(runs, arms, tmp_path / "error.png"), plot_stress(runs, arms, tmp_path / "stress.png", 1024)]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 300
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    with pytest.raises(ValueError, match="no runs to plot"):
        plot_errors(search({(1.0, 1.0): (0.1,)}), arms, tmp_path / "none.png")
