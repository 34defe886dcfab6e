"""Two processes with half of each batch, and one with the batch in parts, train what one trains with the whole."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_cases import FSDP, Case, in_two_processes, train_all

import hf_vq
from hf_vq.training.checkpoints import list_checkpoints, read_info

AFFINE = {"parameterization": "affine", "init": "random", "replace_after": 3, "sync_weight": 0.5}
PLAIN = {"parameterization": "plain", "init": "kmeans", "replace_after": None, "sync_weight": 0.0}
RUNNING = {"parameterization": "affine_running", "init": "random", "replace_after": 3, "sync_weight": 0.0}
BOTH = {"code_vector_weight": 0.5}
QUICK = {
    "ema": Case({**PLAIN, "update": "ema", "replace_after": 3}),
    "alternating": Case({**AFFINE, "update": "alternating", "init": "kmeans"}),
    "transformer": Case(flags={"model": BOTH}),
    "transformer_fsdp": Case(flags={"model": BOTH}, environment=FSDP, resumes=True),
}
ALL = QUICK | {
    "gradient": Case(PLAIN),
    "affine_replaced": Case(AFFINE),
    "running_affine": Case(RUNNING),
    "residual": Case({**AFFINE, "structure": "residual", "num_codebooks": 2}),
    "grouped_ema": Case({**PLAIN, "update": "ema", "structure": "grouped", "num_codebooks": 2}),
    "affine_replaced_parts": Case(AFFINE, parts=2),
    "transformer_parts": Case(parts=2),
    "transformer_fsdp_parts": Case(parts=2, environment=FSDP),
}
PARTS = {
    "gradient": Case(PLAIN, parts=2),
    "affine_replaced": Case(AFFINE, parts=4),
    "ema": Case({**PLAIN, "update": "ema", "replace_after": 3}, parts=2),
    "alternating": Case({**AFFINE, "update": "alternating", "init": "kmeans"}, parts=2),
    "running_affine": Case(RUNNING, parts=2),
    "residual_ema": Case({**PLAIN, "update": "ema", "structure": "residual", "num_codebooks": 2}, parts=2),
    "grouped": Case({**AFFINE, "structure": "grouped", "num_codebooks": 2}, parts=2),
    "transformer": Case(parts=2),
}


SAVING = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tiny_training import make_run
from hf_vq.training.checkpoints import checkpoint_path, partial_path

folder, reasons = Path(sys.argv[2]), {}
run = make_run(folder)
assert run.accelerator.num_processes == 2
for name in sys.argv[3:]:
    if run.accelerator.is_main_process:
        (partial_path(checkpoint_path(folder, 0)) / name / "in the way").mkdir(parents=True)
    run.accelerator.wait_for_everyone()
    try:
        run.save_checkpoint()
    except OSError as error:
        reasons[name] = str(error)
run.save_checkpoint()
run.end()
Path(f"{folder}-{os.environ['RANK']}").write_text(json.dumps(reasons))
"""


def saved_in_spite_of(names, folder):
    """Why two processes could not write a checkpoint in which the place of a file was taken, by its name, of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(hf_vq.__file__).parents[1])}
    command = [sys.executable, "-c", SAVING, str(Path(__file__).parent), str(folder), *names]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:  # one may wait for the other for ever
            process.kill()
            process.wait()
    return [json.loads(Path(f"{folder}-{rank}").read_text()) for rank in "01"]


def in_one_process(cases, folder, steps):
    """Results of one process with the whole batch at once."""
    return train_all({name: Case(case.quantizer, 1, case.flags) for name, case in cases.items()}, folder, steps)


def differences(found, expected):
    """Largest absolute difference of the losses, of the codebooks and of everything else."""
    assert found.keys() == expected.keys()
    largest = {"losses": 0.0, "codes": 0.0, "others": 0.0}
    for name, theirs in expected.items():
        kind = name if name == "losses" else "codes" if name.endswith(("codebook.weight", "s.0.weight")) else "others"
        difference = float((found[name].double() - theirs.double()).abs().max())
        largest[kind] = max(largest[kind], difference)
    return largest


def check(found, expected):
    """Asserts that they are equal up to rounding, and prints by how much they are not; a resumed run is equal in every
    bit."""
    for name in expected:
        resumed = {key: found[name].pop(key) for key in list(found[name]) if key.startswith("resumed.")}
        for key, value in resumed.items():
            assert torch.equal(value, found[name][key.removeprefix("resumed.")]), key
        largest = differences(found[name], expected[name])
        print(name, " ".join(f"{kind} {value:.1e}" for kind, value in largest.items()))
        for key, value in expected[name].items():
            torch.testing.assert_close(
                found[name][key].to(value.dtype),
                value,
                atol=1e-5,
                rtol=1e-5,
                msg=lambda text, key=key: f"{key}: {text}",
            )


def check_ranks(ranks):
    """Asserts that both processes hold the same codebooks and weights."""
    for first, second in zip(ranks[0].values(), ranks[1].values(), strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items() if name != "losses")


def test_two_processes_train_what_one_does(tmp_path):
    short = {name: QUICK[name] for name in ("ema", "transformer_fsdp")}
    ranks = in_two_processes(short, tmp_path / "two", 8)
    check_ranks(ranks)
    check(ranks[0], in_one_process(short, tmp_path / "one", 8))


@pytest.mark.slow
def test_60_steps_of_two_processes_are_those_of_one(tmp_path):
    ranks = in_two_processes(ALL, tmp_path / "two", 60)
    check_ranks(ranks)
    check(ranks[0], in_one_process(ALL, tmp_path / "one", 60))


@pytest.mark.parametrize("steps", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_batch_in_parts_trains_what_the_whole_does(steps, tmp_path):
    check(train_all(PARTS, tmp_path / "parts", steps), in_one_process(PARTS, tmp_path / "one", steps))


def test_a_checkpoint_that_one_process_cannot_write_fails_in_both_and_can_be_tried_again(tmp_path):
    names = ["random_states_0.pkl", "random_states_1.pkl", "states.json", "checkpoint.json"]
    first, second = saved_in_spite_of(names, tmp_path / "run")
    assert first == second
    assert list(first) == names
    for reason in first.values():
        assert "checkpoint-0000000 could not be written (" in reason
        assert "Is a directory" in reason
    (path,) = list_checkpoints(tmp_path / "run")
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= set(read_info(path)["files"])
    assert [entry.name for entry in path.parent.glob(".*")] == []
