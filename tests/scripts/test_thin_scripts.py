"""Scripts that do what a command of `hf-vq` does: the lines in their docstrings, and one run of each."""

import ast
import importlib
import runpy
import shlex
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ["evaluate", "generate", "generate_images", "reconstruct"]


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_in_the_docstring_parse(name):
    docstring = ast.get_docstring(ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8")))
    lines = [line.strip() for line in docstring.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("python ")]
    assert commands
    for _, script, *flags in commands:
        assert script == f"scripts/{name}.py"
        importlib.import_module(f"hf_vq.commands.{name}").parse_args(flags)


@pytest.mark.parametrize("name", NAMES)
def test_the_script_is_the_command(name, monkeypatch, capsys, tmp_path):
    """A run that ends early: the chains and `test_evaluate.py` have whole ones."""
    flags = {
        "evaluate": ["--data", "none", "--generated", "none", "--output_dir", "out", "--window", "1", "0"],
        "generate": ["--pipeline", "none", "--views", "frontal=no.png", "--output", "ct.nii.gz"],
        "generate_images": ["--pipeline", "none", "--output_dir", "out", "--num_images", "0"],
        "reconstruct": ["--tokenizer", "none", "--input", "no.nii.gz", "--output", "out.nii.gz"],
    }
    words = {"evaluate": "--window", "generate": "no.png", "generate_images": "--num_images", "reconstruct": "--input"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *flags[name]])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{name}.py: error: ") and words[name] in message
    assert message.count("\n") == 1
