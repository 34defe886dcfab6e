"""What sampling costs beside the full sequence: arithmetic of the report, and measurements of a tiny transformer."""

import pytest

from hf_vq.evaluation.sampling_cost import (
    Cost,
    CostCase,
    broken_limits,
    cost_cases,
    cost_tables,
    default_steps,
    measure_cost,
    report_costs,
)

TINY = {"code_grid": (2, 2, 3), "context_grid": (2, 2), "hidden_size": 16, "num_layers": 2, "num_codes": 7}


def test_the_paper_s_size_is_measured_first_and_every_case_once():
    cases = cost_cases()
    assert (cases[0].context_tokens, cases[0].code_tokens, cases[0].num_layers) == (512, 512, 8)
    assert len(set(cases)) == len(cases)


def test_runs_are_as_many_evaluations_as_they_have_steps_that_settle_codes():
    cost = Cost(CostCase(), full=2.0, context=10.0, many=1.0, default=0.5)
    assert cost.full_seconds == 512 * 2
    assert cost.many_seconds == 10 + 512 * 1
    assert cost.default_seconds == 10 + default_steps() * 0.5
    assert cost.share == (10 + 512) / 1024
    assert cost.speedup == 1024 / (10 + default_steps() * 0.5)
    few = Cost(CostCase(code_grid=(4, 4, 4)), full=2.0, context=10.0, many=1.0, default=0.5)
    assert few.many_seconds == 10 + 64 * 1  # the other steps settle nothing


def test_only_ratios_of_the_paper_s_size_in_float32_have_limits():
    slow, fast = {"many": 0.56, "default": 0.81}, {"many": 0.54, "default": 0.79}
    assert 512 / (16 * 0.81) < 40 < 512 / (16 * 0.79)
    assert default_steps() == 16
    kept = [Cost(CostCase(), full=1.0, context=0.0, **fast)]
    kept += [Cost(CostCase(**sizes), full=1.0, context=0.0, **slow) for sizes in (TINY, {"dtype": "bfloat16"})]
    assert broken_limits(kept) == []
    assert broken_limits([Cost(CostCase(), full=1.0, context=0.0, **slow)]) == [
        "share 0.560 is above its limit of 0.55",
        "39.5 times faster is below the limit of 40 times",
    ]


@pytest.mark.parametrize(
    "more", [{}, {"dtype": "bfloat16"}, {"subjects": 2, "samples": 3}, {"code_grid": (8, 8, 9), "num_layers": 1}]
)
def test_every_part_is_timed(more):
    case = CostCase(**{**TINY, **more})
    cost = measure_cost(case, evaluations=3)
    assert cost.case == case
    assert min(cost.full, cost.context, cost.many, cost.default) > 0


def test_the_report_has_a_line_for_each_batch_and_each_size(tmp_path, capsys):
    cases = [CostCase(**TINY), CostCase(**TINY, samples=2), CostCase(**{**TINY, "hidden_size": 32})]
    assert report_costs(cases, 1, tmp_path / "out", "1.2.3") == []
    text = (tmp_path / "out" / "cost.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "hf-vq 1.2.3" in text and "medians of 1 turns" in text
    assert "8 context and 12 code tokens, 2 blocks of width 16, 7 codes" in text
    tables = [block.splitlines()[2:] for block in text.split("\n\n") if block.startswith("|")]
    assert [[cell.strip() for cell in line.split("|")[1:4]] for line in tables[0]] == [
        ["float32", "1", "1"],
        ["float32", "1", "2"],
    ]
    assert [[cell.strip() for cell in line.split("|")[1:4]] for line in tables[1]] == [
        ["8", "12", "16"],
        ["8", "12", "32"],
    ]


def test_seconds_are_those_of_one_volume():
    one, four = (Cost(CostCase(samples=count), 0.1 * count, 0.0, 0.05 * count, 0.05 * count) for count in (1, 4))
    lines = [line.split("|")[4:] for line in cost_tables([one, four]).splitlines() if line.startswith("| float32")]
    assert lines[0] == lines[1]
