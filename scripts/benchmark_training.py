"""Times the trainings of the quickstart, step by step and part by part; variants and another checkout side by side.

    python scripts/benchmark_training.py --root quickstart --output_dir benchmark-training
    python scripts/benchmark_training.py --root quickstart --baseline ../hf-vq-before --variants float32 compile --check

`--root` is what scripts/quickstart.py left: cohort, codes and tokenizers. Each variant is the real training script in a
process of its own, with the flags that the quickstart gives it (`--configs` names the family). The processes of a
training take turns, `--chunk` steps each, so that noise hits all alike; while one runs the others wait. `--baseline` is
the folder of another checkout of this repository, whose scripts, configs and package are used for that variant.

Figures are medians over the steps: samples per second, and the parts of a step: data, forward (with the loss),
backward, optimizer, averaged weights, other (clipping, checks, logs). Validation and checkpoints are not in them. The
ratio to the first variant is the median over the turns, with its range. A second table adds up the steps that the
configs plan. `share` compares a step with the limit of the machine, measured in the same turns: floating-point
operations of the step over what a product of two square matrices reaches in the same precision. `--check` ends with
exit status 2 where a share is below its limit in SHARES, or where
this checkout is slower than the baseline.
"""

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hf_vq.evaluation.report_text import markdown_table
from hf_vq.training.arguments import run
from hf_vq.training.record import describe_hardware, package_versions
from hf_vq.training.run import TrainingRun

HERE = Path(__file__).resolve().parent
TRAININGS = ("volume-tokenizer", "view-tokenizer", "code-transformer")
PARTS = ("data", "forward", "backward", "optimizer", "averages", "other")
VARIANTS = {
    "float32": ["--mixed_precision", "no"],
    "compile": ["--compile", "true"],
    "channels_last": ["--channels_last", "true"],
}
OURS, BASELINE = "this checkout", "baseline"
# No validation and no checkpoint before the benchmark is over, and a schedule that goes on as long as it does.
ENDLESS = ["--max_train_steps", "1000000", "--validation_steps", "1000000", "--checkpointing_steps", "0"]
LOGGING = ["--logging_steps", "20", "--report_to", "none"]
# Least share of the rate of a matrix product, for `--check`: about two thirds of what was measured on the CPU that
# docs/benchmarks.md names. A GPU's launches make small models far less efficient: check large ones there.
SHARES = {"volume-tokenizer": 0.45, "view-tokenizer": 0.18, "code-transformer": 0.35}
LEAST_RATIO = 0.9
MATRIX_SIDE, MATRIX_REPEATS = 2048, 3
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class OperationCount(TorchDispatchMode):
    """Counts the floating-point operations of products, convolutions and attention, `total`, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts it."""
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


class Stopwatch:
    """Seconds of the parts of each step of a training, taken by wrapping what the training calls.

    Args:
        turn: called with the records of the steps since it was last called, whenever `chunk` steps are made.
        chunk: steps in a turn.
    """

    def __init__(self, turn: Callable[[list[dict[str, float]]], None], chunk: int) -> None:
        self._turn, self._chunk = turn, chunk
        self._now: dict[str, float] = {}
        self._steps: list[dict[str, float]] = []
        self._began = self._forward_began = 0.0
        self._counter: OperationCount | None = None
        self.flops = 0

    def install(self) -> None:
        """Wraps `TrainingRun` and `Accelerator`, before a training script runs in this process."""
        dataloader, optimize = TrainingRun.dataloader, TrainingRun.optimize
        watch = self
        Accelerator.backward = watch._timed("backward", Accelerator.backward)  # type: ignore[method-assign]

        def watched_optimize(training: TrainingRun, *arguments: Any) -> bool:
            watch._note("forward", watch._forward_began)
            if not hasattr(training.ema.step, "watched"):
                training.ema.step = watch._timed("averages", training.ema.step)  # type: ignore[method-assign]
                training.optimizer.step = watch._timed("optimizer", training.optimizer.step)
            stepped = optimize(training, *arguments)
            watch._end_step()
            return stepped

        TrainingRun.dataloader = lambda training, data: watch._batches(dataloader(training, cached(data)))  # type: ignore
        TrainingRun.optimize = watched_optimize  # type: ignore[method-assign]

    def _batches(self, loader: Any) -> Iterator[Any]:
        batches = iter(loader)
        while True:
            self._began = clock()
            batch = next(batches, None)
            if batch is None:
                return
            self._note("data", self._began)
            if not self.flops and len(self._steps) == 1:
                self._counter = OperationCount()
                self._counter.__enter__()
            self._forward_began = clock()
            yield batch

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            began = clock()
            result = function(*arguments, **options)
            self._note(part, began)
            return result

        watched.watched = True  # type: ignore[attr-defined]
        return watched

    def _note(self, part: str, began: float) -> None:
        self._now[part] = self._now.get(part, 0.0) + clock() - began

    def _end_step(self) -> None:
        self._now["step"] = clock() - self._began
        self._now["other"] = self._now["step"] - sum(self._now.get(part, 0.0) for part in PARTS[:-1])
        self._steps.append(self._now)
        self._now = {}
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops, self._counter = self._counter.total, None
        if len(self._steps) == self._chunk:
            steps, self._steps = self._steps, []
            self._turn(steps)


