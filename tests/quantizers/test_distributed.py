"""Two processes with unequal batches hold the codebook that one process with the joined batch holds."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_vq import VectorQuantizer
from hf_vq.quantizers.distributed import gather_global_rows, row_offset
from hf_vq.training.alternating import AlternatingOptimizer

STEPS, SPLIT, ROWS, DIM = 6, 13, 40, 4
VARIANTS = {
    "plain": {"parameterization": "plain", "init": "random"},
    "plain_kmeans_sync": {"parameterization": "plain", "sync_weight": 1.0},
    "affine": {"parameterization": "affine"},
    "affine_groups": {"parameterization": "affine", "affine_groups": 3, "init": "random"},
    "affine_running": {"parameterization": "affine_running"},
    "linear": {"parameterization": "linear", "replace_after": None},
    "ema": {"parameterization": "plain", "update": "ema", "ema_decay": 0.7},
    "ema_random": {"parameterization": "plain", "update": "ema", "init": "random"},
    "alternating": {"parameterization": "affine", "update": "alternating", "sync_weight": 0.5},
    "rotation": {"parameterization": "affine", "estimator": "rotation", "sync_weight": 1.0},
    "cosine": {"parameterization": "affine", "distance": "cosine"},
    "grouped": {"parameterization": "affine_running", "structure": "grouped", "num_codebooks": 2},
    "residual": {"parameterization": "affine", "structure": "residual", "num_codebooks": 2},
    "residual_ema": {"parameterization": "plain", "update": "ema", "structure": "residual", "num_codebooks": 2},
}


class Encoder(nn.Module):
    """A linear encoder and a quantizer, so that gradients of every estimator reach trained weights."""

    def __init__(self, variant):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(DIM, DIM)
        base = {
            "codebook_size": 12,
            "codebook_dim": DIM,
            "replace_after": 1,
            "sync_weight": 0.0,
            "codebook_lr_scale": 1.5,
        }
        fields = {**base, **VARIANTS[variant]}
        self.quantizer = VectorQuantizer(**fields)

    def forward(self, rows, total):
        output = self.quantizer(self.encoder(rows))
        task = output.quantized.square().sum() / (total * DIM)
        return task * (dist.get_world_size() if dist.is_initialized() else 1) + output.loss


def train(variant, rows):
    model = Encoder(variant).double().train()
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2)
    inner = AlternatingOptimizer(model, 0.05, inner_steps=2) if variant == "alternating" else None
    for step in range(STEPS):
        batch = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(step), dtype=torch.float64) + step
        if inner is not None:
            inner.step(model.encoder(batch[rows]))
        optimizer.zero_grad()
        wrapped(batch[rows], ROWS).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def worker(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rows = slice(0, SPLIT) if rank == 0 else slice(SPLIT, ROWS)
    results[rank] = {**{variant: train(variant, rows) for variant in VARIANTS}, "refusal": refusal(rank)}
    dist.destroy_process_group()


def refusal(rank):
    """What a rank says of a first batch in which one row of rank 1 is not finite."""
    rows = torch.randn(10, DIM)
    rows[2] = torch.nan if rank == 1 else 0
    with pytest.raises(ValueError) as error:
        VectorQuantizer(codebook_size=4, codebook_dim=DIM).train()(rows)
    return str(error.value)


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


@pytest.fixture(scope="module")
def two_ranks():
    return dict(spawn(worker))


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_equal_one_process_on_the_joined_batch(variant, two_ranks):
    single = train(variant, slice(None))
    first, second = (two_ranks[rank][variant] for rank in (0, 1))
    for name, value in single.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_all_ranks_refuse_a_first_batch_that_is_not_finite_on_one(two_ranks):
    messages = [two_ranks[rank]["refusal"] for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert f"found {DIM} NaN values and 0 infinite" in messages[0]


def test_global_rows_are_gathered_in_rank_order():
    results = spawn(gather_worker)
    assert results[0] == (0, 10, [9.0, 0.0, 3.0, 2.0, 3.0])
    assert results[1] == (3, 10, [9.0, 0.0, 3.0, 2.0, 3.0])
