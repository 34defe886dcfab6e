import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hf_vq import XrayImageProcessor

GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
FRACTION = torch.tensor([[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]])


def as_mode(mode: str) -> Image.Image:
    """The same picture in one of the grey modes of PIL."""
    if mode == "L":
        return Image.fromarray(GREY)
    if mode == "RGB":
        return Image.fromarray(GREY).convert("RGB")
    if mode == "F":
        return Image.fromarray(FRACTION.numpy())
    deep = GREY.astype(np.uint16) * 257
    return Image.fromarray(deep.astype(np.int32)) if mode == "I" else Image.fromarray(deep)


@pytest.mark.parametrize("mode", ["L", "RGB", "F", "I;16", "I"])
def test_every_grey_mode_gives_the_same_values(mode):
    image = as_mode(mode)
    assert image.mode == mode
    pixel_values = XrayImageProcessor(output_range=[0, 1])(image)["pixel_values"]
    assert pixel_values.dtype == torch.float32
    torch.testing.assert_close(pixel_values, FRACTION[None, None], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "source",
    [
        GREY,
        GREY.astype(np.uint16) * 257,
        (GREY.astype(np.uint16) * 257).astype(">u2"),
        FRACTION.numpy(),
        FRACTION.double().numpy(),
        FRACTION,
        FRACTION[None],
        GREY[..., None],
    ],
    ids=["uint8", "uint16", "big-endian", "float32", "float64", "tensor", "channel first", "channel last"],
)
def test_every_array_type_gives_the_same_values(source):
    pixel_values = XrayImageProcessor()(source)["pixel_values"]
    torch.testing.assert_close(pixel_values, 2 * FRACTION[None, None] - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_file_reads_like_its_image(tmp_path, mode):
    as_mode(mode).save(tmp_path / "view.png")
    pixel_values = XrayImageProcessor(output_range=[0, 1])([tmp_path / "view.png", str(tmp_path / "view.png")])
    torch.testing.assert_close(
        pixel_values["pixel_values"], FRACTION.expand(2, 1, 2, 3).contiguous(), rtol=0, atol=1e-6
    )


def test_the_full_scale_is_kept_and_never_stretched():
    dark = np.full((2, 3), 100, dtype=np.uint8)
    together = XrayImageProcessor(output_range=[0, 1])([dark, GREY])["pixel_values"]
    torch.testing.assert_close(together[0], torch.full((1, 2, 3), 100 / 255))


def test_shrinking_averages_and_growing_keeps_a_constant():
    checks = (np.indices((16, 16)).sum(axis=0) % 2).astype(np.float32)
    small = XrayImageProcessor(size={"height": 4, "width": 2}, output_range=[0, 1])(checks)["pixel_values"]
    assert small.shape == (1, 1, 4, 2)
    torch.testing.assert_close(small, torch.full((1, 1, 4, 2), 0.5), rtol=0, atol=0.05)
    large = XrayImageProcessor(size={"height": 40, "width": 40})(np.full((16, 16), 0.25))["pixel_values"]
    torch.testing.assert_close(large, torch.full((1, 1, 40, 40), -0.5))


def test_rows_stay_rows_when_the_size_changes():
    image = np.zeros((8, 8), dtype=np.float32)
    image[:2, 6:] = 1.0
    small = XrayImageProcessor(size={"height": 4, "width": 4}, output_range=[0, 1])(image)["pixel_values"]
    assert small[0, 0].argmax() == 3


def test_it_saves_loads_and_passes_through_the_auto_class(tmp_path):
    processor = XrayImageProcessor(size={"height": 3, "width": 4}, output_range=[0, 1])
    processor.save_pretrained(tmp_path)
    for loaded in (XrayImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is XrayImageProcessor
        assert loaded.to_dict() == processor.to_dict()


def colour_image() -> Image.Image:
    return Image.fromarray(np.stack([GREY, GREY, 255 - GREY], axis=-1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (colour_image(), "found a colour image, expected grey; convert it first"),
        (Image.new("RGBA", (2, 2)), r"found image mode RGBA, expected L, I;16, I, F or grey RGB; convert it first"),
        (Image.new("P", (2, 2)), "found image mode P"),
        (Image.new("1", (2, 2)), "found image mode 1"),
        (Image.fromarray(np.array([[-5, 70000]], dtype=np.int32)), r"found values -5 \.\.\. 70000, expected 0"),
        (Image.fromarray(np.array([[0.0, 1.5]], dtype=np.float32)), r"found values 0 \.\.\. 1.5, expected floats in"),
        (np.array([[0.0, np.nan]]), "found values nan"),
        (np.zeros((2, 2), dtype=np.int64), "found values of type int64, expected uint8, uint16 or float"),
        (np.zeros((2, 2, 3), dtype=np.uint8), r"found an array of shape \(2, 2, 3\), expected \(rows, columns\)"),
        (np.zeros((0, 2), dtype=np.uint8), r"found an array of shape \(0, 2\)"),
        (3, "found int, expected a path, a PIL image, an array or a tensor"),
    ],
)
def test_other_images_are_refused_with_a_remedy(image, message):
    with pytest.raises(ValueError, match=f"^image: {message}"):
        XrayImageProcessor()(image)


def test_the_file_of_a_refused_image_is_named(tmp_path):
    colour_image().save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo.png: found a colour image"):
        XrayImageProcessor()(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo.png: found a colour image"):
        XrayImageProcessor()(Image.open(tmp_path / "photo.png"))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.png: found no such file, expected an image; check the path"):
        XrayImageProcessor()(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png: found no readable image .*; convert it"):
        XrayImageProcessor()(tmp_path / "text.png")
    as_mode("L").resize((64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut.png: found no readable image"):
        XrayImageProcessor()(tmp_path / "cut.png")


def test_images_of_different_sizes_need_a_size():
    with pytest.raises(ValueError, match=r"found images of sizes \[\(2, 3\), \(3, 2\)\] in one batch.*set `size`"):
        XrayImageProcessor()([GREY, GREY.T])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 64}, "size: found 64, expected {'height': rows, 'width': columns}"),
        ({"size": {"height": 64}}, "size: found"),
        ({"size": {"height": 64, "width": 0}}, "size: found"),
        ({"output_range": [1, -1]}, r"output_range: found \[1, -1\], expected \[low, high\]"),
    ],
)
def test_malformed_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=f"{message}.*; correct the config"):
        XrayImageProcessor(**fields)


def test_a_misspelt_argument_is_named():
    with pytest.raises(ValueError, match=r"found argument \['sizes'\]"):
        XrayImageProcessor()(GREY, sizes=3)
