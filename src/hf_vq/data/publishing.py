"""Publishing a prepared cohort, or codes, as a data set on the Hub that `load_dataset` reads and streams.

The data set has Parquet files with volumes and views embedded as the files they were, a card, and the record of how it
was made, by which `PairedDataset` knows how its views were rendered. Everything goes up in one commit.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, DatasetCard, HfApi
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not in __all__

from ..hub_access import open_repository, writing
from .dataset_cards import DATA_FOLDER, Contents, codes_card, cohort_card
from .description import ENCODING_FILE, describe_data
from .measuring import measure
from .publishable import CohortSplit, PublishableSplit, holds_cohort, open_codes, open_cohort
from .rendered_views import RECORD_FILES, rendered_beam

CARD_FILE = "README.md"
PUBLISHED_RECORDS = (*RECORD_FILES, ENCODING_FILE)
SECRET_SUFFIX = "_digest"
"""How settings end that are digests of secrets or of lists of patients; they stay here."""

ROW_GROUP_BYTES = 16 * 2**20
"""What is read at once of a Parquet file, at least: whoever streams waits for that much before the first row."""

SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Publication:
    """A data set ready to be uploaded.

    Attributes:
        folder: holds its files, as `load_dataset` reads them.
        card: its card, which is also among the files.
        notes: what the publisher should look at before it is uploaded.
    """

    folder: Path
    card: DatasetCard
    notes: list[str]

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file by its path in the repository."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}


def write_publication(
    source: str | Path,
    destination: str | Path,
    repo_id: str,
    stated: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Publication:
    """Writes what is to be uploaded into a folder; of the data no more than a few volumes are in memory at once.

    Args:
        source: cohort as `scripts/prepare_cohort.py` or `scripts/prepare_scans.py` writes it, or codes as
            `scripts/encode_codes.py` does.
        destination: an empty folder.
        repo_id: id of the data set, `owner/name`, which the card mentions.
        stated: `source` and `license` of the data as the publisher knows them, instead of what is recorded.
        shard_bytes: size of a Parquet file, about; a single row that is larger has a file to itself.

    Raises:
        ValueError: the id is malformed; the source is neither, or a file of it cannot be read.
        ImportError: nibabel is missing.
    """
    check_repo_id(repo_id)
    source, folder = Path(source), Path(destination)
    is_cohort = holds_cohort(source)
    facts = {**describe_data(source), **(stated or {})}
    folder.mkdir(parents=True, exist_ok=True)
    _copy_records(source, folder, stated or {})
    if is_cohort:
        card, notes = _write_cohort(source, folder, repo_id, facts, shard_bytes)
    else:
        card, notes = codes_card(repo_id, facts, _write_splits(open_codes(source), folder, shard_bytes)), []
    card.save(folder / CARD_FILE)
    return Publication(folder, card, notes)


def push_dataset(
    source: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    stated: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    api: HfApi | None = None,
) -> CommitInfo:
    """Publishes a prepared cohort or codes; on the disk it takes as much room again, in the folder for temporary files.

    Args:
        source: as for `write_publication`.
        repo_id: `owner/name`; made where it is missing, otherwise its data are replaced.
        private: whether a new data set is hidden from others; by default as its owner's are.
        revision: branch; made from the main one where it is missing.
        commit_message: of the commit.
        stated: as for `write_publication`.
        shard_bytes: as for `write_publication`.
        api: client, by default that of whoever is logged in.

    Returns:
        The commit; its `commit_url` shows it.

    Raises:
        ValueError: as `write_publication`; or the Hub does not take it, or `private` is asked for and the data set is
            public; nothing was published then.
        ImportError: nibabel is missing.
    """
    with tempfile.TemporaryDirectory(prefix="hf_vq_") as folder:
        publication = write_publication(source, folder, repo_id, stated, shard_bytes)
        return upload(publication, repo_id, private, revision, commit_message, api)


def upload(
    publication: Publication,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    api: HfApi | None = None,
) -> CommitInfo:
    """Uploads what `write_publication` wrote, in one commit; see `push_dataset`."""
    api = HfApi() if api is None else api
    with writing(repo_id):
        repo_id = open_repository(api, repo_id, "dataset", private, revision)
        return api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=publication.folder,
            revision=revision,
            commit_message=commit_message or "Upload data set",
            delete_patterns=[f"{DATA_FOLDER}/*.parquet", *PUBLISHED_RECORDS],
        )


def describe(publication: Publication) -> str:
    """Returns what would be uploaded, for people: each file with its size, the card, and what needs a look."""
    sizes = publication.files
    width = len(f"{max(sizes.values()):,}")
    files = [f"{size:>{width},}  {path}" for path, size in sizes.items()]
    total = f"{sum(sizes.values()):,} bytes in {len(sizes)} files"
    notes = [f"Note: {note}" for note in publication.notes]
    return "\n".join([*files, total, "", f"{CARD_FILE}:", str(publication.card).strip(), "", *notes]).rstrip()


def check_repo_id(repo_id: str) -> None:
    """Raises ValueError unless an id is `owner/name` as the Hub allows it."""
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id}: found no owner, expected owner/name; name your account or organisation too")


def _write_cohort(
    source: Path, folder: Path, repo_id: str, facts: Mapping[str, Any], shard_bytes: int
) -> tuple[DatasetCard, list[str]]:
    """Writes the Parquet files of a cohort; returns its card, and notes for the publisher."""
    beam, splits = rendered_beam(source), open_cohort(source)
    measured = measure(splits.values())
    contents = _write_splits(splits, folder, shard_bytes)
    notes = [
        f"{count} volumes have {name} in their NIfTI headers, which are uploaded as they are: make sure that nobody is "
        "named there"
        for name, count in sorted(measured.texts.items())
    ]
    notes += [
        f"{count} views have {name!r} in their files, which are uploaded as they are: make sure that nobody is named "
        "there"
        for name, count in sorted(measured.view_texts.items())
    ]
    notes += _notes_on_names(splits)
    return cohort_card(repo_id, facts, contents, measured, beam), notes


def _notes_on_names(splits: Mapping[str, CohortSplit]) -> list[str]:
    """What the rows say of people."""
    first = next(iter(splits.values())).source
    columns = f" and the columns {', '.join(first.facts)}" if first.facts else ""
    return [f"names of subjects (the first is {first.subjects[0]}){columns} are uploaded too"]


def _copy_records(source: Path, folder: Path, stated: Mapping[str, str]) -> None:
    """Copies what says how the data were made, without digests of secrets and with what the publisher states."""
    for name in PUBLISHED_RECORDS:
        if (source / name).is_file():
            record = json.loads((source / name).read_text(encoding="utf-8"))
            public = {key: value for key, value in record.items() if not key.endswith(SECRET_SUFFIX)}
            if public.get("radiographs", "rendered") != "rendered":
                public["radiographs"] = "given"  # a preparation notes the digest of a list of patients there
            if name == ENCODING_FILE:
                public["data"] = {**public.get("data", {}), **stated}
            else:
                public.update(stated)
            (folder / name).write_text(json.dumps(public, indent=2) + "\n", encoding="utf-8")


def _write_splits(splits: Mapping[str, PublishableSplit], folder: Path, shard_bytes: int) -> Contents:
    """Writes the Parquet files of all splits."""
    (folder / DATA_FOLDER).mkdir(parents=True)
    paths = [path for name, split in splits.items() for path in _write_split(split, name, folder, shard_bytes)]
    return Contents(
        features=next(iter(splits.values())).features,
        rows={name: len(split.sizes) for name, split in splits.items()},
        num_bytes={name: sum(split.sizes) for name, split in splits.items()},
        download_size=sum(path.stat().st_size for path in paths),
    )


def _write_split(split: PublishableSplit, name: str, folder: Path, shard_bytes: int) -> Iterator[Path]:
    """Writes the Parquet files of a split one after another and yields their paths."""
    import pyarrow.parquet as parquet

    shards = list(batches(split.sizes, shard_bytes))
    for number, rows in enumerate(shards):
        path = folder / DATA_FOLDER / f"{name}-{number:05d}-of-{len(shards):05d}.parquet"
        # values are compressed already and no two alike: a dictionary would hold them all
        with parquet.ParquetWriter(path, split.features.arrow_schema, use_dictionary=False) as writer:
            for group in batches(split.sizes[rows.start : rows.stop], ROW_GROUP_BYTES):
                writer.write_table(split.table(range(rows.start + group.start, rows.start + group.stop)))
        yield path


def batches(sizes: Sequence[int], limit: int) -> Iterator[range]:
    """Divides rows, in their order, into as few runs as fit into a limit each.

    Args:
        sizes: bytes of each row.
        limit: bytes of a run; a row that is larger is a run of its own.
    """
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            yield range(start, index)
            start, total = index, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))
