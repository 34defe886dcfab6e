"""Compares sets of generated images with real ones in the features of a classifier, beside controls.

    python scripts/evaluate_images.py --data /usr/share/datasets/fashion-mnist --tokenizer tokenizer \\
        --classifier classifier --generated generated --output_dir evaluation

Writes metrics.json, metrics.md and a picture of each set of generated images, and prints the table. `--generated` may
name several folders, each written by generate_images.py and called by its last part. The controls: real training images
(nothing does better but by chance), reconstructions of the test and of the training images (what the tokenizer costs),
and codes drawn independently at each position (what a model of codes must beat).
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from hf_vq.data import ImageDataset, describe_data
from hf_vq.evaluation.generation import (
    NO_LABEL,
    FeatureNetwork,
    GenerationSettings,
    ImageSet,
    generation_markdown,
    generation_report,
    generation_scores,
    independent_codes,
    read_generated,
)
from hf_vq.evaluation.metrics import DEFAULT_NEAREST_K
from hf_vq.evaluation.sampling_record import read_sampling
from hf_vq.evaluation.sheets import save_sample_sheet
from hf_vq.files import move_files_into
from hf_vq.models import load_tokenizer
from hf_vq.training.arguments import run

ROW_TRAIN = "training images (floor)"
ROW_RECONSTRUCTED = "reconstructed {split} images"
ROW_RECONSTRUCTED_TRAIN = "reconstructed training images (ceiling)"
ROW_INDEPENDENT = "independent codes (control)"
SHEET_COLUMNS, SHEET_ROWS = 10, 10


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder or data set id")
    parser.add_argument("--image_column", help="the column of images, where there are several")
    parser.add_argument("--label_column", help="the column of labels, where it is not plain")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="real images to compare with")
    parser.add_argument("--generated", required=True, nargs="+", help="folders of generated images")
    parser.add_argument("--classifier", required=True, help="folder or Hub id of an image classifier")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id of the tokenizer and its processor")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--num_images", type=int, default=5000, help="images of each set, at most")
    parser.add_argument("--nearest_k", type=int, default=DEFAULT_NEAREST_K, help="for density, coverage, ...")
    parser.add_argument("--batch_size", type=int, default=64, help="images at once")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that can't be met, before any work is done."""
    for name, lowest in (("num_images", 2), ("nearest_k", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < lowest:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least {lowest}")
    names = [Path(folder).name for folder in args.generated]
    if len(set(names)) < len(names):
        raise ValueError(f"--generated: found the names {names}, expected each once; rename a folder")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir: found a file at {args.output_dir}, expected a folder; choose another path")


def smallest_count(args: argparse.Namespace, datasets: dict[str, ImageDataset], generated: dict[str, ImageSet]) -> int:
    """Images of each set; raises ValueError when they are too few for the neighbourhoods."""
    found = {split: len(dataset) for split, dataset in datasets.items()}
    found |= {name: len(images.images) for name, images in generated.items()}
    count = min(args.num_images, *found.values())
    if count < args.nearest_k + 2:
        raise ValueError(
            f"--nearest_k {args.nearest_k}: found {count} images of each set (--num_images {args.num_images}, and sets "
            f"of {found}), expected at least {args.nearest_k + 2}; lower --nearest_k or take more images"
        )
    return count


def choose(dataset: ImageDataset, count: int, seed: int) -> ImageSet:
    """Images of a split at random, in their order."""
    rows = np.sort(np.random.default_rng(seed).choice(len(dataset), size=count, replace=False)).tolist()
    labels = np.array([dataset.label(row) if dataset.label_names else NO_LABEL for row in rows], dtype=np.int64)
    return ImageSet([dataset.image(row) for row in rows], labels)


class Reconstruction:
    """What a tokenizer makes of images and of codes."""

    def __init__(self, path: str, device: torch.device, batch_size: int) -> None:
        self.model = load_tokenizer(path, 2, device)
        self.processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        self.images, self.batch_size = VaeImageProcessor(), batch_size

    @torch.no_grad()
    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """Codes `(N, *grid)` of PIL images."""
        mode, codes = "L" if self.model.config.in_channels == 1 else "RGB", []
        for start in range(0, len(images), self.batch_size):
            batch = [image.convert(mode) for image in images[start : start + self.batch_size]]
            pixel_values = self.processor(batch, return_tensors="pt")["pixel_values"]
            codes.append(self.model.encode(pixel_values.to(self.model.device)).codes.cpu())
        return torch.cat(codes)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> list[Any]:
        """PIL images of codes."""
        batches = (self.model.decode(batch.to(self.model.device)).sample for batch in codes.split(self.batch_size))
        return [image for batch in batches for image in self.images.postprocess(batch, output_type="pil")]


def image_sets(
    args: argparse.Namespace, real: ImageSet, train: ImageSet, generated: dict[str, ImageSet], device: torch.device
) -> Iterator[tuple[str, ImageSet]]:
    """Every row's images: controls first."""
    tokenizer = Reconstruction(args.tokenizer, device, args.batch_size)
    train_codes = tokenizer.encode(train.images)
    yield ROW_TRAIN, train
    yield (
        ROW_RECONSTRUCTED.format(split=args.split),
        ImageSet(tokenizer.decode(tokenizer.encode(real.images)), real.labels),
    )
    yield ROW_RECONSTRUCTED_TRAIN, ImageSet(tokenizer.decode(train_codes), train.labels)
    drawn = independent_codes(train_codes, len(real.images), torch.Generator().manual_seed(args.seed))
    yield ROW_INDEPENDENT, ImageSet(tokenizer.decode(drawn), np.full(len(drawn), NO_LABEL))
    yield from generated.items()


def score_all(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, ImageSet]]:
    """The report and the generated images that it is about."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generated = {Path(folder).name: read_generated(folder) for folder in args.generated}
    columns = {name: getattr(args, name) for name in ("image_column", "label_column")}
    datasets = {split: ImageDataset(args.data, split, **columns) for split in (args.split, "train")}
    count = smallest_count(args, datasets, generated)
    network = FeatureNetwork.from_pretrained(args.classifier, device, args.batch_size)
    real, train = (choose(dataset, count, args.seed) for dataset in datasets.values())
    sets = image_sets(args, real, train, {name: one.first(count) for name, one in generated.items()}, device)

    same_classes = network.has_classes(datasets["train"].label_names)
    truth, rows = network(real if same_classes else real.unlabelled()), {}
    for name, images in tqdm(sets, desc="score", total=4 + len(generated)):
        features = network(images if same_classes else images.unlabelled())
        rows[name] = generation_scores(truth.features, features, args.nearest_k)
    settings = GenerationSettings(
        data=args.data,
        split=args.split,
        classifier=network.description,
        classifier_accuracy=truth.label_agreement,
        num_features=truth.features.shape[1],
        num_images=count,
        seed=args.seed,
        tokenizer=args.tokenizer,
        nearest_k=args.nearest_k,
        generated={Path(folder).name: read_sampling(folder) for folder in args.generated},
        data_facts=describe_data(args.data),
    )
    return generation_report(settings, rows, remarks(args, same_classes)), generated


def remarks(args: argparse.Namespace, same_classes: bool) -> list[str]:
    """Sentences that belong beside the numbers."""
    notes = [
        f"Reconstructed {args.split} images are paired with the real ones, so they score better than independent "
        "images of the same quality would; the ceiling of a generator is the row of reconstructed training images."
    ]
    if not same_classes:
        notes.append("Accuracy and label agreement left out: the classifier has other classes than the data.")
    return notes


def sheet_rows(images: ImageSet) -> dict[str, torch.Tensor]:
    """The first images of each label, or of all when they have none."""
    tensors = torch.stack([torch.from_numpy(np.array(image)) for image in images.images]) / 255
    tensors = tensors[:, None] if tensors.ndim == 3 else tensors.movedim(-1, 1)
    labels = np.unique(images.labels)[:SHEET_ROWS].tolist()
    if labels == [NO_LABEL]:
        rows = tensors[: SHEET_COLUMNS * SHEET_ROWS].split(SHEET_COLUMNS)
        return {f"row {number + 1}": row for number, row in enumerate(rows)}
    return {
        images.label_names[label]: tensors[torch.from_numpy(images.labels == label)][:SHEET_COLUMNS] for label in labels
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, score, save."""
    args = parse_args(arguments)
    check_args(args)
    report, generated = score_all(args)
    text = generation_markdown(report)
    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.output_dir.name}-", dir=args.output_dir.parent) as folder:
        finished = Path(folder)
        for name, images in generated.items():
            save_sample_sheet(finished / f"{name}.png", sheet_rows(images), title=name)
        (finished / "metrics.md").write_text(text, encoding="utf-8")
        figures = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        (finished / "metrics.json").write_text(figures + "\n", encoding="utf-8")
        move_files_into(finished, args.output_dir, last="metrics.json")
    print(text)


if __name__ == "__main__":
    run(main)
