"""What transformers and diffusers say of a repository where hf_vq is not installed, or was not imported."""

import json

import pytest

from hf_vq.hub.publishing import publish

PROGRAM = """
import sys
import diffusers
import transformers

def told(load, *names, **options):
    try:
        load(*names, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["loaded", ""]

pipeline, tokenizer, classifier = "me/views-to-volume", "me/volume-tokenizer", "me/classifier"
result = {
    "DiffusionPipeline": told(diffusers.DiffusionPipeline.from_pretrained, pipeline),
    "DiffusionPipeline, trusting": told(diffusers.DiffusionPipeline.from_pretrained, pipeline, trust_remote_code=True),
    "images": told(diffusers.DiffusionPipeline.from_pretrained, "me/code-generation"),
    "AutoModel": told(transformers.AutoModel.from_pretrained, tokenizer),
    "AutoModel, trusting": told(transformers.AutoModel.from_pretrained, tokenizer, trust_remote_code=True),
    "AutoConfig": told(transformers.AutoConfig.from_pretrained, classifier),
    "pipeline": told(transformers.pipeline, "image-classification", classifier),
    "AutoImageProcessor": told(transformers.AutoImageProcessor.from_pretrained, tokenizer),
}
try:
    import hf_vq
except ModuleNotFoundError as error:
    result["import"] = str(error)
"""


@pytest.fixture(scope="module")
def said(hub, connect, saved, fresh_python, tmp_path_factory):
    with connect() as api:
        for kind, folder in saved.items():
            publish(folder, f"me/{kind}", api=api)
    return fresh_python(PROGRAM, tmp_path_factory.mktemp("without"), with_package=False)


def test_the_package_was_really_missing(said):
    assert said["import"] == "No module named 'hf_vq'"
    assert "loaded" not in {error for error, _ in (value for name, value in said.items() if name != "import")}


@pytest.mark.parametrize("name", ["DiffusionPipeline", "DiffusionPipeline, trusting", "images"])
def test_pipelines_fail_with_what_to_install(said, name):
    error, message = said[name]
    assert error == "ValueError"
    assert "pip install hf-vq (then: import hf_vq)" in message


@pytest.mark.parametrize("name", ["AutoModel", "AutoModel, trusting", "AutoConfig", "pipeline"])
def test_models_fail_with_the_name_of_the_package(said, name):
    """transformers has no place for other words than the name of the model's type; the card has the command."""
    error, message = said[name]
    assert error == "ValueError"
    assert "model type `hf_vq_" in message


def test_no_repository_holds_code_or_asks_for_trust(hub, said):
    for _, name in hub.repositories:
        assert not [path for path in hub.files(name) if path.endswith((".py", ".bin", ".pkl"))]
        for path in hub.files(name):
            if path.endswith(".json"):
                assert "auto_map" not in json.loads(hub.read(name, path))
    assert not [message for error, message in list(said.values())[:-1] if "trust_remote_code" in message]
