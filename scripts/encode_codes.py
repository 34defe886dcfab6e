"""Encodes a data set once with trained tokenizers and stores the codes as a `datasets` data set.

    python scripts/encode_codes.py --data cohort --volume_tokenizer volume-tokenizer --view_tokenizer view-tokenizer \\
        --output_dir codes
    python scripts/encode_codes.py --data /usr/share/datasets/fashion-mnist --tokenizer tokenizer --output_dir codes

The result has the splits train, validation and, where the data have one, test. Of paired data it holds for each subject
the columns `subject`, `codes` (the volume's grid), one per view (that view's grid) and, where the data name classes,
`label`; of images the columns `codes` and, if all splits have labels, `label`. Codes are int32. With `--num_shifts` the
training split also holds copies of each pair, the volume moved by whole voxels and its views as parallel rays would
show it then.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Array2D, Array3D, ClassLabel, Dataset, DatasetDict, Features, Value
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from hf_vq import CTVolumeProcessor, VQTokenizer, XrayImageProcessor
from hf_vq.data import ImageDataset, MissingSplitError, PairedDataset, describe_data
from hf_vq.data.description import ENCODING_FILE
from hf_vq.data.paired_shifts import draw_shifts, shift_pair
from hf_vq.files import atomic_directory
from hf_vq.models import load_tokenizer
from hf_vq.training.arguments import run

REQUIRED_SPLITS = ("train", "validation")
TOKENIZER_FLAGS = ("tokenizer", "volume_tokenizer", "view_tokenizer")
AnyDataset = TypeVar("AnyDataset", ImageDataset, PairedDataset)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="paired or image folder, or data set id")
    parser.add_argument("--volume_tokenizer", help="paired data: folder or Hub id of 3D tokenizer and processor")
    parser.add_argument("--view_tokenizer", help="paired data: folder or Hub id of 2D tokenizer and processor")
    parser.add_argument("--tokenizer", help="images: folder or Hub id of 2D tokenizer and processor")
    parser.add_argument("--image_column", help="images: their column, where there are several")
    parser.add_argument("--label_column", help="images: the column of labels, where it is not plain")
    parser.add_argument("--label_names", nargs="+", help="images: name of each label, where the data have none")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--num_shifts", type=int, default=0, help="paired data: moved copies of each training pair, encoded too"
    )
    parser.add_argument("--max_shift", type=int, default=1, help="voxels along each axis by which copies are moved")
    parser.add_argument("--seed", type=int, default=0, help="of the shifts")
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError unless the flags name the tokenizers of one kind of data."""
    paired = [name for name in ("volume_tokenizer", "view_tokenizer") if getattr(args, name)]
    if bool(args.tokenizer) == bool(paired) or len(paired) == 1:
        given = [f"--{name}" for name in (*paired, *(["tokenizer"] if args.tokenizer else []))]
        raise ValueError(
            "expected --tokenizer for images, or --volume_tokenizer and --view_tokenizer for paired data; found "
            f"{given or 'none of them'}"
        )
    draw_shifts(args.num_shifts, args.max_shift, torch.Generator())  # too many are better found now
    if args.batch_size < 1:
        raise ValueError(f"--batch_size: found {args.batch_size}, expected at least 1")


def open_splits(open_split: Callable[[str], AnyDataset]) -> dict[str, AnyDataset]:
    """The data sets of all splits; raises ValueError when there is none for training or validation."""
    datasets = {split: open_split(split) for split in REQUIRED_SPLITS}
    try:
        return {**datasets, "test": open_split("test")}
    except MissingSplitError:
        return datasets


def check_views(source: str, datasets: dict[str, PairedDataset]) -> None:
    """Raises ValueError when the splits do not show the same views."""
    found = {split: dataset.view_names for split, dataset in datasets.items()}
    if len({tuple(names) for names in found.values()}) > 1:
        raise ValueError(f"{source}: found the views {found}, expected the same in all splits; complete metadata.csv")


def class_names(datasets: dict[str, PairedDataset]) -> list[str]:
    """Names of all classes in all splits, sorted; none where a split has no column of labels."""
    if any(dataset.labels is None for dataset in datasets.values()):
        return []
    return sorted({label for dataset in datasets.values() for label in dataset.labels or () if label})


class ShiftedCopies(TorchDataset[dict[str, Any]]):
    """Each subject of a paired data set, followed by `num_shifts` copies moved by shifts of their own."""

    def __init__(self, dataset: PairedDataset, num_shifts: int, max_shift: int, seed: int) -> None:
        self._dataset, self._copies = dataset, 1 + num_shifts
        generator = torch.Generator().manual_seed(seed)
        self._shifts = [draw_shifts(num_shifts, max_shift, generator) for _ in range(len(dataset))]
        self._last: tuple[int, dict[str, Any]] = (-1, {})  # copies follow each other: a subject is read once

    def __len__(self) -> int:
        return len(self._dataset) * self._copies

    def __getitem__(self, index: int) -> dict[str, Any]:
        subject, copy = divmod(index, self._copies)
        if self._last[0] != subject:
            self._last = (subject, self._dataset[subject])
        item = self._last[1]
        if copy == 0:
            return item
        pair = (item["pixel_values"], item["view_pixel_values"])
        moved, views = shift_pair(*pair, self._dataset.view_names, self._shifts[subject][copy - 1])
        return {**item, "pixel_values": moved, "view_pixel_values": views}


