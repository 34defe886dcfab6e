"""Model cards: complete, true to their files, valid for the Hub, and with an example that runs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from card_models import KINDS, NUM_CODES, SIDE, tokenizer, write_json
from card_reading import MISSING, TAGS, check_tables, full_card, metrics_of, recorded_numbers, section, table_rows
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

from hf_vq.hub import build_card
from hf_vq.hub.licenses import LICENSES


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
