"""Kills trainings, extractions and preparations at random moments, goes on, and compares with what was never killed.

    python scripts/run_fault_tests.py --runs 20 --output docs/reliability.md

Each run starts a command on tiny data in a process of its own, kills it with SIGKILL, checks that no finished
checkpoint is damaged, starts the same command again, and compares all that it leaves, bit for bit, with what the same
command left without being killed. Half of the moments are drawn from the whole duration; for the other half the process
is killed as soon after such a moment as a file appears, grows or vanishes. A process that ended before its moment does
not count, and another one is drawn. Everything is drawn from --seed; what a moment hits depends on the machine.

The table takes the place of the one between the marks in --output, or is all of a new file. Exit status 1 if a run
did not recover.
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import platform
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import nibabel
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

import hf_vq
from hf_vq.data import render_views
from hf_vq.files import atomic_file
from hf_vq.training.arguments import run
from hf_vq.training.checkpoints import list_checkpoints, read_info
from hf_vq.training.record import describe_hardware

SCRIPTS = Path(__file__).parent
SIDE, SPACING = 16, 22.0
COUNTS = {"train": 8, "validation": 2, "test": 2}
PRELOADED = [
    "hf_vq.training.run",
    "hf_vq.evaluation.sheets",
    "hf_vq.data",
    "hf_vq.models",
    "hf_vq.pipelines",
    "datasets",
]
# What differs between any two runs: times, and the lines that a killed run had written after its last checkpoint.
VARYING = ("logs.jsonl", "training.json")
MARKS = "<!-- faults: begin -->\n<!-- faults: end -->\n"
POLL_SECONDS = 0.002
LONGEST_SECONDS = 300.0
MODEL = {
    "base_channels": "8",
    "num_norm_groups": "4",
    "stem_stride": "4",
    "channel_multipliers": "[1]",
    "quantizer.codebook_size": "16",
    "quantizer.codebook_dim": "4",
}
STEPS = {
    "max_train_steps": "12",
    "logging_steps": "4",
    "validation_steps": "6",
    "checkpointing_steps": "2",
    "train_batch_size": "4",
}


@dataclass
class Target:
    """A command whose interruption is tested.

    Attributes:
        name: in the table.
        script: file in scripts/.
        folder: in which it leaves what the commands after it need.
        flags: all but the output folder.
        resume: further flags of every start but the first.
        is_training: its output holds checkpoints.
        is_tested: it is interrupted; otherwise it only runs once for those after it.
    """

    name: str
    script: str
    folder: str
    flags: list[str]
    resume: list[str] = field(default_factory=list)
    is_training: bool = False
    is_tested: bool = True


@dataclass
class Outcome:
    """What came of one run.

    Attributes:
        seconds: when it was killed, from its start.
        at_write: a file had just changed.
        problem: why it did not recover; empty if it did.
    """

    seconds: float
    at_write: bool
    problem: str = ""


def flags_of(values: dict[str, str], prefix: str = "") -> list[str]:
    """`--name value` for each entry."""
    return [text for name, value in values.items() for text in (f"--{prefix}{name}", value)]


def write_cohort(root: Path) -> Path:
    """A paired data set of boxes in air."""
    draw = np.random.default_rng(0)
    for split, count in COUNTS.items():
        (root / split).mkdir(parents=True)
        rows = [write_subject(root / split, f"{split}_{number}", draw) for number in range(count)]
        with (root / split / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


def write_subject(folder: Path, name: str, draw: np.random.Generator) -> dict[str, str]:
    """The volume and the views of a subject, and their row."""
    hu = np.full((SIDE,) * 3, -1000, np.int16)
    low = draw.integers(1, 6, 3)
    hu[low[0] : low[0] + 9, low[1] : low[1] + 9, low[2] : low[2] + 9] = draw.integers(-200, 300)
    affine = np.diag([SPACING] * 3 + [1])
    nibabel.Nifti1Image(hu.transpose(2, 1, 0), affine).to_filename(folder / f"{name}.nii.gz")
    row = {"file_name": f"{name}.nii.gz", "subject": name}
    views = render_views(torch.from_numpy(hu)[None, None].float(), [SPACING] * 3)[0, :, 0].numpy()
    for view, image in zip(("frontal", "lateral"), views, strict=True):
        row[view] = f"{name}_{view}.png"
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / row[view])
    return row


def write_scans(folder: Path) -> Path:
    """Scans as a hospital would hand them out: NIfTI files of ellipsoids in air, larger than what is prepared."""
    folder.mkdir()
    axes = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    for number in range(10):
        radii = 0.5 + 0.03 * (number + np.arange(3))
        inside = sum((axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True)) < 1
        hu = np.where(inside, 40, -1000).astype(np.int16)
        nibabel.Nifti1Image(hu, np.diag([8.0, 8.0, 8.0, 1.0])).to_filename(folder / f"scan{number}.nii.gz")
    return folder


def make_targets(root: Path) -> list[Target]:
    """The commands, with what each one needs from those before it."""
    cohort, scans = str(write_cohort(root / "cohort")), str(write_scans(root / "scans"))
    resume = ["--resume_from_checkpoint", "latest"]
    size = {"size": f"[{SIDE}, {SIDE}, {SIDE}]", "spacing": f"[{SPACING}, {SPACING}, {SPACING}]"}
    volume = [*flags_of(MODEL, "model."), *flags_of(size, "processor.")]
    view = [*flags_of(MODEL, "model."), "--model.spatial_dims", "2", "--processor.size", "{height: 16, width: 16}"]
    tokenizers = ["--volume_tokenizer", str(root / "volume"), "--view_tokenizer", str(root / "view")]
    transformer = {"hidden_size": "16", "num_layers": "2", "num_heads": "2"}
    data, steps = ["--data", cohort], flags_of(STEPS)
    return [
        Target(
            "preparation of scans",
            "prepare_scans.py",
            "prepared",
            ["--input_dir", scans, "--size", "32", "--spacing", "12", "--image_size", "32", "--seed", "1"],
        ),
        Target("tokenizer training", "train_tokenizer.py", "volume", [*data, *steps, *volume], resume, True),
        Target("view tokenizer", "train_tokenizer.py", "view", [*data, *steps, *view], resume, True, False),
        Target(
            "code extraction",
            "encode_codes.py",
            "codes",
            [*data, *tokenizers, "--num_shifts", "3", "--batch_size", "2", "--shard_size", "4"],
        ),
        Target(
            "transformer training",
            "train_code_transformer.py",
            "pipeline",
            [
                *("--data", str(root / "codes"), *tokenizers, "--validation_data", cohort),
                *("--num_inference_steps", "2", *steps, *flags_of(transformer, "model.")),
            ],
            resume,
            is_training=True,
        ),
    ]


def execute(script: str, flags: Sequence[str], log: Path) -> None:
    """The child process: becomes the command."""
    os.setsid()  # so that its workers can be killed with it
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    sys.argv = [str(SCRIPTS / script), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


class Runner:
    """Starts, kills and compares.

    Args:
        root: folder for everything.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def start(self, target: Target, output: Path, again: bool) -> BaseProcess:
        """A process that runs the command."""
        flags = [*target.flags, "--output_dir", str(output), *(target.resume if again else [])]
        process = self._context.Process(target=execute, args=(target.script, flags, output.with_suffix(".log")))
        process.start()
        return process

    def finish(self, target: Target, output: Path, again: bool) -> str:
        """Runs the command to its end; what went wrong, or nothing."""
        process = self.start(target, output, again)
        process.join(LONGEST_SECONDS)
        if process.exitcode == 0:
            return ""
        kill(process)
        lines = output.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended with {process.exitcode}: {lines[-1] if lines else 'no output'}"

    def reference(self, target: Target) -> tuple[dict[str, str], float]:
        """Digests of what the command leaves undisturbed, and how long it takes; raises ValueError if it fails."""
        output, started = self.root / target.folder, time.monotonic()
        problem = self.finish(target, output, again=False)
        if problem:
            raise ValueError(f"{target.name}: the undisturbed run {problem}; see {output.with_suffix('.log')}")
        return digests(output), time.monotonic() - started

    def interrupt(self, target: Target, output: Path, delay: float, at_write: bool) -> Outcome | None:
        """One start that is killed after `delay` seconds, with `at_write` at the first change of a file after them.

        Returns:
            What was done; None if the process ended before.
        """
        process, started = self.start(target, output, again=False), time.monotonic()
        while process.is_alive() and time.monotonic() - started < delay:
            time.sleep(POLL_SECONDS)
        before = listing(output) if at_write else {}
        while at_write and process.is_alive() and listing(output) == before:
            time.sleep(POLL_SECONDS)
        seconds, killed = time.monotonic() - started, process.is_alive()
        kill(process)
        return Outcome(seconds, at_write) if killed else None

    def run(self, target: Target, expected: dict[str, str], output: Path, draw: Callable[[], float]) -> Outcome:
        """Kill, look, go on, compare; every second run is killed at a write.

        Args:
            target: the command.
            expected: from `reference`.
            output: folder to make, whose name ends in the number of the run.
            draw: gives the moments to kill at, in seconds.
        """
        at_write, outcome = int(output.name.rpartition("-")[2]) % 2 == 1, None
        while outcome is None:
            remove(output)
            outcome = self.interrupt(target, output, draw(), at_write)
        kept = {path.name for path in list_checkpoints(output)} if target.is_training and output.is_dir() else set()
        outcome.problem = damage(output, kept)
        if not outcome.problem and compare(output, expected):  # else it was killed when all was done
            outcome.problem = self.finish(target, output, again=True) or compare(output, expected)
        return outcome


