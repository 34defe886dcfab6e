"""What is published, how the Hub takes it, and what is refused; the Hub is the loopback one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import AmusedScheduler
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file, save_file
from tiny_models import KINDS, make_views_to_volume

import hf_vq
from hf_vq import CodeTransformer
from hf_vq.commands.push_to_hub import main
from hf_vq.hub.publishing import prepare, publish


@pytest.fixture
def pipeline(saved, tmp_path):
    """A copy of the saved pipeline, to be changed."""
    return Path(shutil.copytree(saved["views-to-volume"], tmp_path / "pipeline"))


@pytest.fixture
def logged_in(hub, api, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)


@pytest.mark.parametrize("kind", KINDS)
def test_what_belongs_is_published_and_nothing_else(hub, api, saved, kind):
    folder = saved[kind]
    commit = publish(folder, f"me/{kind}", private=True, commit_message="First version", api=api)
    assert set(hub.files(f"me/{kind}")) == KINDS[kind]
    assert hub.repository(f"me/{kind}").private
    assert hub.repository(f"me/{kind}").messages[-1] == "First version"
    assert commit.commit_url.startswith(f"{hub.endpoint}/me/{kind}/commit/")
    for path in KINDS[kind] - {"README.md", "model_index.json", "reconstructions.png", "samples.png"}:
        assert hub.read(f"me/{kind}", path) == (folder / path).read_bytes()
    assert ModelCard(hub.read(f"me/{kind}", "README.md").decode()).data.library_name == "hf_vq"
    assert not (folder / "README.md").exists()
    assert hub.unknown == []


def test_a_loaded_pipeline_is_published_as_its_folder_is(hub, api, saved):
    publish(make_views_to_volume(), "me/loaded", api=api)
    publish(saved["views-to-volume"], "me/folder", api=api)
    assert not hub.repository("me/loaded").private
    assert hub.repository("me/loaded").messages[-1] == "Upload ViewsToVolumePipeline"
    loaded, folder = hub.files("me/loaded"), hub.files("me/folder")
    assert {path for path in folder if loaded.get(path) != folder[path]} <= {"README.md"}


def test_a_scheduler_of_diffusers_is_published_too(hub, api):
    pipe = make_views_to_volume()
    pipe.scheduler = AmusedScheduler(mask_token_id=11)
    publish(pipe, "me/amused", api=api)
    assert set(hub.files("me/amused")) == KINDS["views-to-volume"]
    assert json.loads(hub.read("me/amused", "model_index.json"))["scheduler"] == ["diffusers", "AmusedScheduler"]


def test_a_new_version_replaces_the_old_one_and_leaves_other_files(hub, api, pipeline):
    publish(pipeline, "me/versions", api=api)
    before = hub.files("me/versions")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="NOTES.md", repo_id="me/versions")
    shard = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
    api.upload_file(path_or_fileobj=b"old", path_in_repo=shard, repo_id="me/versions")
    weights = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    publish(pipeline, "me/versions", api=api)
    after = hub.files("me/versions")
    assert set(after) == KINDS["views-to-volume"] | {"NOTES.md"}
    assert {path for path in before if before[path] != after[path]} == {
        "transformer/diffusion_pytorch_model.safetensors"
    }


def test_a_revision_is_a_branch_of_its_own(hub, api, saved):
    for _ in range(2):  # the branch is made where it is missing, and is no obstacle where it is not
        publish(saved["volume-tokenizer"], "me/branches", revision="v2", api=api)
    assert set(hub.files("me/branches", revision="v2")) == KINDS["volume-tokenizer"]
    assert hub.files("me/branches", revision="main") == {}


def test_private_weights_do_not_go_to_a_public_repository(hub, api, saved):
    publish(saved["classifier"], "me/public", api=api)
    before = hub.repository("me/public").messages.copy()
    with pytest.raises(ValueError, match=r"^me/public: found a public repository, expected a private one"):
        publish(saved["classifier"], "me/public", private=True, api=api)
    assert hub.repository("me/public").messages == before


def test_the_card_of_the_folder_goes_with_its_pictures(hub, api, pipeline):
    card = "---\nlibrary_name: hf_vq\n---\n# Mine\n\n![codes](mask.png) ![far](https://example.org/a.png)\n"
    (pipeline / "README.md").write_text(card)
    publish(pipeline, "me/pictures", api=api)
    assert set(hub.files("me/pictures")) == KINDS["views-to-volume"] | {"mask.png"}
    assert hub.read("me/pictures", "README.md").decode() == card


def test_a_card_that_somebody_wrote_is_not_made_anew(pipeline):
    (pipeline / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="found a card that somebody wrote"):
        prepare(pipeline, "me/mine", license="mit")


def test_a_dry_run_shows_all_and_touches_nothing(hub, pipeline, logged_in, capsys):
    requests = len(hub.requests)
    main([str(pipeline), "me/dry", "--dry_run"])
    printed = capsys.readouterr().out
    for path in KINDS["views-to-volume"] - {"README.md", "model_index.json"}:
        assert f"{(pipeline / path).stat().st_size:,}  {path}\n" in printed
    assert "README.md:\n# me/dry\n" in printed
    assert "Not a medical device" in printed and "@inproceedings" in printed
    assert "logs.jsonl" not in printed
    assert printed.endswith("nothing was uploaded to me/dry\n")
    assert len(hub.requests) == requests


def test_the_command_publishes(hub, saved, logged_in, capsys):
    flags = ["--private", "--revision", "v1", "--commit_message", "From the command line"]
    main([str(saved["volume-tokenizer"]), "me/command", *flags])
    assert set(hub.files("me/command", revision="v1")) == KINDS["volume-tokenizer"]
    assert hub.repository("me/command").private
    assert hub.repository("me/command").messages[-1] == "From the command line"
    printed = capsys.readouterr()
    assert f"published: {hub.endpoint}/me/command/commit/" in printed.out
    assert hub.token not in printed.out + printed.err


@pytest.mark.slow
@pytest.mark.parametrize("token", ["right", "wrong"])
def test_a_token_reaches_no_log_and_no_file(hub, saved, tmp_path, token):
    """In a process of its own, with everything logged that huggingface_hub and the HTTP client log when asked to."""
    secret = hub.token if token == "right" else "hf_marker_of_a_wrong_token"
    code = (
        "import logging\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "from huggingface_hub import logging as hub_logging\n"
        "hub_logging.set_verbosity_debug()\n"
        "from hf_vq.commands.cli import main\n"
        f"main(['push', {str(saved['volume-tokenizer'])!r}, 'me/token-{token}'])\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    paths = [str(Path(hf_vq.__file__).parents[1]), *kept.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **kept,
        **hub.environment(tmp_path / "home", secret),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == (0 if token == "right" else 2), process.stderr
    assert secret not in process.stdout + process.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not written
    if token == "right":
        assert all(secret.encode() not in hub.read("me/token-right", path) for path in hub.files("me/token-right"))


def unregistered(folder):
    """As saved by a program in which diffusers did not know the package."""
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"][0] = CodeTransformer.__module__
    (folder / "model_index.json").write_text(json.dumps(index))


def without_weights(folder):
    (folder / "view_tokenizer" / "model.safetensors").unlink()


def pickled_weights(folder):
    weights = folder / "view_tokenizer" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))


def with_fewer_weights(folder):
    weights = folder / "volume_tokenizer" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["quantizer.codebook.weight"]
    save_file(tensors, weights, {"format": "pt"})


def torn_weights(folder):
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_picture(folder):
    (folder / "README.md").write_text('# Mine\n\n<img width="50%" src="sheet.png">\n')


def with_picture_of_others(folder):
    (folder.parent / "other.png").touch()
    (folder / "README.md").write_text("![other](../other.png)\n")


def of_other_class(folder):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))


def unfinished(folder):
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (unregistered, "as the library of transformer .* Load the pipeline after `import hf_vq` and save it again"),
        (without_weights, "pipeline: cannot be loaded .*train or save it again"),
        (pickled_weights, "cannot be loaded .*train or save it again"),
        (with_fewer_weights, "volume_tokenizer: found no weights for quantizer.codebook.weight"),
        (torn_weights, "cannot be loaded"),
        (without_picture, "shows the picture sheet.png, expected it in"),
        (with_picture_of_others, r"shows the picture \.\./other.png, expected it in"),
        (of_other_class, "found a pipeline 'DDPMPipeline', expected one of"),
        (unfinished, "its training has not finished"),
    ],
)
def test_what_others_could_not_load_is_refused(pipeline, damage, words):
    damage(pipeline)
    with pytest.raises(ValueError, match=words) as error:
        prepare(pipeline, "me/refused")
    assert "\n" not in str(error.value)


def test_a_component_alone_is_refused(pipeline):
    with pytest.raises(ValueError, match="found a model of type 'CodeTransformer', expected a pipeline"):
        prepare(pipeline / "transformer", "me/refused")


@pytest.mark.parametrize("repo_id", ["./pipeline", "me/pipeline/transformer", "me/with space", "me/-dash"])
def test_what_is_no_id_is_refused(pipeline, repo_id):
    with pytest.raises(ValueError, match=repo_id):
        prepare(pipeline, repo_id)


def test_whoever_may_not_write_is_told_what_to_do(hub, api, saved, monkeypatch):
    wrong = HfApi(endpoint=hub.endpoint, token="hf_wrong")
    bundle = saved["classifier"]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match=r"^me/x: not published, because the Hub refuses the token; .*hf auth login"):
        publish(bundle, "me/x", api=wrong)
    with pytest.raises(ValueError) as error:
        publish(bundle, "me/x")
    assert "hf_wrong" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=r"^me/x: not published, because nobody is logged in; run `hf auth login`"):
        publish(bundle, "me/x")
    with pytest.raises(ValueError, match=r"^me/x: not published, because the connection to .* broke"):
        publish(bundle, "me/x", api=HfApi(endpoint="http://127.0.0.1:9", token="hf_any"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^me/x: not published, because HF_HUB_OFFLINE is set; unset it"):
        publish(bundle, "me/x", api=api)
    assert ("models", "me/x") not in hub.repositories
