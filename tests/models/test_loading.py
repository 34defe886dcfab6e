"""What is said where there is no tokenizer, or something else in its place."""

import json

import pytest

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.models import load_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading") / "tokenizer"
    fields = {"base_channels": 4, "num_norm_groups": 2, "channel_multipliers": [1], "stem_stride": 4}
    VQTokenizer(VQTokenizerConfig(spatial_dims=2, quantizer={"codebook_size": 4}, **fields)).save_pretrained(folder)
    return folder


def test_a_tokenizer_of_either_dimension_is_loaded_where_none_is_asked_for(saved):
    assert load_tokenizer(saved).config.spatial_dims == load_tokenizer(saved, 2).config.spatial_dims == 2
    with pytest.raises(ValueError, match="is a 2D tokenizer; expected a 3D one"):
        load_tokenizer(saved, 3)


@pytest.mark.parametrize("source", ["no/such/tokenizer", "./tokenizer", "/tokenizer", "there/tokenizer", "tokenizer/"])
def test_a_wrong_path_is_one_line_and_not_sought_on_the_hub(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=f"^{source}: found no such folder.*; and it is not sought on") as error:
        load_tokenizer(source)
    assert "\n" not in str(error.value)


def test_a_name_that_the_hub_does_not_give_may_be_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = r"^no-such-tokenizer: found neither such a folder nor such a name on the Hub \(.+\)"
    with pytest.raises(ValueError, match=words) as error:
        load_tokenizer("no-such-tokenizer")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_says_what_it_is(tmp_path, saved):
    with pytest.raises(ValueError, match="found a file"):
        load_tokenizer(saved / "config.json")
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"without config\.json: nothing was saved there"):
        load_tokenizer(folder)
    (folder / "logs.jsonl").touch()
    with pytest.raises(ValueError, match=r"its training has not finished; .*--resume_from_checkpoint latest"):
        load_tokenizer(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ViewsToVolumePipeline"}))
    for name in ("transformer", "view_tokenizer", "volume_tokenizer"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    words = f"holds a whole pipeline; did you mean {folder}/view_tokenizer or {folder}/volume_tokenizer?"
    with pytest.raises(ValueError) as error:
        load_tokenizer(folder)
    assert words in str(error.value)