def kill(process: BaseProcess) -> None:
    """SIGKILL to a process and all that it started."""
    if process.pid is not None and process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not made its group yet
            process.kill()
    process.join()


def listing(output: Path) -> dict[str, int]:
    """Size of everything in an output folder and of its unfinished siblings."""
    siblings = [output, *output.parent.glob(f".{output.name}*")]
    found = {}
    for path in [file for sibling in siblings for file in (sibling, *sibling.rglob("*"))]:
        with suppress(OSError):  # gone since it was listed
            found[str(path)] = path.stat().st_size
    return found


def remove(output: Path) -> None:
    """Removes an output folder with its log, its lock and what is unfinished of it."""
    for path in [output, output.with_suffix(".log"), *output.parent.glob(f".{output.name}*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def damage(output: Path, names: set[str]) -> str:
    """What is wrong with the checkpoints that looked finished when the process was killed."""
    for name in sorted(names):
        try:
            read_info(output / name)
        except ValueError as error:
            return f"a finished checkpoint is damaged: {error}"
    return ""


def digests(output: Path) -> dict[str, str]:
    """Digest of each file that a command left, checkpoints and what varies left out."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in VARYING and not path.relative_to(output).parts[0].startswith(("checkpoint-", "."))
    }


def compare(output: Path, expected: dict[str, str]) -> str:
    """Which files differ from those of the undisturbed run."""
    found = digests(output)
    different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    return f"{len(different)} files differ, first {different[0]}" if different else ""


def test_target(runner: Runner, target: Target, args: argparse.Namespace) -> list[Outcome]:
    """All runs of one command."""
    expected, duration = runner.reference(target)
    draw, outcomes = Random(f"{args.seed} {target.name}"), []
    for number in tqdm(range(args.runs), desc=target.name, unit="run", disable=None):
        output = runner.root / f"{target.script.removesuffix('.py')}-{number}"
        outcomes.append(runner.run(target, expected, output, lambda: draw.uniform(0, duration)))
        if not outcomes[-1].problem:
            remove(output)
    return outcomes


def markdown(outcomes: dict[str, list[Outcome]], args: argparse.Namespace) -> str:
    """The table, with what it was made on."""
    command = f"python scripts/run_fault_tests.py --runs {args.runs} --seed {args.seed}"
    versions = f"hf-vq {hf_vq.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        f"{describe_hardware(torch.device('cpu'))}; {versions}; {platform.system()}, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}; `{command}`.",
        "",
        "| killed | runs | recovered, bit for bit | killed at a write | finished checkpoints damaged |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    counters: list[Callable[[Outcome], bool]] = [
        lambda outcome: True,
        lambda outcome: not outcome.problem,
        lambda outcome: outcome.at_write,
        lambda outcome: "checkpoint is damaged" in outcome.problem,
    ]
    rows = {**outcomes, "**all**": [outcome for several in outcomes.values() for outcome in several]}
    for name, several in rows.items():
        counts = [str(sum(map(counter, several))) for counter in counters]
        lines.append("| " + " | ".join([name, *counts]) + " |")
    return "\n".join(lines) + "\n"


def with_table(text: str, table: str) -> str:
    """A text with the table between its marks; raises ValueError if it has none."""
    begin, end = MARKS.splitlines()
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"--output: found no marks {begin} and {end} in the file; add them, or name a new file")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="interruptions of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", help="names of the commands to interrupt, as in the table")
    parser.add_argument("--output", type=Path, help="file for the table (Markdown)")
    parser.add_argument("--work_dir", type=Path, help="folder to make for the runs, and to keep")
    return parser.parse_args(arguments)


def run_all(args: argparse.Namespace, root: Path) -> dict[str, list[Outcome]]:
    """Every command, in the order in which each gives the next its data."""
    targets, runner, outcomes = make_targets(root), Runner(root), {}
    names = [target.name for target in targets if target.is_tested]
    unknown = sorted(set(args.only or ()) - set(names))
    if unknown:
        raise ValueError(f"--only: found {unknown}, expected some of {names}")
    for target in targets:
        if target.name in (args.only or names):
            outcomes[target.name] = test_target(runner, target, args)
        else:
            runner.reference(target)
    return outcomes


def main() -> None:
    """Parse, interrupt, print, save."""
    args = parse_args()
    if args.runs < 1:
        raise ValueError(f"--runs: found {args.runs}, expected at least 1")
    if args.output and args.output.exists():
        with_table(args.output.read_text(encoding="utf-8"), "")  # better now than after all the runs
    if args.work_dir is not None:
        args.work_dir.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="hf-vq-faults-") as temporary:
        outcomes = run_all(args, args.work_dir or Path(temporary))
    table = markdown(outcomes, args)
    print(table)
    if args.output:
        text = with_table(args.output.read_text(encoding="utf-8") if args.output.exists() else MARKS, table)
        with atomic_file(args.output) as path:
            path.write_text(text, encoding="utf-8")
    failed = {name: [o.problem for o in several if o.problem] for name, several in outcomes.items()}
    failed = {name: problems for name, problems in failed.items() if problems}
    if failed:
        print(json.dumps(failed, indent=2), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
