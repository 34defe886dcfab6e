"""Encodes a paired data set once with trained tokenizers and stores the codes as a `datasets` data set.

    python scripts/encode_codes.py --data cohort --volume_tokenizer volume-tokenizer --view_tokenizer view-tokenizer \\
        --output_dir codes

The result has the splits of the data, and for each subject the columns `subject`, `codes` (the volume's grid) and one
per view (that view's grid), all int32.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Array2D, Array3D, Dataset, DatasetDict, Features, Value
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_vq import CTVolumeProcessor, VQTokenizer, XrayImageProcessor
from hf_vq.data import PairedDataset
from hf_vq.files import atomic_directory
from hf_vq.models import load_tokenizer
from hf_vq.training.arguments import run

SPLITS = ("train", "validation", "test")


def check_views(source: str, datasets: dict[str, PairedDataset]) -> None:
    """Raises ValueError when the splits do not show the same views."""
    found = {split: dataset.view_names for split, dataset in datasets.items()}
    if len({tuple(names) for names in found.values()}) > 1:
        raise ValueError(f"{source}: found the views {found}, expected the same in all splits; complete metadata.csv")


@torch.no_grad()
def encode_split(
    dataset: PairedDataset, volume_tokenizer: VQTokenizer, view_tokenizer: VQTokenizer, batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row of codes for each subject."""
    device = volume_tokenizer.device
    for batch in tqdm(DataLoader(dataset, batch_size=batch_size), desc="encode"):
        codes = volume_tokenizer.encode(batch["pixel_values"].to(device)).codes
        views = batch["view_pixel_values"].to(device)
        view_codes = view_tokenizer.encode(views.flatten(0, 1)).codes.unflatten(0, views.shape[:2])
        for index, subject in enumerate(batch["subject"]):
            by_view = dict(zip(dataset.view_names, view_codes[index].int().cpu().numpy(), strict=True))
            yield {"subject": subject, "codes": codes[index].int().cpu().numpy(), **by_view}


def main() -> None:
    """Parse, build, loop, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="paired folder or data set id")
    parser.add_argument(
        "--volume_tokenizer", required=True, help="folder or Hub id of the 3D tokenizer and its processor"
    )
    parser.add_argument(
        "--view_tokenizer", required=True, help="folder or Hub id of the 2D tokenizer and its processor"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    volume_tokenizer = load_tokenizer(args.volume_tokenizer, 3, device)
    view_tokenizer = load_tokenizer(args.view_tokenizer, 2, device)
    volume_processor = CTVolumeProcessor.from_pretrained(args.volume_tokenizer)
    view_processor = XrayImageProcessor.from_pretrained(args.view_tokenizer)
    datasets = {
        split: PairedDataset(args.data, split, volume_processor=volume_processor, view_processor=view_processor)
        for split in SPLITS
    }
    check_views(args.data, datasets)
    with atomic_directory(args.output_dir, overwrite=args.overwrite, marker="train/dataset_info.json") as temporary:
        splits = {}
        for split, dataset in datasets.items():
            rows = list(encode_split(dataset, volume_tokenizer, view_tokenizer, args.batch_size))
            grids = {name: Array2D(rows[0][name].shape, "int32") for name in dataset.view_names}
            grids["codes"] = Array3D(rows[0]["codes"].shape, "int32")
            splits[split] = Dataset.from_list(rows, features=Features({"subject": Value("string"), **grids}))
        DatasetDict(splits).save_to_disk(temporary)


if __name__ == "__main__":
    run(main)
