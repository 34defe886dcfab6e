"""Encoding a data set with trained tokenizers, batch by batch, into a sharded code data set."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from datasets import Array2D, Array3D, ClassLabel, Features, Value
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

from ..data import ImageDataset, MissingSplitError, PairedDataset
from ..data.checking import Skipped, stop_message, tell_skipped, usable
from ..data.locating import local_folder
from ..data.paired_shifts import draw_shifts, shift_pair
from ..data.sharding import Shard, ShardedOutput
from ..models import VQTokenizer, load_tokenizer
from ..processors import CTVolumeProcessor, XrayImageProcessor

REQUIRED_SPLITS = ("train", "validation")
AnyDataset = TypeVar("AnyDataset", ImageDataset, PairedDataset)
Columns = dict[str, Any]


class Encoder(Protocol):
    """Items of some kind and the tokenizers that turn them into rows of codes.

    Attributes:
        items: items to encode, by split; each one makes a row.
        settings: what the codes depend on besides the data, as JSON types.
    """

    items: Mapping[str, TorchDataset[dict[str, Any]]]
    settings: dict[str, Any]

    def name(self, split: str, index: int) -> str:
        """Returns what errors call an item."""

    def encode(self, split: str, indices: Sequence[int], batch: Mapping[str, Any]) -> tuple[Features, Columns]:
        """Returns the rows of a batch of items."""


class PairedEncoder:
    """Encodes volumes and views of all splits of a paired data set.

    Args:
        source: of the data, see `PairedDataset`.
        volume_tokenizer: folder or Hub id of the 3D tokenizer and its processor.
        view_tokenizer: the same of the 2D tokenizer.
        device: where they run.
        num_shifts: copies of each training pair, moved by whole voxels.
        max_shift: voxels along each axis by which they are moved.
        seed: of the shifts.
        on_error: `"stop"` when a subject cannot be read, or `"skip"` it; see `data.checking`.

    Raises:
        ValueError: data or tokenizers cannot be loaded, or the splits have other views.
    """

    def __init__(
        self,
        source: str,
        volume_tokenizer: str,
        view_tokenizer: str,
        device: torch.device,
        num_shifts: int = 0,
        max_shift: int = 1,
        seed: int = 0,
        on_error: str = "stop",
    ) -> None:
        self._tokenizers = load_tokenizer(volume_tokenizer, 3, device), load_tokenizer(view_tokenizer, 2, device)
        processors: dict[str, Any] = {
            "volume_processor": CTVolumeProcessor.from_pretrained(volume_tokenizer),
            "view_processor": XrayImageProcessor.from_pretrained(view_tokenizer),
        }
        self._datasets = open_splits(
            lambda split: PairedDataset(source, split, **processors, allow_missing=on_error == "skip")
        )
        check_views(source, self._datasets)
        if on_error == "stop":  # before anything is encoded; those to be skipped are found when they are read
            for split, dataset in self._datasets.items():
                usable(dataset, split, on_error)
        self._classes = class_names(self._datasets)
        self.items: Mapping[str, ShiftedCopies] = {
            split: ShiftedCopies(dataset, num_shifts if split == "train" else 0, max_shift, seed)
            for split, dataset in self._datasets.items()
        }
        self.settings = {
            "tokenizers": [weights_digest(tokenizer) for tokenizer in self._tokenizers],
            "processors": [processor.to_json_string() for processor in processors.values()],
            "views": self._view_names,
            "shifts": [num_shifts, max_shift, seed] if num_shifts else None,
        }

    @property
    def _view_names(self) -> list[str]:
        return self._datasets["train"].view_names

    def name(self, split: str, index: int) -> str:
        """The subject of an item."""
        return self._datasets[split].subjects[self.items[split].subject(index)]

    @torch.no_grad()
    def encode(self, split: str, indices: Sequence[int], batch: Mapping[str, Any]) -> tuple[Features, Columns]:
        """Subjects, the codes of their volumes and views, and their labels where all splits have some."""
        volume_tokenizer, view_tokenizer = self._tokenizers
        device = volume_tokenizer.device
        codes = volume_tokenizer.encode(batch["pixel_values"].to(device)).codes.int().cpu().numpy()
        views = batch["view_pixel_values"].to(device)
        view_codes = view_tokenizer.encode(views.flatten(0, 1)).codes.unflatten(0, views.shape[:2]).int().cpu().numpy()
        columns: Columns = {"subject": batch["subject"]}
        columns.update((view, view_codes[:, number]) for number, view in enumerate(self._view_names))
        columns["codes"] = codes
        features: Columns = {"subject": Value("string")}
        features.update((view, Array2D(view_codes.shape[2:], "int32")) for view in self._view_names)
        features["codes"] = Array3D(codes.shape[1:], "int32")
        labels = self._datasets[split].labels
        if self._classes and labels is not None:
            names = [labels[self.items[split].subject(index)] for index in indices]
            columns["label"] = [self._classes.index(name) if name else -1 for name in names]
            features["label"] = ClassLabel(names=self._classes)
        return Features(features), columns


class ImageEncoder:
    """Encodes the images of all splits of an image data set.

    Args:
        source: of the data, see `ImageDataset`.
        tokenizer: folder or Hub id of the 2D tokenizer and its processor.
        device: where it runs.
        **options: `image_column`, `label_column` and `label_names` of `ImageDataset`.

    Raises:
        ValueError: data or tokenizer cannot be loaded.
    """

    def __init__(self, source: str, tokenizer: str, device: torch.device, **options: Any) -> None:
        self._tokenizer = load_tokenizer(tokenizer, 2, device)
        processor = AutoImageProcessor.from_pretrained(tokenizer, backend="pil")
        self.items: Mapping[str, ImageDataset] = open_splits(
            lambda split: ImageDataset(source, split, processor, **options)
        )
        self._labelled = all(dataset.label_names for dataset in self.items.values())
        self.settings = {
            "tokenizers": [weights_digest(self._tokenizer)],
            "processors": [processor.to_json_string()],
            "columns": options,
        }

    def name(self, split: str, index: int) -> str:
        """The number of an image."""
        return f"image {index}"

    @torch.no_grad()
    def encode(self, split: str, indices: Sequence[int], batch: Mapping[str, Any]) -> tuple[Features, Columns]:
        """Codes of the images and, where all splits have some, their labels."""
        pixels = batch["pixel_values"].to(self._tokenizer.device)
        columns: Columns = {"codes": self._tokenizer.encode(pixels).codes.int().cpu().numpy()}
        features: Columns = {"codes": Array2D(columns["codes"].shape[1:], "int32")}
        if self._labelled:
            dataset = self.items[split]
            columns["label"] = [dataset.label(index) for index in indices]
            features["label"] = ClassLabel(names=dataset.label_names)
        return Features(features), columns


class ShiftedCopies(TorchDataset[dict[str, Any]]):
    """Each subject of a paired data set, followed by `num_shifts` copies moved by shifts of their own."""

    def __init__(self, dataset: PairedDataset, num_shifts: int, max_shift: int, seed: int) -> None:
        self._dataset, self._copies = dataset, 1 + num_shifts
        generator = torch.Generator().manual_seed(seed)
        self._shifts = [draw_shifts(num_shifts, max_shift, generator) for _ in range(len(dataset))]
        self._last: tuple[int, dict[str, Any]] = (-1, {})  # copies follow each other: a subject is read once

    def __len__(self) -> int:
        return len(self._dataset) * self._copies

    def subject(self, index: int) -> int:
        """Returns the index of an item's subject."""
        return index // self._copies

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


