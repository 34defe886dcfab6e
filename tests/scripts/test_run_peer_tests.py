"""The page about the libraries' own tests, made from JUnit files; the tests themselves need sources from elsewhere."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_peer_tests.py"
PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
XML = """<testsuites><testsuite>
<testcase classname="test_a.OneTest" name="test_save"><properties>
  <property name="under_test" value="One"/></properties></testcase>
<testcase classname="test_a.OneTest" name="test_save"><properties>
  <property name="under_test" value="One"/></properties><failure message="values  differ">trace</failure></testcase>
<testcase classname="test_a.OneTest" name="test_words"><properties>
  <property name="under_test" value="One"/></properties><skipped message="no words."/></testcase>
<testcase classname="test_a.OneTest" name="test_rope_0_linear"><properties>
  <property name="under_test" value="One"/></properties><skipped message="no words"/></testcase>
<testcase classname="test_a.OneTest" name="test_rope_1_yarn"><properties>
  <property name="under_test" value="One"/></properties><skipped message="no words"/></testcase>
<testcase classname="test_a.TwoTest" name="test_words[a-1]"><skipped message="no words"/></testcase>
<testcase classname="test_a.TwoTest" name="test_call"><properties>
  <property name="adapted" value="volumes, not pictures"/></properties></testcase>
<testcase classname="test_a.TwoTest" name="test_flash_attn_2_fp32_ln">
  <skipped message="test requires a GPU"/></testcase>
<testcase classname="test_a.TwoTest" name="test_colours"><properties>
  <property name="ours" value="yes"/></properties><skipped message="grey by nature"/></testcase>
<testcase classname="test_a.TwoTest" name="test_broken"><error message="no module"/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture(scope="module")
def script():
    """The names that the script defines."""
    return runpy.run_path(str(SCRIPT), run_name="run_peer_tests")


@pytest.fixture
def results(script, tmp_path):
    (tmp_path / "results.xml").write_text(XML)
    return script["read_results"](tmp_path / "results.xml")


def test_a_test_counts_once_and_the_worst_of_its_parts(script, results):
    assert script["count_table"](results) == [
        "| | passed | skipped by us | skipped: not on this machine | skipped: not applicable | failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| One | 0 | 0 | 0 | 3 | 1 |",
        "| TwoTest | 1 | 1 | 1 | 1 | 1 |",
    ]


def test_every_skip_failure_and_adaptation_is_listed_with_its_reason(script, results):
    section = script["section"](script["SUITES"][0], "repository, version 1", results)
    assert "- One: `test_save`: values differ\n- TwoTest: `test_broken`: no module\n" in section
    assert "- volumes, not pictures. *TwoTest*: `test_call`\n" in section
    assert "Skipped by our classes:\n\n- grey by nature. *TwoTest*: `test_colours`\n" in section
    assert "of a library:\n\n- test requires a GPU. *TwoTest*: `test_flash_attn_2_fp32_ln`\n" in section
    assert "- no words. *One*: `test_rope` (2 variants)\n" in section
    assert "- no words. *One; TwoTest*: `test_words`\n" in section


def test_a_section_that_was_not_made_anew_stays(script, tmp_path):
    page = tmp_path / "page.md"
    script["write_report"](page, {"transformers": "## transformers\n\nold\n", "diffusers": "## diffusers\n\nkept\n"})
    script["write_report"](page, {"transformers": "## transformers\n\nnew\n"})
    text = page.read_text()
    assert text.startswith("# Conformance\n")
    assert "old" not in text
    assert script["read_sections"](text) == {
        "transformers": "## transformers\n\nnew\n",
        "diffusers": "## diffusers\n\nkept\n",
    }


def test_missing_modules_are_put_in_and_nothing_is_overwritten(script, tmp_path):
    stand_ins, root = tmp_path / "stand_ins", tmp_path / "root"
    for folder, text in ((stand_ins, "ours"), (root, "theirs")):
        (folder / "tests").mkdir(parents=True)
        (folder / "tests" / "both.py").write_text(text)
    (stand_ins / "tests" / "deep").mkdir()
    (stand_ins / "tests" / "deep" / "only.py").write_text("ours")
    script["complete_sources"](root, stand_ins)
    assert (root / "tests" / "both.py").read_text() == "theirs"
    assert (root / "tests" / "deep" / "only.py").read_text() == "ours"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--transformers", "{}/nowhere"], "--transformers .*/nowhere: found no folder `tests`"),
        (["--tests", "save"], "name another --report"),
    ],
)
def test_bad_flags_are_named(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *(flag.format(tmp_path) for flag in flags)])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert words.split(" .*")[0] in message
    assert words.split(" .*")[-1].removeprefix("/") in message


def test_the_page_reports_no_failure(script):
    for text in script["read_sections"](PAGE.read_text(encoding="utf-8")).values():
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
        failed = {subject: int(count) for subject, *_, count in rows if count.isdigit()}
        assert failed
        assert set(failed.values()) == {0}
