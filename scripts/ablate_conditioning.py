"""What makes a code transformer read its views: trainings that differ in one thing, with right and with wrong views.

    python scripts/ablate_conditioning.py --config scripts/configs/quickstart-code-transformer.yaml --data codes \\
        --volume_tokenizer volume-tokenizer --view_tokenizer view-tokenizer --validation_data cohort \\
        --output_dir conditioning

Every arm is a run of scripts/train_code_transformer.py with the flags of that config and those listed in `ARMS`. The
figures are those of its last validation: bits per masked code and PSNR of one generated volume, each with the views of
the subject and with those of another one. Arms whose training is complete are not trained again; one that was trained
with other flags is an error. Writes conditioning.json and conditioning.md.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_vq.files import atomic_file
from hf_vq.training.arguments import run

SCRIPT = Path(__file__).resolve().parent / "train_code_transformer.py"
PLAIN_START = ("--initialize_from_codebooks", "false", "--model.keys_start_as_queries", "false")
FREE_POSITIONS = ("--model.position_embedding", "learned")
PAPER = (
    *FREE_POSITIONS,
    *PLAIN_START,
    *("--model.context_attention", "full", "--shuffle_view_order", "true"),
    *("--loss_type", "reweighted_elbo", "--scheduler.masking", "random"),
)

# Name of each arm and the flags by which it differs from the config.
ARMS: dict[str, tuple[str, ...]] = {
    "config": (),
    "free positions": FREE_POSITIONS,
    "free positions, plain start": (*FREE_POSITIONS, *PLAIN_START),
    "plain start": PLAIN_START,
    "no start from the codebooks": ("--initialize_from_codebooks", "false"),
    "keys do not start as queries": ("--model.keys_start_as_queries", "false"),
    "full attention": ("--model.context_attention", "full"),
    "views change places": ("--shuffle_view_order", "true"),
    "reweighted_elbo": ("--loss_type", "reweighted_elbo"),
    # With an exact number of masks, as by default, it would be the loss `mlm`.
    "elbo": ("--loss_type", "elbo", "--scheduler.masking", "random"),
    "rotary axes": ("--model.position_embedding", "axial_rotary"),
    "cosine mask rates": ("--mask_rates", "cosine"),
    "code vectors": ("--code_vector_weight", "1.0"),
    "soft targets": ("--soft_target_temperature", "0.5"),
    "as the paper": PAPER,
}
FLAGS_FILE = "flags.json"
FIGURES = ("validation_bits", "validation_bits_shuffled", "validation_psnr", "validation_psnr_shuffled")


def parse_args(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Flags of this script, and those that go on to every training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help=f"names out of {list(ARMS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args, flags = parser.parse_known_args(arguments)
    unknown = sorted(set(args.arms) - set(ARMS))
    if unknown:
        raise ValueError(f"--arms: {unknown} are unknown; choose from {list(ARMS)}")
    if "--validation_data" not in flags:
        raise ValueError("--validation_data is missing; name the paired data whose volumes are to be compared")
    return args, flags


def last_validation(folder: Path) -> dict[str, float] | None:
    """Figures of a complete training's last validation; `None` if the training is not complete."""
    if not (folder / "model_index.json").is_file():
        return None
    lines = [json.loads(line) for line in (folder / "logs.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if FIGURES[0] in line]
    return {name: found[-1][name] for name in FIGURES} | {"steps": found[-1]["step"]}


def train(arm: str, seed: int, folder: Path, flags: Sequence[str]) -> dict[str, float]:
    """Trains one arm, unless that was done before with the same flags, and returns its figures."""
    figures, record, flags = last_validation(folder), folder / FLAGS_FILE, [*flags, *ARMS[arm]]
    if figures is not None and record.is_file() and json.loads(record.read_text(encoding="utf-8")) != flags:
        raise ValueError(
            f"{folder} holds a training with other flags; choose another --output_dir or remove the folder"
        )
    if figures is None:
        more = ["--seed", str(seed), "--output_dir", str(folder), "--overwrite", "true", "--checkpointing_steps", "0"]
        result = subprocess.run([sys.executable, str(SCRIPT), *flags, *more], check=False)
        figures = last_validation(folder) if result.returncode == 0 else None
        if figures is None:
            raise ValueError(f"the training of {arm!r} with seed {seed} failed; the message above tells why")
        record.write_text(json.dumps(flags), encoding="utf-8")
    return figures


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line per arm: means over the seeds."""
    lines = [
        "| arm | seeds | bits, right views | bits, others' views | difference | PSNR, right (dB) | PSNR, others' (dB) "
        "| difference (dB) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        runs = [row for row in rows if row["arm"] == arm]
        bits, wrong_bits, psnr, wrong_psnr = (sum(row[name] for row in runs) / len(runs) for name in FIGURES)
        lines.append(
            f"| {arm} | {len(runs)} | {bits:.3f} | {wrong_bits:.3f} | {wrong_bits - bits:.3f} "
            f"| {psnr:.2f} | {wrong_psnr:.2f} | {psnr - wrong_psnr:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train one arm after another, save the table after each."""
    args, flags = parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for arm in args.arms:
            folder = args.output_dir / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
            rows.append({"arm": arm, "seed": seed, **train(arm, seed, folder, flags)})
            report = {"torch": torch.__version__, "machine": platform.processor(), "flags": flags, "rows": rows}
            with atomic_file(args.output_dir / "conditioning.json") as temporary:
                temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            with atomic_file(args.output_dir / "conditioning.md") as temporary:
                temporary.write_text(markdown(rows), encoding="utf-8")
            print(markdown(rows), flush=True)


if __name__ == "__main__":
    run(main)
