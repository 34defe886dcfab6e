"""A training that was stopped and resumed is the one that was not."""

import json
import math
import signal
from dataclasses import replace

import pytest
import torch
from tiny_training import Subjects, classifier, digests, make_run, tokenizer, train

from hf_vq.training.adversarial import Adversary, DiscriminatorConfig
from hf_vq.training.checkpoints import CHECKPOINT_INFO, _digest_of, read_info
from hf_vq.training.run import TrainingRun

MODELS = {
    "gradient": lambda: tokenizer(update="gradient", replace_after=1),
    "moving averages": lambda: tokenizer(
        update="ema", parameterization="plain", sync_weight=0.0, init="kmeans", replace_after=1
    ),
    "alternating": lambda: tokenizer(update="alternating", replace_after=1),
    "running moments": lambda: tokenizer(parameterization="affine_running"),
    "residual": lambda: tokenizer(structure="residual", num_codebooks=2, replace_after=1),
    "classifier with dropout": classifier,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stop", [3, 4])
def test_every_file_of_the_last_checkpoint_and_every_row_of_the_log_is_the_same(tmp_path, name, stop):
    flags = {"make_model": MODELS[name], "gradient_accumulation_steps": 2}
    train(make_run(tmp_path / "whole", **flags))
    train(make_run(tmp_path / "cut", **flags), until=stop)
    train(make_run(tmp_path / "cut", **flags, resume_from_checkpoint="latest"))
    whole, cut = (digests(tmp_path / run / "checkpoint-0000006") for run in ("whole", "cut"))
    assert cut == whole
    assert {"model.safetensors", "optimizer.bin", "states.safetensors", "random_states_0.pkl"} <= set(whole)
    assert (tmp_path / "cut" / "logs.jsonl").read_text() == (tmp_path / "whole" / "logs.jsonl").read_text()


def test_different_training_is_told_apart(tmp_path):
    for seed in (0, 1):
        train(make_run(tmp_path / str(seed), seed=seed))
    one, two = (digests(tmp_path / str(seed) / "checkpoint-0000006") for seed in (0, 1))
    assert one["model.safetensors"] != two["model.safetensors"]


def test_bfloat16_is_resumed_exactly_too(tmp_path):
    flags = {"mixed_precision": "bf16", "checkpointing_steps": 3}
    train(make_run(tmp_path / "whole", **flags))
    train(make_run(tmp_path / "cut", **flags), until=3)
    train(make_run(tmp_path / "cut", **flags, resume_from_checkpoint="checkpoint-0000003"))
    assert digests(tmp_path / "cut" / "checkpoint-0000006") == digests(tmp_path / "whole" / "checkpoint-0000006")


def test_the_data_go_on_where_they_were_with_another_batch_size(tmp_path):
    train(make_run(tmp_path, train_batch_size=3), until=2)
    run = make_run(tmp_path, train_batch_size=2, resume_from_checkpoint="latest")
    assert (
        list(run.dataloader(torch.zeros(6, 1)).loader.batch_sampler.sampler)[:6]
        == list(make_run(tmp_path / "whole").dataloader(torch.zeros(6, 1)).loader.batch_sampler.sampler)[6:12]
    )


def test_a_training_killed_before_its_first_checkpoint_starts_again_under_the_same_command(tmp_path, capsys):
    flags = {"resume_from_checkpoint": "latest"}
    train(make_run(tmp_path / "cut", **flags), until=1)  # the folder is not there yet
    train(make_run(tmp_path / "cut", **flags))
    assert capsys.readouterr().out.count("holds no checkpoint yet: starting from step 0") == 2
    train(make_run(tmp_path / "whole"))
    assert (tmp_path / "cut" / "logs.jsonl").read_text() == (tmp_path / "whole" / "logs.jsonl").read_text()


def test_a_finished_model_or_foreign_folder_is_no_training_to_start_again(tmp_path):
    train(make_run(tmp_path, checkpointing_steps=0))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="holds no complete checkpoint, but other things"):
        make_run(tmp_path, resume_from_checkpoint="latest")
    (tmp_path / "logs.jsonl").unlink()
    with pytest.raises(ValueError, match="holds no complete checkpoint, but other things"):
        make_run(tmp_path, resume_from_checkpoint="latest")


