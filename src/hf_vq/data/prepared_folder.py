"""The folder that scans are prepared into: resumable, and consistent whenever it is looked at.

While scans are prepared, each file appears whole or not at all, and a scan counts as finished when it has a record. The
`metadata.csv` of each split, which is what data sets read, follows when all scans are done and names none but those.
"""

import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ..files import atomic_file
from ..tables import check_columns, read_table
from .cohort import SPLITS
from .paired_sources import METADATA_FILE
from .preparation import metadata_row
from .scan_search import ScanSource

SETTINGS_FILE = "preparation.json"
SPLITS_FILE = "splits.csv"
REPORT_FILE = "report.csv"
SUMMARY_FILE = "report.md"
RECORDS = "records"
REPORT_COLUMNS = ("input", "kind", "status", "reason", "patient", "subject", "split", "files", "shape", "spacing")

# what `atomic_file` calls a file that is being written
_LEFTOVER = re.compile(r"\.[0-9a-f]{8}\..+")


class PreparedFolder:
    """Where a preparation writes, and what it has finished.

    Args:
        path: the folder; it need not exist.
        settings: everything the result depends on besides the scans, as JSON types; `views` names the views.
        overwrite: begin anew whatever an earlier preparation has left.

    Attributes:
        path: the folder.
        known_splits: split of each patient of the earlier preparation that goes on; empty for a new one.

    Raises:
        ValueError: the path is a file; the folder holds other things, or a preparation with other settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = Path(path)
        self._settings = json.loads(json.dumps(settings))
        self._overwrite = overwrite
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{path}: found a file, expected a folder to write to; choose another --output_dir")
        entries = [entry for entry in self.path.glob("*") if not _LEFTOVER.fullmatch(entry.name)]
        self._exists = (self.path / SETTINGS_FILE).is_file()
        if entries and not self._exists:
            raise ValueError(
                f"{path}: found files but no {SETTINGS_FILE}, expected an empty folder or an earlier preparation; "
                "choose another --output_dir"
            )
        if self._exists and not overwrite:
            self._check_settings()
        self.known_splits = {} if overwrite else self._read_splits()

    def start(self, splits: Mapping[str, str]) -> None:
        """Makes the folder ready: clears it where it is to be overwritten, and removes what a killed run left behind.

        Args:
            splits: split of each patient, kept for later runs.
        """
        if self._exists and self._overwrite:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        places = [self.path, *(self.path / name for name in (*SPLITS, RECORDS))]
        for leftover in (entry for place in places for entry in place.glob(".*") if _LEFTOVER.fullmatch(entry.name)):
            leftover.unlink()
        _write(self.path / SETTINGS_FILE, json.dumps(self._settings, indent=2) + "\n")
        rows = [{"patient": patient, "split": split} for patient, split in sorted(splits.items())]
        _write_csv(self.path / SPLITS_FILE, ("patient", "split"), rows)

    def finished_row(self, source: ScanSource, fingerprint: str) -> dict[str, str] | None:
        """Returns the report row of a scan that is finished and whole and has not changed since, otherwise None."""
        try:
            record = json.loads(self._record_path(source).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        row = {"input": source.name, **record["row"]}
        names = metadata_row(row["subject"], tuple(self._settings["views"]))
        del names["subject"]
        whole = all((self.path / row["split"] / name).is_file() for name in names.values())
        return row if whole and record["fingerprint"] == fingerprint else None

    def forget(self, source: ScanSource) -> None:
        """Drops what is known of a scan that is prepared again, first of all where data sets would read it."""
        path = self._record_path(source)
        if path.is_file():
            split = json.loads(path.read_text(encoding="utf-8"))["row"]["split"]
            (self.path / split / METADATA_FILE).unlink(missing_ok=True)
            path.unlink()

    def record(self, source: ScanSource, fingerprint: str, row: Mapping[str, str]) -> None:
        """Notes that all files of a scan are written; its path, which may tell who the patient is, is not noted."""
        noted = {name: text for name, text in row.items() if name != "input"}
        _write(self._record_path(source), json.dumps({"fingerprint": fingerprint, "row": noted}, indent=2) + "\n")

    def finish(self, rows: Sequence[Mapping[str, str]], num_ignored: int) -> None:
        """Writes the metadata of each split, then the report.

        Args:
            rows: report row of every input, columns `REPORT_COLUMNS`.
            num_ignored: number of files that are no inputs.
        """
        for split in SPLITS:
            subjects = sorted(row["subject"] for row in rows if row["status"] == "prepared" and row["split"] == split)
            path = self.path / split / METADATA_FILE
            if subjects:
                metadata = [metadata_row(subject, tuple(self._settings["views"])) for subject in subjects]
                _write_csv(path, tuple(metadata[0]), metadata)
            else:
                path.unlink(missing_ok=True)
        ordered = sorted(rows, key=lambda row: row["input"])
        _write_csv(self.path / REPORT_FILE, REPORT_COLUMNS, ordered)
        _write(self.path / SUMMARY_FILE, _summary(ordered, self._settings, num_ignored))

    def _record_path(self, source: ScanSource) -> Path:
        return self.path / RECORDS / f"{source.key}.json"

    def _check_settings(self) -> None:
        """Raises ValueError when the earlier preparation had other settings."""
        earlier = json.loads((self.path / SETTINGS_FILE).read_text(encoding="utf-8"))
        names = sorted(set(earlier) | set(self._settings))
        other = [name for name in names if earlier.get(name) != self._settings.get(name)]
        if other:
            name = other[0]
            raise ValueError(
                f"{self.path}: found a preparation with other settings ({', '.join(other)}; {name} was "
                f"{earlier.get(name)!r}, now {self._settings.get(name)!r}), expected the same to go on; choose another "
                "--output_dir or pass --overwrite"
            )

    def _read_splits(self) -> dict[str, str]:
        path = self.path / SPLITS_FILE
        if not path.is_file():
            return {}
        rows, columns = read_table(path)
        check_columns(path, columns, ("patient", "split"))
        return {row["patient"]: row["split"] for row in rows}

    def _clear(self) -> None:
        """Removes the folders and files of a preparation and no others; the file by which it is known goes last."""
        for split in SPLITS:
            (self.path / split / METADATA_FILE).unlink(missing_ok=True)
        for name in (*SPLITS, RECORDS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (REPORT_FILE, SUMMARY_FILE, SPLITS_FILE, SETTINGS_FILE):
            (self.path / name).unlink(missing_ok=True)


def fingerprint_of(paths: Iterable[str | Path]) -> str:
    """Returns a digest of names, sizes and times of change of the files that exist, to notice a changed scan by."""
    found = [(path.name, path.stat()) for path in map(Path, paths) if path.is_file()]
    described = [(name, status.st_size, status.st_mtime_ns) for name, status in found]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue())


def _summary(rows: Sequence[Mapping[str, str]], settings: Mapping[str, Any], num_ignored: int) -> str:
    """The report for a human reader, Markdown."""
    prepared = [row for row in rows if row["status"] == "prepared"]
    skipped = [row for row in rows if row["status"] != "prepared"]
    lines = [
        "# Preparation of scans",
        "",
        f"{len(prepared)} of {len(rows)} inputs prepared, {len(skipped)} skipped; {num_ignored} other files ignored. "
        f"Every input has a row in `{REPORT_FILE}`. Its column `input` holds paths as they were found: leave the "
        "reports out of what you publish if paths tell who the patients are.",
        "",
        "| split | patients | subjects |",
        "| --- | ---: | ---: |",
    ]
    for split in SPLITS:
        members = [row for row in prepared if row["split"] == split]
        lines.append(f"| {split} | {len({row['patient'] for row in members})} | {len(members)} |")
    if skipped:
        lines += ["", "## Skipped", "", "| reason | inputs | example |", "| --- | ---: | --- |"]
        examples = {row["reason"]: row["input"] for row in reversed(skipped)}
        for reason, count in sorted(Counter(row["reason"] for row in skipped).items()):
            cells = (text.replace("|", "\\|") for text in (reason, str(count), examples[reason]))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Settings", "", "```json", json.dumps(settings, indent=2), "```", ""]
    return "\n".join(lines)