@torch.no_grad()
def encode_subjects(
    dataset: PairedDataset, copies: ShiftedCopies, tokenizers: tuple[VQTokenizer, VQTokenizer], batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row of codes for each subject and each of its moved copies."""
    volume_tokenizer, view_tokenizer = tokenizers
    device = volume_tokenizer.device
    for batch in tqdm(DataLoader(copies, batch_size=batch_size), desc="encode"):
        codes = volume_tokenizer.encode(batch["pixel_values"].to(device)).codes
        views = batch["view_pixel_values"].to(device)
        view_codes = view_tokenizer.encode(views.flatten(0, 1)).codes.unflatten(0, views.shape[:2])
        for index, subject in enumerate(batch["subject"]):
            by_view = dict(zip(dataset.view_names, view_codes[index].int().cpu().numpy(), strict=True))
            yield {"subject": subject, "codes": codes[index].int().cpu().numpy(), **by_view}


def encode_paired(args: argparse.Namespace, device: torch.device) -> DatasetDict:
    """Codes of the volumes and views of all splits."""
    volume_tokenizer = load_tokenizer(args.volume_tokenizer, 3, device)
    view_tokenizer = load_tokenizer(args.view_tokenizer, 2, device)
    processors = {
        "volume_processor": CTVolumeProcessor.from_pretrained(args.volume_tokenizer),
        "view_processor": XrayImageProcessor.from_pretrained(args.view_tokenizer),
    }
    datasets = open_splits(lambda split: PairedDataset(args.data, split, **processors))
    check_views(args.data, datasets)
    classes, splits = class_names(datasets), {}
    for split, dataset in datasets.items():
        copies = ShiftedCopies(dataset, args.num_shifts if split == "train" else 0, args.max_shift, args.seed)
        rows = list(encode_subjects(dataset, copies, (volume_tokenizer, view_tokenizer), args.batch_size))
        grids = {name: Array2D(rows[0][name].shape, "int32") for name in dataset.view_names}
        grids["codes"] = Array3D(rows[0]["codes"].shape, "int32")
        if classes:
            grids["label"] = ClassLabel(names=classes)
            label_of = dict(zip(dataset.subjects, dataset.labels, strict=True))
            for row in rows:
                label = label_of[row["subject"]]
                row["label"] = classes.index(label) if label else -1
        splits[split] = Dataset.from_list(rows, features=Features({"subject": Value("string"), **grids}))
    return DatasetDict(splits)


@torch.no_grad()
def encode_images(args: argparse.Namespace, device: torch.device) -> DatasetDict:
    """Codes of the images of all splits, and their labels if all splits have some."""
    tokenizer = load_tokenizer(args.tokenizer, 2, device)
    processor = AutoImageProcessor.from_pretrained(args.tokenizer, backend="pil")
    options = {name: getattr(args, name) for name in ("image_column", "label_column", "label_names")}
    datasets, splits = open_splits(lambda split: ImageDataset(args.data, split, processor, **options)), {}
    labelled = all(dataset.label_names for dataset in datasets.values())
    for split, dataset in datasets.items():
        loader = tqdm(DataLoader(dataset, batch_size=args.batch_size), desc=f"encode {split}")
        batches = [tokenizer.encode(batch["pixel_values"].to(device)).codes.int().cpu().numpy() for batch in loader]
        columns: dict[str, Any] = {"codes": np.concatenate(batches)}
        features: dict[str, Any] = {"codes": Array2D(columns["codes"].shape[1:], "int32")}
        if labelled:
            columns["label"] = [dataset.label(index) for index in range(len(dataset))]
            features["label"] = ClassLabel(names=dataset.label_names)
        splits[split] = Dataset.from_dict(columns, features=Features(features))
    return DatasetDict(splits)


def encoding_record(args: argparse.Namespace, codes: DatasetDict) -> dict[str, Any]:
    """Of which data the codes are, how many, and by which tokenizers, folders without the path to them: what is known
    of the data goes on to what is trained on the codes."""
    shifts = {"num_shifts": args.num_shifts, "max_shift": args.max_shift if args.num_shifts else 0, "seed": args.seed}
    rows = {split: len(dataset) for split, dataset in codes.items()}
    given = {name: getattr(args, name) for name in TOKENIZER_FLAGS if getattr(args, name)}
    tokenizers = {name: Path(text).resolve().name if Path(text).is_dir() else text for name, text in given.items()}
    return {
        "data": describe_data(args.data),
        "rows": rows,
        "tokenizers": tokenizers,
        **({} if args.tokenizer else shifts),
    }


def main() -> None:
    """Parse, load, encode, save."""
    args = parse_args()
    check_args(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with atomic_directory(args.output_dir, overwrite=args.overwrite, marker="train/dataset_info.json") as temporary:
        encode = encode_images if args.tokenizer else encode_paired
        codes = encode(args, device)
        codes.save_to_disk(temporary)
        text = json.dumps(encoding_record(args, codes), indent=2) + "\n"
        (temporary / ENCODING_FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