@dataclass(frozen=True)
class _Batch:
    """Items that could be read, and what is wrong with the others."""

    indices: list[int]
    items: Any
    problems: list[tuple[int, str]]


class _Readable(TorchDataset[tuple[int, Any]]):
    """Items with their indices, and in place of one that cannot be read what is wrong with it."""

    def __init__(self, items: TorchDataset[dict[str, Any]]) -> None:
        self._items = items

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self._items[index]
        except (ValueError, OSError) as error:
            return index, " ".join(str(error).split())


def _collate(samples: list[tuple[int, Any]]) -> _Batch:
    good = [(index, item) for index, item in samples if not isinstance(item, str)]
    problems = [(index, reason) for index, reason in samples if isinstance(reason, str)]
    return _Batch([index for index, _ in good], default_collate([item for _, item in good]) if good else None, problems)


def encode(
    encoder: Encoder,
    output: ShardedOutput,
    rank: int = 0,
    num_processes: int = 1,
    batch_size: int = 8,
    num_workers: int = 0,
    skip_errors: bool = False,
) -> None:
    """Writes this process's share of the shards that are missing.

    A batch never reaches over the end of a shard, so that it is the same whatever was finished before, and so are the
    codes.

    Args:
        encoder: of the data.
        output: where to write; ready, see `ShardedOutput.writing`.
        rank: which process this is.
        num_processes: of how many.
        batch_size: items at once.
        num_workers: processes that read items.
        skip_errors: leave out items that cannot be read.

    Raises:
        ValueError: an item cannot be read, and `skip_errors` is off.
    """
    for split, items in encoder.items.items():
        shards = output.missing(split, rank, num_processes)
        batches = [
            list(shard.items[i : i + batch_size]) for shard in shards for i in range(0, len(shard.items), batch_size)
        ]
        loader = DataLoader(_Readable(items), batch_sampler=batches, num_workers=num_workers, collate_fn=_collate)
        with tqdm(loader, desc=f"encode {split}", disable=rank > 0) as progress:
            read = iter(progress)
            for shard in shards:
                skipped: list[Skipped] = []
                output.write(shard, _encoded(encoder, shard, read, batch_size, skipped, skip_errors), skipped)


