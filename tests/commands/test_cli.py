"""`hf-vq` itself: what it lists, how it hands over to the commands, and how it fails."""

import ast
import configparser
import importlib
import json
import shlex
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import hf_vq
from hf_vq.commands import cli
from hf_vq.commands.cli import COMMANDS, EXAMPLES, main

ROOT = Path(__file__).parents[2]


def examples(text: str) -> list[list[str]]:
    """The words of each `hf-vq` command line in a help text."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip().startswith("hf-vq ") and "[" not in line]


def run_cli(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that ends with exit status 2 says on stderr."""
    with pytest.raises(SystemExit) as error:
        run_cli(*arguments)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_the_entry_point_is_declared_and_found():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    (line,) = config["options.entry_points"]["console_scripts"].strip().splitlines()
    name, _, value = (part.strip() for part in line.partition("="))
    assert name == "hf-vq"
    assert EntryPoint(name, value, "console_scripts").load() is main


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as error:
        run_cli("--help")
    assert not error.value.code
    text = capsys.readouterr().out
    assert text.startswith("usage: hf-vq ")
    for name, (purpose, _) in COMMANDS.items():
        assert any(line.split() == [name, *purpose.split()] for line in text.splitlines())


def test_version(capsys):
    with pytest.raises(SystemExit) as error:
        run_cli("--version")
    assert not error.value.code
    assert capsys.readouterr().out == f"hf-vq {hf_vq.__version__}\n"


def test_without_a_command_the_help_says_what_there_is(capsys):
    assert all(f"  {name}" in fails(capsys) for name in COMMANDS)


def test_an_unknown_command_lists_those_there_are(capsys):
    error = fails(capsys, "generat", "--help")
    assert "generat" in error
    assert all(name in error for name in COMMANDS)


def test_examples_of_the_help_parse():
    found = examples(EXAMPLES)
    assert len(found) >= 4
    for _, command, *rest in found:
        importlib.import_module(COMMANDS[command][1]).parse_args(rest)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse(name, capsys):
    module = importlib.import_module(COMMANDS[name][1])
    found = examples(module.__doc__)
    assert found
    for program, command, *rest in found:
        assert (program, command) == ("hf-vq", name)
        module.parse_args(rest)
    with pytest.raises(SystemExit) as error:
        run_cli(name, "--help")
    assert not error.value.code
    text = capsys.readouterr().out
    assert text.startswith(f"usage: hf-vq {name} ")
    assert module.__doc__.strip() in text


def test_bad_input_ends_with_one_line_that_names_the_command(capsys, tmp_path):
    before = list(sys.argv)
    for arguments, words in (
        (["info", tmp_path / "nowhere"], "found no such folder"),
        (["reconstruct", "--tokenizer", tmp_path, "--input", tmp_path / "a.png", "--output", "b.png"], "--input"),
        (["generate", "--pipeline", tmp_path], "found none of the flags"),
        (["generate-images", "--pipeline", tmp_path, "--output_dir", tmp_path / "out"], "model_index.json"),
        (["evaluate", "--data", tmp_path / "no", "--generated", tmp_path, "--output_dir", tmp_path / "out"], "no"),
    ):
        error = fails(capsys, *arguments)
        assert error.startswith(f"hf-vq {arguments[0]}: error: ")
        assert words in error
        assert error.count("\n") == 1
    assert sys.argv == before


def test_a_wrong_flag_is_refused_by_its_command(capsys):
    assert "usage: hf-vq info" in fails(capsys, "info", "folder", "--colour")


def test_nothing_of_a_command_is_imported_before_it_is_called():
    tree = ast.parse(Path(cli.__file__).read_text(encoding="utf-8"))
    whole = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    parts = {
        ("." * node.level + (node.module or ""), alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {(module, name) for module, name in parts if module.startswith(".")} == {("..", "__version__")}
    outside = {*whole, *(module for module, _ in parts if not module.startswith("."))}
    assert {module.partition(".")[0] for module in outside} <= sys.stdlib_module_names


def test_a_pipeline_of_another_kind_is_sent_to_its_command(capsys, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "CodeGenerationPipeline"}))
    image = tmp_path / "a.png"
    image.touch()
    flags = ["--pipeline", tmp_path, "--views", f"frontal={image}", "--output", tmp_path / "ct.nii"]
    assert "use `hf-vq generate-images` for it" in fails(capsys, "generate", *flags)


def test_generate_and_evaluate_one_after_the_other(pipeline, write_split, tmp_path, capsys):
    data = tmp_path / "data"
    for split, subjects in (("train", "abcd"), ("validation", "ef"), ("test", "ghi")):
        write_split(data, subjects, split=split)
    flags = ["--pipeline", pipeline, "--data", data, "--num_inference_steps", 2]
    run_cli("generate", *flags, "--output_dir", tmp_path / "generated")
    score = ["--data", data, "--generated", tmp_path / "generated", "--num_sheet_subjects", 1, "--num_workers", 1]
    run_cli("evaluate", *score, "--output_dir", tmp_path / "evaluation")
    report = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    text = capsys.readouterr().out
    assert (tmp_path / "evaluation" / "metrics.md").read_text() in text
    for scores in report["summary"].values():
        if "psnr_3d" in scores:
            assert f"{scores['psnr_3d']['mean']:.2f}" in text
