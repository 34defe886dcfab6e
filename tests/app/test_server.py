"""Flags, environment variables and examples of the page; nothing is served here."""

import os
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from hf_vq.app.server import check_args, import_page, open_examples, parse_args, prepare_environment
from hf_vq.app.workspace import Workspace

ROOT = Path(__file__).parents[2]


def write_cohort(folder, views=("frontal", "lateral")):
    """A paired folder with one subject in its test split."""
    split = folder / "test"
    split.mkdir(parents=True)
    nibabel.Nifti1Image(np.zeros((4, 4, 4), dtype=np.int16), np.eye(4)).to_filename(split / "a.nii.gz")
    for view in views:
        Image.new("L", (8, 8)).save(split / f"a_{view}.png")
    columns = ["file_name", *views, "subject"]
    row = ["a.nii.gz", *(f"a_{view}.png" for view in views), "a"]
    (split / "metadata.csv").write_text(f"{','.join(columns)}\n{','.join(row)}\n")
    return folder


def test_the_environment_names_the_pipeline_and_a_flag_overrules_it(monkeypatch):
    monkeypatch.delenv("HF_VQ_PIPELINE", raising=False)
    monkeypatch.delenv("HF_VQ_EXAMPLES", raising=False)
    args = parse_args([])
    assert (args.pipeline, args.examples) == ("quickstart/pipeline", None)
    monkeypatch.setenv("HF_VQ_PIPELINE", "owner/pipeline")
    monkeypatch.setenv("HF_VQ_EXAMPLES", "owner/cohort")
    args = parse_args([])
    assert (args.pipeline, args.examples) == ("owner/pipeline", "owner/cohort")
    args = parse_args(["--pipeline", "other", "--examples", "cohort"])
    assert (args.pipeline, args.examples) == ("other", "cohort")


@pytest.mark.parametrize(
    ("flag", "value"), [("--max_upload_mb", "0"), ("--max_queue", "0"), ("--port", "0"), ("--port", "65536")]
)
def test_flags_that_cannot_be_met_are_named(flag, value):
    with pytest.raises(ValueError, match=f"{flag}: found {value}, expected"):
        check_args(parse_args([flag, value]))


def test_examples_are_those_asked_for_or_the_cohort_beside_the_pipeline(tmp_path):
    names = ["frontal", "lateral"]
    assert open_examples(parse_args(["--pipeline", str(tmp_path / "pipeline")]), names) is None
    write_cohort(tmp_path / "cohort")
    for flags in (["--pipeline", str(tmp_path / "pipeline")], ["--examples", str(tmp_path / "cohort")]):
        assert open_examples(parse_args(flags), names).subjects == ["a"]
    with pytest.raises(ValueError, match="found no such folder"):
        open_examples(parse_args(["--examples", str(tmp_path / "none")]), names)
    write_cohort(tmp_path / "frontal-only", ("frontal",))
    with pytest.raises(ValueError, match=r"expected \['lateral'\] too"):
        open_examples(parse_args(["--examples", str(tmp_path / "frontal-only")]), names)


def test_the_page_calls_nobody_and_keeps_its_files_together(monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "of the test")
    workspace = Workspace()
    prepare_environment(workspace)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert Path(os.environ["GRADIO_TEMP_DIR"]).is_relative_to(workspace.path)
    workspace.close()


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install hf-vq\[app\]"):
        import_page()


def test_the_space_names_the_version_of_gradio_that_is_tested():
    _, header, _ = (ROOT / "model_cards" / "space" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    assert (fields["sdk"], fields["app_file"]) == ("gradio", "app.py")
    assert f"gradio=={fields['sdk_version']}" in pins
