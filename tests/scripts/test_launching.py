"""The training scripts as torchrun starts them: two processes on a CPU train what one trains, FSDP2 included."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPTS = Path(__file__).parents[2] / "scripts"
# What `accelerate launch` sets from scripts/configs/accelerate/fsdp2.yaml; on a CPU it starts one process only.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "CodeTransformerBlock",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """Commands on tiny data by name, all but the transformer's with their result."""
    root = tmp_path_factory.mktemp("launching")
    module = runpy.run_path(str(SCRIPTS / "run_fault_tests.py"))
    found = {target.name: target for target in module["make_targets"](root)}
    for name in ("tokenizer training", "view tokenizer", "code extraction"):
        target = found[name]
        run([sys.executable], target, root / target.folder, 4)
    return root, found


def run(launcher, target, output, batch_size, environment=(), resume=()):
    """Runs a command on one thread; what it printed."""
    flags = [*target.flags, "--output_dir", str(output), *resume]
    if target.is_training:
        flags += ["--train_batch_size", str(batch_size), "--adam_epsilon", "1e-4"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)}
    command = [*launcher, str(SCRIPTS / target.script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]


def assert_same_weights(one, two):
    expected, found = load_file(one), load_file(two)
    assert set(found) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5)


def test_tokenizer_of_two_processes_is_that_of_one(targets):
    root, found = targets
    run(two_processes(), found["tokenizer training"], root / "two", 2)
    assert json.loads((root / "two" / "training.json").read_text())["num_processes"] == 2
    assert_same_weights(root / "volume" / "model.safetensors", root / "two" / "model.safetensors")


def test_transformer_spread_by_fsdp_is_that_of_one_process_and_goes_on(targets):
    root, found = targets
    target, weights = found["transformer training"], Path("transformer") / "diffusion_pytorch_model.safetensors"
    run([sys.executable], target, root / "pipeline", 4)
    run(two_processes(), target, root / "spread", 2, FSDP2)
    assert_same_weights(root / "pipeline" / weights, root / "spread" / weights)
    finished = (root / "spread" / weights).read_bytes()
    first = min(path.name for path in (root / "spread").glob("checkpoint-*"))
    said = run(two_processes(), target, root / "spread", 2, FSDP2, ["--resume_from_checkpoint", first])
    assert f"resumed from {first}" in said
    assert (root / "spread" / weights).read_bytes() == finished
