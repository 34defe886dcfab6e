"""Cards of data sets on the Hub: what the records and the files say, and, where they say nothing, that they don't."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..processors.radiographs import MAX_LINE_INTEGRAL, WATER_ATTENUATION, BeamGeometry
from .description import ENCODING_FILE
from .measuring import Measurements, tally
from .paired_sources import LABEL_COLUMN
from .publishable import CODES_COLUMN, SUBJECT_COLUMN, VOLUME_COLUMN

DATA_FOLDER = "data"
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TAGS = ("hf_vq",)
COHORT_TAGS = (*TAGS, "medical", "computed-tomography", "x-ray", "nifti")
COLUMN_TEXTS = {
    SUBJECT_COLUMN: "name of the subject",
    VOLUME_COLUMN: "the CT volume in HU, a .nii.gz file with its affine in mm",
    CODES_COLUMN: "what is to be predicted: codes of the volume, or of the image",
    LABEL_COLUMN: "class, empty where it is not known",
}


@dataclass(frozen=True)
class Contents:
    """What the files to be uploaded hold.

    Attributes:
        features: `datasets.Features` of the columns.
        rows: number of rows of each split.
        num_bytes: bytes of the values of each split.
        download_size: bytes of the files.
    """

    features: Any
    rows: Mapping[str, int]
    num_bytes: Mapping[str, int]
    download_size: int


def cohort_card(
    repo_id: str, facts: Mapping[str, Any], contents: Contents, measured: Measurements, beam: BeamGeometry | None
) -> DatasetCard:
    """Writes the card of a prepared cohort.

    Args:
        repo_id: id of the data set.
        facts: as `describe_data` returns them, with the publisher's own `source` and `license`.
        contents: of the files to be uploaded.
        measured: of the volumes and views.
        beam: rays of the views, None where they were not rendered or nothing is known.
    """
    count = sum(contents.rows.values())
    views = ", ".join(measured.views) or "none"
    lines = [
        f"{count} CT volumes in Hounsfield units, each with its views ({views}), for learning volumes from views.",
        *_splits(contents.rows, "subjects"),
        *_origin_of_subjects(facts, count),
        *_columns(contents.features, measured),
        *_volumes(measured),
        *_views(measured, beam),
        *_source(facts),
        *_cohort_use(repo_id, list(measured.views)),
        *_cohort_limits(facts),
    ]
    return _card(repo_id, facts, contents, lines, task_categories=["image-to-3d"], tags=list(COHORT_TAGS))


def codes_card(repo_id: str, facts: Mapping[str, Any], contents: Contents) -> DatasetCard:
    """Writes the card of encoded codes; see `cohort_card`."""
    codes = facts.get("codes", {})
    data = f"of the data set `{facts['name']}`" if codes else "of a data set that is not recorded"
    lines = [
        f"Codes of vector-quantising tokenizers, {data}, for training a code transformer.",
        *_splits(contents.rows, "rows"),
        *_encoding(codes),
        *_columns(contents.features, None),
        *_source(facts),
        *_codes_use(repo_id),
    ]
    return _card(repo_id, facts, contents, lines, tags=list(TAGS))


def _encoding(codes: Mapping[str, Any]) -> list[str]:
    """With what the codes were made, as far as the record of it says."""
    made_with = ", ".join(f"`{name}` ({flag})" for flag, name in codes.get("tokenizers", {}).items())
    moved = f"Of each training pair there are also {codes.get('num_shifts')} copies, moved by up to "
    return [
        f"Tokenizers: {made_with or 'not recorded'}. Only these turn the codes back into volumes or images.",
        *(["", f"{moved}{codes.get('max_shift')} voxels along each axis."] if codes.get("num_shifts") else []),
        *(["", f"`{ENCODING_FILE}` holds what is recorded of how they were made."] if codes else []),
    ]


def _card(repo_id: str, facts: Mapping[str, Any], contents: Contents, lines: list[str], **metadata: Any) -> DatasetCard:
    """The card with the metadata that `load_dataset` and the Hub's pages read."""
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict

    name = repo_id.rpartition("/")[2]
    configs = [{"split": split, "path": f"{DATA_FOLDER}/{split}-*"} for split in contents.rows]
    data = DatasetCardData(
        license=facts.get("license"),
        pretty_name=name,
        size_categories=_size_category(sum(contents.rows.values())),
        configs=[{"config_name": "default", "data_files": configs}],
        **metadata,
    )
    splits = SplitDict(dataset_name=name)
    for split, count in contents.rows.items():
        splits.add(SplitInfo(split, contents.num_bytes[split], count))
    info = DatasetInfo(
        features=contents.features,
        splits=splits,
        download_size=contents.download_size,
        dataset_size=sum(contents.num_bytes.values()),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    text = "\n".join([f"# {name}", "", *lines])
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text.rstrip()}\n")