def cached(dataset: Any) -> Any:
    """The data set, with all samples read that it keeps in memory: what the first epoch alone takes is no step's."""
    if getattr(dataset, "_cache", None) is not None:
        for index in range(len(dataset)):
            dataset[index]
    return dataset


def clock() -> float:
    """Seconds, once the device has done all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(precision: str) -> float:
    """Floating-point operations per second of a product of two square matrices, in the precision of a training."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.ones(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=dtype)
    seconds = []
    for _ in range(MATRIX_REPEATS + 1):
        began = clock()
        matrix @ matrix
        seconds.append(clock() - began)
    return float(2 * MATRIX_SIDE**3 / statistics.median(seconds[1:]))


def training_command(source: Path, args: argparse.Namespace, training: str) -> list[str]:
    """Script and flags of a training as the quickstart of a checkout runs it."""
    quickstart = runpy.run_path(str(source / "scripts" / "quickstart.py"))
    precision = args.mixed_precision or quickstart["pick_precision"]()
    stages = quickstart["model_stages"](args.root, args.configs, precision)
    stage = next(one for one in stages if one.flags[:1] == ["--config"] and training in Path(one.flags[1]).stem)
    return [str(stage.script), *stage.flags]


def work(args: argparse.Namespace, flags: Sequence[str]) -> None:
    """A worker's life: the training, a turn at a time, each asked for by a line on stdin."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the training prints goes to the log
    command = [*training_command(args.source, args, args.worker), *ENDLESS, *LOGGING, *flags]

    planned = yaml.safe_load(Path(command[command.index("--config") + 1]).read_text("utf-8"))["max_train_steps"]

    def turn(steps: list[dict[str, float]]) -> None:
        precision = command[len(command) - 1 - command[::-1].index("--mixed_precision") + 1]
        facts = {"rate": matrix_rate(precision), "flops": watch.flops, "precision": precision, "planned": planned}
        out.write(json.dumps({"steps": steps, "batch": batch_size(command), **facts}) + "\n")
        out.flush()
        if not sys.stdin.readline():
            raise SystemExit

    watch = Stopwatch(turn, args.chunk)
    watch.install()
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def batch_size(command: Sequence[str]) -> int:
    """Samples in a step of a training."""
    values = yaml.safe_load(Path(command[command.index("--config") + 1]).read_text(encoding="utf-8"))
    flags = dict(zip(command[1::2], command[2::2], strict=False))
    sizes = [flags.get(f"--{name}", values.get(name, usual)) for name, usual in BATCH]
    return int(sizes[0]) * int(sizes[1])


BATCH = (("train_batch_size", 8), ("gradient_accumulation_steps", 1))


class Worker:
    """A variant of a training in a process of its own.

    Args:
        name: of the variant.
        source: checkout whose script and package are used.
        args: the script's flags.
        training: one of TRAININGS.
        flags: further flags of the training.
        folder: where it may write.
    """

    def __init__(
        self, name: str, source: Path, args: argparse.Namespace, training: str, flags: Sequence[str], folder: Path
    ) -> None:
        self.name, self.turns = name, list[dict[str, Any]]()
        self._log = folder / f"{training}-{name.replace(' ', '-')}.log"
        own = ["--worker", training, "--source", str(source), "--root", str(args.root), "--chunk", str(args.chunk)]
        own += ["--configs", args.configs]
        own += ["--mixed_precision", args.mixed_precision] if args.mixed_precision else []
        command = [sys.executable, str(HERE / "benchmark_training.py"), *own, "--", *flags]
        path = os.pathsep.join([str(source / "src"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--output_dir", str(self._log.with_suffix(""))],
                **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log},
                env=environment,
                text=True,
            )
        self.read()  # the first turn warms up

    def take_turn(self) -> None:
        """Lets the worker make its next steps, and keeps their figures."""
        stream: IO[str] = self._process.stdin  # type: ignore[assignment]
        stream.write("go\n")
        stream.flush()
        self.turns.append(self.read())

    def read(self) -> dict[str, Any]:
        """Figures of one turn; raises ValueError with the last line of the log if the training ended."""
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            lines = self._log.read_text(encoding="utf-8").strip().splitlines() or ["no message"]
            raise ValueError(f"the training of the variant {self.name!r} ended: {lines[-1]}")
        turn: dict[str, Any] = json.loads(line)
        return turn

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()


def measure(args: argparse.Namespace, training: str, folder: Path) -> list[dict[str, Any]]:
    """One row for each variant of a training: the baseline, if there is one, is the first."""
    variants = [(BASELINE, args.baseline, [])] if args.baseline else []
    variants += [(OURS, HERE.parent, []), *((name, HERE.parent, VARIANTS[name]) for name in args.variants)]
    workers: list[Worker] = []
    try:
        for name, source, flags in variants:
            workers.append(Worker(name, source.resolve(), args, training, [*args.flags, *flags], folder))
        for number in range(args.turns):
            for worker in workers if number % 2 == 0 else reversed(workers):
                worker.take_turn()
    finally:
        for worker in workers:
            worker.close()
    return [row_of(training, worker, workers[0]) for worker in workers]


def row_of(training: str, worker: Worker, first: Worker) -> dict[str, Any]:
    """Figures of a variant."""
    steps = [step for turn in worker.turns for step in turn["steps"]]
    seconds = statistics.median(step["step"] for step in steps)
    own, others = (
        [statistics.median(step["step"] for step in turn["steps"]) for turn in one.turns] for one in (worker, first)
    )
    ratios = [other / this for this, other in zip(own, others, strict=True)]
    parts = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in PARTS}
    rate = statistics.median(turn["rate"] for turn in worker.turns)
    return {
        "training": training,
        "variant": worker.name,
        "precision": worker.turns[0]["precision"],
        "planned_steps": worker.turns[0]["planned"],
        "samples_per_second": worker.turns[0]["batch"] / seconds,
        "step": seconds,
        **parts,
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
        "flops": worker.turns[0]["flops"],
        "share": worker.turns[0]["flops"] / seconds / rate,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each row, milliseconds for the parts."""
    lines = [
        [
            *(row["training"], row["variant"], row["precision"]),
            f"{row['samples_per_second']:.1f}",
            *(f"{1e3 * row[name]:.1f}" for name in ("step", *PARTS)),
            f"{row['ratio']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][1]:.2f})",
            f"{row['share']:.0%}" if row["variant"] != BASELINE else "",
        ]
        for row in rows
    ]
    return markdown_table(
        ["training", "variant", "precision", "samples/s", "step (ms)", *PARTS, "times as fast", "share"], lines
    )


