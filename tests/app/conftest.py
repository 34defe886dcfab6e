"""What tests of the page share: a small pipeline, files to upload, a browser."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

sys.path.insert(0, str(Path(__file__).parent))

from webdriver import Browser, find_programs


def make_pipeline(**transformer: Any) -> ViewsToVolumePipeline:
    """An untrained pipeline of 3 x 4 x 5 codes, whose volumes differ by hundreds of HU from code to code."""
    torch.manual_seed(0)
    fields = {"base_channels": 8, "channel_multipliers": [1], "stem_stride": 4, "num_res_blocks": 1}
    quantizer = {"codebook_size": 11, "codebook_dim": 3}
    volume_tokenizer, view_tokenizer = (
        VQTokenizer(VQTokenizerConfig(spatial_dims=dims, quantizer=quantizer, num_norm_groups=4, **fields))
        for dims in (3, 2)
    )
    for tokenizer in (volume_tokenizer, view_tokenizer):
        tokenizer.quantizer.codebook.weight.data.normal_()
    shape = {"num_codes": 11, "code_grid": (3, 4, 5), "context_dim": 3, "context_grid": (4, 4)}
    code_transformer = CodeTransformer(**shape, hidden_size=16, num_layers=1, num_heads=2, **transformer)
    code_transformer.head.weight.data.normal_(std=0.3)
    pipeline = ViewsToVolumePipeline(
        volume_tokenizer=volume_tokenizer.eval(),
        view_tokenizer=view_tokenizer.eval(),
        transformer=code_transformer.eval(),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=[12, 16, 20], spacing=[10.0, 10.0, 10.0]),
        view_processor=XrayImageProcessor(size={"height": 16, "width": 16}, views_rendered=True),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def build_pipeline() -> Callable[..., ViewsToVolumePipeline]:
    """Makes small pipelines; arguments are the transformer's."""
    return make_pipeline


@pytest.fixture(scope="session")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two grey PNG files of 8 and of 16 bits, by the name of their view."""
    folder = tmp_path_factory.mktemp("views")
    draw = np.random.default_rng(0)
    files = {name: folder / f"{name}.png" for name in ("frontal", "lateral")}
    Image.fromarray(draw.integers(0, 255, (40, 32), dtype=np.uint8)).save(files["frontal"])
    Image.fromarray(draw.integers(0, 65535, (40, 32), dtype=np.uint16)).save(files["lateral"])
    return files


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A headless Chromium whose downloads lie in `tmp_path / "downloads"`."""
    programs = find_programs()
    if programs is None:
        pytest.skip("needs Chromium and its driver (Debian, Ubuntu: apt install chromium chromium-driver)")
    opened = Browser(*programs, downloads=tmp_path / "downloads")
    yield opened
    opened.close()
