"""Compares quantizers on the reconstruction of small images: same network, same data order, same budget, paired seeds.

    python scripts/ablate_quantizers.py --data /usr/share/datasets/fashion-mnist --workers 2 --output ablation.md

Four stages, in this order by default: `search` chooses the loss weights of each arm on validation images, `main` trains
every arm with several seeds and scores it on test images, `stress` does so where encoder outputs run away from the
codes, `tables` writes `--output` and two plots beside it. Every finished training is one row of `--results`; rows that
are there are not computed again, so an interrupted call is simply repeated.

- Network: `VQTokenizer` on 28x28 pixels with 7x7 codes of 32 channels; L2 loss and the quantizer's, Adam, linear
  warm-up, cosine decay. FSQ has as many channels as levels, so the convolutions beside it are narrower. Its K is 240
  for 256 and 1000 for 1024.
- Pairing: one seed gives all arms the same initial weights (those of the same shape) and the same batches.
- Search: four pairs of weights with each search seed, which the other stages do not use. Arms whose codes no loss moves
  (EMA, alternating) have the commitment weight alone, so three points; FSQ and the ceiling have none and no search.
- Stress: the encoder's learning rate is `STRESS_ENCODER_FACTOR` times that of the rest, so its outputs drift, and the
  codes begin in the wrong place: after their initialisation, k-means or random, all are moved by one standard deviation
  of the outputs in each channel, with signs drawn from the seed. The weights are those of the main setting.
- The test images are seen by the stages `main` and `stress` only, after the last step.
"""

import argparse
import functools
import json
import math
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

import hf_vq
from hf_vq import CodebookUsage, VectorQuantizerConfig, VQTokenizer, VQTokenizerConfig
from hf_vq.data.images import ImageDataset
from hf_vq.evaluation.ablation import (
    ANY_SIZE,
    AblationRun,
    Weights,
    append_run,
    current_runs,
    read_runs,
    select_weights,
)
from hf_vq.evaluation.ablation_arms import ARMS, CEILING, DEFAULT_ARM, FSQ, PLAIN, VECTOR_ARMS, arm_fields, search_grid
from hf_vq.evaluation.ablation_report import ablation_markdown, plot_errors, plot_stress
from hf_vq.files import atomic_file
from hf_vq.quantizers.codebook import PlacementWatch
from hf_vq.quantizers.vector_quantizer import VectorQuantizerOutput
from hf_vq.training.alternating import AlternatingOptimizer, alternating_quantizers
from hf_vq.training.arguments import run
from hf_vq.training.moments import forget_moments

STAGES = ("search", "main", "stress", "tables")
WARMUP_STEPS = 20
EVALUATION_BATCH = 250
NETWORK = {"spatial_dims": 2, "base_channels": 32, "channel_multipliers": [1], "num_res_blocks": 1, "stem_stride": 4}
CODEBOOK_DIM = 32
STRESS_ENCODER_FACTOR = 10.0
STRESS_SIZE = 1024

CODE_FIGURES = ("perplexity", "active_fraction", "quantization_error", "relative_quantization_error")


@dataclass(frozen=True)
class Budget:
    """What all runs of a results file share."""

    data: str
    steps: int
    batch_size: int
    learning_rate: float
    validation_images: int
    test_images: int


class Job(NamedTuple):
    """One training."""

    stage: str
    arm: str
    codebook_size: int
    seed: int
    weights: Weights

    def settings(self, budget: Budget) -> str:
        """JSON of what the figures depend on beside the job itself and the number of steps."""
        shared = {**asdict(budget), "data": Path(budget.data).name}
        del shared["steps"]
        stress = {"encoder_factor": STRESS_ENCODER_FACTOR, "moved_codes": True} if self.stage == "stress" else {}
        return json.dumps({**shared, **stress, "quantizer": arm_fields(self.arm, self.codebook_size)})


