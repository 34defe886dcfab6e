"""The stages of `scripts/quickstart.py`: that they fit the other scripts, their order, skipping and invalidation."""

import json
import re
import runpy
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from script_calls import load

from hf_vq.training.arguments import run

SCRIPT = Path(__file__).parents[2] / "scripts" / "quickstart.py"
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def quickstart():
    return load(SCRIPT)


@pytest.fixture
def small(quickstart, tmp_path):
    """Three stages that note their names and write the file that tells they are complete."""
    script = tmp_path / "note.py"
    script.write_text(
        "import pathlib, sys\n"
        "folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "if (folder / f'{name}.broken').exists():\n"
        "    sys.exit('no good')\n"
        "with (folder / 'log').open('a') as file:\n"
        "    file.write(f'{name} ')\n"
        "(folder / name).touch()\n"
    )
    return [quickstart.Stage(script, tmp_path / name, [str(tmp_path), name]) for name in NAMES]


def ran(folder: Path) -> str:
    """Names of the stages that ran, in order."""
    return (folder / "log").read_text().strip() if (folder / "log").exists() else ""


def test_stages_run_in_order_and_once(quickstart, small, tmp_path, capfd):
    quickstart.run_stages(small)
    assert ran(tmp_path) == "one two three"
    quickstart.run_stages(small)
    assert ran(tmp_path) == "one two three"
    assert capfd.readouterr().out.count("is there, skipped") == 3


def test_stages_after_one_that_runs_are_run_again(quickstart, small, tmp_path):
    quickstart.run_stages(small)
    (tmp_path / "two").unlink()
    quickstart.run_stages(small)
    assert ran(tmp_path) == "one two three two three"


def test_a_failure_is_one_line_and_later_results_do_not_count_as_complete(quickstart, small, tmp_path, capfd):
    quickstart.run_stages(small)
    (tmp_path / "one").unlink()
    (tmp_path / "two.broken").touch()
    with pytest.raises(SystemExit) as failure:
        run(lambda: quickstart.run_stages(small))
    assert failure.value.code == 2
    script, own = capfd.readouterr().err.strip().splitlines()
    assert script == "no good"
    assert own.endswith("error: note.py failed with exit status 1; the message above tells why")
    assert [name for name in NAMES if (tmp_path / name).exists()] == ["one"]
    (tmp_path / "two.broken").unlink()
    quickstart.run_stages(small)
    assert ran(tmp_path) == "one two three one two three"


@pytest.mark.parametrize("family", ["quickstart", "cohort-32"])
def test_every_stage_is_a_script_that_knows_its_flags(quickstart, family, tmp_path, monkeypatch, capsys):
    stages = quickstart.stages(tmp_path, "scan.nii.gz", family, "no")
    assert len({stage.done for stage in stages}) == len(stages) == 11
    for script, _, flags in stages:
        monkeypatch.setattr(sys, "argv", [str(script), *flags, "--help"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        assert end.value.code == 0, script
        known = set(re.findall(r"--\w+", capsys.readouterr().out))
        assert {flag for flag in flags if flag.startswith("--")} <= known, script
    assert not list(tmp_path.iterdir())


def test_stages_that_may_find_an_old_folder_replace_it(quickstart, tmp_path):
    """All but the cohort, which is never made anew, and those that replace their own files: evaluation, pictures,
    cards."""
    scripts = {
        stage.script.name
        for stage in quickstart.stages(tmp_path, None, "cohort-32", "no")
        if "--overwrite" in stage.flags
    }
    assert scripts == {"train_tokenizer.py", "encode_codes.py", "train_code_transformer.py", "generate.py"}


def test_each_stage_reads_what_an_earlier_one_writes(quickstart, tmp_path):
    written = set()
    stages = quickstart.stages(tmp_path, None, "cohort-32", "no")
    for script, done, flags in stages:
        named = [Path(flags[flags.index(flag) + 1]) for flag in ("--output_dir", "--output") if flag in flags]
        inputs = {Path(flag) for flag in flags if flag.startswith(str(tmp_path))} - {*named}
        assert inputs <= written, script
        assert named in ([done.parent], [done], [])
        written |= {*named, done}
    assert {script.name for script, done, _ in stages if done.name == "README.md"} == {"make_model_card.py"}


def test_a_folder_made_from_another_scan_is_not_taken_for_this_one(quickstart, tmp_path):
    scan = tmp_path / "mine.nii.gz"
    scan.write_bytes(b"a scan")
    cohort = tmp_path / "cohort"
    quickstart.check_scan(cohort, str(scan))
    cohort.mkdir()
    description = {"scan": "other.nii.gz", "sha256": sha256(b"another scan").hexdigest()}
    (cohort / "cohort.json").write_text(json.dumps(description))
    quickstart.check_scan(cohort, None)
    with pytest.raises(ValueError, match=r"--scan: found a cohort of another scan \(other.nii.gz\) in .*; choose"):
        quickstart.main(["--output_dir", str(tmp_path), "--scan", str(scan)])
    (cohort / "cohort.json").write_text(json.dumps({**description, "sha256": sha256(b"a scan").hexdigest()}))
    quickstart.check_scan(cohort, str(scan))