def test_a_checkpoint_of_another_model_is_passed_over_by_name_with_the_reason(tmp_path, capsys):
    train(make_run(tmp_path), until=2)
    train(make_run(tmp_path / "other", lambda: tokenizer(codebook_size=16)), until=4)
    (tmp_path / "other" / "checkpoint-0000004").rename(tmp_path / "checkpoint-0000004")
    run = make_run(tmp_path, resume_from_checkpoint="latest")
    assert run.step == 2
    warning = capsys.readouterr().err
    assert "checkpoint-0000004 is not used: it was made with other values of ['quantizer']" in warning
    with pytest.raises(ValueError, match="checkpoint-0000004 cannot be used: it was made with other values"):
        make_run(tmp_path, resume_from_checkpoint="checkpoint-0000004")
    with pytest.raises(ValueError, match="it is one of a VQTokenizer; this script trains a VQForImageClassification"):
        make_run(tmp_path, classifier, resume_from_checkpoint="latest")


def test_another_version_is_named_and_gone_on_with(tmp_path, capsys):
    train(make_run(tmp_path), until=2)
    path = tmp_path / "checkpoint-0000002" / CHECKPOINT_INFO
    info = json.loads(path.read_text())
    del info["sha256"]
    now = info["versions"]["torch"]
    info["versions"]["torch"] = "1.0.0"
    path.write_text(json.dumps({**info, "sha256": _digest_of(info)}))
    assert make_run(tmp_path, resume_from_checkpoint="latest").step == 2
    assert f"checkpoint-0000002 was written with torch 1.0.0, now {now}: going on" in capsys.readouterr().err


def test_what_a_killed_run_left_half_written_is_removed_and_a_row_cut_short_too(tmp_path):
    train(make_run(tmp_path), until=2)
    (tmp_path / ".checkpoint-0000004.partial").mkdir()
    (tmp_path / ".checkpoint-0000004.partial" / "model.safetensors").write_bytes(b"half")
    with (tmp_path / "logs.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    run = make_run(tmp_path, resume_from_checkpoint="latest")
    assert not (tmp_path / ".checkpoint-0000004.partial").exists()
    rows = [json.loads(line)["step"] for line in (tmp_path / "logs.jsonl").read_text().splitlines()]
    assert (run.step, rows) == (2, [1, 2])


@pytest.fixture
def resumed_from_elsewhere(tmp_path):
    """A run whose first state is a checkpoint, of step 2, in the folder of another one."""
    train(make_run(tmp_path / "other"), until=2)
    foreign = tmp_path / "other" / "checkpoint-0000002"
    return make_run(tmp_path / "own", checkpointing_steps=100, resume_from_checkpoint=str(foreign))


def goes_on_from_its_own(folder):
    """Asserts that the folder holds the checkpoint of step 2, and that a run can go on from it."""
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-0000002"]
    assert read_info(folder / "checkpoint-0000002")["step"] == 2
    assert make_run(folder, resume_from_checkpoint="checkpoint-0000002").step == 2


def test_a_bad_loss_right_after_a_resume_from_elsewhere_leaves_a_checkpoint_here(resumed_from_elsewhere, tmp_path):
    with pytest.raises(ValueError, match=r"at step 3, .* checkpoint-0000002 was kept: --resume_from_checkpoint"):
        train(resumed_from_elsewhere, Subjects(spoilt=slice(None)))
    goes_on_from_its_own(tmp_path / "own")


def test_a_signal_right_after_a_resume_from_elsewhere_leaves_a_checkpoint_here(
    resumed_from_elsewhere, tmp_path, capsys
):
    batches = resumed_from_elsewhere.steps(Subjects())
    next(batches)  # signals are noted from here on
    with pytest.raises(SystemExit), resumed_from_elsewhere.validation():
        signal.raise_signal(signal.SIGTERM)
    assert f"{tmp_path / 'own' / 'checkpoint-0000002'} is written" in capsys.readouterr().err
    goes_on_from_its_own(tmp_path / "own")


def test_a_bad_gradient_beside_a_discriminator_has_no_checkpoint_to_name_before_the_first(tmp_path):
    plain = make_run(tmp_path / "plain", checkpointing_steps=0)
    args = replace(plain.args, output_dir=str(tmp_path / "beside"))
    adversary = Adversary(DiscriminatorConfig(channels=4, num_layers=2), tokenizer().config, args, fill=-1.0)
    run = TrainingRun(plain.accelerator, tokenizer(), args, adversary)
    batches = run.steps(Subjects())
    run.optimize(run.model(next(batches)[0]["pixel_values"]).loss, {})
    loss = run.model(next(batches)[0]["pixel_values"]).loss
    loss.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ValueError, match=r"the gradient became .* at step 2, .* No checkpoint had been written yet"):
        run.optimize(loss, {})
    assert not list((tmp_path / "beside").glob("checkpoint-*"))
