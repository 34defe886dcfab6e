"""Memory, time and agreement of encoding and decoding in tiles, beside the whole volume at once.

    python scripts/benchmark_tiling.py --output tiling.json
    python scripts/benchmark_tiling.py --sizes 256,256,200 256,256,400 --modes exact --tile 64 --output tiling.json
    python scripts/benchmark_tiling.py --tokenizer volume-tokenizer --scan chest.nii.gz --spacing 5.5 \\
        --sizes 64,64,64 --tile 32 --output tiling-scan.json

Without `--tokenizer`, a tokenizer of the architecture in `--config` with random weights: they cost the same memory and
time as trained ones, and rounding shows as it would; what a reconstruction is worth they cannot say. Without `--scan`,
the volume is smooth noise. Sides are D,H,W, multiples of the downsampling factor.

Each measurement has a process of its own, which reads the volume from a file that is mapped into memory and writes the
reconstruction into another one. Memory is what it takes beyond the loaded model: `own`, anonymous and shared pages
(RssAnon + RssShmem of /proc/self/status, looked at every 5 ms), which the system cannot take back, and `resident`, the
peak of all resident pages (VmHWM), mapped files included. With `--output` the figures are saved as JSON, and the table
as Markdown beside it.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn import functional
from tqdm.auto import tqdm

from hf_vq import CTVolumeProcessor, VQTokenizer, VQTokenizerConfig
from hf_vq.evaluation.report_text import processor_name, save_report
from hf_vq.processors.scans import read_scan
from hf_vq.training.arguments import run

CONFIG = Path(__file__).parent / "configs" / "ct-64-volume-tokenizer.yaml"
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WHOLE, MODES = "untiled", ("untiled", "exact", "blended")
SAMPLING_INTERVAL = 0.005
# Noise of so many voxels along each axis of a volume, interpolated: structures of several sizes.
NOISE_SIDES = (4, 16, 48)


@dataclass
class Result:
    """One measurement: bytes, seconds, and means over voxels (codes) in units of the tokenizer's input.

    Attributes:
        size: sides of the volume.
        mode: `"untiled"`, `"exact"` or `"blended"`.
        own: most anonymous and shared memory beyond the loaded model.
        resident: most resident memory beyond it.
        encode: seconds.
        decode: seconds.
        reconstruction_error: mean absolute difference between reconstruction and volume.
        difference: mean absolute difference to the untiled reconstruction, if there is one.
        largest_difference: its largest value.
        other_codes: share of codes that differ from the untiled ones.
    """

    size: tuple[int, ...]
    mode: str
    own: int
    resident: int
    encode: float
    decode: float
    reconstruction_error: float
    difference: float | None = None
    largest_difference: float | None = None
    other_codes: float | None = None


class MemoryPeak:
    """Looks at this process's memory in a thread of its own, from `start` to `stop`."""

    def __init__(self) -> None:
        self.first, self.largest, self._stop = _own_bytes(), 0, threading.Event()
        CLEAR_REFS.write_text("5")  # the peak of resident memory begins anew
        self.first_resident = _status()["VmRSS"]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLING_INTERVAL):
            self.largest = max(self.largest, _own_bytes())

    def stop(self) -> tuple[int, int]:
        """Peaks of own and of resident memory beyond those at the start, bytes."""
        self._stop.set()
        self._thread.join()
        return max(self.largest - self.first, 0), _status()["VmHWM"] - self.first_resident


def _status() -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+) kB$", STATUS.read_text(), flags=re.MULTILINE)
    return {name: 1024 * int(value) for name, value in found}


def _own_bytes() -> int:
    status = _status()
    return status["RssAnon"] + status["RssShmem"]


def load(args: argparse.Namespace) -> VQTokenizer:
    """The tokenizer in eval mode, the same in every process."""
    if args.tokenizer:
        return VQTokenizer.from_pretrained(args.tokenizer).eval()
    torch.manual_seed(0)
    return VQTokenizer(VQTokenizerConfig(**yaml.safe_load(args.config.read_text(encoding="utf-8"))["model"])).eval()


def make_volume(args: argparse.Namespace, size: Sequence[int], path: Path) -> None:
    """Writes the volume, float32, to a file."""
    if args.scan:
        spacing = [args.spacing] * 3
        processor = CTVolumeProcessor.from_pretrained(args.tokenizer, size=list(size), spacing=spacing)
        array, affine = read_scan(args.scan)
        volume = processor(array, affines=affine)["pixel_values"]
    else:
        generator = torch.Generator().manual_seed(0)
        volume = torch.zeros(1, 1, *size)
        for sides in NOISE_SIDES:
            noise = torch.randn(1, 1, *[sides] * 3, generator=generator)
            volume += functional.interpolate(noise, size=tuple(size), mode="trilinear") / len(NOISE_SIDES)
    volume.clamp_(-1, 1).numpy().astype(np.float32).tofile(path)


def mapped(path: Path, size: Sequence[int], writable: bool = False) -> torch.Tensor:
    """A file of float32 as a tensor `(1, 1, *size)`; a new one is made to be written to."""
    # Copy on write without a write: torch warns of memory that it must not write to.
    return torch.from_numpy(np.memmap(path, np.float32, "w+" if writable else "c", shape=(1, 1, *size)))


