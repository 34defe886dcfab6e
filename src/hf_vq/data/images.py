"""Images, with labels or without, as a torch data set, from MNIST-format files or any image data set of `datasets`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, ViTImageProcessorPil

from ..processors.fields import one_line
from ..processors.image_files import decode_image, open_image
from ..tables import stored_file
from .idx_files import read_idx
from .locating import load_splits, local_folder
from .splits import MissingSplitError

SPLITS = ("train", "validation", "test")
# Share of the training images that is held out for validation where a data set has no such split.
HELD_OUT_SHARE = 10
HELD_OUT_SEED = 0
MODES = {1: "L", 3: "RGB"}
GREY_MODES = ("1", "L")
# Pillow's modes of integers and floats of more than 8 bits begin with these; its convert clips their values.
DEEP_MODES = ("I", "F")
# `datasets` takes the folders of an image set's splits for classes where there are no others.
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing"}


def make_image_processor(size: int, channels: int = 3) -> BaseImageProcessor:
    """An image processor of transformers that makes square images with values in [-1, 1].

    Pipelines of transformers hand every image over as RGB, so a model that is to be used through them takes three
    channels, grey images too.

    Args:
        size: height and width in pixels.
        channels: 1 for greyscale, 3 for RGB.

    Returns:
        A processor to be called as `processor(image, return_tensors="pt")` with an image of that many channels, and to
        be saved beside the model. With three channels it turns greyscale into RGB itself.

    Raises:
        ValueError: the size is not positive, or `channels` is neither 1 nor 3.
    """
    if size < 1:
        raise ValueError(f"size: found {size}, expected a height and width in pixels of at least 1; enlarge it")
    if channels not in MODES:
        raise ValueError(f"channels: found {channels}, expected 1 (greyscale) or 3 (RGB); choose one")
    return ViTImageProcessorPil(
        size={"height": size, "width": size},
        image_mean=[0.5] * channels,
        image_std=[0.5] * channels,
        do_convert_rgb=channels == 3,
    )


class ImageDataset(Dataset[dict[str, Any]]):
    """One split of a data set of images.

    An item has `labels` (int), if the source has labels; with a processor also `pixel_values` (C, H, W) float32. Where
    the source has no validation split, one tenth of its training images is held out for it, always the same: the last
    tenth of MNIST-format files, a random one of a `datasets` data set.

    Args:
        source: folder with the four files of MNIST's format (train-images-idx3-ubyte, train-labels-idx1-ubyte,
            t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or .gz), as of Fashion-MNIST; or a `datasets` data
            set: a folder that `save_to_disk` wrote or that `load_dataset` reads, such as one of images or one with a
            folder of images for each class; or the id of either on the Hub, `owner/name` or `owner/name@revision`.
        split: "train", "validation" or "test".
        processor: image processor of transformers that makes `pixel_values`; images come to it as greyscale or RGB,
            whichever fits its `image_mean`.
        cache: keep processed items in memory, all of them in the end; they are shared, so do not change them in place.
        image_column: of a `datasets` data set, the column of images; the only one of type `Image` when absent.
        label_column: of a `datasets` data set, the column of labels; the only one of type `ClassLabel`, else `label`,
            when absent, and none if there is no such column.
        label_names: name of each label, instead of those of the source.

    Attributes:
        label_names: name of each label; digits where the labels have no names, empty where there are no labels.

    Raises:
        ValueError: the source, a file or a column is missing or malformed, or there is no such split.
    """

    def __init__(
        self,
        source: str | Path,
        split: str,
        processor: BaseImageProcessor | None = None,
        cache: bool = False,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: found {split!r}, expected one of {SPLITS}; choose one")
        self._name = f"{source} ({split})"
        self._source: ImageSource
        folder = local_folder(source)
        if any(folder.glob("*-idx?-ubyte*")):
            self._source = IdxImages(folder, split)
        else:
            self._source = DatasetImages(folder, str(source), split, image_column, label_column)
        self.label_names = self._chosen_names(label_names)
        self._processor = processor
        one_channel = processor is not None and np.shape(processor.image_mean or ()) == (1,)
        self._mode = MODES[1 if one_channel else 3]
        self._cache: dict[int, dict[str, Any]] | None = {} if cache else None

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the item of one image; raises ValueError, naming it, when it cannot be read."""
        index = range(len(self))[index]
        if self._cache is None:
            return self._load(index)
        if index not in self._cache:
            self._cache[index] = self._load(index)
        return dict(self._cache[index])

    def image(self, index: int) -> Image.Image:
        """Returns an image as it is stored; raises ValueError when it cannot be read or has more than 8 bits."""
        return self._source.image(range(len(self))[index])

    def label(self, index: int) -> int:
        """Returns the label of an image, an index into `label_names`; raises ValueError when there are no labels."""
        if self._source.labels is None:
            raise ValueError(f"{self._name}: found no column of labels, expected one; name it with label_column")
        return int(self._source.labels[range(len(self))[index]])

    def pixels(self) -> torch.Tensor:
        """All images at once: (N, H, W) uint8 where all are greyscale, (N, H, W, 3) otherwise.

        Raises:
            ValueError: the images are not all of one size, or one has more than 8 bits.
        """
        if isinstance(self._source, IdxImages):
            return torch.from_numpy(self._source.images.copy())
        images = [self.image(index) for index in range(len(self))]
        sizes = list(dict.fromkeys((image.height, image.width) for image in images))
        if len(sizes) > 1:
            raise ValueError(
                f"{self._name}: found images of {sizes[0]} and {sizes[1]} pixels, expected one size; resize them, or "
                "read them one by one through a processor"
            )
        mode = "L" if all(image.mode in GREY_MODES for image in images) else "RGB"
        return torch.from_numpy(np.stack([np.asarray(image.convert(mode)) for image in images]))

    def _load(self, index: int) -> dict[str, Any]:
        """Reads and processes one image."""
        item: dict[str, Any] = {} if self._source.labels is None else {"labels": self.label(index)}
        if self._processor is not None:
            image = self.image(index).convert(self._mode)
            item["pixel_values"] = self._processor(image, return_tensors="pt")["pixel_values"][0]
        return item

    def _chosen_names(self, names: Sequence[str] | None) -> list[str]:
        """The names given, checked against the labels, or those of the source."""
        known = self._source.label_names
        if names is not None and len(names) != len(known):
            raise ValueError(
                f"{self._name}: found {len(names)} label_names, expected {len(known)}, one for each label; correct them"
            )
        return list(known if names is None else names)


