"""What tests of cards read in them: sections, tables, and the numbers that they must have from their files."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_vq.hub import build_card

MISSING = "not recorded"
TAGS = {
    "volume_tokenizer": "image-feature-extraction",
    "view_tokenizer": "image-feature-extraction",
    "image_tokenizer": "image-feature-extraction",
    "classifier": "image-classification",
    "views_to_volume": "image-to-3d",
    "code_generation": "unconditional-image-generation",
}


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
