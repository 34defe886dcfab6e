"""What a training leaves for a model card."""

import json
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.training.arguments import TrainingArguments
from hf_vq.training.record import TrainingRecord, package_versions, public_arguments, read_record, write_record
from hf_vq.training.run import TrainingRun, make_accelerator

CONFIG = VQTokenizerConfig(
    spatial_dims=2, base_channels=8, num_norm_groups=4, num_res_blocks=1, quantizer={"codebook_size": 8}
)


def new_record(**flags) -> TrainingRecord:
    return TrainingRecord(Accelerator(), TrainingArguments(data="data", output_dir="out", **flags))


def test_seconds_of_a_resumed_training_are_those_of_its_parts(monkeypatch):
    clock = iter([100.0, 107.0, 109.0, 500.0, 503.0, 505.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    first = new_record()
    state = json.loads(json.dumps(first.state()))  # as a checkpoint keeps it, after 7 seconds
    assert first.seconds == 9.0  # two more, which an interruption loses
    second = new_record()
    second.restore(state)
    assert second.seconds == 10.0
    assert second.state() == {"seconds": 12.0, "parts": 2, "hardware": state["hardware"]}


def test_a_checkpoint_without_a_record_leaves_the_time_unknown():
    record = new_record()
    record.restore(None)
    assert record.seconds is None
    assert record.state()["seconds"] is None and record.state()["parts"] == 2
    third = new_record()
    third.restore(record.state())
    assert third.seconds is None and third.state()["parts"] == 3


def test_hardware_of_all_parts_is_named_once():
    record = new_record()
    own = record.state()["hardware"]
    assert len(own) == 1 and "thread" in own[0]
    record.restore({"seconds": 1.0, "parts": 1, "hardware": ["another device", *own]})
    assert record.state()["hardware"] == ["another device", *own]


def test_the_last_validation_is_kept_and_other_figures_are_not():
    record = new_record()
    record.note_figures(10, {"loss": 1.0})
    assert record.validation is None
    record.note_figures(10, {"validation_psnr": 20.0})
    record.note_figures(20, {"validation_psnr": 21.0, "validation_perplexity": 5.0})
    record.note_figures(20, {"train_perplexity": 6.0})
    assert record.validation == {"step": 20, "psnr": 21.0, "perplexity": 5.0}


def test_of_folders_only_the_name_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/codes").mkdir(parents=True)
    args = TrainingArguments(data=str(tmp_path / "cohort"), output_dir=str(tmp_path / "out"), seed=3)
    args.lr_scheduler, args.report_to = "constant", "wandb"
    told = public_arguments(args)
    assert told["data"] == "cohort" and told["seed"] == 3
    assert {"output_dir", "report_to", "overwrite", "resume_from_checkpoint"} & set(told) == set()
    assert str(tmp_path) not in json.dumps(told)
    for data, name in (("runs/codes", "codes"), ("./runs/codes", "codes"), ("someone/cohort", "someone/cohort")):
        assert public_arguments(TrainingArguments(data=data, output_dir="out"))["data"] == name


def test_a_run_writes_what_it_was(tmp_path):
    data = tmp_path / "cohort"
    data.mkdir()
    flags = {"data_source": "a scanner", "data_license": "cc-by-3.0", "max_train_steps": 5}
    args = TrainingArguments(data=str(data), output_dir=str(tmp_path / "out"), **flags)
    training = TrainingRun(make_accelerator(args), VQTokenizer(CONFIG), args)
    training.dataloader(torch.zeros(9, 1))
    training.save_record(tmp_path, tokenizers={"tokenizer": None})
    record = read_record(tmp_path)
    assert record["data"] == {"name": "cohort", "kind": "folder", "source": "a scanner", "license": "cc-by-3.0"}
    assert (record["model"], record["steps"], record["num_samples"]) == ("VQTokenizer", 0, 9)
    assert (record["num_processes"], record["precision"], record["parts"]) == (1, "no", 1)
    assert record["seconds"] > 0 and record["validation"] is None and record["tokenizers"] == {"tokenizer": None}
    assert record["versions"] == package_versions() and record["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in (tmp_path / "training.json").read_text()


def test_a_model_without_a_record_has_none_and_a_damaged_one_is_an_error(tmp_path):
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "none") is None
    assert read_record("nobody/nothing") is None  # no network here, as where the Hub has no such file
    write_record(tmp_path, {"steps": 1})
    assert read_record(str(tmp_path)) == {"steps": 1}
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(ValueError, match=r"training.json: found no JSON .*, expected the record of a training"):
        read_record(tmp_path)
