"""What the tokenizer's processor learns of its data."""

import csv

import nibabel
import numpy as np
import pytest
from PIL import Image

from hf_vq import VQTokenizerConfig
from hf_vq.training.tokenizer_data import open_tokenizer_data


@pytest.fixture
def source(tmp_path):
    """A paired data set of one subject in each split."""
    for split in ("train", "validation"):
        folder = tmp_path / split
        folder.mkdir()
        nibabel.Nifti1Image(np.zeros((4, 4, 4), dtype=np.int16), np.eye(4)).to_filename(folder / "a.nii.gz")
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(folder / "a.png")
        with (folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "frontal", "subject"), ("a.nii.gz", "a.png", "a")])
    return tmp_path


@pytest.mark.parametrize("rendered", [True, False])
def test_the_view_processor_remembers_whether_the_views_were_rendered(source, rendered):
    if rendered:
        (source / "cohort.json").write_text("{}")
    config = VQTokenizerConfig(spatial_dims=2, in_channels=1)
    assert open_tokenizer_data("paired", str(source), config, {}).processor.views_rendered is rendered
    said = {"views_rendered": not rendered}
    assert open_tokenizer_data("paired", str(source), config, said).processor.views_rendered is not rendered
    volumes = VQTokenizerConfig(spatial_dims=3, in_channels=1)
    assert not hasattr(open_tokenizer_data("paired", str(source), volumes, {}).processor, "views_rendered")
