"""What sampling codes costs beside evaluating the full sequence in every step, measured in turns."""

import inspect
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..files import atomic_file
from ..models import CodeTransformer
from ..pipelines import ViewsToVolumePipeline
from ..pipelines.code_sampling import CodeSamplingPipeline
from ..schedulers import AbsorbingScheduler
from .report_text import markdown_table

REQUESTED_STEPS = 512
# The most that sampling may cost at so many steps, as a share of evaluating the full sequence so many times, and the
# least by which it must be faster at the default steps; both for one volume of the paper's size in float32.
SHARE_LIMIT, SPEEDUP_LIMIT = 0.55, 40.0
PACKAGES = ("torch", "diffusers", "prdc")
NUM_VIEWS, CONTEXT_DIM = 2, 8


@dataclass(frozen=True)
class CostCase:
    """Sizes of one measurement; by default those of the paper: 512 tokens of two views and 512 codes.

    Attributes:
        dtype: name of the precision, `"float32"` or `"bfloat16"`.
        subjects: subjects at a time.
        samples: volumes for each of them.
        code_grid: sides of the volume's code grid.
        context_grid: sides of the code grid of each of two views.
        hidden_size: width of the transformer.
        num_layers: its blocks.
        num_codes: size of the codebook.
    """

    dtype: str = "float32"
    subjects: int = 1
    samples: int = 1
    code_grid: tuple[int, int, int] = (8, 8, 8)
    context_grid: tuple[int, int] = (16, 16)
    hidden_size: int = 512
    num_layers: int = 8
    num_codes: int = 1024

    @property
    def context_tokens(self) -> int:
        """Tokens of both views."""
        return NUM_VIEWS * self.context_grid[0] * self.context_grid[1]

    @property
    def code_tokens(self) -> int:
        """Codes of a volume."""
        return self.code_grid[0] * self.code_grid[1] * self.code_grid[2]

    @property
    def volumes(self) -> int:
        """Volumes at a time."""
        return self.subjects * self.samples


@dataclass(frozen=True)
class Cost:
    """Seconds of one case: medians over evaluations that were measured in turns.

    Attributes:
        case: its sizes.
        full: one evaluation of the full sequence of context and code tokens, with the logits of all.
        context: keys and values of the views, once for all steps.
        many: one step of a run with one step for each code, or `REQUESTED_STEPS` if there are more codes.
        default: one step of a run with `default_steps()`.
    """

    case: CostCase
    full: float
    context: float
    many: float
    default: float

    @property
    def full_seconds(self) -> float:
        """The full sequence, as often as steps are requested."""
        return REQUESTED_STEPS * self.full

    @property
    def many_seconds(self) -> float:
        """A run with the requested steps: a step that settles no code asks for no evaluation."""
        return self.context + min(REQUESTED_STEPS, self.case.code_tokens) * self.many

    @property
    def default_seconds(self) -> float:
        """A run with the default steps."""
        return self.context + default_steps() * self.default

    @property
    def share(self) -> float:
        """Cost of the requested steps as a share of the full sequence evaluated so often."""
        return self.many_seconds / self.full_seconds

    @property
    def speedup(self) -> float:
        """How many times faster a run with the default steps is than the full sequence at the requested ones."""
        return self.full_seconds / self.default_seconds


