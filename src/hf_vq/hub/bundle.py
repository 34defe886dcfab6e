"""Which files of a folder are a model or a pipeline, and whether others can load them from the Hub."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from ..models import VQForImageClassification, VQTokenizer
from ..models.loading import MODEL_FILE, PIPELINE_FILE
from ..pipelines import CodeGenerationPipeline, ViewsToVolumePipeline
from ..sharing import REQUIREMENT, REQUIREMENT_KEY
from ..training.record import TRAINING_FILE
from .architecture import CLASSIFIER, CODE_GENERATION, PROCESSOR_FILE, TOKENIZERS, VIEWS_TO_VOLUME, find_kind, read_json
from .cards import CARD_FILE, RESULTS_FILE, is_generated, write_card

PACKAGE = __name__.partition(".")[0]
CLASSES: dict[str, Any] = {
    VIEWS_TO_VOLUME: ViewsToVolumePipeline,
    CODE_GENERATION: CodeGenerationPipeline,
    CLASSIFIER: VQForImageClassification,
    **dict.fromkeys(TOKENIZERS, VQTokenizer),
}
# Libraries whose components DiffusionPipeline loads from the Hub.
LIBRARIES = (PACKAGE, "diffusers", "transformers")
CONFIG_FILES = (MODEL_FILE, PROCESSOR_FILE, "scheduler_config.json", TRAINING_FILE)
# As transformers and diffusers name them: perhaps a variant, perhaps one of several shards, perhaps their index.
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(\.\w+)?(-\d+-of-\d+)?\.safetensors(\.index(\.\w+)?\.json)?")

_PICTURE = re.compile(r"!\[[^\]]*\]\(\s*([^)\s]+)|<img[^>]*\ssrc=[\"']([^\"']+)")


@dataclass(frozen=True)
class Bundle:
    """What is published.

    Args:
        class_name: the class that loads it.
        files: by their path in the repository, the file or its content.
    """

    class_name: str
    files: Mapping[str, Path | bytes]

    def read(self, path: str) -> bytes:
        """What a file holds."""
        file = self.files[path]
        return file.read_bytes() if isinstance(file, Path) else file

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by its path in the repository."""
        return {path: file.stat().st_size if isinstance(file, Path) else len(file) for path, file in self.files.items()}


def collect(folder: Path, repo_id: str, metrics: Path | None = None, license: str | None = None) -> Bundle:
    """Finds the files of a model or pipeline in a folder and makes sure that others will be able to load them.

    Taken are configs, safetensors weights, processors, the scheduler, the record of the training, the card, the
    pictures that it shows and the figures that it was made from. A training's checkpoints, logs, pictures and anything
    else in the folder stay behind.

    Args:
        folder: written by `save_pretrained`, such as the output folder of a training.
        repo_id: by which the card's example loads it.
        metrics: metrics.json to make the card from.
        license: identifier of the licence of the weights.

    Raises:
        ValueError: the folder holds no tokenizer, classifier or pipeline of this package, it would not load, a picture
            of the card is missing, or the card, with `metrics` or `license`, is somebody's own.
    """
    model_class = CLASSES[find_kind(folder)]
    check_loads(folder, model_class)
    files: dict[str, Path | bytes] = dict(_own_files(folder, ""))
    if (folder / PIPELINE_FILE).is_file():
        index = read_json(folder / PIPELINE_FILE)
        files[PIPELINE_FILE] = with_requirement(index)
        for name in _components(index):
            files |= _own_files(folder / name, f"{name}/")
    files |= _card_files(folder, repo_id, metrics, license)
    return Bundle(model_class.__name__, dict(sorted(files.items())))


def _card_files(folder: Path, repo_id: str, metrics: Path | None, license: str | None) -> dict[str, bytes]:
    """The card and what it shows: as they lie in the folder where somebody wrote it, else made anew."""
    if (folder / CARD_FILE).is_file() and not is_generated((folder / CARD_FILE).read_text(encoding="utf-8")):
        if metrics is not None or license is not None:
            raise ValueError(
                f"{folder / CARD_FILE}: found a card that somebody wrote, expected none where metrics or a license are "
                "given to make one; write them into it and leave them out here, or remove it"
            )
        return _read_card(folder)
    with tempfile.TemporaryDirectory() as made:
        write_card(folder, metrics=metrics, repo_id=repo_id, license=license, output_dir=made)
        return _read_card(Path(made))


def _read_card(folder: Path) -> dict[str, bytes]:
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    figures = [RESULTS_FILE] if (folder / RESULTS_FILE).is_file() else []
    return {name: (folder / name).read_bytes() for name in (CARD_FILE, *pictures(text, folder), *figures)}


def with_requirement(index: Mapping[str, Any]) -> bytes:
    """`model_index.json` with what somebody without this package is to be told."""
    return (json.dumps({**index, REQUIREMENT_KEY: [REQUIREMENT, None]}, indent=2, sort_keys=True) + "\n").encode()


def check_loads(folder: Path, model_class: Any) -> None:
    """Loads what a folder holds, as others will.

    Raises:
        ValueError: it cannot be loaded from the Hub, or not whole.
    """
    if not issubclass(model_class, DiffusionPipeline):
        return _check_weights(folder, model_class)
    _check_libraries(folder)
    with _told_in_one_line(folder):
        components = model_class.from_pretrained(folder).components
    for name, component in components.items():
        if isinstance(component, nn.Module):
            _check_weights(folder / name, type(component))


def pictures(card: str, folder: Path) -> list[str]:
    """Paths of the pictures in the repository that a card shows.

    Raises:
        ValueError: the folder lacks one, or it lies outside.
    """
    named = [markdown or html for markdown, html in _PICTURE.findall(card)]
    paths = [path.removeprefix("./") for path in named if "://" not in path and not path.startswith("data:")]
    for path in paths:
        if not (folder / path).is_file() or not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{folder / CARD_FILE}: shows the picture {path}, expected it in {folder}; copy it there or remove it "
                "from the card"
            )
    return paths


def _check_libraries(folder: Path) -> None:
    """Refuses a pipeline that was saved before the package was registered: no program would load it from the Hub."""
    index = read_json(folder / PIPELINE_FILE)
    for name in _components(index):
        library, class_name = index[name]
        if library not in LIBRARIES:
            raise ValueError(
                f"{folder / PIPELINE_FILE}: found {library!r} as the library of {name} ({class_name}), expected one of "
                f"{', '.join(LIBRARIES)}; from the Hub it could not be loaded. Load the pipeline after `import hf_vq` "
                "and save it again"
            )


def _components(index: Mapping[str, Any]) -> list[str]:
    """Names of a pipeline's components that are there."""
    return [name for name, entry in index.items() if isinstance(entry, list) and name[0] != "_" and entry[0]]


def _check_weights(folder: Path, model_class: Any) -> None:
    """Refuses a model that lacks weights, which the libraries replace by random ones with no more than a warning."""
    with _told_in_one_line(folder):
        _, info = model_class.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder}: found no weights for {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}, expected "
            f"all of a {model_class.__name__}; train or save it again"
        )


@contextmanager
def _told_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of every kind: what a damaged folder makes the libraries raise is not theirs alone
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder}: cannot be loaded ({reason}); train or save it again") from error


def _own_files(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.name in CONFIG_FILES or WEIGHTS.fullmatch(path.name)):
            yield prefix + path.name, path