class ImageSource(Protocol):
    """Images of one split; no names and no labels where it has none."""

    label_names: list[str]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        """Returns the number of images."""

    def image(self, index: int) -> Image.Image:
        """Returns an image as it is stored."""


class IdxImages:
    """A split of a folder with the four files of MNIST's format.

    Args:
        folder: holds the files.
        split: "train" and "validation" share the files that begin with train, "test" has those with t10k.

    Raises:
        ValueError: a file is missing, cut short or of another format, or the files do not fit together.
    """

    def __init__(self, folder: Path, split: str) -> None:
        images, labels = _read_pair(folder, "t10k" if split == "test" else "train")
        num_labels = 1 + int((_read_pair(folder, "train")[1] if split == "test" else labels).max())
        if labels.max() >= num_labels:
            raise ValueError(
                f"{folder}: found test label {labels.max()}, expected those of training, 0 to {num_labels - 1}; "
                "put files of one data set together"
            )
        held_out = _held_out_count(len(images), str(folder))
        rows = {"train": slice(-held_out), "validation": slice(-held_out, None), "test": slice(None)}[split]
        self.images = images[rows]
        self.labels: npt.NDArray[np.int64] | None = labels[rows].astype(np.int64)
        self.label_names = [str(label) for label in range(num_labels)]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Returns a greyscale image."""
        return Image.fromarray(self.images[index])


class DatasetImages:
    """A split of a `datasets` data set with a column of images and, perhaps, one of labels.

    Args:
        folder: of the data set.
        source: what errors call it.
        split: "train", "validation" or "test"; "validation" is cut from "train" if there is none.
        image_column: the column of images; the only one of type `Image` when absent.
        label_column: the column of labels; the only one of type `ClassLabel`, else `label`, else none, when absent.

    Raises:
        ValueError: there is no data set or no such split, a column is missing, or a label is.
    """

    def __init__(
        self, folder: Path, source: str, split: str, image_column: str | None, label_column: str | None
    ) -> None:
        from datasets import Image as ImageFeature

        splits = load_splits(folder, source)
        self._name, self._folder = f"{source} ({split})", folder
        dataset, self._rows = _rows_of_split(splits, split, source)
        self._image_column = _image_column(dataset.features, image_column, self._name)
        # undecoded, because the decoder of `datasets` takes every format and size
        images = dataset.select_columns([self._image_column])
        self._images = images.cast_column(self._image_column, ImageFeature(decode=False))
        self.label_names: list[str] = []
        self.labels: npt.NDArray[np.int64] | None = None
        label_column = _label_column(dataset.features, label_column, self._name)
        if label_column is not None:
            self.label_names, labels = _labels_of(dataset, splits.get("train", dataset), label_column, self._name)
            self.labels = labels[self._rows]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._rows)

    def image(self, index: int) -> Image.Image:
        """Returns an image as it is stored; raises ValueError when it cannot be read or has more than 8 bits."""
        row = int(self._rows[index])
        stored: dict[str, Any] | None = self._images[row][self._image_column]
        if stored is None:
            raise ValueError(
                f"{self._name}: found no image in row {row} of column {self._image_column!r}, expected one; drop the "
                "row"
            )
        try:
            content = stored.get("bytes")
            path = "" if content is not None else stored_file(str(stored.get("path") or ""), self._folder, "image")
            image = open_image(path) if content is None else decode_image(content, "image")
        except ValueError as error:
            raise ValueError(
                f"{self._name}: found no readable image in row {row} of column {self._image_column!r} "
                f"({one_line(error)}), expected one; write it again or drop the row"
            ) from error
        if image.mode.startswith(DEEP_MODES):
            raise ValueError(
                f"{self._name}: found an image of mode {image.mode!r} in row {row} of column {self._image_column!r}, "
                "expected 8 bits a channel; scale its values to 0 to 255 and save it as mode 'L' or 'RGB'"
            )
        return image


def _read_pair(folder: Path, prefix: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images (N, H, W) and labels (N,) of one pair of files, as many of the one as of the other."""
    images = read_idx(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"{folder}: found {len(images)} images and {len(labels)} labels in the files {prefix}-*, expected as many "
            "of both and at least one; put files of one data set together"
        )
    return images, labels


