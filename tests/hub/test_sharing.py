"""`push_to_hub` as transformers and diffusers give it to every class of this package, and its card."""

import json
import re

import pytest
from huggingface_hub import ModelCard

PUSH = """
import sys
sys.path.insert(0, {tests!r})
from huggingface_hub import HfApi
from tiny_models import make_classifier, make_code_generation, make_tokenizer, make_views_to_volume

views_to_volume = make_views_to_volume()
parts = [
    make_tokenizer(3), make_classifier(), views_to_volume.transformer, views_to_volume.scheduler,
    views_to_volume.volume_processor, views_to_volume.view_processor, views_to_volume, make_code_generation(),
]
for part in parts:
    part.push_to_hub("me/" + type(part).__name__, private=True, commit_message="From " + type(part).__name__)
result = [type(part).__name__ for part in parts]

tokenizer, processor = parts[0], views_to_volume.volume_processor
# a processor beside a model, on a branch that the first of the two pushes makes
tokenizer.push_to_hub("me/both", revision="v2")
processor.push_to_hub("me/both", revision="v2")
# tags of the caller's
tokenizer.push_to_hub("me/tagged", tags=["chest"])
# cards that somebody wrote
mine = "# My own words\\n"
for name in ("mine-transformers", "mine-diffusers"):
    HfApi().create_repo("me/" + name)
    HfApi().upload_file(path_or_fileobj=mine.encode(), path_in_repo="README.md", repo_id="me/" + name)
tokenizer.push_to_hub("me/mine-transformers")
views_to_volume.push_to_hub("me/mine-diffusers")
# saving and pushing in one, and a component into a folder of a pipeline's repository
views_to_volume.save_pretrained({folder!r}, push_to_hub=True, repo_id="me/saved")
views_to_volume.transformer.push_to_hub("me/saved", subfolder="transformer", commit_message="Only the transformer")
"""


@pytest.fixture(scope="module")
def pushed(hub, fresh_python, tmp_path_factory, request):
    """Names of the classes pushed, each to a private repository of its name."""
    folder = tmp_path_factory.mktemp("pushed")
    code = PUSH.format(tests=str(request.path.parent), folder=str(folder / "saved"))
    return fresh_python(code, folder / "home")


def card(hub, name, **revision):
    return ModelCard(hub.read(name, "README.md", **revision).decode())


def test_every_class_is_pushed_with_a_card_of_this_package(hub, pushed):
    assert len(pushed) == 8
    for name in pushed:
        repository, text = hub.repository(f"me/{name}"), card(hub, f"me/{name}")
        assert repository.private
        assert repository.messages == ["initial commit", f"From {name}"]
        assert text.data.library_name == "hf_vq"
        assert re.search('pip install "?hf-vq', text.text)
        assert f'"me/{name}"' in text.text
        assert "automatically generated" not in text.text
        assert "diffusers pipeline" not in text.text
    assert hub.unknown == []


def test_pipelines_say_what_they_require(hub, pushed):
    for name in ("me/ViewsToVolumePipeline", "me/CodeGenerationPipeline", "me/saved"):
        index = json.loads(hub.read(name, "model_index.json"))
        assert index.pop("_requires")[0].startswith("pip install hf-vq")
        assert {entry[0] for entry in index.values() if isinstance(entry, list)} == {"hf_vq"}


def test_a_processor_leaves_the_card_of_its_model(hub, pushed):
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} < set(hub.files("me/both", revision="v2"))
    assert "int64" in card(hub, "me/both", revision="v2").text  # the shape of the codes, which a processor has not
    assert hub.files("me/both") == {}


def test_tags_of_the_caller_are_added(hub, pushed):
    assert set(card(hub, "me/tagged").data.tags) == {*card(hub, "me/VQTokenizer").data.tags, "chest"}


def test_a_card_that_somebody_wrote_stays(hub, pushed):
    for name in ("me/mine-transformers", "me/mine-diffusers"):
        assert card(hub, name).text.strip() == "# My own words"
        assert card(hub, name).data.library_name == "hf_vq"


def test_a_component_in_a_folder_leaves_the_card_above(hub, pushed):
    assert hub.repository("me/saved").messages[-1] == "Only the transformer"
    assert "transformer/README.md" not in hub.files("me/saved")
    assert "ViewsToVolumePipeline" in card(hub, "me/saved").text