class CodeSampler(CodeSamplingPipeline):
    """The pipelines' sampling loop without tokenizers around it, one step at a time.

    Args:
        transformer: with `context_attention="prefix"`.
        scheduler: chooses what a step settles.
    """

    def __init__(self, transformer: CodeTransformer, scheduler: AbsorbingScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def start(self, steps: int) -> None:
        """Makes the timesteps of a run."""
        self._set_timesteps(steps)

    def step(self, codes: torch.Tensor, index: int, key_values: list[Any], generator: torch.Generator) -> torch.Tensor:
        """Codes `(B, N)` after the step of this index."""

        def predict(codes: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
            return self.transformer(codes, context_key_values=key_values, positions=places).sample

        arguments = self._step_arguments(generator, temperature=1.0, top_p=1.0)
        return self._settle(codes, self.scheduler.timesteps[index], predict, arguments)


def cost_cases() -> list[CostCase]:
    """The paper's size in two precisions, one by one and in batches; then fewer and more tokens, and other widths."""
    batches = ((1, 1), (1, 4), (4, 1))
    return [
        *(CostCase(dtype, *batch) for dtype in ("float32", "bfloat16") for batch in batches),
        *(CostCase(code_grid=(side,) * 3, context_grid=(2 * side,) * 2) for side in (4, 6, 10)),
        *(CostCase(hidden_size=width) for width in (256, 768)),
    ]


def default_steps() -> int:
    """Steps of `ViewsToVolumePipeline` when none are asked for."""
    steps: int = inspect.signature(ViewsToVolumePipeline.__call__).parameters["num_inference_steps"].default
    return steps


@torch.no_grad()
def measure_cost(case: CostCase, evaluations: int, device: str | torch.device = "cpu") -> Cost:
    """Times an untrained transformer of this size.

    The full sequence, the views and one step of either run take turns, so that whatever else the machine does falls on
    all of them. Steps are spread evenly over each run, and each starts from codes that are settled as far as they would
    be.

    Args:
        case: the sizes.
        evaluations: turns, after one that does not count.
        device: where to compute.
    """
    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, case.dtype)
    # diffusers' own `to` warns of modules to be kept in float32 even where there are none.
    full, transformer = (nn.Module.to(model, device, dtype).eval() for model in _models(case))
    shape = (case.subjects, NUM_VIEWS, case.context_tokens // NUM_VIEWS, CONTEXT_DIM)
    context = torch.randn(shape, generator=generator).to(device, dtype)
    sequence = torch.zeros(case.volumes, case.context_tokens + case.code_tokens, dtype=torch.int64, device=device)
    true = torch.randint(case.num_codes, (case.volumes, case.code_tokens), generator=generator).to(device)
    runs = {"many": min(REQUESTED_STEPS, case.code_tokens), "default": default_steps()}
    samplers = {name: CodeSampler(transformer, AbsorbingScheduler(case.num_codes)) for name in runs}
    for name, steps in runs.items():
        samplers[name].start(steps)

    def encode() -> list[Any]:
        of_subjects = transformer.encode_context(context)
        return [tuple(each.repeat_interleave(case.samples, dim=0) for each in pair) for pair in of_subjects]

    seconds: dict[str, list[float]] = {name: [] for name in ("full", "context", *runs)}
    for turn in range(-1, evaluations):
        seconds["full"].append(_timed(lambda: full(sequence))[0])
        taken, key_values = _timed(encode)
        seconds["context"].append(taken)
        for name, steps in runs.items():
            index = max(turn, 0) * steps // evaluations
            codes = samplers[name].scheduler.add_noise(true, samplers[name].scheduler.timesteps[index], generator)
            step = samplers[name].step
            seconds[name].append(_timed(lambda: step(codes, index, key_values, generator))[0])  # noqa: B023
    return Cost(case, **{name: median(values[1:]) for name, values in seconds.items()})


def _models(case: CostCase) -> tuple[CodeTransformer, CodeTransformer]:
    """The full sequence as one grid of tokens that all attend to all, and the transformer that is sampled from."""
    sizes: dict[str, Any] = {"num_codes": case.num_codes, "hidden_size": case.hidden_size}
    sizes |= {"num_layers": case.num_layers, "num_heads": max(1, case.hidden_size // 64)}
    full = CodeTransformer(code_grid=(1, case.context_tokens + case.code_tokens), context_dim=None, **sizes)
    grids = {"code_grid": case.code_grid, "context_grid": case.context_grid, "context_dim": CONTEXT_DIM}
    return full, CodeTransformer(**grids, context_attention="prefix", **sizes)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returned."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    returned = call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began, returned


def machine(own_version: str) -> dict[str, Any]:
    """Hardware, threads and versions, hf-vq's own among them, for the head of a report."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    cpu = f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores"
    return {
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "threads": torch.get_num_threads(),
        "versions": {"hf-vq": own_version, **{name: version(name) for name in PACKAGES}},
    }


def cost_tables(costs: Sequence[Cost]) -> str:
    """Markdown: seconds per volume of whole runs of the first case's size, and of one evaluation at every size."""
    steps, first = default_steps(), costs[0].case
    titles = ["precision", "subjects", "samples of each", f"full sequence x {REQUESTED_STEPS} (s)"]
    titles += [f"{REQUESTED_STEPS} steps (s)", "share", f"{steps} steps (s)", "times faster"]
    runs = [
        [
            cost.case.dtype,
            str(cost.case.subjects),
            str(cost.case.samples),
            f"{cost.full_seconds / cost.case.volumes:.1f}",
            f"{cost.many_seconds / cost.case.volumes:.1f}",
            f"{cost.share:.3f}",
            f"{cost.default_seconds / cost.case.volumes:.2f}",
            f"{cost.speedup:.1f}",
        ]
        for cost in costs
        if cost.case == replace(first, dtype=cost.case.dtype, subjects=cost.case.subjects, samples=cost.case.samples)
    ]
    parts = [
        f"Seconds per volume of whole runs: {first.context_tokens} context and {first.code_tokens} code tokens, "
        f"{first.num_layers} blocks of width {first.hidden_size}, {first.num_codes} codes:",
        markdown_table(titles, runs),
        f"Limits in float32 for one volume of the paper's size: share {SHARE_LIMIT}, {SPEEDUP_LIMIT:g} times faster.",
        f"Milliseconds of one evaluation, one volume in float32, one of {steps} steps:",
        markdown_table(
            ["context tokens", "codes", "width", "full sequence", "views, once", "one step", "step / full"],
            [_size_line(cost) for cost in costs if (cost.case.dtype, cost.case.volumes) == ("float32", 1)],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _size_line(cost: Cost) -> list[str]:
    seconds = (cost.full, cost.context, cost.default)
    sizes = (cost.case.context_tokens, cost.case.code_tokens, cost.case.hidden_size)
    return [*map(str, sizes), *(f"{1000 * each:.1f}" for each in seconds), f"{cost.default / cost.full:.3f}"]


def broken_limits(costs: Sequence[Cost]) -> list[str]:
    """What the case of the paper's size, one volume in float32, breaks of its limits."""
    found = []
    for cost in (cost for cost in costs if cost.case == CostCase()):
        if cost.share > SHARE_LIMIT:
            found.append(f"share {cost.share:.3f} is above its limit of {SHARE_LIMIT}")
        if cost.speedup < SPEEDUP_LIMIT:
            found.append(f"{cost.speedup:.1f} times faster is below the limit of {SPEEDUP_LIMIT:g} times")
    return found


def report_costs(cases: Sequence[CostCase], evaluations: int, folder: Path, own_version: str) -> list[str]:
    """Measures the cases, prints the tables and writes them to cost.md in the folder.

    Args:
        cases: sizes; the first one's is that of the table of whole runs.
        evaluations: turns for each case.
        folder: where to write.
        own_version: hf-vq's, for the head of the report.

    Returns:
        The limits that are broken.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    costs = [measure_cost(case, evaluations, device) for case in tqdm(cases, desc="cost", disable=None)]
    told, broken = machine(own_version), broken_limits(costs)
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    head = f"{told['hardware']}, {told['threads']} threads; {versions}; medians of {evaluations} turns."
    with atomic_file(folder / "cost.md") as path:
        path.write_text("\n\n".join((head, cost_tables(costs), *broken)), encoding="utf-8")
    print((folder / "cost.md").read_text(encoding="utf-8"))
    return broken