def measure(args: argparse.Namespace, size: tuple[int, ...], mode: str, volume: Path, folder: Path) -> Result:
    """Encodes and decodes, in a process of its own; leaves codes and reconstruction in the folder."""
    torch.set_num_threads(args.threads)
    tokenizer, pixel_values = load(args), mapped(volume, size)
    if mode != WHOLE:
        tokenizer.enable_tiling(args.tile, mode=mode, spill_dir=args.spill_dir)
    out = mapped(folder / f"{mode}.raw", size, writable=True)
    peak = MemoryPeak()
    with torch.no_grad():
        start = time.perf_counter()
        codes = tokenizer.encode(pixel_values).codes
        middle = time.perf_counter()
        tokenizer.decode_into(codes, out)
        stop = time.perf_counter()
    own, resident = peak.stop()
    np.save(folder / f"{mode}.npy", codes.numpy())
    error = float((out - pixel_values).abs().mean())
    return Result(size, mode, own, resident, middle - start, stop - middle, error)


def _measure(connection: Any, *arguments: Any) -> None:
    connection.send(measure(*arguments))


def in_own_process(*arguments: Any) -> Result:
    """`measure` in a fresh process.

    Raises:
        RuntimeError: if the process ends without a result: out of memory, most often.
    """
    context = multiprocessing.get_context("forkserver")  # whose server imports once for all
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sending, *arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the measurement of {arguments[1:3]} ended with status {process.exitcode}") from None
    finally:
        process.join()


def compare(result: Result, folder: Path) -> None:
    """Fills in how far a result is from the untiled one, if that was measured."""
    if result.mode == WHOLE or not (folder / f"{WHOLE}.raw").exists():
        return
    whole, tiled = (mapped(folder / f"{mode}.raw", result.size) for mode in (WHOLE, result.mode))
    difference = (whole - tiled).abs()
    result.difference, result.largest_difference = float(difference.mean()), float(difference.max())
    result.other_codes = float(np.mean(np.load(folder / f"{WHOLE}.npy") != np.load(folder / f"{result.mode}.npy")))


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured with."""
    return {
        "hardware": f"{processor_name()}, {os.cpu_count()} cores",
        "threads": args.threads,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "tokenizer": str(args.tokenizer or f"{args.config.name}, random weights"),
        "volume": args.scan.name if args.scan else "smooth noise",
        "tile": args.tile,
    }


def markdown(machine: dict[str, Any], results: Sequence[Result]) -> str:
    """The table."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in machine.items()) + ".",
        "",
        "| volume | mode | own memory | resident | encode | decode | reconstruction error | difference to untiled, "
        "mean and largest | other codes |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results:
        known = row.difference is not None
        lines.append(
            f"| {' x '.join(map(str, row.size))} | {row.mode} | {row.own / 2**30:.2f} GiB | "
            f"{row.resident / 2**30:.2f} GiB | {row.encode:.1f} s | {row.decode:.1f} s | "
            f"{row.reconstruction_error:.4f} | "
            + (f"{row.difference:.1e}, {row.largest_difference:.1e} | {row.other_codes:.3%} |" if known else "| |")
        )
    return "\n".join(lines) + "\n"


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="training config with the architecture")
    parser.add_argument("--tokenizer", help="folder or Hub id of a trained 3D tokenizer instead, one channel")
    parser.add_argument("--scan", type=Path, help="NIfTI file to take the volume from; needs --tokenizer")
    parser.add_argument("--spacing", type=float, default=2.0, help="mm, of the volume made from --scan")
    parser.add_argument("--sizes", nargs="+", default=["128,128,128", "200,256,256", "400,256,256"], help="D,H,W each")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--tile", type=int, default=64, help="side of a tile in voxels")
    parser.add_argument("--spill_dir", type=Path, help="folder for feature maps; by default the system's temporary one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file; the table is saved as Markdown beside it")
    return parser


def parse_sizes(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Sides of volumes, or a ValueError."""
    for text in texts:
        if not re.fullmatch(r"\d+,\d+,\d+", text):
            raise ValueError(f"--sizes {text}: expected three sides D,H,W as 128,128,128")
    return [tuple(int(side) for side in text.split(",")) for text in texts]


@contextmanager
def scratch(args: argparse.Namespace) -> Iterator[Path]:
    """A folder for volumes and reconstructions."""
    with tempfile.TemporaryDirectory(dir=args.spill_dir) as folder:
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures everything, prints, saves."""
    args = make_parser().parse_args(arguments)
    sizes = parse_sizes(args.sizes)
    if args.scan and not args.tokenizer:
        raise ValueError(f"--scan {args.scan} needs the trained --tokenizer whose processor prepares it")
    if not CLEAR_REFS.exists():
        raise ValueError("memory is measured by means of /proc/self, which only Linux has")
    results = []
    for size in tqdm(sizes, unit="size"):
        with scratch(args) as folder:
            make_volume(args, size, folder / "volume.raw")
            for mode in args.modes:
                results.append(in_own_process(args, size, mode, folder / "volume.raw", folder))
                compare(results[-1], folder)
    machine = describe(args)
    table = markdown(machine, results)
    print(table)
    if args.output:
        save_report(args.output, {"machine": machine, "results": [asdict(result) for result in results]}, table)


if __name__ == "__main__":
    run(main)