def _size_category(count: int) -> str:
    return next((name for limit, name in SIZE_CATEGORIES if count < limit), "n>1M")


def _splits(rows: Mapping[str, int], what: str) -> list[str]:
    table = [f"| {split} | {count} |" for split, count in rows.items()]
    return ["", f"| split | {what} |", "| --- | ---: |", *table, ""]


def _origin_of_subjects(facts: Mapping[str, Any], count: int) -> list[str]:
    if facts.get("deformed_from_one_scan"):
        return [
            f"All subjects are deformed copies of one CT scan: these are not {count} patients, and what is found on "
            "the test split says nothing about other people. `cohort.json` holds the settings; the seed was "
            f"{facts.get('seed', 'not recorded')}."
        ]
    if facts["kind"] == "preparation":
        return [
            "Every subject is one CT scan, resampled onto a common grid. Patients, never scans, were divided among the "
            "splits. `preparation.json` holds the settings."
        ]
    return ["How the subjects were prepared is not recorded."]


def _columns(features: Any, measured: Measurements | None) -> list[str]:
    lines = ["", "## Columns", "", "| column | type | holds |", "| --- | --- | --- |"]
    for name, feature in features.items():
        is_view = measured is not None and name in measured.views
        text = "a view, as its file was" if is_view else COLUMN_TEXTS.get(name, _other_column(feature))
        shape = getattr(feature, "shape", None)
        kind = feature.dtype if type(feature).__name__ == "Value" else type(feature).__name__
        lines.append(f"| `{name}` | {kind} | {text}{f', {shape}' if shape else ''} |")
    return lines


def _other_column(feature: Any) -> str:
    return "codes of a view" if getattr(feature, "shape", None) else "text of the column in metadata.csv"


def _volumes(measured: Measurements) -> list[str]:
    table = [f"| {name} | {tally(counter)} |" for name, counter in measured.volumes.items()]
    return ["", "## Volumes", "", "| property | value |", "| --- | --- |", *table]


def _views(measured: Measurements, beam: BeamGeometry | None) -> list[str]:
    if not measured.views:
        return []
    table = [f"| {name} | {tally(counter)} |" for name, counter in measured.views.items()]
    return ["", "## Views", "", "| view | images |", "| --- | --- |", *table, "", _rendering(beam)]


def _rendering(beam: BeamGeometry | None) -> str:
    """How the views were made, in a sentence or two."""
    if beam is None:
        return "Nothing says that they were rendered from the volumes; where the images come from is not recorded."
    values = (
        f"Their values are proportional to the line integral of the attenuation, white being {MAX_LINE_INTEGRAL:g} "
        f"(water: {WATER_ATTENUATION:g}/mm) and black air."
    )
    size = beam.detector_size
    shown = f"{size[0]:g} x {size[1]:g} mm" if size else "the smallest that shows the whole volume"
    rays = (
        f"a cone beam (source to detector {beam.source_detector_distance:g} mm, source to the volume's middle "
        f"{beam.source_isocentre_distance:g} mm)"
        if beam.is_cone
        else "parallel rays"
    )
    return f"They were rendered from the scan with {rays}; detector: {shown}. {values} They are no real X-rays."


def _source(facts: Mapping[str, Any]) -> list[str]:
    source, license_id = facts.get("source"), facts.get("license")
    unknown = "not recorded. Ask whoever published these data before you use them"
    return [
        *("", "## Source and licence", ""),
        f"Source of the scans or images: {source or 'not recorded'}.",
        "",
        f"Licence: {license_id or unknown}.",
    ]


def _cohort_use(repo_id: str, views: list[str]) -> list[str]:
    shown = [f'image = subject["{views[0]}"]  # PIL'] if views else []
    return [
        *("", "## Use", "", "`pip install datasets nibabel pillow`", "", "```python"),
        "from datasets import load_dataset",
        "",
        f'data = load_dataset("{repo_id}", streaming=True)',
        'subject = next(iter(data["train"]))',
        'volume = subject["volume"].get_fdata()  # HU, axes as the affine says',
        'affine = subject["volume"].affine  # voxel index to mm, RAS+',
        *shown,
        "```",
        "",
        f"The training scripts of `hf_vq` take the id: `--data {repo_id}`, or `--data {repo_id}@REVISION`.",
    ]


def _codes_use(repo_id: str) -> list[str]:
    command = f"accelerate launch scripts/train_code_transformer.py --data {repo_id} ..."
    return ["", "## Use", "", "```bash", command, "```"]


def _cohort_limits(facts: Mapping[str, Any]) -> list[str]:
    rendered = "Rendered views differ from real X-rays. " if facts.get("rendered") else ""
    return ["", "## Limits", "", f"For research. Nothing made from these data is a medical device. {rendered}".rstrip()]
