"""The commands of `hf-vq` with the id of a repository where a folder could stand, in fresh processes."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from hf_vq.commands.info import describe
from hf_vq.commands.sources import Contents

NAMES = {
    "me/command-pipeline": "views-to-volume",
    "me/command-tokenizer": "volume-tokenizer",
    "me/command-classifier": "classifier",
}
PIPELINE, TOKENIZER, CLASSIFIER = NAMES
CODE = """
import contextlib, io
from hf_vq.commands.cli import main

result = {{}}
for name, arguments in {commands!r}.items():
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as error:
            status = error.code
    result[name] = [status, out.getvalue(), err.getvalue()]
"""


@pytest.fixture(scope="module")
def published(hub, connect, saved):
    """The folder that each repository was made from; the tokenizer has the tag v1."""
    with connect() as api:
        for name, kind in NAMES.items():
            api.create_repo(name)
            litter = [".cache/*", "checkpoint-*/*"]
            api.upload_folder(repo_id=name, folder_path=saved[kind], ignore_patterns=litter)
        api.create_tag(TOKENIZER, tag="v1")
    return {name: saved[kind] for name, kind in NAMES.items()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a scan and two views."""
    folder, random = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    hu = random.integers(-1000, 1000, (8, 12, 16), dtype=np.int16)
    nibabel.Nifti1Image(hu, np.diag([4.0, 3.0, 2.0, 1.0])).to_filename(folder / "scan.nii.gz")
    for view in ("frontal", "lateral"):
        Image.fromarray(random.integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / f"{view}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ran(published, inputs, fresh_python, home):
    """Exit status and what each command printed, online with an empty cache; the classifier is never loaded."""
    reconstruct = ["reconstruct", "--input", str(inputs / "scan.nii.gz")]
    generate = ["generate", "--views", *(f"{view}={inputs / view}.png" for view in ("frontal", "lateral"))]
    small = ["--num_inference_steps", "2"]
    commands = {
        **{name: ["info", name, "--json"] for name in NAMES},
        "tag": ["info", TOKENIZER, "--revision", "v1", "--json"],
        "nobody": ["info", "me/nobody"],
        "v9": ["info", TOKENIZER, "--revision", "v9"],
        "lent": [*reconstruct, "--tokenizer", PIPELINE, "--output", str(inputs / "lent.nii")],
        "own": [*reconstruct, "--tokenizer", TOKENIZER, "--revision", "v1", "--output", str(inputs / "own.nii")],
        "folder": [*reconstruct, "--tokenizer", str(published[TOKENIZER]), "--output", str(inputs / "folder.nii")],
        "ct": [*generate, *small, "--pipeline", PIPELINE, "--output", str(inputs / "ct.nii")],
        "same": [*generate, *small, "--pipeline", str(published[PIPELINE]), "--output", str(inputs / "same.nii")],
    }
    return fresh_python(CODE.format(commands=commands), home)


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


@pytest.mark.parametrize("name", NAMES)
def test_info_of_a_repository_is_that_of_its_folder(hub, published, ran, name):
    status, out, _ = ran[name]
    told, expected = json.loads(out), describe(Contents.open(str(published[name])))
    assert status == 0
    assert told.pop("source") == name and expected.pop("source") == str(published[name])
    assert told.pop("commit") == hub.repository(name).branches["main"]
    assert told.pop("bytes") == sum(file.size for file in hub.files(name).values())
    for left_out in ("bytes", "checkpoint_bytes"):  # the folder holds more than the repository
        expected.pop(left_out, None)
    assert told == expected


def test_info_fetches_no_weights(hub, ran):
    asked = [(path, part) for method, path, part in hub.requests if method == "GET" and CLASSIFIER in path]
    weights = [part for path, part in asked if path.endswith(".safetensors")]
    assert weights
    assert all(part is not None and part.startswith("bytes=0-") for part in weights)


def test_wrong_names_and_revisions_are_told_in_one_line(ran):
    assert json.loads(ran["tag"][1])["class"] == "VQTokenizer"
    for name, words in (("nobody", "no repository at"), ("v9", "found no revision 'v9'")):
        status, _, error = ran[name]
        assert status == 2
        assert error.startswith("hf-vq info: error: ") and words in error
        assert error.count("\n") == 1


def test_a_scan_goes_through_the_tokenizer_of_a_repository(ran, inputs):
    assert [ran[name][0] for name in ("own", "lent", "folder")] == [0, 0, 0]
    np.testing.assert_array_equal(voxels(inputs / "own.nii"), voxels(inputs / "folder.nii"))
    np.testing.assert_array_equal(voxels(inputs / "lent.nii"), voxels(inputs / "folder.nii"))


def test_two_views_become_a_ct_by_the_id_alone(ran, inputs):
    assert ran["ct"][0] == 0
    assert ran["ct"][1] == f"wrote {inputs / 'ct.nii'}\n"
    np.testing.assert_array_equal(voxels(inputs / "ct.nii"), voxels(inputs / "same.nii"))


def test_info_offline_says_what_it_cannot_know(ran, fresh_python, home):
    commands = {name: ["info", name, "--json"] for name in NAMES}
    told = fresh_python(CODE.format(commands=commands), home, offline=True)
    before, facts = (json.loads(one[CLASSIFIER][1]) for one in (ran, told))
    assert facts["weights"].startswith("unknown")
    assert not {"parameters", "bytes"} & set(facts)
    assert {name: facts[name] for name in ("class", "classes", "commit")} == {
        name: before[name] for name in ("class", "classes", "commit")
    }
    # loaded meanwhile, so the cache has the weights
    assert json.loads(told[TOKENIZER][1])["parameters"] == json.loads(ran[TOKENIZER][1])["parameters"]
    assert json.loads(told[PIPELINE][1])["parameters"] == json.loads(ran[PIPELINE][1])["parameters"]


def test_nothing_was_asked_for_that_the_loopback_hub_does_not_know(hub, ran):
    assert hub.unknown == []
