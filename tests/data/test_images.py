import gzip
import struct

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil

from hf_vq.data import ImageDataset, MissingSplitError, make_image_processor

COUNTS = {"train": 20, "t10k": 6}


def idx_bytes(array):
    """An array of bytes in IDX format, as Yann LeCun's page describes it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_arrays():
    """Images whose pixels tell their file and number, and labels 0 to 4."""
    arrays = {}
    for prefix, count in COUNTS.items():
        images = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 6), np.uint8)
        arrays[f"{prefix}-images-idx3-ubyte"] = images + (100 if prefix == "t10k" else 0)
        arrays[f"{prefix}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 5
    return arrays


def write_idx(folder, compressed=False):
    for name, array in idx_arrays().items():
        content = idx_bytes(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def picture(number, mode="RGB", size=(6, 4)):
    return Image.fromarray(np.full((size[1], size[0], 3), number, np.uint8)).convert(mode)


def labelled(count, first=0, **columns):
    """A split with an image column named picture and a ClassLabel column named kind."""
    return datasets.Dataset.from_dict(
        {
            "picture": [picture(first + number) for number in range(count)],
            "kind": [number % 2 for number in range(count)],
            **{name: values[:count] for name, values in columns.items()},
        }
    ).cast_column("kind", datasets.ClassLabel(names=["cat", "dog"]))


def first_pixels(dataset):
    return [int(value) for value in dataset.pixels().reshape(len(dataset), -1)[:, 0]]


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_files_hold_out_the_last_tenth_for_validation(tmp_path, compressed):
    write_idx(tmp_path, compressed)
    train, validation, test = (ImageDataset(tmp_path, split) for split in ("train", "validation", "test"))
    assert first_pixels(train) == list(range(18))
    assert first_pixels(validation) == [18, 19]
    assert first_pixels(test) == list(range(100, 106))
    assert [validation.label(i) for i in range(2)] == [3, 4]
    assert train.pixels().shape == (18, 4, 6)
    assert train.pixels().dtype == torch.uint8
    assert test.label_names == ["0", "1", "2", "3", "4"]


def test_an_item_is_what_the_processor_makes_of_the_image(tmp_path):
    dataset = ImageDataset(write_idx(tmp_path), "test", make_image_processor(8, channels=1), cache=True)
    item = dataset[-1]
    assert item["labels"] == 0
    assert item["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(item["pixel_values"], torch.full((1, 8, 8), 105 / 127.5 - 1))
    assert torch.equal(dataset[5]["pixel_values"], item["pixel_values"])
    assert dataset.image(0).mode == "L"
    with pytest.raises(IndexError):
        dataset[6]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_either_kind_fit_a_processor_of_either_kind(tmp_path, channels):
    write_idx(tmp_path)
    datasets.DatasetDict(test=labelled(2)).save_to_disk(tmp_path / "saved")
    processor = make_image_processor(5, channels)
    for source in (tmp_path, tmp_path / "saved"):
        assert ImageDataset(source, "test", processor)[0]["pixel_values"].shape == (channels, 5, 5)


def test_names_of_mnist_labels_can_be_given(tmp_path):
    write_idx(tmp_path)
    names = ["shirt", "trouser", "coat", "bag", "boot"]
    assert ImageDataset(tmp_path, "train", label_names=names).label_names == names
    with pytest.raises(ValueError, match=r"found 2 label_names, expected 5"):
        ImageDataset(tmp_path, "train", label_names=names[:2])


def test_a_saved_data_set_holds_out_images_for_validation_when_it_has_none(tmp_path):
    datasets.DatasetDict(train=labelled(20), test=labelled(3, first=100)).save_to_disk(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    train, validation, test = (ImageDataset(tmp_path, split) for split in ("train", "validation", "test"))
    assert len(validation) == 2
    assert sorted(first_pixels(train) + first_pixels(validation)) == list(range(20))
    assert first_pixels(ImageDataset(tmp_path, "validation")) == first_pixels(validation)
    assert first_pixels(test) == [100, 101, 102]
    for dataset in (train, validation):
        assert [dataset.label(i) for i in range(len(dataset))] == [pixel % 2 for pixel in first_pixels(dataset)]
    assert test.label_names == ["cat", "dog"]
    assert test.pixels().shape == (3, 4, 6, 3)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_validation_split_of_the_source_is_taken_as_it_is(tmp_path):
    datasets.DatasetDict(train=labelled(10), validation=labelled(4, first=50)).save_to_disk(tmp_path)
    assert first_pixels(ImageDataset(tmp_path, "validation")) == [50, 51, 52, 53]
    assert len(ImageDataset(tmp_path, "train")) == 10


def test_a_folder_of_images_for_each_class(tmp_path):
    for split in ("train", "test"):
        for label, name in enumerate(("bag", "boot")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                picture(10 * label + number, "L").save(tmp_path / split / name / f"{number}.png")
    test = ImageDataset(tmp_path, "test", make_image_processor(4))
    assert test.label_names == ["bag", "boot"]
    assert first_pixels(test) == [0, 1, 2, 10, 11, 12]
    assert test.pixels().shape == (6, 4, 6)
    assert test[4]["labels"] == 1
    train, validation = (ImageDataset(tmp_path, split) for split in ("train", "validation"))
    assert sorted(first_pixels(train) + first_pixels(validation)) == first_pixels(test)


@pytest.mark.parametrize("folders", [["."], ["train", "test"], ["train/all", "test/all"]])
def test_a_folder_of_images_without_classes(tmp_path, folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            picture(number).save(tmp_path / folder / f"{number}.png")
    for split in ["train", "validation", "test"][: 1 + len(folders)]:
        dataset = ImageDataset(tmp_path, split, make_image_processor(4))
        assert dataset.label_names == []
        assert [set(dataset[index]) for index in range(len(dataset))] == [{"pixel_values"}] * len(dataset)
        with pytest.raises(ValueError, match="found no column of labels, expected one; name it with label_column"):
            dataset.label(0)


def test_labels_without_names_are_numbered_as_sorted_in_training(tmp_path):
    rows = {"image": [picture(number) for number in range(4)], "label": ["boot", "bag", "hat", "bag"]}
    whole = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(train=whole, test=whole.select([2, 1])).save_to_disk(tmp_path)
    test = ImageDataset(tmp_path, "test")
    assert test.label_names == ["bag", "boot", "hat"]
    assert [test.label(0), test.label(1)] == [2, 0]


def test_columns_can_be_chosen_where_there_are_several(tmp_path):
    coarse = datasets.ClassLabel(names=["thing"])
    datasets.DatasetDict(test=labelled(2, coarse=[0, 0]).cast_column("coarse", coarse)).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"found \['kind', 'coarse'\].*label_column"):
        ImageDataset(tmp_path, "test")
    assert ImageDataset(tmp_path, "test", label_column="coarse").label_names == ["thing"]
    with pytest.raises(ValueError, match=r"expected 'photo'; correct image_column"):
        ImageDataset(tmp_path, "test", image_column="photo", label_column="kind")


def test_pixels_want_images_of_one_size(tmp_path):
    images = {"image": [picture(0), picture(0, size=(5, 5))], "label": [0, 1]}
    datasets.DatasetDict(test=datasets.Dataset.from_dict(images)).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"\(4, 6\) and \(5, 5\) pixels, expected one size"):
        ImageDataset(tmp_path, "test").pixels()


def test_pixels_are_rgb_unless_all_images_are_grey(tmp_path):
    images = [picture(7, "L"), Image.new("RGB", (6, 4), (1, 2, 3))]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1]})
    datasets.DatasetDict(test=rows, validation=rows.select([0])).save_to_disk(tmp_path)
    assert ImageDataset(tmp_path, "test").pixels()[:, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]
    assert ImageDataset(tmp_path, "validation").pixels().shape == (1, 4, 6)


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_images_of_more_than_8_bits_are_refused_instead_of_clipped(tmp_path, dtype, mode):
    Image.fromarray(np.full((4, 6), 1000, dtype)).save(tmp_path / "deep.tiff")
    rows = {"image": [picture(0), {"path": str(tmp_path / "deep.tiff"), "bytes": None}], "label": [0, 1]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    datasets.DatasetDict(test=datasets.Dataset.from_dict(rows, features)).save_to_disk(tmp_path / "saved")
    dataset = ImageDataset(tmp_path / "saved", "test", make_image_processor(4))
    for read in (lambda: dataset[1], dataset.pixels):
        with pytest.raises(ValueError, match=rf"mode '{mode}' in row 1 of column 'image', expected 8 bits"):
            read()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_processor_survives_saving(tmp_path, channels):
    processor = make_image_processor(7, channels)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(loaded) is ViTImageProcessorPil
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert({1: "L", 3: "RGB"}[channels])
    first, second = (p(image, return_tensors="pt")["pixel_values"] for p in (processor, loaded))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("size", "channels", "message"), [(0, 1, "size: found 0"), (8, 2, "channels: found 2")])
def test_an_impossible_processor_is_refused(size, channels, message):
    with pytest.raises(ValueError, match=message):
        make_image_processor(size, channels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", None, "found no train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz"),
        ("train-images-idx3-ubyte", b"PNG...", "found the first bytes 50 4e 47 2e, expected 00 00 08 03"),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros((20, 4, 6), np.uint8))[:-1], "found 495 bytes, expected 16"),
        ("train-labels-idx1-ubyte", idx_bytes(np.zeros(3, np.uint8)), "found 20 images and 3 labels"),
    ],
)
def test_broken_mnist_files_are_named(tmp_path, name, content, message):
    write_idx(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ImageDataset(tmp_path, "train")


def test_a_cut_gzip_file_is_named(tmp_path):
    write_idx(tmp_path, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: found no readable file"):
        ImageDataset(tmp_path, "train")


def test_test_labels_that_training_never_had_are_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(6, 7, np.uint8)))
    with pytest.raises(ValueError, match="found test label 7, expected those of training, 0 to 4"):
        ImageDataset(tmp_path, "test")


def test_bad_sources_and_splits_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent: found no such folder, expected one with data; check the path"):
        ImageDataset(tmp_path / "absent", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: found no data set that `datasets` can load"):
        ImageDataset(tmp_path / "empty", "train")
    with pytest.raises(ValueError, match="split: found 'dev', expected one of"):
        ImageDataset(write_idx(tmp_path), "dev")
    datasets.DatasetDict(train=labelled(4)).save_to_disk(tmp_path / "saved")
    with pytest.raises(MissingSplitError, match=r"found splits \['train'\], expected 'test'"):
        ImageDataset(tmp_path / "saved", "test")
    datasets.DatasetDict(train=labelled(1)).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="found 1 training images, expected two or more"):
        ImageDataset(tmp_path / "one", "validation")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"label": [0, 1]}, "found none among the columns .*image_column"),
        ({"image": [picture(0), picture(1)], "label": [0.5, 1.5]}, "expected integers, strings or a ClassLabel"),
        ({"image": [picture(0), picture(1)], "label": ["a", None]}, "found None in column 'label'"),
    ],
)
def test_bad_columns_are_named(tmp_path, rows, message):
    datasets.DatasetDict(test=datasets.Dataset.from_dict(rows)).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=message):
        ImageDataset(tmp_path, "test")


def test_unreadable_images_are_named(tmp_path):
    rows = {"image": [{"bytes": b"no image", "path": None}, None], "label": [0, 1]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    datasets.DatasetDict(test=datasets.Dataset.from_dict(rows, features)).save_to_disk(tmp_path)
    dataset = ImageDataset(tmp_path, "test")
    for index, message in enumerate(("found no readable image in row 0", "found no image in row 1")):
        with pytest.raises(ValueError, match=message):
            dataset.image(index)
