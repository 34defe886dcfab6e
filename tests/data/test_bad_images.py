"""Image files that are broken or lie: every reader says so, and nothing is lost of those that are whole."""

import gzip
import struct

import numpy as np
import pytest
from bad_files import IMAGE_FAULTS, IMAGE_READERS
from PIL import Image

from hf_vq import XrayImageProcessor
from hf_vq.data import ImageDataset
from hf_vq.data.images import make_image_processor


@pytest.mark.parametrize("reader", IMAGE_READERS)
@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_a_bad_image_is_named(tmp_path, fault, reader):
    write, words = IMAGE_FAULTS[fault]
    write(tmp_path / "view.png")
    with pytest.raises(ValueError, match=rf"view\.png: {words}"):
        IMAGE_READERS[reader](tmp_path / "view.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_8_and_16_bits_are_both_read_with_all_their_bits(tmp_path, dtype, suffix):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (7, 5), dtype=dtype)
    Image.fromarray(pixels).save(tmp_path / f"view{suffix}")
    for read in (lambda path: XrayImageProcessor()(path)["pixel_values"][0, 0],):
        np.testing.assert_allclose(read(tmp_path / f"view{suffix}") / 2 + 0.5, pixels / np.iinfo(dtype).max, atol=1e-6)


def test_an_image_that_is_no_file_is_named(tmp_path):
    (tmp_path / "view.png").mkdir()
    with pytest.raises(ValueError, match=r"view.png: found a folder, expected an image; check the path"):
        XrayImageProcessor()(tmp_path / "view.png")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**10, 2**10), "found an array of .* declared in a file of"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(2**26), "found more bytes, expected 16 and then an array"),
        (struct.pack(">4B2I", 0, 0, 8, 3, 2, 2), "found 12 bytes, expected 16 and"),
    ],
    ids=["too much declared", "more than declared", "cut in the header"],
)
def test_mnist_files_that_lie_are_named(tmp_path, suffix, content, words):
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte{suffix}: {words}"):
        ImageDataset(tmp_path, "train", make_image_processor(8))