def totals(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each variant: all steps that the configs plan, of all trainings that were measured."""
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row["variant"]] = seconds.get(row["variant"], 0.0) + row["planned_steps"] * row["step"]
    first = next(iter(seconds.values()))
    lines = [[name, f"{total:.0f}", f"{first / total:.2f}"] for name, total in seconds.items()]
    return markdown_table(["all steps of the trainings", "seconds", "times as fast"], lines)


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What `--check` finds."""
    found = []
    for row in (one for one in rows if one["variant"] == OURS):
        least = SHARES[row["training"]]
        if row["share"] < least:
            found.append(f"{row['training']}: share {row['share']:.2f} is below {least}")
        if row["ratio"] < LEAST_RATIO:
            found.append(f"{row['training']}: {row['ratio']:.2f} times as fast as the baseline")
    return found


def save(folder: Path, rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    """Writes training.json and training.md, which is returned."""
    # Not at the top: a worker runs this file with the package of another checkout, which may lack them.
    from hf_vq.evaluation.report_text import save_report, versions_text

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = {
        **{"hardware": describe_hardware(device), "versions": package_versions(), "configs": args.configs},
        **{"turns": args.turns, "chunk": args.chunk, "flags": args.flags},
    }
    made_on = f"{settings['hardware']}; {versions_text(settings['versions'])}; "
    text = f"{table(rows)}\n\n{totals(rows)}\n\n{made_on}medians of {args.turns} x {args.chunk} steps.\n"
    save_report(folder / "training.json", {"settings": settings, "rows": rows}, text)
    return text


def main() -> None:
    """Parse, measure, save, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, type=Path, help="folder that scripts/quickstart.py filled")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark-training"))
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), metavar="NAME")
    parser.add_argument("--configs", default="quickstart", help="family of files in scripts/configs")
    parser.add_argument("--baseline", type=Path, help="another checkout of this repository")
    names = list(VARIANTS)
    parser.add_argument("--variants", nargs="*", choices=names, default=[], metavar="NAME", help=str(names))
    parser.add_argument("--mixed_precision", help="no, bf16 or fp16; by default what the quickstart picks")
    parser.add_argument("--turns", type=int, default=6, help="turns of each variant, after one that warms up")
    parser.add_argument("--chunk", type=int, default=6, help="steps in a turn")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is below its limit")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="further flags of the trainings, after --")
    args = parser.parse_args()
    if args.worker:
        work(args, args.flags)
        return
    for name, least in (("turns", 1), ("chunk", 2)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least {least}")
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for training in args.trainings for row in measure(args, training, Path(folder))]
    print(save(args.output_dir, rows, args))
    if args.check and (found := failures(rows)):
        raise ValueError("; ".join(found))


if __name__ == "__main__":
    run(main)
