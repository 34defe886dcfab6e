"""Short trainings that one process makes with a whole batch and two processes make with half of it each."""

import json
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils.data import Dataset

from hf_vq import AbsorbingScheduler, CodeTransformer, VQTokenizer, VQTokenizerConfig
from hf_vq.training.arguments import TrainingArguments
from hf_vq.training.codes import hide_codes
from hf_vq.training.data_augmentation import ShiftAndFlip
from hf_vq.training.losses import CodeObjective, draw_mask_rates
from hf_vq.training.run import TrainingRun, make_accelerator
from hf_vq.training.sharding import whole_tensors

PORTS = "CASE_PORTS"
NUM_SAMPLES, SIDE, BATCH, NUM_CODES = 22, 8, 8, 12
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}
FSDP |= {"FSDP_MIN_NUM_PARAMS": "1000"}


@dataclass
class Case:
    """One training: fields of the quantizer or, without any, a code transformer."""

    quantizer: dict[str, Any] | None = None
    parts: int = 1
    flags: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    resumes: bool = False


class Images(Dataset):
    """Small random images."""

    def __init__(self):
        self.pixels = torch.randn(NUM_SAMPLES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index]}


class Codes(Dataset):
    """Small random grids of codes with a label each."""

    def __init__(self):
        self.codes = torch.randint(NUM_CODES, (NUM_SAMPLES, 4, 4), generator=torch.Generator().manual_seed(2))

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        return {"codes": self.codes[index], "label": index % 3}


def make_tokenizer(quantizer):
    """A tokenizer without dropout or batch statistics."""
    sizes = {"base_channels": 8, "num_norm_groups": 4, "channel_multipliers": [1], "stem_stride": 2}
    fields = {"codebook_size": 16, "codebook_dim": 4, **quantizer}
    return VQTokenizer(VQTokenizerConfig(spatial_dims=2, **sizes, quantizer=fields))


def make_transformer():
    """A class-conditional transformer without dropout but with labels dropped."""
    sizes = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "num_codes": NUM_CODES, "code_grid": (4, 4)}
    return CodeTransformer(**sizes, context_dim=None, num_classes=3, label_dropout=0.3)


def train(case, folder, steps):
    """Losses of every step, and all weights, averages and counters at the end."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    values = {"max_train_steps": steps, "train_batch_size": BATCH // world // case.parts, "logging_steps": 1}
    values |= {"gradient_accumulation_steps": case.parts, "checkpointing_steps": 0, "lr_scheduler": "constant"}
    # Adam divides a gradient by its own size. One that is 0 but for rounding, as that of codes right after k-means and
    # of the biases of attention's keys, would make steps of full length, as random as the rounding.
    values |= {"learning_rate": 1e-3, "adam_epsilon": 1e-4}
    args = TrainingArguments(data="", output_dir=str(folder), **{**values, **case.flags})
    accelerator = make_accelerator(args)
    model = make_transformer() if case.quantizer is None else make_tokenizer(case.quantizer)
    run = TrainingRun(accelerator, model, args)
    run.model.train()
    learn = tokenizer_step(run) if case.quantizer is not None else transformer_step(run)
    for batches in run.steps(Codes() if case.quantizer is None else Images()):
        learn(batches)
    with run.averaged_weights() as averaged:
        averages = {f"averaged.{name}": value.clone() for name, value in averaged.state_dict().items()}
    state = run.unwrapped_model.state_dict()
    weights = dict(zip(state, (tensor.clone() for tensor in whole_tensors(list(state.values()))), strict=True))
    run.end()
    rows = [json.loads(line) for line in (folder / "logs.jsonl").read_text().splitlines()]
    return {"losses": torch.tensor([row["loss"] for row in rows], dtype=torch.float64), **weights, **averages}


def tokenizer_step(run):
    """A function that trains on the batches of a step."""
    augment = ShiftAndFlip(1, (0,))

    def learn(batches):
        parts = [augment(batch["pixel_values"], run.generators(part)) for part, batch in enumerate(batches)]
        run.begin_step(parts)
        for images in parts:
            with run.accumulate():
                output = run.model(images)
                run.optimize(output.loss, {"commitment_loss": output.commitment_loss})

    return learn


def transformer_step(run):
    """A function that trains on the batches of a step."""
    model = run.unwrapped_model
    scheduler = AbsorbingScheduler(mask_token_id=model.mask_token_id)
    codebook = torch.randn(NUM_CODES, 3, generator=torch.Generator().manual_seed(3))
    objective = CodeObjective("mlm", codebook, code_vector_weight=run.args.model.get("code_vector_weight", 0.0))

    def learn(batches):
        for part, batch in enumerate(batches):
            generators, true = run.generators(part), batch["codes"].flatten(1)
            rates = draw_mask_rates(len(true), "cosine", generators)
            noisy, masked = hide_codes(model, scheduler, true, rates, generators)
            with run.accumulate():
                labels = model.drop_labels(batch["label"], generators)
                logits = run.model(noisy, class_labels=labels, positions=masked).sample
                run.optimize(objective(logits, true, masked, rates), {})

    return learn


def train_and_resume(case, folder, steps):
    """What `train` returns, of a run and of one that goes on from the checkpoint in its middle."""
    flags = {**case.flags, "checkpointing_steps": steps // 2}
    whole = train(replace(case, flags=flags), folder, steps)
    _forget_accelerate()
    flags["resume_from_checkpoint"] = f"checkpoint-{steps // 2:07d}"
    resumed = train(replace(case, flags=flags), folder, steps)
    return whole | {f"resumed.{name}": value for name, value in resumed.items()}


def _forget_accelerate():
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    # A new group at the address of the last one might meet what is left of that.
    if os.environ.get(PORTS):
        os.environ["MASTER_PORT"], _, os.environ[PORTS] = os.environ[PORTS].partition(",")


def train_all(cases, folder, steps):
    """Results of cases by name, each with an Accelerate of its own."""
    results = {}
    for name, case in cases.items():
        os.environ.update(case.environment)
        results[name] = (train_and_resume if case.resumes else train)(case, folder / name, steps)
        for variable in case.environment:
            del os.environ[variable]
        _forget_accelerate()
    return results


def worker(rank, ports, cases, folder, steps):
    """What one of two processes does; the results lie in a file for each."""
    address = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": ports[0],
        PORTS: ",".join(ports[1:]),
        "ACCELERATE_USE_CPU": "true",
    }
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update(address | {name: str(value) for name, value in ranks.items()})
    torch.set_num_threads(1)
    torch.save(train_all(cases, folder, steps), folder / f"rank-{rank}.pt")


def in_two_processes(cases, folder, steps):
    """Results of cases of the main process and of the other one."""
    folder.mkdir()
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(2 * len(cases) + 1)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [str(probe.getsockname()[1]) for probe in probes]
    mp.spawn(worker, args=(ports, cases, folder, steps), nprocs=2)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
