"""Checkpoints as folders: a damaged one is known before anything of it is loaded, and no finished one is lost."""

import json
import random
import shutil

import pytest
from tiny_training import make_run, train

from hf_vq.training.checkpoints import (
    CHECKPOINT_INFO,
    checkpoint_path,
    clean_leftovers,
    find_checkpoint,
    finish_checkpoint,
    list_checkpoints,
    partial_path,
    read_info,
    remove_older,
)

FILES = {"model.safetensors": b"weights" * 50, "shards/one.bin": b"\0" * 300, "states.json": b"[1, 2]", "empty": b""}


def write(folder, step):
    path = checkpoint_path(folder, step)
    for name, content in FILES.items():
        file = partial_path(path) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    finish_checkpoint(partial_path(path), path, {"step": step, "model_class": "Model"})
    return path


def steps(folder):
    return [read_info(path)["step"] for path in list_checkpoints(folder)]


@pytest.mark.parametrize("name", [name for name in (*FILES, CHECKPOINT_INFO) if name != "empty"])
def test_truncation_and_any_other_byte_are_noticed_in_every_file(tmp_path, name):
    path = write(tmp_path, 2)
    whole, draw = (path / name).read_bytes(), random.Random(0)
    damaged = [whole[: draw.randrange(len(whole))] for _ in range(20)]
    for _ in range(20):
        place = draw.randrange(len(whole))
        damaged.append(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
    for content in (b"", whole + b" x", *damaged):
        (path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_info(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match=name):
        read_info(path)
    (path / name).write_bytes(whole)
    assert read_info(path)["step"] == 2


def test_latest_passes_over_damaged_ones_and_a_named_one_must_be_whole(tmp_path, capsys):
    for step in (2, 4, 10):
        write(tmp_path, step)
    assert find_checkpoint(tmp_path, "latest") == checkpoint_path(tmp_path, 10)
    (checkpoint_path(tmp_path, 10) / "model.safetensors").write_bytes(b"weights")
    (checkpoint_path(tmp_path, 4) / "shards" / "one.bin").unlink()
    assert find_checkpoint(tmp_path, "latest") == checkpoint_path(tmp_path, 2)
    lines = capsys.readouterr().err.splitlines()
    assert "checkpoint-0000010 is not used: model.safetensors has 7 bytes; 350 were written" in lines[0]
    assert "checkpoint-0000004 is not used: shards/one.bin is missing" in lines[1]
    for which in ("checkpoint-0000010", str(checkpoint_path(tmp_path, 10))):
        with pytest.raises(ValueError, match=r"checkpoint-0000010 cannot be used: model\.safetensors has 7 bytes"):
            find_checkpoint(tmp_path, which)
    shutil.rmtree(checkpoint_path(tmp_path, 2))
    with pytest.raises(ValueError, match=r"none of the 2 checkpoint\(s\) in .* can be used"):
        find_checkpoint(tmp_path, "latest")
    with pytest.raises(ValueError, match="there is no such folder"):
        find_checkpoint(tmp_path, "checkpoint-0000002")


def test_the_last_few_are_kept_and_later_ones_of_another_attempt_left_alone(tmp_path):
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    remove_older(checkpoint_path(tmp_path, 6), limit=2)
    assert steps(tmp_path) == [4, 6, 8]
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoint-best"}
    remove_older(checkpoint_path(tmp_path, 8), limit=1)
    assert steps(tmp_path) == [8]
    assert not list(tmp_path.glob(".*"))


def test_an_old_one_that_cannot_be_removed_is_named_and_the_others_go(tmp_path, capsys):
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
    (partial_path(checkpoint_path(tmp_path, 2)) / "in the way").mkdir(parents=True)
    checkpoint_path(tmp_path, 4).rename(tmp_path / "elsewhere")
    checkpoint_path(tmp_path, 4).symlink_to(tmp_path / "elsewhere")
    remove_older(checkpoint_path(tmp_path, 8), limit=1)
    assert steps(tmp_path) == [2, 8]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {tmp_path / 'checkpoint-0000002'} could not be removed (")
    assert "not empty" in first
    assert second.startswith(f"warning: {tmp_path / '.checkpoint-0000004.partial'} could not be removed (")
    assert "symbolic link" in second


def test_a_training_whose_old_checkpoint_cannot_be_removed_goes_on(tmp_path, capsys):
    def get_in_the_way(run):
        (partial_path(checkpoint_path(tmp_path, 2)) / "in the way").mkdir(parents=True, exist_ok=True)

    train(make_run(tmp_path, checkpoints_total_limit=1), after_step=get_in_the_way)
    assert steps(tmp_path) == [2, 6]
    error = capsys.readouterr().err
    assert error.count(f"warning: {tmp_path / 'checkpoint-0000002'} could not be removed (") == 2
    assert "could not be written" not in error


def test_a_checkpoint_of_the_same_step_is_replaced_whole(tmp_path):
    path = write(tmp_path, 2)
    (path / "model.safetensors").write_bytes(b"damaged")
    write(tmp_path, 2)
    assert steps(tmp_path) == [2]
    assert not list(tmp_path.glob(".*"))


def test_leftovers_go_and_a_checkpoint_whose_replacement_never_came_returns(tmp_path):
    write(tmp_path, 2).rename(tmp_path / ".checkpoint-0000002.old")
    shutil.copytree(write(tmp_path, 4), tmp_path / ".checkpoint-0000004.old")
    partial_path(checkpoint_path(tmp_path, 6)).mkdir()
    assert steps(tmp_path) == [4]
    clean_leftovers(tmp_path)
    assert steps(tmp_path) == [2, 4]
    assert not list(tmp_path.glob(".*"))


def test_an_empty_folder_and_one_with_a_log_only_have_nothing_to_go_on_from(tmp_path):
    assert find_checkpoint(tmp_path / "none", "latest") is None
    assert find_checkpoint(tmp_path, "latest") is None
    (tmp_path / "logs.jsonl").write_text(json.dumps({"step": 1}))
    (tmp_path / "validation").mkdir()
    assert find_checkpoint(tmp_path, "latest") is None
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="other things than the log"):
        find_checkpoint(tmp_path, "latest")
