"""A pipeline is loaded only where one of the wanted kind is."""

import json

import pytest

from hf_vq import CodeGenerationPipeline, ViewsToVolumePipeline
from hf_vq.pipelines import open_pipeline


@pytest.mark.parametrize(
    ("wanted", "found", "advice"),
    [
        (CodeGenerationPipeline, "ViewsToVolumePipeline", "use `hf-vq generate` for it"),
        (ViewsToVolumePipeline, "CodeGenerationPipeline", "use `hf-vq generate-images` for it"),
        (ViewsToVolumePipeline, "DDPMPipeline", "choose another one"),
    ],
)
def test_a_pipeline_of_another_kind_is_told_apart(tmp_path, wanted, found, advice):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": found, "_diffusers_version": "0.42.1"}))
    with pytest.raises(ValueError, match=f"found a {found}, expected a {wanted.__name__}; {advice}"):
        open_pipeline(tmp_path, wanted)


def test_what_is_no_pipeline_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^\./pipeline: found no such folder.*; and it is not sought on the Hub"):
        open_pipeline("./pipeline", ViewsToVolumePipeline)
    with pytest.raises(ValueError, match=r"^pipeline: found neither such a folder nor such a name") as error:
        open_pipeline("pipeline", ViewsToVolumePipeline)
    assert "\n" not in str(error.value)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "logs.jsonl").touch()
    with pytest.raises(ValueError, match=r"without model_index\.json: its training has not finished"):
        open_pipeline("pipeline", ViewsToVolumePipeline)
    (tmp_path / "pipeline" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="it holds a single model, not a pipeline"):
        open_pipeline("pipeline", ViewsToVolumePipeline)
