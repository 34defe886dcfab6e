"""Model cards: what a trained model is, made of its configs, the record of its training and its metrics file."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..files import atomic_file
from ..models.loading import MODEL_FILE
from ..training.record import TRAINING_FILE, read_record
from .architecture import (
    CLASSIFIER,
    CODE_GENERATION,
    TOKENIZERS,
    VIEW_TOKENIZER,
    VIEWS_TO_VOLUME,
    VOLUME_TOKENIZER,
    code_shape,
    find_kind,
    read_json,
    read_processor,
    sections,
    view_names,
)
from .licenses import check_license
from .results import Results, public_metrics, read_results, validation_results
from .templates import read_template
from .training_facts import data_rows, training_table

LIBRARY = "hf_vq"
CARD_FILE, METRICS_FILE, RESULTS_FILE = "README.md", "metrics.json", "results.json"
"""The card; metrics as a script wrote them; and the same without subjects and paths, as they are published."""

MARK = "<!-- Written by hf_vq from the files beside this one; scripts/make_model_card.py writes it again. -->"
"""A card with this line can be made anew without loss; one without it was written or changed by somebody."""

PIPELINE_TAGS = {
    VIEWS_TO_VOLUME: "image-to-3d",
    CODE_GENERATION: "unconditional-image-generation",
    CLASSIFIER: "image-classification",
    **dict.fromkeys(TOKENIZERS, "image-feature-extraction"),
}
MEDICAL = (VIEWS_TO_VOLUME, VOLUME_TOKENIZER, VIEW_TOKENIZER)
MEDICAL_TAGS = ("medical", "computed-tomography", "x-ray")
TAGS = {
    VIEWS_TO_VOLUME: ("discrete-diffusion", "x-ray-to-ct"),
    CODE_GENERATION: ("discrete-diffusion",),
    **dict.fromkeys(TOKENIZERS, ("tokenizer",)),
}
TEMPLATES = {**dict.fromkeys(TOKENIZERS, "tokenizer")}
SHEET, CODEBOOK, RECONSTRUCTIONS, SAMPLES = "sheet.png", "codebook.png", "reconstructions.png", "samples.png"
PICTURES = {
    SHEET: "Per subject: the views, slices of the true volume, the same slices generated, and the error",
    RECONSTRUCTIONS: "Validation samples and their reconstructions",
    SAMPLES: "Generated samples of the last validation",
    CODEBOOK: "How often each code is used, and encoder outputs with the codes among them",
}
# Pictures that evaluation and plot_codebook.py leave beside the metrics file, and whose card they belong to.
BESIDE_METRICS = {VIEWS_TO_VOLUME: (SHEET, CODEBOOK), VOLUME_TOKENIZER: (CODEBOOK,)}
FROM_VALIDATION = {**dict.fromkeys(TOKENIZERS, RECONSTRUCTIONS), CODE_GENERATION: SAMPLES}


@dataclass(frozen=True)
class _Model:
    """A folder, and what its card is made of."""

    folder: Path
    kind: str
    record: dict[str, Any] | None
    results: Results

    @property
    def data(self) -> Mapping[str, Any]:
        """What is known of the data that the model was trained on."""
        return (self.record or {}).get("data") or {}


def build_card(
    folder: Path | str, *, metrics: Path | None = None, repo_id: str | None = None, license: str | None = None
) -> ModelCard:
    """Makes the card of a model; a fact that is not recorded is said not to be.

    Args:
        folder: what `save_pretrained` wrote: a `VQTokenizer`, a `VQForImageClassification`, a `ViewsToVolumePipeline`
            or a `CodeGenerationPipeline`; with `training.json` beside it after a training. The pictures of `PICTURES`
            that it holds are shown.
        metrics: metrics.json of an evaluation; by default the folder's results.json, or its metrics.json.
        repo_id: id on the Hub, by which the card's example loads the model; by default the name of the folder.
        license: identifier of the licence of the weights; by default that of the card in the folder, if there is one.

    Returns:
        The card; `card.save` writes it.

    Raises:
        ValueError: if the folder holds no such model, the licence is unknown to the Hub, or the metrics are missing or
            of another model.
    """
    return _build(Path(folder), Path(folder), metrics, repo_id, license)


def write_card(
    folder: Path | str,
    *,
    metrics: Path | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    output_dir: Path | str | None = None,
) -> Path:
    """Makes the card of a model and writes it as README.md, with its pictures and its figures (results.json) beside it.

    Args:
        folder: as for `build_card`.
        metrics: as for `build_card`; pictures of the evaluation that lie beside it are copied.
        repo_id: as for `build_card`.
        license: as for `build_card`.
        output_dir: where to write, with a copy of the training's record too; by default the folder.

    Returns:
        The path of the card.

    Raises:
        ValueError: as `build_card`.
    """
    folder = Path(folder)
    target = folder if output_dir is None else Path(output_dir)
    kind = find_kind(folder)
    _build(folder, folder, metrics, repo_id, license)  # nothing is written unless there will be a card
    target.mkdir(parents=True, exist_ok=True)
    record = folder / TRAINING_FILE
    copies = {**_find_pictures(folder, kind, metrics), **({TRAINING_FILE: record} if record.is_file() else {})}
    for name, source in copies.items():
        if source.resolve() != (target / name).resolve():
            with atomic_file(target / name) as temporary:
                shutil.copyfile(source, temporary)
    used = _find_metrics(folder, metrics)
    if used is not None and kind != VIEW_TOKENIZER and used.resolve() != (target / RESULTS_FILE).resolve():
        text = json.dumps(public_metrics(read_json(used)), indent=2, ensure_ascii=False) + "\n"
        with atomic_file(target / RESULTS_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    card = _build(folder, target, metrics, repo_id, license)
    with atomic_file(target / CARD_FILE) as temporary:
        card.save(temporary)
    return target / CARD_FILE


def is_generated(card: str) -> bool:
    """Returns whether a card is one that `build_card` made and nobody has marked as their own by removing `MARK`."""
    return MARK in card


def _build(folder: Path, beside: Path, metrics: Path | None, repo_id: str | None, license: str | None) -> ModelCard:
    """The card of a model, with the pictures and the figures that lie in the folder `beside`."""
    kind = find_kind(folder)
    record, task = read_record(folder), PIPELINE_TAGS[kind]
    results, used = Results(), _find_metrics(folder, metrics)
    if used is not None:
        results.add(read_results(used, folder, kind, task, (record or {}).get("data") or {}))
    results.add(validation_results(record, kind, task))
    model = _Model(folder, kind, record, results)
    name = (repo_id or folder.resolve().name).rpartition("/")[2]
    chosen = check_license(license) if license else _license_of(folder)
    template = read_template(TEMPLATES.get(kind, kind)) + read_template("common")
    context = _context(model, beside, repo_id or name, chosen)
    card = ModelCard.from_template(_metadata(model, name, chosen), template_str=template, **context)
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)  # where a template's condition left nothing
    return card


def _find_metrics(folder: Path, metrics: Path | None) -> Path | None:
    """The metrics file that a card is made of."""
    if metrics is not None:
        return Path(metrics)
    return next((folder / name for name in (RESULTS_FILE, METRICS_FILE) if (folder / name).is_file()), None)


def _find_pictures(folder: Path, kind: str, metrics: Path | None) -> dict[str, Path]:
    """For each name on the card the picture there is."""
    found = {name: folder / name for name in PICTURES}
    if kind in FROM_VALIDATION:
        last = max((folder / "validation").glob("step-*.png"), default=None)
        found |= {FROM_VALIDATION[kind]: last} if last else {}
    if metrics is not None:
        beside = {name: Path(metrics).parent / name for name in BESIDE_METRICS.get(kind, ())}
        found |= {name: path for name, path in beside.items() if path.is_file()}
    return {name: path for name, path in found.items() if path.is_file()}


def _license_of(folder: Path) -> str | None:
    """The licence that the card in a folder names."""
    path = folder / CARD_FILE
    return ModelCard.load(path).data.license if path.is_file() else None


def _metadata(model: _Model, name: str, license: str | None) -> ModelCardData:
    medical = MEDICAL_TAGS if model.kind in MEDICAL else ()
    on_hub = model.data.get("hub_id")
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=PIPELINE_TAGS[model.kind],
        license=license,
        tags=[LIBRARY, "vector-quantization", *TAGS.get(model.kind, ()), *medical],
        datasets=[on_hub] if on_hub else None,
        model_name=name if model.results.entries else None,
        eval_results=model.results.entries or None,
    )


def _context(model: _Model, beside: Path, model_id: str, license: str | None) -> dict[str, Any]:
    """What the templates are filled in with."""
    return {
        "mark": MARK,
        "title": model_id,
        "model_id": model_id,
        "kind": model.kind,
        "medical": model.kind in MEDICAL,
        "sections": sections(model.folder, model.kind),
        "rendered": _rendered(model),
        "data": model.data,
        "data_rows": data_rows(model.data, medical=model.kind in MEDICAL),
        "training": training_table(model.kind, model.record),
        "has_record": model.record is not None,
        "results": model.results.blocks,
        "results_file": RESULTS_FILE if (beside / RESULTS_FILE).is_file() else None,
        "pictures": {file: text for file, text in PICTURES.items() if (beside / file).is_file()},
        "license": license,
        **_example(model),
    }


def _rendered(model: _Model) -> bool | None:
    """Whether the views that the model was trained on were rendered; None where nothing says so."""
    inside = {VIEWS_TO_VOLUME: "view_processor", VIEW_TOKENIZER: ""}
    if model.kind in inside and read_processor(model.folder / inside[model.kind]).get("views_rendered"):
        return True
    found: bool | None = model.data.get("rendered")
    return found


def _example(model: _Model) -> dict[str, Any]:
    """What the card's example depends on."""
    if model.kind in (VIEWS_TO_VOLUME, CODE_GENERATION):
        config = read_json(model.folder / "transformer" / MODEL_FILE)
        return {"views": view_names(config), "num_classes": config.get("num_classes")}
    if model.kind not in TOKENIZERS:
        return {}
    grid, channels = code_shape(model.folder), read_json(model.folder / MODEL_FILE).get("in_channels", 1)
    return {"code_shape": "" if grid is None else f", {(1, *grid)}", "mode": "L" if channels == 1 else "RGB"}
