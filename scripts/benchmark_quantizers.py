"""Times the search for codes and whole quantizer layers against other packages and against a bare matrix product.

    python scripts/benchmark_quantizers.py --output benchmark.json
    python scripts/benchmark_quantizers.py --sizes 32768,64,1024 --tasks codes --repeats 21 --threads 1
    python scripts/benchmark_quantizers.py --check

Three tasks at each size (N vectors, C channels, K codes), in float32:

- `codes`: the codes of a batch, without gradients: `nearest_codes`, and the shortest public call of each package that
  returns codes (where a package has none, its forward in evaluation mode).
- `forward`: the layer in training mode, gradients wanted.
- `training`: the same and the backward pass of the layer's loss plus the mean of its output.

The limit beside them is the product `vectors @ codebook.T` into new memory, and in blocks of rows into one buffer; on
CUDA the product in TF32 too, which is the precision of our kernel's first pass.
Every layer has its package's default configuration and gets its input in the layout that it takes natively; our
`VectorQuantizer` has `init="random", replace_after=None`, because the others neither run k-means nor replace codes by
default; its EMA variant has `parameterization="plain", update="ema", sync_weight=0` too. Inputs and codes are random.

Each measurement has its own process with a limit on its memory. Those of a task take turns, one run each, so that
noise hits all alike; figures are medians. Memory is how far one run raises the peak of resident memory (on CUDA: of
allocated memory) once input, layer and program are loaded. The other packages are optional:
`pip install -e ".[benchmark]"` in a clone. With `--output` the figures are saved as JSON, and the report as Markdown
beside it. `--check` ends with status 1 where a ratio of this run breaks a limit: our layer slower than that of another
package at some size, or, with 64 channels and more, its forward slower than 1.35 times the product.
"""

import argparse
import multiprocessing
import os
import re
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

import hf_vq
from hf_vq import VectorQuantizer
from hf_vq.evaluation.report_text import processor_name, save_report, versions_text
from hf_vq.quantizers import nearest_codes
from hf_vq.training.arguments import run

TASKS = {"codes": "codes", "forward": "forward", "training": "forward + backward"}
DEFAULT_SIZES = ["32768,64,1024", "32768,256,1024", "16384,64,8192", "32768,8,16384", "262144,32,16384"]
PRODUCT = "matrix product"
PRODUCT_BLOCK = 1024
OK, NOT_INSTALLED, OUT_OF_MEMORY = "ok", "not installed", "out of memory"
PACKAGES = ("torch", "diffusers", "monai", "vector-quantize-pytorch")
OURS = "hf_vq VectorQuantizer"
# Greatest ratio of our layer's forward to the product, from this number of channels on.
PRODUCT_LIMIT, PRODUCT_CHANNELS = 1.35, 64
CLEAR_REFS = Path("/proc/self/clear_refs")


class Size(NamedTuple):
    """Numbers of vectors, channels and codes."""

    vectors: int
    channels: int
    codes: int


@dataclass
class Layer:
    """A quantizer layer and what differs between the packages.

    Attributes:
        module: the layer.
        parts: its output -> quantised vectors and loss.
        codes: features -> codes, by the shortest public call.
        channel_last: it takes `(B, N, C)`; otherwise `(B, C, H, W)`.
    """

    module: nn.Module
    parts: Callable[[Any], tuple[torch.Tensor, torch.Tensor]]
    codes: Callable[[torch.Tensor], Any]
    channel_last: bool = False


class Job(NamedTuple):
    """One measurement."""

    size: Size
    task: str
    competitor: str


@dataclass
class Result:
    """What came out of a measurement: times of the runs in seconds, memory in bytes (None: can't be measured)."""

    job: Job
    status: str = OK
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None

    @property
    def median(self) -> float | None:
        """Median of the times in seconds, if it ran."""
        return statistics.median(self.seconds) if self.status == OK else None


def product_in_blocks(vectors: torch.Tensor, codebook: torch.Tensor) -> None:
    """The matrix product block by block into one buffer: its arithmetic without the memory."""
    buffer = vectors.new_empty(min(PRODUCT_BLOCK, len(vectors)), len(codebook))
    for rows in vectors.split(PRODUCT_BLOCK):
        torch.mm(rows, codebook.T, out=buffer[: len(rows)])


