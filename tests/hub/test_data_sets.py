"""Data sets through the loopback Hub: pushed, loaded by fresh processes, streamed, found offline, trained on."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Array2D, Array3D, ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import DatasetCard

from hf_vq.data import PairedDataset
from hf_vq.data.publishing import push_dataset
from hf_vq.training.codes import load_codes

ROOT = Path(__file__).parents[2]
PHANTOM = ROOT / "tests" / "data" / "cohort_phantom.py"
SPEC = importlib.util.spec_from_file_location("cohort_phantom", PHANTOM)
phantom = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(phantom)

COHORT, CODES, PRIVATE, RAW, IMAGES = ("me/cohort", "me/codes", "me/private", "me/raw", "me/images")
SHARD_BYTES = 20_000  # two subjects of the four for training

# What a process finds out about data sets, each by a statement of its own; of those that fail, the error.
LOOK = f"""
import importlib.util
from hf_vq.data import PairedDataset
from hf_vq.training.codes import load_codes

spec = importlib.util.spec_from_file_location("cohort_phantom", {str(PHANTOM)!r})
phantom = importlib.util.module_from_spec(spec)
spec.loader.exec_module(phantom)

def look(function, *arguments):
    try:
        return function(*arguments)
    except ValueError as error:
        return str(error)

def paired(source, split="test"):
    return phantom.found_in(PairedDataset(source, split))

def codes(source):
    return {{name: split["codes"][:].tolist() for name, split in load_codes(source).items()}}
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A cohort, a second version of it without its last training subject, codes, and images in MNIST's format."""
    root = tmp_path_factory.mktemp("data")
    phantom.write_cohort(root / "cohort")
    metadata = phantom.write_cohort(root / "smaller") / "train" / "metadata.csv"
    metadata.write_text("\n".join(metadata.read_text().splitlines()[:-1]) + "\n")
    save_codes(root / "codes")
    return root


def save_codes(folder):
    kinds = {"subject": Value("string"), "codes": Array3D((2, 2, 2), "int32"), "frontal": Array2D((2, 2), "int32")}
    features = Features({**kinds, "label": ClassLabel(names=["sick", "well"])})
    splits = {}
    for seed, split in enumerate(("train", "validation")):
        random = np.random.default_rng(seed)
        columns = {
            "subject": [f"{split}_{index}" for index in range(3)],
            "codes": random.integers(0, 16, (3, 2, 2, 2)).astype(np.int32),
            "frontal": random.integers(0, 16, (3, 2, 2)).astype(np.int32),
            "label": [0, 1, -1],
        }
        splits[split] = Dataset.from_dict(columns, features=features)
    DatasetDict(splits).save_to_disk(folder)


@pytest.fixture(scope="module")
def pushed(hub, connect, folders):
    """The Hub with the cohort in two versions, codes, a private cohort, and one that was uploaded as it is."""
    with connect() as api:
        push_dataset(folders / "cohort", COHORT, commit_message="First", shard_bytes=SHARD_BYTES, api=api)
        api.create_tag(COHORT, tag="v1", repo_type="dataset")
        push_dataset(folders / "cohort", COHORT, revision="dev", shard_bytes=SHARD_BYTES, api=api)
        push_dataset(folders / "smaller", COHORT, commit_message="Smaller", api=api)
        push_dataset(folders / "codes", CODES, api=api)
        push_dataset(folders / "cohort", PRIVATE, private=True, api=api)
    files = [path for path in (folders / "cohort").rglob("*") if path.is_file()]
    content = {path.relative_to(folders / "cohort").as_posix(): path.read_bytes() for path in files}
    hub.add(RAW, content, kind="datasets")
    return hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache that the processes of this module share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def loaded(pushed, fresh_python, home):
    """What a fresh process with an empty cache finds under the ids."""
    commit = pushed.repository(COHORT, "datasets").resolve("v1")
    code = f"""
result = {{
    "cohort": {{split: look(paired, {COHORT!r} + "@v1", split) for split in phantom.COUNTS}},
    "commit": look(paired, {COHORT!r} + "@" + {commit!r}),
    "newest": look(paired, {COHORT!r}, "train"),
    "private": look(paired, {PRIVATE!r}),
    "raw": look(paired, {RAW!r}),
    "codes": look(codes, {CODES!r}),
    "no revision": look(paired, {COHORT!r} + "@v9"),
    "no data set": look(paired, "me/nothing"),
    "no split": look(paired, {CODES!r}, "test"),
    "no codes": look(codes, {COHORT!r}),
}}
"""
    return fresh_python(LOOK + code, home)