def _encoded(
    encoder: Encoder, shard: Shard, loader: Iterator[_Batch], batch_size: int, skipped: list[Skipped], skip_errors: bool
) -> Iterator[tuple[Features, Columns]]:
    """The rows of a shard."""
    for _ in range(0, len(shard.items), batch_size):
        batch = next(loader)
        bad = [Skipped(shard.split, encoder.name(shard.split, index), reason) for index, reason in batch.problems]
        if bad and not skip_errors:
            raise ValueError(stop_message(bad))
        tell_skipped(bad)
        skipped.extend(bad)
        if batch.indices:
            yield encoder.encode(shard.split, batch.indices, batch.items)


def open_splits(open_split: Callable[[str], AnyDataset]) -> dict[str, AnyDataset]:
    """The data sets of all splits; raises ValueError when there is none for training or validation."""
    datasets = {split: open_split(split) for split in REQUIRED_SPLITS}
    try:
        return {**datasets, "test": open_split("test")}
    except MissingSplitError:
        return datasets


def check_views(source: str, datasets: Mapping[str, PairedDataset]) -> None:
    """Raises ValueError when the splits do not show the same views."""
    found = {split: dataset.view_names for split, dataset in datasets.items()}
    if len({tuple(names) for names in found.values()}) > 1:
        raise ValueError(f"{source}: found the views {found}, expected the same in all splits; complete metadata.csv")


def class_names(datasets: Mapping[str, PairedDataset]) -> list[str]:
    """Names of all classes in all splits, sorted; none where a split has no column of labels."""
    if any(dataset.labels is None for dataset in datasets.values()):
        return []
    return sorted({label for dataset in datasets.values() for label in dataset.labels or () if label})


def weights_digest(model: VQTokenizer | nn.Module) -> str:
    """By which a tokenizer is known, wherever its folder lies: a digest of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def files_digest(source: str, besides: str | Path) -> str:
    """By which a change of the data is noticed: a digest of names, sizes and times of change of their files.

    Args:
        source: folder or Hub id.
        besides: a folder that does not count, should it lie in the data's.
    """
    folder, output = local_folder(source).resolve(), Path(besides).resolve()
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts) and output not in path.parents:
            status = path.stat()
            digest.update(f"{inside.as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
