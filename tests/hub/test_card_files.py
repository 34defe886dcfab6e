"""Cards as files: what is written beside them, what is refused, cards that are finished, and templates in the wheel."""

import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from card_models import SUBJECTS, write_json
from card_reading import check_tables, metrics_of, numbers_in
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_vq.hub import build_card, is_generated, write_card
from hf_vq.hub.results import public_metrics, without_paths
from hf_vq.hub.templates import read_template
from hf_vq.hub.weights import read_weights

ROOT = Path(__file__).parents[2]


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
