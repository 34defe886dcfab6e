"""What all reports share: their files, and the line that says what they were made on."""

import json
import math
from pathlib import Path

import pytest

from hf_vq.evaluation.report_text import processor_name, save_report, versions_text


def test_a_report_is_saved_as_json_and_as_markdown_beside_it(tmp_path: Path) -> None:
    figures = {"settings": {"seed": 3}, "rows": [{"seconds": 0.5, "ratio": None}]}
    for text in ("before\n", "| µs |\n"):
        save_report(tmp_path / "new" / "out.json", figures, text)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"out.json", "out.md"}
    assert json.loads((tmp_path / "new" / "out.json").read_text(encoding="utf-8")) == figures
    assert (tmp_path / "new" / "out.md").read_text(encoding="utf-8") == "| µs |\n"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_figure_that_json_does_not_know_leaves_the_files_as_they_were(tmp_path: Path, bad: float) -> None:
    save_report(tmp_path / "out.json", [1.0], "one\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_report(tmp_path / "out.json", [bad], "two\n")
    assert json.loads((tmp_path / "out.json").read_text()) == [1.0]
    assert (tmp_path / "out.md").read_text() == "one\n"


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="only Linux lists processors there")
def test_the_processor_has_the_name_that_the_system_gives_it() -> None:
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    assert processor_name()
    assert not named or named[0].endswith(f": {processor_name()}")


def test_versions_stand_in_one_line() -> None:
    assert versions_text({"python": "3.11", "torch": "2.0"}) == "python 3.11, torch 2.0"
