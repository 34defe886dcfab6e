"""What somebody is told who cannot have a repository: by this package's functions and by the libraries' own."""

import inspect
import re
from contextlib import ExitStack

import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from huggingface_hub.file_download import http_get
from tiny_models import make_tokenizer

from hf_vq.hub.publishing import publish

ATTEMPTS = 1 + inspect.signature(http_get).parameters["_nb_retries"].default
WEIGHTS, PART = "model.safetensors", "transformer/diffusion_pytorch_model.safetensors"
PROGRAM = """
import os
import time
import huggingface_hub
from hf_vq import ViewsToVolumePipeline, VQTokenizer
from hf_vq.models import load_tokenizer
from hf_vq.pipelines import open_pipeline

time.sleep = lambda seconds: None  # the client waits before each of its attempts to go on with a download

def told(load, *names, **options):
    try:
        load(*names, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["loaded", ""]

def open_views_to_volume(name, revision=None):
    return open_pipeline(name, ViewsToVolumePipeline, revision)

token, result = os.environ["HF_TOKEN"], {}
for kind, load, library in (
    ("tokenizer", load_tokenizer, VQTokenizer.from_pretrained),
    ("pipeline", open_views_to_volume, ViewsToVolumePipeline.from_pretrained),
):
    for who, function in (("ours", load), ("library", library)):
        said = result[kind + ", " + who] = {}
        os.environ["HF_TOKEN"] = "hf_wrong"
        said["wrong token"] = told(function, "me/" + kind)
        del os.environ["HF_TOKEN"]
        said["no token"] = told(function, "me/" + kind)
        os.environ["HF_TOKEN"] = token
        said["no repository"] = told(function, "me/nothing")
        said["no revision"] = told(function, "me/" + kind, revision="v9")
result["other kind"] = [told(load_tokenizer, "me/pipeline"), told(open_views_to_volume, "me/tokenizer")]
result["interrupted once"] = told(load_tokenizer, "me/wide")
result["tokenizer broken"] = told(load_tokenizer, "me/tokenizer")
result["tokenizer afterwards"] = told(load_tokenizer, "me/tokenizer")
result["pipeline broken"] = told(open_views_to_volume, "me/pipeline")
result["pipeline afterwards"] = told(open_views_to_volume, "me/pipeline")
huggingface_hub.constants.HF_HUB_OFFLINE = True
result["offline"] = [told(load_tokenizer, "me/never"), told(open_views_to_volume, "me/never")]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("obstacles")


@pytest.fixture(scope="module")
def said(hub, connect, saved, fresh_python, home):
    """What the program was told; downloads break where it says so."""
    with connect() as api:
        publish(saved["volume-tokenizer"], "me/tokenizer", private=True, api=api)
        publish(saved["views-to-volume"], "me/pipeline", private=True, api=api)
        # long enough to come in two pieces
        publish(make_tokenizer(3, codebook_size=8192, codebook_dim=352), "me/wide", api=api)
    with ExitStack() as cuts:
        cuts.enter_context(hub.cutting(f"me/wide/{WEIGHTS}", after=DOWNLOAD_CHUNK_SIZE + 5000, times=1))
        for name in (f"me/tokenizer/{WEIGHTS}", f"me/pipeline/{PART}"):
            cuts.enter_context(hub.cutting(name, after=1000, times=ATTEMPTS))
        result = fresh_python(PROGRAM, home)
        assert [cut.times for cut in hub.cuts] == [0, 0, 0]
    return result


@pytest.mark.parametrize("kind", ["tokenizer", "pipeline"])
@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        ("wrong token", "the Hub refuses the token (401); log in again with `hf auth login`, or set HF_TOKEN"),
        ("no token", "a private one and no token that may read it); check the name, and if it is private log in"),
        ("no repository", "found neither such a folder nor such a name on the Hub (no repository at http://127.0.0.1"),
        ("no revision", "found no revision 'v9' at http://127.0.0.1"),
    ],
)
def test_our_functions_say_in_one_line_what_to_do(said, kind, obstacle, words):
    error, message = said[f"{kind}, ours"][obstacle]
    assert error == "ValueError"
    assert message.startswith("me/nothing: " if obstacle == "no repository" else f"me/{kind}: ")
    assert words in message
    assert "\n" not in message
    assert "hf_wrong" not in message


@pytest.mark.parametrize("kind", ["tokenizer", "pipeline"])
def test_the_libraries_fail_as_for_any_model(said, kind):
    for obstacle, (error, _) in said[f"{kind}, library"].items():
        assert error in ("OSError", "HfHubHTTPError", "RepositoryNotFoundError", "RevisionNotFoundError"), obstacle


def test_another_kind_is_told_apart(said):
    (tokenizer_error, tokenizer_words), (pipeline_error, pipeline_words) = said["other kind"]
    assert tokenizer_error == pipeline_error == "ValueError"
    assert tokenizer_words.startswith("me/pipeline: found a repository without config.json, expected a single model")
    assert pipeline_words == "me/tokenizer: found a repository without model_index.json; check the name"


def test_an_interrupted_download_goes_on_where_it_was(hub, said):
    assert said["interrupted once"] == ["loaded", ""]
    pattern = f"/me/wide/resolve/[^/]+/{WEIGHTS}"
    asked = [part for method, path, part in hub.requests if method == "GET" and re.fullmatch(pattern, path)]
    assert asked == [None, f"bytes={DOWNLOAD_CHUNK_SIZE}-"]


@pytest.mark.parametrize(("kind", "path"), [("tokenizer", WEIGHTS), ("pipeline", PART)])
def test_a_broken_download_leaves_nothing_and_the_next_one_is_whole(hub, said, home, kind, path):
    error, message = said[f"{kind} broken"]
    assert error == "ValueError"
    assert message.startswith(f"me/{kind}: the connection to {hub.endpoint} broke")
    assert message.endswith("; try again, nothing half-loaded stays in the cache")
    assert "\n" not in message
    assert said[f"{kind} afterwards"] == ["loaded", ""]
    (loaded,) = (home / "hub" / f"models--me--{kind}" / "snapshots").glob(f"*/{path}")
    assert loaded.read_bytes() == hub.read(f"me/{kind}", path)
    assert not list(home.rglob("*.incomplete"))


def test_offline_says_so(said):
    for error, message in said["offline"]:
        assert error == "ValueError"
        assert "HF_HUB_OFFLINE is set, and the cache does not hold it" in message
