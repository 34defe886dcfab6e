"""Two processes with unequal batches hold the codebook that one process with the joined batch holds."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from hf_vq import VectorQuantizer
from hf_vq.quantizers.distributed import gather_global_rows, row_offset

STEPS, SPLIT, ROWS = 6, 13, 40
VARIANTS = {
    "plain": {"parameterization": "plain", "init": "random"},
    "affine": {"parameterization": "affine", "init": "kmeans"},
}


def build(variant):
    torch.manual_seed(0)
    return VectorQuantizer(
        codebook_size=12, codebook_dim=4, replace_after=1, sync_weight=0.0, **VARIANTS[variant]
    ).train()


def train(module, quantizer, rows):
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.2)
    for step in range(STEPS):
        batch = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(step)) + step
        optimizer.zero_grad()
        module(batch[rows]).loss.backward()
        optimizer.step()
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


def worker(rank, port, variant, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    quantizer = build(variant)
    rows = slice(0, SPLIT) if rank == 0 else slice(SPLIT, ROWS)
    results[rank] = train(DistributedDataParallel(quantizer), quantizer, rows)
    dist.destroy_process_group()


def gather_worker(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rows = torch.arange(10.0)[:, None][slice(0, 3) if rank == 0 else slice(3, 10)]
    offset, total = row_offset(len(rows), rows.device)
    results[rank] = (offset, total, gather_global_rows(rows, torch.tensor([9, 0, 3, 2, 3]), offset).flatten().tolist())
    dist.destroy_process_group()


def spawn(function, *arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(function, args=(port, *arguments, results), nprocs=2)
    return results


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_equal_one_process_on_the_joined_batch(variant):
    results = spawn(worker, variant)
    quantizer = build(variant)
    single = train(quantizer, quantizer, slice(None))
    for name, value in single.items():
        assert torch.equal(results[0][name], results[1][name]), name
        torch.testing.assert_close(results[0][name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_global_rows_are_gathered_in_rank_order():
    results = spawn(gather_worker)
    assert results[0] == (0, 10, [9.0, 0.0, 3.0, 2.0, 3.0])
    assert results[1] == (3, 10, [9.0, 0.0, 3.0, 2.0, 3.0])
