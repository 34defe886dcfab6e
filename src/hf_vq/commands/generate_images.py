"""Generates images with a trained `CodeGenerationPipeline`, for class labels or without.

    hf-vq generate-images --pipeline pipeline --num_images 5000 --output_dir generated
    hf-vq generate-images --pipeline pipeline --num_images 100 --class_labels Sneaker Bag \\
        --guidance_scale 2 --output_dir sneakers-and-bags

Writes `<number>.png` and `metadata.csv` (file_name, label, label_name), a folder that `datasets` reads too. A model
with classes gets all of them in turn unless `--class_labels` or `--unlabelled` is given; the label of an unlabelled
image is -1.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AmusedScheduler
from tqdm.auto import tqdm

from ..evaluation.sampling_record import write_sampling
from ..files import atomic_directory
from ..pipelines import CodeGenerationPipeline, open_pipeline

COLUMNS = ("file_name", "label", "label_name")
SCHEDULERS = ("saved", "amused")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub id of a CodeGenerationPipeline")
    parser.add_argument("--revision", help="branch, tag or commit of the pipeline's Hub id")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_images", type=int, default=100, help="images altogether")
    parser.add_argument("--class_labels", nargs="+", help="names or numbers of classes, served in turn; all by default")
    parser.add_argument("--unlabelled", action="store_true", help="no labels, with a model that was trained with some")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--num_inference_steps", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="saved", help="amused: confidence order (MaskGIT)")
    parser.add_argument("--batch_size", type=int, default=50, help="images at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that cannot be met, before anything is loaded."""
    for name, lowest in (("num_images", 1), ("num_inference_steps", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < lowest:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least {lowest}; give a larger number")
    if args.unlabelled and args.class_labels:
        raise ValueError("--unlabelled and --class_labels contradict each other; give one of them")
    if args.scheduler == "amused" and (args.temperature, args.top_p) != (1.0, 1.0):
        raise ValueError("--scheduler amused has no --temperature and no --top_p; leave them out")


def load_pipeline(args: argparse.Namespace) -> CodeGenerationPipeline:
    """The pipeline, on a GPU when there is one, without its own progress bar."""
    pipeline = open_pipeline(args.pipeline, CodeGenerationPipeline, args.revision)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    if args.scheduler == "amused":
        pipeline.scheduler = AmusedScheduler(mask_token_id=pipeline.transformer.mask_token_id)
    return pipeline


def labels_to_generate(pipeline: CodeGenerationPipeline, args: argparse.Namespace) -> list[int]:
    """Label of every image, the classes in turn; -1 for none."""
    num_classes = pipeline.transformer.config.num_classes
    classes: list[int] = list(range(num_classes)) if num_classes and not args.unlabelled else [-1]
    if args.class_labels:
        names = pipeline.transformer.label2id
        chosen = (int(label) if label not in names and label.isdecimal() else label for label in args.class_labels)
        classes = pipeline.label_ids(list(chosen))
    return [classes[number % len(classes)] for number in range(args.num_images)]


def generators(args: argparse.Namespace, numbers: range) -> torch.Generator | list[torch.Generator]:
    """One source of randomness for each image, which depends on nothing but seed and number; of the amused scheduler,
    which takes only one, for each batch."""
    seeds = [np.random.SeedSequence([args.seed, number]).generate_state(1, np.uint64)[0] for number in numbers]
    sources = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return sources[0] if args.scheduler == "amused" else sources


def generate(
    pipeline: CodeGenerationPipeline, labels: Sequence[int], args: argparse.Namespace
) -> Iterator[tuple[int, Any]]:
    """Number and PIL image, one after another."""
    for start in tqdm(range(0, len(labels), args.batch_size), desc="generate"):
        numbers = range(start, min(start + args.batch_size, len(labels)))
        output: Any = pipeline(
            [labels[number] for number in numbers],
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            temperature=args.temperature,
            top_p=args.top_p,
            generator=generators(args, numbers),
        )
        yield from zip(numbers, output.images, strict=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, generate, save."""
    args = parse_args(arguments)
    check_args(args)
    with atomic_directory(args.output_dir, overwrite=args.overwrite, marker="000000.png") as folder:
        pipeline = load_pipeline(args)
        labels = labels_to_generate(pipeline, args)
        names = {number: name for name, number in pipeline.transformer.label2id.items()}
        with (Path(folder) / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for number, image in generate(pipeline, labels, args):
                image.save(folder / f"{number:06d}.png")
                writer.writerow([f"{number:06d}.png", labels[number], names.get(labels[number], "")])
        write_sampling(folder, pipeline, args)