def _held_out_count(num_images: int, name: str) -> int:
    """How many training images become the validation split."""
    if num_images < 2:
        raise ValueError(f"{name}: found {num_images} training images, expected two or more to hold one out; add some")
    return max(1, num_images // HELD_OUT_SHARE)


def _rows_of_split(splits: dict[str, Any], split: str, source: str) -> tuple[Any, npt.NDArray[np.int64]]:
    """The data set that holds a split, and which of its rows are the split's."""
    cut = split != "test" and "validation" not in splits
    name = "train" if cut else split
    if name not in splits:
        raise MissingSplitError(
            f"{source}: found splits {list(splits)}, expected {name!r} among them; save a DatasetDict that has it"
        )
    dataset = splits[name]
    if not cut:
        if len(dataset) == 0:
            raise ValueError(f"{source} ({split}): found no rows, expected at least one image; fill the split")
        return dataset, np.arange(len(dataset))
    held_out = _held_out_count(len(dataset), source)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(HELD_OUT_SEED)).numpy()
    return dataset, np.sort(order[:held_out] if split == "validation" else order[held_out:])


def _image_column(features: Any, wanted: str | None, name: str) -> str:
    """The column asked for, else the only one of images."""
    from datasets import Image as ImageFeature

    found = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    return _chosen_column(features, found, "image_column", wanted, name)


def _label_column(features: Any, wanted: str | None, name: str) -> str | None:
    """The column asked for, else the only one of type `ClassLabel`, else `label`, else none."""
    from datasets import ClassLabel

    named = {column: feature.names for column, feature in features.items() if isinstance(feature, ClassLabel)}
    found = [column for column, names in named.items() if not SPLIT_FOLDERS.issuperset(names)]
    found = found or [column for column in features if column == "label" and column not in named]
    if wanted is None and not found:
        return None
    return _chosen_column(features, found, "label_column", wanted, name)


def _chosen_column(features: Any, found: list[str], flag: str, wanted: str | None, name: str) -> str:
    """The column wanted, which must exist, or the only one that was found to fit."""
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"{name}: found columns {list(features)}, expected {wanted!r}; correct {flag}")
        return wanted
    if len(found) != 1:
        raise ValueError(
            f"{name}: found {found or 'none'} among the columns {list(features)} that can be {flag}, expected one; "
            f"name it with {flag}"
        )
    return found[0]


def _labels_of(dataset: Any, train: Any, column: str, name: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Label names and the label of each row; values that are not of type `ClassLabel` are numbered as sorted."""
    from datasets import ClassLabel

    feature = dataset.features[column]
    named = isinstance(feature, ClassLabel)
    classes = list(range(feature.num_classes)) if named else _sorted_values(train, column, name)
    number = {value: index for index, value in enumerate(classes)}
    values = dataset[column][:]
    unknown = [value for value in values if value not in number]
    if unknown:
        raise ValueError(
            f"{name}: found {unknown[0]!r} in column {column!r}, expected one of the labels {classes}; drop or correct "
            "the row"
        )
    names = list(feature.names) if named else [str(value) for value in classes]
    return names, np.array([number[value] for value in values], dtype=np.int64)


def _sorted_values(train: Any, column: str, name: str) -> list[Any]:
    """The distinct integers or strings of a column, sorted."""
    values = [value for value in train.unique(column) if value is not None]
    if not values or not all(isinstance(value, int | str) for value in values):
        raise ValueError(
            f"{name}: found {train.features[column]} in column {column!r}, expected integers, strings or a ClassLabel; "
            "choose another label_column"
        )
    return sorted(values)
