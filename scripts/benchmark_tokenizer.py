"""Times encoding and decoding of volumes, and measures their memory, beside MONAI's VQVAE of the same widths.

    python scripts/benchmark_tokenizer.py --output_dir benchmark-tokenizer
    python scripts/benchmark_tokenizer.py --sides 32 64 96 128 --repeats 5 --check

The volume tokenizer is that of scripts/configs/ct-128-volume-tokenizer.yaml (`--config` names another file with a
section `model`), with random weights, in float32, in bf16 and, with `channels_last`, in the layout that convolutions
read. MONAI's `VQVAE`, where MONAI is installed, has as many levels of the same widths and as many codes; the column of
parameters tells how far the two are alike. `encode` is from voxels to codes, `decode` from codes to voxels, both
without gradients; `training` is forward and backward.

Each case has a process of its own; those of a size take turns, one run each, so that noise hits all alike. Seconds are
medians. Memory is how far the runs raise the peak of resident memory (on CUDA: of allocated memory) once model and
input are there. `us / voxel` shows the slope over the sides. `share` is what a run reaches of the rate of a product of
two square matrices in the same precision, measured in the same turns; `--check` ends with exit status 2 where it is
below the limits in SHARES.
"""

import argparse
import multiprocessing
import resource
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from benchmark_training import CHANNELS_LAST, OperationCount, clock, matrix_rate
from torch import nn

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.evaluation.report_text import markdown_table, save_report, versions_text
from hf_vq.training.arguments import run
from hf_vq.training.record import describe_hardware, package_versions

HERE = Path(__file__).resolve().parent
TASKS = ("encode", "decode", "training")
OURS, PEER = "hf_vq VQTokenizer", "MONAI VQVAE"
# Least share of the rate of a matrix product, for `--check`, at sides of 64 and more.
SHARES = {"encode": 0.15, "decode": 0.15, "training": 0.15}
LEAST_SIDE = 64


class Case(NamedTuple):
    """What one process measures."""

    model: str
    precision: str
    channels_last: bool
    task: str
    side: int

    @property
    def label(self) -> str:
        """Model, precision and layout."""
        return f"{self.model}, {self.precision}{', channels_last' if self.channels_last else ''}"


