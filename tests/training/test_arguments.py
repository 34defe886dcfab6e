"""Command lines: YAML file, overrides, errors of one line."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from hf_vq import CTVolumeProcessor, VQTokenizerConfig
from hf_vq.training.arguments import TrainingArguments, check_fields, parse_arguments, run


@dataclass
class Arguments(TrainingArguments):
    """For the tests."""

    kind: str = field(default="a", metadata={"help": "Kind."})
    processor: dict[str, Any] = field(default_factory=dict, metadata={"help": "Processor."})


REQUIRED = ["--data", "d", "--output_dir", "o"]


def parse(*argv):
    return parse_arguments(Arguments, "test", list(argv))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "data: from-yaml\nlearning_rate: 2.0e-4\nmax_train_steps: 7\noverwrite: true\n"
        "model:\n  base_channels: 8\n  quantizer: {codebook_size: 4, codebook_dim: 2}\n"
    )
    return str(path)


def test_defaults_yaml_and_command_line_in_rising_order(config):
    assert parse(*REQUIRED).learning_rate == 1e-3
    from_yaml = parse("--config", config, "--output_dir", "o")
    assert (from_yaml.data, from_yaml.learning_rate, from_yaml.max_train_steps, from_yaml.overwrite) == (
        "from-yaml",
        2e-4,
        7,
        True,
    )
    overridden = parse("--config", config, *REQUIRED, "--learning_rate", "0.5", "--overwrite", "false")
    assert (overridden.data, overridden.learning_rate, overridden.overwrite) == ("d", 0.5, False)


def test_dotted_overrides_merge_into_the_yaml_tree(config):
    args = parse(
        *("--config", config, "--output_dir", "o", "--model.quantizer.codebook_size", "16"),
        *("--model.channel_multipliers=[1, 2]", "--processor.size", "{height: 4, width: 5}"),
    )
    assert args.model == {
        "base_channels": 8,
        "quantizer": {"codebook_size": 16, "codebook_dim": 2},
        "channel_multipliers": [1, 2],
    }
    assert parse(*REQUIRED, "--model.quantizer.sync_weight", "1e-3").model == {"quantizer": {"sync_weight": 1e-3}}
    assert args.processor == {"size": {"height": 4, "width": 5}}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--output_dir", "o"], "--data"),
        ([*REQUIRED, "--learning_rte", "1"], "--learning_rte"),
        ([*REQUIRED, "--modle.base_channels", "8"], "--modle.base_channels"),
        ([*REQUIRED, "--model.quantizer", "3", "--model.quantizer.codebook_size", "4"], "quantizer"),
        ([*REQUIRED, "--max_train_steps", "many"], "many"),
        ([*REQUIRED, "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_flags_are_named(argv, words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv)
    assert exit_info.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [("learning_rte: 1", "learning_rte"), ("- 1", "mapping"), ("a: [", "YAML"), ("max_train_steps: few", "few")],
)
def test_bad_yaml_is_named(text, words, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        parse(*REQUIRED, "--config", str(path))
    assert words in capsys.readouterr().err


def test_unknown_fields_of_a_component_are_named():
    check_fields({"size": [1], "spacing": None}, CTVolumeProcessor, "--processor")
    check_fields({"quantizer": {}, "base_channels": 3}, VQTokenizerConfig, "--model")
    with pytest.raises(ValueError, match=r"--processor.hu_windw: unknown field of CTVolumeProcessor.*hu_window"):
        check_fields({"hu_windw": [0, 1]}, CTVolumeProcessor, "--processor")
    with pytest.raises(ValueError, match=r"--model.base_chanels"):
        check_fields({"base_chanels": 3}, VQTokenizerConfig, "--model")


def test_run_turns_bad_input_into_one_line(capsys):
    def main():
        raise ValueError("size=3\n  is odd")

    with pytest.raises(SystemExit) as exit_info:
        run(main)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.strip().endswith("error: size=3 is odd")