def product_in_tf32(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The matrix product by tensor cores."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return vectors @ codebook.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def hf_vq_layer(size: Size, **fields: object) -> Layer:
    """Our layer, without k-means and replacement."""
    fields = {"init": "random", "replace_after": None, **fields}
    module = VectorQuantizer(codebook_size=size.codes, codebook_dim=size.channels, **fields)
    return Layer(module, lambda output: (output.quantized, output.loss), module.encode)


def lucidrains_layer(size: Size, **fields: object) -> Layer:
    """`VectorQuantize` of vector-quantize-pytorch."""
    from vector_quantize_pytorch import VectorQuantize

    module = VectorQuantize(dim=size.channels, codebook_size=size.codes, **fields)
    return Layer(module, lambda output: (output[0], output[2]), lambda x: module(x)[1], channel_last=True)


def diffusers_layer(size: Size) -> Layer:
    """diffusers' `VectorQuantizer`."""
    from diffusers.models.autoencoders.vae import VectorQuantizer as DiffusersQuantizer

    module = DiffusersQuantizer(size.codes, size.channels, beta=0.25, legacy=False)
    return Layer(module, lambda output: output[:2], lambda x: module(x)[2][2])


def monai_layer(size: Size) -> Layer:
    """MONAI's `VectorQuantizer` around its `EMAQuantizer`."""
    from monai.networks.layers.vector_quantizer import EMAQuantizer
    from monai.networks.layers.vector_quantizer import VectorQuantizer as MonaiQuantizer

    module = MonaiQuantizer(EMAQuantizer(2, size.codes, size.channels))
    return Layer(module, lambda output: (output[1], output[0]), lambda x: module.quantizer.quantize(x)[2])


FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    PRODUCT: lambda vectors, codebook: vectors @ codebook.T,
    "matrix product, in blocks": product_in_blocks,
    "matrix product, TF32": product_in_tf32,
    "hf_vq nearest_codes": nearest_codes,
    "torch.cdist, argmin": lambda vectors, codebook: torch.cdist(vectors, codebook).argmin(dim=1),
}
LAYERS: dict[str, Callable[[Size], Layer]] = {
    "hf_vq VectorQuantizer": hf_vq_layer,
    "hf_vq VectorQuantizer, EMA": partial(hf_vq_layer, parameterization="plain", update="ema", sync_weight=0.0),
    "lucidrains VectorQuantize": lucidrains_layer,
    "lucidrains VectorQuantize, learnable": partial(lucidrains_layer, learnable_codebook=True, ema_update=False),
    "diffusers VectorQuantizer": diffusers_layer,
    "MONAI VectorQuantizer, EMAQuantizer": monai_layer,
}
# Imported once, by the process that the measuring ones are forked from.
MODULES = {"lucidrains": "vector_quantize_pytorch", "diffusers": "diffusers.models.autoencoders.vae", "MONAI": "monai"}


def make_case(job: Job, device: str) -> Callable[[], Any]:
    """What is timed, on random input."""
    torch.manual_seed(0)
    size = job.size
    if job.competitor in FUNCTIONS:
        vectors = torch.randn(size.vectors, size.channels, device=device)
        codebook = torch.randn(size.codes, size.channels, device=device)
        return partial(torch.no_grad()(FUNCTIONS[job.competitor]), vectors, codebook)
    layer = LAYERS[job.competitor](size)
    layer.module.to(device).train(job.task != "codes")
    side = max(side for side in (1, 2, 4, 8, 16, 32) if size.vectors % side**2 == 0)
    shape = (-1, side**2, size.channels) if layer.channel_last else (-1, size.channels, side, side)
    features = torch.randn(size.vectors * size.channels, device=device).view(shape)
    if job.task == "codes":
        return partial(torch.no_grad()(layer.codes), features)
    return partial(train_layer, layer, features.requires_grad_(), job.task == "training")


def train_layer(layer: Layer, features: torch.Tensor, backward: bool) -> None:
    """Forward of the layer and, on request, backward of its loss plus the mean of its output."""
    layer.module.zero_grad(set_to_none=True)
    features.grad = None
    quantized, loss = layer.parts(layer.module(features))
    if backward:
        (loss + quantized.mean()).backward()


def resident_bytes(name: str) -> int:
    """A memory figure of this process: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure_memory(case: Callable[[], Any], device: str) -> int | None:
    """Bytes by which one run raises the peak, or None where the system does not tell."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        case()
        return torch.cuda.max_memory_allocated(device) - before
    if not CLEAR_REFS.exists():
        case()
        return None
    # getrusage's peak can't be reset, and loading the program may have raised it above anything that the run does.
    CLEAR_REFS.write_text("5", encoding="ascii")
    before = resident_bytes("VmRSS")
    case()
    return resident_bytes("VmHWM") - before