def make_model(name: str, config: VQTokenizerConfig) -> nn.Module:
    """The tokenizer, or MONAI's of the same widths and strides."""
    if name == OURS:
        return VQTokenizer(config)
    from monai.networks.nets import VQVAE

    strides = [config.stem_stride, *config.strides[1:]]
    widths = [config.level_channels[0], *config.level_channels[1:]]
    return VQVAE(
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        channels=widths,
        num_res_channels=widths,
        num_res_layers=config.num_res_blocks,
        downsample_parameters=[(stride, 2 * stride, 1, stride // 2) for stride in strides],
        upsample_parameters=[(stride, 2 * stride, 1, stride // 2, 0) for stride in reversed(strides)],
        num_embeddings=config.quantizer_config.codebook_size,
        embedding_dim=config.quantizer_config.codebook_dim,
    )


def make_task(case: Case, model: Any, volume: torch.Tensor) -> Callable[[], Any]:
    """What is timed."""
    ours = case.model == OURS
    if case.task == "training":
        model.train()

        def train() -> None:
            model.zero_grad()
            if ours:
                loss = model(volume).loss
            else:
                sample, quantization_loss = model(volume)
                loss = (sample - volume).abs().mean() + quantization_loss
            loss.backward()

        return train
    model.eval()
    encode: Callable[[], Any] = (lambda: model.encode(volume).codes) if ours else (lambda: model.index_quantize(volume))
    if case.task == "encode":
        return encode
    with torch.no_grad():
        codes = encode()
    return (lambda: model.decode(codes).sample) if ours else (lambda: model.decode_samples(codes))


def peak_memory() -> int:
    """Bytes: highest so far of allocated memory on CUDA, else of resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(case: Case, fields: dict[str, Any], batch: int, threads: int, connection: Connection) -> None:
    """A process's life: a run for each message, answered by its seconds and the rate of a matrix product."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = VQTokenizerConfig(**fields)
    model = make_model(case.model, config).to(device)
    volume = torch.rand(batch, config.in_channels, *[case.side] * config.spatial_dims, device=device) * 2 - 1
    if case.channels_last:
        for parameter in model.parameters():
            if parameter.ndim in CHANNELS_LAST:
                parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.ndim])
    task = make_task(case, model, volume)

    def once() -> float:
        began = clock()
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16")
        with torch.set_grad_enabled(case.task == "training"), autocast:
            task()
        return clock() - began

    before = peak_memory()
    once()
    memory = peak_memory() - before
    with OperationCount() as count:
        once()
    connection.send({"memory": memory, "flops": count.total, "parameters": sum(p.numel() for p in model.parameters())})
    while connection.recv():
        connection.send((once(), matrix_rate(case.precision)))


def measure(cases: Sequence[Case], fields: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case; their processes take turns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_vq.models", *(["monai.networks.nets"] if find_spec("monai") else [])])
    pipes = []
    for case in cases:
        ours, theirs = context.Pipe()
        given = (case, fields, args.batch_size, torch.get_num_threads(), theirs)
        process = context.Process(target=work, args=given, daemon=True)
        process.start()
        theirs.close()
        pipes.append((ours, process, ours.recv()))
    runs: list[list[tuple[float, float]]] = [[] for _ in cases]
    for _ in range(args.repeats):
        for (connection, _, _), found in zip(pipes, runs, strict=True):
            connection.send(True)
            found.append(connection.recv())
    for connection, process, _ in pipes:
        connection.send(False)
        process.join()
    return [row_of(case, facts, found, args) for case, (_, _, facts), found in zip(cases, pipes, runs, strict=True)]


def row_of(case: Case, facts: dict[str, Any], runs: Sequence[tuple[float, float]], args: argparse.Namespace) -> Any:
    """Figures of a case."""
    seconds, rate = (statistics.median(values) for values in zip(*runs, strict=True))
    return {
        **case._asdict(),
        **facts,
        "label": case.label,
        "seconds": seconds,
        "microseconds_per_voxel": 1e6 * seconds / (args.batch_size * case.side**3),
        "share": facts["flops"] / seconds / rate,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each row; `ratio`: how many times as long as the tokenizer in the same precision takes."""
    lines = []
    for row in rows:
        same = [one for one in rows if all(one[key] == row[key] for key in ("task", "side", "precision"))]
        own = next(one["seconds"] for one in same if one["model"] == OURS and not one["channels_last"])
        lines.append(
            [
                *(f"{row['task']} {row['side']}^3", row["label"], f"{row['parameters'] / 1e6:.1f}"),
                *(f"{row['seconds']:.3g}", f"{row['seconds'] / own:.2f}", f"{row['microseconds_per_voxel']:.3f}"),
                *(f"{row['memory'] / 2**20:.0f}", f"{row['flops'] / 1e9:.0f}", f"{row['share']:.0%}"),
            ]
        )
    header = ["task", "model", "parameters (M)", "seconds", "ratio", "us / voxel", "memory (MiB)", "GFLOP", "share"]
    return markdown_table(header, lines)


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What `--check` finds: of the tokenizer's layouts in one precision, the faster one counts."""
    found = []
    for row in (one for one in rows if one["model"] == OURS and one["side"] >= LEAST_SIDE):
        alike = [one for one in rows if all(one[key] == row[key] for key in ("model", "task", "side", "precision"))]
        best = max(one["share"] for one in alike)
        if best < SHARES[row["task"]] and not row["channels_last"]:
            found.append(f"{row['task']} {row['side']}^3, {row['label']}: share {best:.2f} < {SHARES[row['task']]}")
    return found


def save(folder: Path, rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    """Writes tokenizer.json and tokenizer.md, which is returned."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = {
        **{"hardware": describe_hardware(device), "config": args.config.name, "batch_size": args.batch_size},
        **{"repeats": args.repeats, "versions": {**package_versions(), "monai": peer_version()}},
    }
    text = (
        f"{table(rows)}\n\n{settings['hardware']}; {versions_text(settings['versions'])}; {settings['config']}, "
        f"batches of {args.batch_size}, medians of {args.repeats} runs.\n"
    )
    save_report(folder / "tokenizer.json", {"settings": settings, "rows": rows}, text)
    return text


def peer_version() -> str:
    """MONAI's version, or that it is not installed."""
    try:
        return version("monai")
    except PackageNotFoundError:
        return "not installed"


def cases_of(args: argparse.Namespace, task: str, side: int) -> list[Case]:
    """The cases that are compared with each other."""
    layouts = [(precision, last) for precision in args.precisions for last in (False, True)]
    own = [Case(OURS, precision, last, task, side) for precision, last in layouts]
    peers = [Case(PEER, precision, False, task, side) for precision in args.precisions] if find_spec("monai") else []
    return [*own, *peers]


def main() -> None:
    """Parse, measure, save, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark-tokenizer"))
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "ct-128-volume-tokenizer.yaml")
    parser.add_argument("--sides", nargs="+", type=int, default=[64, 128], help="voxels along each axis")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["encode", "decode"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="fail where a share is below its limit")
    args = parser.parse_args()
    fields = yaml.safe_load(args.config.read_text(encoding="utf-8"))["model"]
    factor = VQTokenizerConfig(**fields).downsampling_factor
    for side in args.sides:
        if side < factor or side % factor:
            raise ValueError(f"--sides: found {side}, expected multiples of the downsampling factor {factor}")
    if min(args.repeats, args.batch_size) < 1:
        raise ValueError("--repeats and --batch_size must be at least 1")
    rows: list[dict[str, Any]] = []
    for task in args.tasks:
        for side in args.sides:
            rows += measure(cases_of(args, task, side), fields, args)
    print(save(args.output_dir, rows, args))
    if args.check and (found := failures(rows)):
        raise ValueError("; ".join(found))


if __name__ == "__main__":
    run(main)
