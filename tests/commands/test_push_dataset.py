"""The command that publishes data: what it shows, and that a trial publishes nothing."""

import importlib.util
from pathlib import Path

import pytest

from hf_vq.commands.push_dataset import main

SPEC = importlib.util.spec_from_file_location(
    "cohort_phantom", Path(__file__).parents[1] / "data" / "cohort_phantom.py"
)
phantom = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(phantom)


@pytest.fixture
def cohort(tmp_path):
    return str(phantom.write_cohort(tmp_path / "cohort"))


def test_a_dry_run_shows_files_card_and_notes_without_a_network(cohort, capsys):
    main([cohort, "me/cohort", "--license", "cc0-1.0", "--source", "a phantom", "--dry_run"])
    shown = capsys.readouterr().out
    for words in (
        *("data/train-00000-of-00001.parquet", "cohort.json", "README.md", "license: cc0-1.0"),
        *("Source of the scans or images: a phantom.", "Note: 8 volumes have descrip", "nothing was uploaded"),
    ):
        assert words in shown, words


def test_without_a_network_nothing_is_published(cohort):
    with pytest.raises(ValueError, match="me/cohort: not published, because HF_HUB_OFFLINE is set"):
        main([cohort, "me/cohort"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["cohort"], "found no owner, expected owner/name"),
        (["me/cohort", "--shard_size", "0"], "--shard_size: found 0, expected at least 1 MiB"),
    ],
)
def test_bad_input_is_named(cohort, flags, words):
    with pytest.raises(ValueError, match=words):
        main([cohort, *flags])