@pytest.mark.parametrize("split", list(phantom.COUNTS))
def test_subjects_are_the_same_after_push_and_load(loaded, folders, split):
    expected = phantom.found_in(PairedDataset(folders / "cohort", split))
    assert len(expected["subjects"]) == phantom.COUNTS[split]
    assert loaded["cohort"][split] == expected


def test_revisions_are_told_apart(loaded, folders):
    assert loaded["newest"] == phantom.found_in(PairedDataset(folders / "smaller", "train"))
    assert len(loaded["newest"]["subjects"]) == phantom.COUNTS["train"] - 1
    assert loaded["commit"] == loaded["cohort"]["test"]


def test_a_private_data_set_and_a_folder_uploaded_as_it_is_are_read_too(loaded):
    assert loaded["private"] == loaded["raw"] == loaded["cohort"]["test"]


def test_codes_are_the_same_after_push_and_load(loaded, folders):
    expected = load_codes(str(folders / "codes"))
    assert loaded["codes"] == {name: split["codes"][:].tolist() for name, split in expected.items()}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no revision", "me/cohort: found no revision 'v9' at "),
        ("no data set", "me/nothing: found neither such a folder nor such a name on the Hub"),
        ("no split", "me/codes: found splits ['train', 'validation'], expected 'test'"),
        ("no codes", "me/cohort: column 'codes' is missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(loaded, case, words):
    assert words in loaded[case]
    assert "\n" not in loaded[case]


def test_one_commit_replaces_the_data(pushed):
    repository = pushed.repository(COHORT, "datasets")
    assert repository.messages == ["initial commit", "First", "Upload data set", "Smaller"]
    first, newest = (set(pushed.files(COHORT, "datasets", revision)) for revision in ("v1", "main"))
    train = {path for path in first if path.startswith("data/train-")}
    assert len(train) == 2 and not train & newest
    assert {"README.md", "cohort.json"} <= first & newest
    assert pushed.files(COHORT, "datasets", "dev") == pushed.files(COHORT, "datasets", "v1")


def test_privacy_is_kept(pushed, api, folders):
    assert pushed.repository(PRIVATE, "datasets").private
    before = pushed.repository(COHORT, "datasets").resolve("main")
    with pytest.raises(ValueError, match="me/cohort: found a public data set, expected a private one"):
        push_dataset(folders / "cohort", COHORT, private=True, api=api)
    assert pushed.repository(COHORT, "datasets").resolve("main") == before


def test_the_card_passes_the_hubs_check(pushed, api):
    DatasetCard(pushed.read(COHORT, "README.md", "datasets").decode()).validate(repo_type="dataset")


STREAM = f"""
import numpy
from datasets import load_dataset

row = next(iter(load_dataset({COHORT!r}, revision="v1", split="train", streaming=True)))
volume = row["volume"]
result = [row["subject"], volume.affine.tolist(), numpy.asarray(volume.dataobj).tolist()]
"""


def test_streaming_reads_the_first_subjects_file_and_no_other(pushed, fresh_python, folders, tmp_path):
    seen = len(pushed.requests)
    subject, affine, voxels = fresh_python(STREAM, tmp_path)
    dataset = PairedDataset(folders / "cohort", "train")
    assert subject == dataset.subjects[0]
    assert affine == dataset.volume(0).affine.tolist()
    assert voxels == np.asarray(dataset.volume(0).dataobj).tolist()
    asked = [path for method, path, _ in pushed.requests[seen:] if method == "GET" and ".parquet" in path]
    assert asked and all("train-00000-of-00002.parquet" in path for path in asked)


@pytest.mark.slow
def test_what_was_loaded_is_found_again_offline_in_the_same_revision(loaded, fresh_python, home):
    code = f"""
result = {{
    "cohort": {{split: look(paired, {COHORT!r} + "@v1", split) for split in phantom.COUNTS}},
    "newest": look(paired, {COHORT!r}, "train"),
    "codes": look(codes, {CODES!r}),
    "other": look(paired, {COHORT!r} + "@dev"),
}}
"""
    offline = fresh_python(LOOK + code, home, offline=True)
    for name in ("cohort", "newest", "codes"):
        assert offline[name] == loaded[name]
    assert "HF_HUB_OFFLINE is set, and the cache does not hold it" in offline["other"]


@pytest.mark.slow
@pytest.mark.parametrize("reachable", [True, False])
def test_a_wrong_id_ends_a_script_with_one_line(hub, tmp_path, reachable):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTEST_"))}
    environment = {**kept, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT / "src")}
    if not reachable:
        environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens there
    flags = ["--data", "me/nothing", "--output_dir", str(tmp_path / "out"), "--model.spatial_dims", "3"]
    command = [sys.executable, str(ROOT / "scripts" / "train_tokenizer.py"), *flags]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 2
    (line,) = process.stderr.strip().splitlines()
    assert "me/nothing: found neither such a folder nor such a name on the Hub" in line
    assert not (tmp_path / "out").exists()