class NoQuantizer(nn.Module):
    """Hands latents on as they are: the ceiling."""

    def forward(self, features: torch.Tensor) -> VectorQuantizerOutput:
        """`(B, C, *spatial)` -> the same, with zeros for the rest."""
        zero = features.new_zeros(())
        codes = torch.zeros_like(features[:, 0], dtype=torch.int64)
        return VectorQuantizerOutput(features, codes, zero, zero, zero, zero, zero)


@functools.lru_cache(maxsize=1)
def load_images(data: str) -> dict[str, torch.Tensor]:
    """All pixels of each split, `(N, channels, H, W)` uint8."""
    pixels = {split: ImageDataset(data, split).pixels() for split in ("train", "validation", "test")}
    return {split: p.unsqueeze(1) if p.ndim == 3 else p.movedim(-1, 1) for split, p in pixels.items()}


def to_range(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def build_model(job: Job, in_channels: int) -> VQTokenizer:
    """The network of a job; weights whose shape does not depend on the arm depend on the seed only."""

    def build(quantizer: dict[str, Any]) -> VQTokenizer:
        torch.manual_seed(job.seed)
        shared = {**NETWORK, "in_channels": in_channels, "reconstruction_loss": "l2"}
        return VQTokenizer(VQTokenizerConfig(**shared, quantizer=quantizer))

    reference = build({"codebook_size": 2, "codebook_dim": CODEBOOK_DIM})
    fields = arm_fields(job.arm, job.codebook_size)
    if job.arm != FSQ:
        named = zip(("commitment_weight", "codebook_weight"), job.weights, strict=True)
        weights = {name: weight for name, weight in named if weight is not None}
        size = 2 if job.arm == CEILING else job.codebook_size
        fields = {**PLAIN, **fields, **weights, "codebook_size": size, "codebook_dim": CODEBOOK_DIM, "seed": job.seed}
    model = build(fields)
    if job.arm == CEILING:
        model.quantizer = NoQuantizer()
    own = model.state_dict()
    networks = {name: value for name, value in reference.state_dict().items() if not name.startswith("quantizer.")}
    model.load_state_dict({name: v for name, v in networks.items() if own[name].shape == v.shape}, strict=False)
    return model


@torch.no_grad()
def move_codes(model: VQTokenizer, pixels: torch.Tensor, seed: int) -> None:
    """Initialises the codes on a batch and moves all of them by one standard deviation of the outputs per channel."""
    codebook = getattr(model.quantizer, "codebook", None)
    if codebook is None:
        return
    vectors = model.encode_latents(pixels).movedim(1, -1).flatten(0, -2)
    codebook.prepare(vectors)
    effective = codebook.effective()
    signs = torch.randn(effective.shape[1], generator=torch.Generator().manual_seed(seed)).sign()
    codebook.set_effective(effective + signs * vectors.std(dim=0), torch.arange(len(effective)))


def batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices of each step's images: every image once in an epoch, in an order that only the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]


def train(model: VQTokenizer, job: Job, pixels: torch.Tensor, budget: Budget) -> bool:
    """Trains in place; false if the loss became NaN or infinite."""
    factor = STRESS_ENCODER_FACTOR if job.stage == "stress" else 1.0
    encoder, rest = list(model.encoder.parameters()), [*model.quantizer.parameters(), *model.decoder.parameters()]
    rate = budget.learning_rate
    optimizer = torch.optim.Adam([{"params": encoder, "lr": factor * rate}, {"params": rest}], lr=rate)
    alternating = AlternatingOptimizer(model, learning_rate=rate) if alternating_quantizers(model) else None
    groups = [*optimizer.param_groups, *(alternating.optimizer.param_groups if alternating else [])]
    peaks = [group["lr"] for group in groups]
    placements = PlacementWatch(model)
    model.train()
    for step, indices in enumerate(batches(len(pixels), budget.batch_size, budget.steps, job.seed)):
        images = to_range(pixels[indices])
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * decay(step, budget.steps)
        if step == 0 and job.stage == "stress":
            move_codes(model, images, job.seed)
        latents = model.encode_latents(images)
        if alternating:
            alternating.step(latents.detach())
        quantized = model.quantizer(latents)
        loss = F.mse_loss(model.decoder(quantized.quantized), images) + quantized.loss
        if not torch.isfinite(loss):
            return False
        optimizer.zero_grad()
        loss.backward()
        forget_moments(optimizer.state, placements.take())
        optimizer.step()
    return True


def decay(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to 0."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def evaluate(model: VQTokenizer, pixels: torch.Tensor) -> dict[str, float | None]:
    """Figures over a set of images: error of clipped reconstructions in [0, 1], and of the codes."""
    model.eval()
    quantized = not isinstance(model.quantizer, NoQuantizer)
    usage = CodebookUsage(model.config.quantizer_config.codebook_size)
    errors, distances, latents = [], [], []
    for batch in pixels.split(EVALUATION_BATCH):
        images = to_range(batch)
        output = z_q = z = model.encode_latents(images)
        if quantized:
            codes = model.quantizer.encode(z)
            usage.update(codes)
            output = z_q = model.quantizer.decode(codes)
        sample = model.decoder(output).clamp(-1, 1)
        errors.append(((sample - images) / 2).square().flatten(1).mean(dim=1))
        distances.append(float((z - z_q).square().mean()) * len(z))
        latents.append(z.movedim(1, -1).flatten(0, -2))
    mse = torch.cat(errors)
    results: dict[str, float | None] = {"mse": float(mse.mean()), "psnr": float((-10 * mse.log10()).mean())}
    if quantized:
        used = usage.compute()
        results |= {name: used[name] for name in ("perplexity", "active_fraction")}
    if quantized and hasattr(model.quantizer, "codebook"):  # FSQ rounds a bounded copy of the latents
        error = sum(distances) / len(pixels)
        variance = float(torch.cat(latents).var(dim=0, correction=0).mean())
        results |= {"quantization_error": error, "relative_quantization_error": error / variance}
    return results


def run_job(job: Job, budget: Budget) -> AblationRun:
    """One training and its figures; test images are looked at in no search."""
    images = load_images(budget.data)
    model = build_model(job, images["train"].shape[1])
    wall, cpu = time.perf_counter(), time.process_time()
    converged = train(model, job, images["train"], budget)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    splits = {"validation": budget.validation_images, "test": budget.test_images}
    if job.stage == "search":
        del splits["test"]
    diverged: dict[str, float | None] = {"mse": math.nan}
    found = {split: evaluate(model, images[split][:n]) if converged else diverged for split, n in splits.items()}
    test, held_out = found.get("test", {}), found["validation" if job.stage == "search" else "test"]
    return AblationRun(
        *(job.stage, job.arm, job.codebook_size, job.seed, *job.weights, budget.steps, job.settings(budget)),
        *(found["validation"]["mse"], test.get("mse"), test.get("psnr")),
        *(held_out.get(name) for name in CODE_FIGURES),
        *(wall, cpu, revision(), hf_vq.__version__, torch.__version__),
    )


def revision() -> str:
    """Commit that this script belongs to, with `+` where files have changed since; empty if it is in no repository."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return result.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def planned_jobs(stage: str, args: argparse.Namespace, runs: Sequence[AblationRun]) -> list[Job]:
    """All trainings of a stage, seed by seed, so that a table of fewer seeds is there early."""
    chosen = {} if stage == "search" else select_weights(run for run in runs if run.arm in args.arms)
    jobs = []
    for seed in args.search_seeds if stage == "search" else args.seeds:
        for size in [STRESS_SIZE] if stage == "stress" else args.codebook_sizes:
            for arm in args.arms:
                key = arm, ANY_SIZE if arm == CEILING else size
                points = search_grid(arm)
                if stage == "search":
                    points = points if len(points) > 1 else []
                elif len(points) > 1:
                    if key not in chosen:
                        raise ValueError(
                            f"{args.results}: found no search of {arm}, K = {size}; run --stage search first"
                        )
                    points = [chosen[key]]
                jobs += [Job(stage, *key, seed, weights) for weights in points]
    return list(dict.fromkeys(jobs))


def is_done(job: Job, done: dict[Any, AblationRun], budget: Budget, results: str) -> bool:
    """Whether a training is in the results file; raises ValueError if it was made under other conditions."""
    row = done.get(tuple(job))
    if row is None:
        return False
    conditions = (row.steps, row.settings), (budget.steps, job.settings(budget))
    if conditions[0] != conditions[1]:
        raise ValueError(
            f"{results}: found {job.stage} of {job.arm}, seed {job.seed}, with (steps, settings) {conditions[0]}, "
            f"expected {conditions[1]}; choose another --results"
        )
    return True


def execute(jobs: Sequence[Job], budget: Budget, workers: int) -> Iterator[AblationRun]:
    """Rows of trainings as they finish; every training has one thread."""
    if workers == 1:
        torch.set_num_threads(1)
        yield from (run_job(job, budget) for job in jobs)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
    try:
        for future in as_completed([pool.submit(run_job, job, budget) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_stage(stage: str, args: argparse.Namespace, budget: Budget) -> None:
    """Runs what a stage lacks."""
    runs = read_runs(args.results)
    jobs = planned_jobs(stage, args, runs)
    done = {run.key: run for run in runs}
    pending = [job for job in jobs if not is_done(job, done, budget, args.results)]
    print(f"== {stage}: {len(jobs)} trainings, {len(jobs) - len(pending)} of them done before", flush=True)
    for row in tqdm(execute(pending, budget, args.workers), total=len(pending), desc=stage, unit="training"):
        append_run(args.results, row)


def write_tables(args: argparse.Namespace) -> None:
    """The report and its plots."""
    runs = current_runs(read_runs(args.results))
    default = VectorQuantizerConfig()
    notes = [
        f"The default of `VectorQuantizerConfig` is the arm {DEFAULT_ARM}, with the weights "
        f"{default.commitment_weight:g} / {default.codebook_weight:g}.",
        "Loss weights were chosen on validation images for each arm and K, with seeds of their own.",
        "Stress: encoder's learning rate times "
        f"{STRESS_ENCODER_FACTOR:g}, all codes moved by one standard deviation per channel after their initialisation.",
    ]
    references = list(dict.fromkeys(("vq", DEFAULT_ARM)))
    text = ablation_markdown(runs, ARMS, list(VECTOR_ARMS), references, notes)
    output = Path(args.output)
    with atomic_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    stages = {row.stage for row in runs}
    if "main" in stages:
        plot_errors(runs, ARMS, output.with_name(f"{output.stem}-error.png"))
    if "stress" in stages:
        plot_stress(runs, ARMS, output.with_name(f"{output.stem}-stress.png"), STRESS_SIZE)
    print(f"== {output}: tables of {len(runs)} trainings")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="as for ImageDataset")
    parser.add_argument("--results", default="ablation.csv", help="one row per training; completed, never overwritten")
    parser.add_argument("--output", default="ablation.md", help="report; the plots go beside it")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--codebook_sizes", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--search_seeds", nargs="+", type=int, default=[100, 101])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--validation_images", type=int, default=2000)
    parser.add_argument("--test_images", type=int, default=10000)
    parser.add_argument("--workers", type=int, default=1, help="trainings at once, each on one thread")
    args = parser.parse_args(arguments)
    if set(args.seeds) & set(args.search_seeds):
        raise ValueError(f"--search_seeds {args.search_seeds} share some with --seeds {args.seeds}; choose others")
    for name in ("steps", "batch_size", "validation_images", "test_images", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run the stages asked for, in their order."""
    args = parse(arguments)
    budget = Budget(**{field.name: getattr(args, field.name) for field in fields(Budget)})
    for stage in STAGES:
        if stage in args.stage and stage != "tables":
            run_stage(stage, args, budget)
    if "tables" in args.stage:
        write_tables(args)


if __name__ == "__main__":
    run(main)
