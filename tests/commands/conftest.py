"""Small untrained models and data on which the commands run."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.data import make_image_processor

SIDE, SPACING, IMAGE_SIDE = 12, 4.0, 16
FRONTAL = {"frontal": ("inferior", "left")}
BOTH = {**FRONTAL, "lateral": ("inferior", "posterior")}

WriteSplit = Callable[..., Path]


def make_tokenizer(spatial_dims: int, **fields: object) -> VQTokenizer:
    """An untrained tokenizer, one code for 4 voxels or pixels along each axis, whose codes differ."""
    torch.manual_seed(0)
    sizes = {"base_channels": 8, "channel_multipliers": [1], "stem_stride": 4, "num_res_blocks": 1}
    quantizer = {"codebook_size": 11, "codebook_dim": 3}
    config = VQTokenizerConfig(
        **{"spatial_dims": spatial_dims, "quantizer": quantizer, "num_norm_groups": 4, **sizes, **fields}
    )
    tokenizer = VQTokenizer(config)
    tokenizer.quantizer.codebook.weight.data.normal_()
    return tokenizer.eval()


def save_pipeline(folder: Path, view_axes: dict[str, tuple[str, str]], **fields: object) -> Path:
    """Writes a small untrained pipeline whose volumes differ by hundreds of HU."""
    grids = {"code_grid": (SIDE // 4,) * 3, "context_grid": (IMAGE_SIDE // 4,) * 2, "view_axes": view_axes}
    volume_tokenizer, view_tokenizer = make_tokenizer(3), make_tokenizer(2)
    transformer = CodeTransformer(
        num_codes=11, context_dim=3, hidden_size=16, num_layers=1, num_heads=2, **grids, **fields
    )
    # so that what a code attends to decides about it, among many likely ones
    transformer.head.weight.data.normal_(std=0.3)
    transformer.blocks[0].to_out.weight.data.mul_(30)
    whole = ViewsToVolumePipeline(
        volume_tokenizer=volume_tokenizer,
        view_tokenizer=view_tokenizer,
        transformer=transformer.eval(),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=[SIDE] * 3, spacing=[SPACING] * 3),
        view_processor=XrayImageProcessor(size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}),
    )
    whole.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline of 3 x 3 x 3 codes for the view `frontal`."""
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "pipeline", FRONTAL)


@pytest.fixture(scope="module")
def flexible(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline for two views, either of which may be missing, as may both."""
    folder = tmp_path_factory.mktemp("flexible") / "pipeline"
    return save_pipeline(folder, BOTH, view_dropout=0.5, context_dropout=0.1)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline for the view `frontal` and two classes."""
    folder = tmp_path_factory.mktemp("labelled") / "pipeline"
    return save_pipeline(folder, FRONTAL, num_classes=2, id2label={0: "small", 1: "large"})


@pytest.fixture(scope="module")
def volume_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved 3D tokenizer with its processor: 12 x 12 x 12 voxels of 4 mm."""
    folder = tmp_path_factory.mktemp("volume") / "tokenizer"
    make_tokenizer(3).save_pretrained(folder)
    CTVolumeProcessor(size=[SIDE] * 3, spacing=[SPACING] * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def view_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved 2D tokenizer with its processor: 16 x 16 pixels."""
    folder = tmp_path_factory.mktemp("view") / "tokenizer"
    make_tokenizer(2).save_pretrained(folder)
    XrayImageProcessor(size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved 2D tokenizer of colour images with a processor of transformers."""
    folder = tmp_path_factory.mktemp("picture") / "tokenizer"
    make_tokenizer(2, in_channels=3).save_pretrained(folder)
    make_image_processor(IMAGE_SIDE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_split() -> WriteSplit:
    """Writes a split of a paired folder: subjects of one letter each, with random volumes and views."""

    def write(folder: Path, subjects: str, views: tuple[str, ...] = ("frontal",), split: str = "test") -> Path:
        (folder / split).mkdir(parents=True)
        lines = [",".join(("file_name", *views, "subject"))]
        for name in subjects:
            random = np.random.default_rng(ord(name))
            volume = random.integers(-1000, 1000, (SIDE,) * 3, dtype=np.int16)
            affine = np.diag([SPACING] * 3 + [1.0])
            nibabel.Nifti1Image(volume, affine).to_filename(folder / split / f"{name}.nii.gz")
            for view in views:
                pixels = random.integers(0, 255, (IMAGE_SIDE, IMAGE_SIDE), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"{name}_{view}.png")
            lines.append(",".join((f"{name}.nii.gz", *(f"{name}_{view}.png" for view in views), name)))
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")
        return folder

    return write