MODEL = [
    *("--model.base_channels", "8", "--model.num_norm_groups", "4", "--model.stem_stride", "4"),
    *("--model.channel_multipliers", "[1]", "--model.quantizer.codebook_size", "16"),
    *("--model.quantizer.codebook_dim", "4", "--max_train_steps", "2", "--train_batch_size", "2"),
]
SIDE = phantom.SIDE
VOLUME = ["--processor.size", f"[{SIDE}, {SIDE}, {SIDE}]", "--processor.spacing", "[3, 2, 2.5]"]
VIEW = ["--model.spatial_dims", "2", "--processor.size", "{height: 16, width: 16}"]
TRANSFORMER = ["--model.hidden_size", "16", "--model.num_layers", "1", "--model.num_heads", "2"]
CLASSIFIER = [
    *("--model.backbone", "resnet", "--model.image_size", "8", "--model.quantizer.codebook_size", "8"),
    *("--model.backbone_config", "{embedding_size: 4, hidden_sizes: [4, 8], depths: [1, 1]}"),
    *("--max_train_steps", "2", "--train_batch_size", "8"),
]


def idx_images():
    """Files in MNIST's format by their names."""
    files = {}
    for prefix, count in (("train", 20), ("t10k", 4)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        images = (np.random.default_rng(0).integers(0, 256, (count, 8, 8))).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            files[f"{prefix}-{name}-ubyte"] = header + array.tobytes()
    return files


RUN = """
import runpy, sys

for script, *flags in commands:
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")
result = len(commands)
"""


@pytest.mark.slow
def test_every_script_takes_an_id(pushed, fresh_python, tmp_path):
    pushed.add(IMAGES, idx_images(), kind="datasets")
    names = ("volume", "view", "codes", "pipeline", "image", "classifier", "generated", "evaluation")
    volume, view, codes, pipeline, image, classifier, generated, evaluation = (tmp_path / name for name in names)
    data, images = ["--data", f"{COHORT}@v1"], ["--data", IMAGES]
    tokenizers = ["--volume_tokenizer", volume, "--view_tokenizer", view]
    transformer = [*TRANSFORMER, "--max_train_steps", "2", "--train_batch_size", "2", "--num_inference_steps", "2"]
    image_flags = ["--data_type", "images", "--processor.size", "8", "--model.spatial_dims", "2"]
    commands = [
        ["train_tokenizer.py", *data, *MODEL, *VOLUME, "--output_dir", volume],
        ["train_tokenizer.py", *data, *MODEL, *VIEW, "--output_dir", view],
        ["encode_codes.py", *data, *tokenizers, "--output_dir", codes],
        ["push_dataset.py", codes, "me/own-codes"],
        [
            *("train_code_transformer.py", "--data", "me/own-codes", *tokenizers, *transformer),
            *("--validation_data", f"{COHORT}@v1", "--output_dir", pipeline),
        ],
        ["train_tokenizer.py", *images, *MODEL, *image_flags, "--output_dir", image],
        ["train_classifier.py", *images, *CLASSIFIER, "--output_dir", classifier],
        ["generate.py", "--pipeline", pipeline, *data, "--num_inference_steps", "2", "--output_dir", generated],
        [
            *("evaluate.py", *data, "--generated", generated, "--num_sheet_subjects", "1"),
            *("--num_workers", "1", "--output_dir", evaluation),
        ],
    ]
    paths = [[str(ROOT / "scripts" / script), *map(str, flags)] for script, *flags in commands]
    assert fresh_python(f"commands = {paths!r}\n{RUN}", tmp_path / "home") == len(commands)

    assert json.loads((view / "preprocessor_config.json").read_text())["views_rendered"] is True
    record = json.loads(pushed.read("me/own-codes", "encoding.json", "datasets"))
    assert record["tokenizers"] == {"volume_tokenizer": "volume", "view_tokenizer": "view"}
    assert record["data"]["hub_id"] == COHORT
    logs = [json.loads(line) for line in (pipeline / "logs.jsonl").read_text().splitlines()]
    assert {"validation_bits", "validation_psnr"} <= set().union(*logs)
    assert (pipeline / "model_index.json").is_file()
    assert json.loads((classifier / "metrics.json").read_text())["steps"] == 2
    assert (image / "model.safetensors").is_file()
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert {"one sample", "mean volume"} <= set(metrics["summary"])


def test_nothing_was_asked_for_that_the_loopback_hub_does_not_know(pushed, loaded):
    assert pushed.unknown == []
