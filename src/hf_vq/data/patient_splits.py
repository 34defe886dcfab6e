"""Dividing patients into splits, so that all scans of a patient are in one."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..tables import read_table
from .cohort import SPLITS


def read_patient_table(path: str | Path, columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Reads a CSV file with one row for each patient.

    Args:
        path: the file; its first row names the columns, `patient` among them.
        columns: further columns that it must have.

    Returns:
        For each patient its row, without empty cells.

    Raises:
        ValueError: there is no such file, a column is missing, or a patient is missing or stands there twice.
    """
    written, found = read_table(path)
    rows = [{name: text.strip() for name, text in row.items() if name} for row in written]
    missing = [name for name in ("patient", *columns) if name not in found]
    if missing:
        raise ValueError(f"{path}: found columns {found}, expected {missing} too; add them")
    table: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        patient = row["patient"]
        if not patient or patient in table:
            raise ValueError(
                f"{path}: found patient {patient!r} in row {number}, expected each patient once; correct the row"
            )
        table[patient] = {name: text for name, text in row.items() if text and name != "patient"}
    return table


def check_splits(table: Mapping[str, Mapping[str, str]], path: str | Path) -> dict[str, str]:
    """Returns the split of each patient of a table; raises ValueError for one that is none of `SPLITS`."""
    for patient, row in table.items():
        if row.get("split") not in SPLITS:
            raise ValueError(
                f"{path}: found split {row.get('split', '')!r} of patient {patient!r}, expected one of {list(SPLITS)}; "
                "correct the row"
            )
    return {patient: row["split"] for patient, row in table.items()}


def split_sizes(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Returns how many of `count` patients each split gets: the nearest whole number, one at least, the rest the first.

    Args:
        count: number of patients.
        fractions: share of each split, 0 or more; they sum to 1. The first takes what the others leave.

    Raises:
        ValueError: the fractions are malformed, or there are fewer patients than splits.
    """
    if min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions: found {list(fractions.values())}, expected shares that sum to 1; correct them")
    wanted = [name for name, fraction in fractions.items() if fraction > 0]
    if count < len(wanted):
        raise ValueError(
            f"found {count} patient{'s' * (count != 1)}, expected at least {len(wanted)} to fill the splits {wanted}; "
            "add scans, or name the splits in a file"
        )
    sizes = {name: max(1, round(fraction * count)) if fraction > 0 else 0 for name, fraction in fractions.items()}
    first, *others = wanted
    sizes[first] = count - sum(sizes[name] for name in others)
    while sizes[first] < 1:
        largest = max(others, key=lambda name: sizes[name])
        sizes[largest] -= 1
        sizes[first] += 1
    return sizes


def assign_splits(
    patients: Iterable[str], fractions: Mapping[str, float], seed: int, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Divides patients at random; those already divided stay where they are.

    Args:
        patients: their names.
        fractions: share of each split, as in `split_sizes`.
        seed: seed of the division.
        known: splits given out earlier.

    Returns:
        The split of each patient, known ones included.

    Raises:
        ValueError: as `split_sizes`.
    """
    splits = dict(known or {})
    names = set(patients) | set(splits)
    # an order that depends on each name alone: another patient more or less changes no other's rank
    new = sorted(names - set(splits), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    lacking = split_sizes(len(names), fractions)
    for split in splits.values():
        lacking[split] = lacking.get(split, 0) - 1
    for name in new:
        split = max(lacking, key=lambda one: lacking[one])
        splits[name] = split
        lacking[split] -= 1
    return splits