def measure_seconds(case: Callable[[], Any], device: str) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    case()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def work(connection: Connection, job: Job, device: str, threads: int, memory_limit: int) -> None:
    """The measuring process: sends its status and memory, then the seconds of a run for every `True` it gets."""
    try:
        if device == "cpu":
            resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        torch.set_num_threads(threads)
        small = Size(64, job.size.channels, min(16, job.size.codes))
        make_case(job._replace(size=small), device)()  # loads the program
        case = make_case(job, device)
        connection.send((OK, measure_memory(case, device)))
        while connection.recv():
            connection.send(measure_seconds(case, device))
    except ModuleNotFoundError:
        connection.send((NOT_INSTALLED, None))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        connection.send((OUT_OF_MEMORY, None))


class Worker:
    """A measuring process as the main process sees it."""

    def __init__(self, context: ForkServerContext, job: Job, args: argparse.Namespace) -> None:
        self.result = Result(job)
        self.connection, theirs = context.Pipe()
        settings = (args.device, args.threads, int(args.memory_limit_gb * 1e9))
        self.process = context.Process(target=work, args=(theirs, job, *settings), daemon=True)
        self.process.start()
        theirs.close()
        self._receive()

    def time_one_run(self) -> None:
        """Adds a time to the result, unless the process can't go on."""
        if self.result.status == OK:
            self.connection.send(True)
            self._receive()

    def _receive(self) -> None:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            # A process that the system ends for its memory gets signal 9.
            killed = self.process.exitcode == -signal.SIGKILL
            answer = (OUT_OF_MEMORY if killed else f"failed, exit status {self.process.exitcode}", None)
        if isinstance(answer, float):
            self.result.seconds.append(answer)
        else:
            self.result.status, self.result.memory = answer

    def close(self) -> None:
        """Ends the process."""
        if self.result.status == OK:
            self.connection.send(False)
        self.process.join()
        self.connection.close()


def run_task(context: ForkServerContext, jobs: Sequence[Job], args: argparse.Namespace, progress: tqdm) -> list[Result]:
    """Measures the competitors of one task, in turns."""
    workers = []
    for job in jobs:
        progress.set_postfix_str(f"{tuple(job.size)} {job.task}: {job.competitor}")
        workers.append(Worker(context, job, args))
        progress.update()
    for _ in range(1 + args.repeats):  # the first warms up
        for worker in workers:
            worker.time_one_run()
            progress.update()
    for worker in workers:
        worker.close()
        del worker.result.seconds[:1]
    return [worker.result for worker in workers]


def run_all(args: argparse.Namespace) -> list[Result]:
    """Measures everything, one size and task after the other."""
    tables = []
    for size in args.sizes:
        for task in args.tasks:
            names = [name for name in args.competitors if task == "codes" or name in LAYERS or name == PRODUCT]
            tables.append([Job(size, task, name) for name in names])
    context = multiprocessing.get_context("forkserver")
    peers = [module for name, module in MODULES.items() if any(c.startswith(name) for c in args.competitors)]
    context.set_forkserver_preload(["hf_vq.quantizers", "hf_vq.training.arguments", *peers])
    total = (2 + args.repeats) * sum(map(len, tables))
    with tqdm(total=total, desc="benchmark", unit="run", disable=None) as progress:
        return [result for jobs in tables for result in run_task(context, jobs, args, progress)]


def describe_machine(args: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions and settings that the figures belong to."""
    own = f"{processor_name()}, {os.cpu_count()} cores"
    hardware = own if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    installed = {package.name.lower().replace("_", "-"): package.version for package in distributions()}
    return {
        "hardware": hardware,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"hf-vq": hf_vq.__version__, **{name: installed.get(name, NOT_INSTALLED) for name in PACKAGES}},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        **{name: getattr(args, name) for name in ("device", "threads", "repeats", "memory_limit_gb")},
    }


def cells(result: Result | None, product: Result | None) -> list[str]:
    """Milliseconds, multiple of the matrix product and MiB of a measurement, as the table shows them."""
    if result is None or result.median is None:
        return [result.status if result else "", "", ""]
    ratio = f"{result.median / product.median:.2f}" if product and product.median else ""
    memory = "" if result.memory is None else f"{result.memory / 2**20:.0f}"
    return [f"{1e3 * result.median:.1f}", ratio, memory]


def markdown(machine: dict[str, Any], results: Sequence[Result]) -> str:
    """The report: what it was measured on, then one table for each size."""
    lines = [
        f"{machine['hardware']} ({machine['capability']}), {machine['threads']} threads; "
        f"{versions_text(machine['versions'])}; {machine['date']}. "
        f"Medians of {machine['repeats']} runs; MiB: memory that a run takes in addition."
    ]
    found = {(result.job.size, result.job.task, result.job.competitor): result for result in results}
    tasks = [task for task in TASKS if any(result.job.task == task for result in results)]
    for size in dict.fromkeys(result.job.size for result in results):
        lines += ["", f"### N = {size.vectors}, C = {size.channels}, K = {size.codes}", ""]
        lines.append("| |" + "".join(f" {TASKS[task]}, ms | x product | MiB |" for task in tasks))
        lines.append("|---" + "|--:" * 3 * len(tasks) + "|")
        for name in dict.fromkeys(result.job.competitor for result in results if result.job.size == size):
            row = [cells(found.get((size, task, name)), found.get((size, task, PRODUCT))) for task in tasks]
            lines.append("| " + " | ".join([name, *(cell for part in row for cell in part)]) + " |")
    return "\n".join([*lines, *cost_against_size(results)])


def cost_against_size(results: Sequence[Result]) -> list[str]:
    """A table with a row for each size, so that the slope can be seen, of the first task that was measured."""
    sizes = sorted({result.job.size for result in results})
    task = next(task for task in TASKS if any(result.job.task == task for result in results))
    found = {(r.job.size, r.job.competitor): cells(r, None) for r in results if r.job.task == task}
    names = list(dict.fromkeys(result.job.competitor for result in results if result.job.task == task))
    if len(sizes) < 2:
        return []
    lines = ["", f"### Cost against size: {TASKS[task]}, ms (MiB)", ""]
    lines += ["| N, C, K | " + " | ".join(names) + " |", "|---" + "|--:" * len(names) + "|"]
    for size in sizes:
        row = [found.get((size, name), ["", "", ""]) for name in names]
        lines.append(f"| {', '.join(map(str, size))} | " + " | ".join(f"{ms} ({mib})" for ms, _, mib in row) + " |")
    return lines


def broken_limits(results: Sequence[Result]) -> list[str]:
    """What `--check` finds wrong: ratios within this run, never times."""
    medians = {(r.job.size, r.job.task, r.job.competitor): r.median for r in results if r.median is not None}
    broken = []
    for (size, task, name), median in medians.items():
        ours = medians.get((size, task, OURS))
        if ours is None or task == "codes":
            continue
        is_product = name == PRODUCT and task == "forward" and size.channels >= PRODUCT_CHANNELS
        limit = PRODUCT_LIMIT if is_product else 1.0
        if (is_product or not name.startswith(("hf_vq", "matrix"))) and ours > limit * median:
            broken.append(f"{tuple(size)}, {TASKS[task]}: {ours / median:.2f} times {name}, expected at most {limit}")
    return broken


def parse_size(text: str) -> Size:
    """`N,C,K` as numbers; raises ValueError."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f"--sizes: found {text!r}, expected N,C,K of at least 1, such as 32768,64,1024")
    return Size(*map(int, parts))


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    names = [name for name in (*FUNCTIONS, *LAYERS) if torch.cuda.is_available() or "TF32" not in name]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=DEFAULT_SIZES, metavar="N,C,K", help="vectors, channels, codes")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--competitors", nargs="+", default=names, choices=names, metavar="NAME", help=str(names))
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each competitor")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    limit = "10^9 bytes that a measuring process may have on the CPU; default: 80 %% of the machine's"
    parser.add_argument("--memory_limit_gb", type=float, default=0.8 * memory, help=limit)
    parser.add_argument("--output", type=Path, help="JSON with all times; the report is saved beside it")
    parser.add_argument("--check", action="store_true", help="exit status 1 where a ratio breaks its limit")
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that can't be met; turns the sizes into numbers."""
    args.sizes = [parse_size(text) for text in args.sizes]
    for name in ("repeats", "threads", "memory_limit_gb"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected more than 0")
    if args.device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device: found {args.device!r}, expected cpu or cuda")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device: found {args.device!r}, but this machine has no CUDA device; use cpu")


def main() -> None:
    """Parse, measure, print, save."""
    args = parse_args()
    check_args(args)
    machine = describe_machine(args)
    results = run_all(args)
    report = markdown(machine, results)
    print(report)
    if args.output:
        rows = [{**asdict(result), "job": result.job._asdict(), "median": result.median} for result in results]
        save_report(args.output, {"machine": machine, "results": rows}, report + "\n")
    broken = broken_limits(results) if args.check else []
    for line in broken:
        print(f"slower than the limit: {line}", file=sys.stderr)
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
