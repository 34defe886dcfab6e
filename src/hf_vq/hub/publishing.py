"""Publishing tokenizers, classifiers and pipelines, each with its card and nothing else of its folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..files import looks_like_path
from ..hub_access import open_repository, writing
from ..models.loading import PIPELINE_FILE
from .architecture import read_json
from .bundle import CLASSES, PACKAGE, WEIGHTS, Bundle, collect, with_requirement
from .cards import CARD_FILE, build_card

# What stands in the cards that transformers and diffusers write for what they have no card of.
WRITTEN_BY_LIBRARY = "This model card has been automatically generated"
COMPONENT_CARD = """
# {class_name} of hf_vq

A component of hf_vq, published by itself. Nobody has described it here: on what it
was trained, if at all, with what result and under which licence is not known. It is not a medical device.

```bash
pip install hf-vq
```

```python
from hf_vq import {class_name}

component = {class_name}.from_pretrained("{repo_id}")
```
"""


def publish(
    source: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    metrics: str | Path | None = None,
    license: str | None = None,
    api: HfApi | None = None,
) -> CommitInfo:
    """Publishes a model or a pipeline with its card, in one commit.

    Args:
        source: folder that `save_pretrained` or a training wrote; or a loaded tokenizer, classifier or pipeline.
        repo_id: `owner/name`; made where it is missing.
        private: whether a new repository is hidden from others; by default as its owner's are.
        revision: branch; made from the main one where it is missing.
        commit_message: `Upload <class>` by default.
        metrics: `metrics.json` of an evaluation; see `prepare`.
        license: identifier of the licence of the weights; see `prepare`.
        api: client, by default that of whoever is logged in.

    Returns:
        The commit; its `commit_url` shows it.

    Raises:
        ValueError: there is nothing that others could load, or the Hub does not take it; nothing was published then.
    """
    with _as_folder(source) as folder:
        bundle = prepare(folder, repo_id, metrics, license)
        return upload(bundle, repo_id, private, revision, commit_message, api)


def prepare(folder: str | Path, repo_id: str, metrics: str | Path | None = None, license: str | None = None) -> Bundle:
    """What would be published: the files of a model or pipeline, checked by loading them, and its card.

    The card is made of what the folder tells; a README.md that somebody wrote or changed is taken as it is.

    Args:
        folder: what `save_pretrained` or a training wrote.
        repo_id: `owner/name`, by which the card loads it.
        metrics: `metrics.json` of an evaluation, to make the card from.
        license: identifier of the licence of the weights, such as `apache-2.0`.

    Raises:
        ValueError: the name is no id, there is nothing that others could load, or `metrics` or `license` are given
            and the card is somebody's own.
    """
    if looks_like_path(repo_id):
        raise ValueError(f"{repo_id}: found a path, expected the id of a repository, owner/name; choose one")
    validate_repo_id(repo_id)
    return collect(Path(folder), repo_id, None if metrics is None else Path(metrics), license)


def upload(
    bundle: Bundle,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    api: HfApi | None = None,
) -> CommitInfo:
    """Uploads what `prepare` found, in one commit; the arguments are those of `publish`.

    Weights of an earlier version that the new one does not have, such as shards, are removed.

    Raises:
        ValueError: the Hub does not take it, or `private` is asked for and the repository is public.
    """
    api = HfApi() if api is None else api
    with writing(repo_id):
        repo_id = open_repository(api, repo_id, private=private, revision=revision)
        stale = _stale_weights(api.list_repo_files(repo_id, revision=revision), bundle)
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path, file) for path, file in bundle.files.items()),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=commit_message or f"Upload {bundle.class_name}",
            revision=revision,
        )


def describe(bundle: Bundle) -> str:
    """What would be uploaded, for people: each file with its size, and the card without its metadata."""
    sizes = bundle.sizes
    width = len(f"{max(sizes.values()):,}")
    files = "\n".join(f"{size:>{width},}  {path}" for path, size in sizes.items())
    card = ModelCard(bundle.read(CARD_FILE).decode(), ignore_metadata_errors=True).text.strip()
    total = f"{sum(sizes.values()):,} bytes in {len(sizes)} files"
    return "\n".join([f"{bundle.class_name}:", files, total, "", f"{CARD_FILE}:", card])


def complete_upload(
    folder: Path, class_name: str, repo_id: str, revision: str | None = None, token: Any = None
) -> None:
    """Makes true what the libraries' own `push_to_hub` is about to upload.

    The card that they write where a repository has none becomes one of this package, and `model_index.json` says what
    has to be installed.

    Args:
        folder: what `save_pretrained` wrote, with or without a card.
        class_name: the class that wrote it.
        repo_id: where it goes.
        revision: branch, the main one by default.
        token: as the caller of `push_to_hub` gave it.
    """
    if (folder / PIPELINE_FILE).is_file():
        (folder / PIPELINE_FILE).write_bytes(with_requirement(read_json(folder / PIPELINE_FILE)))
    readme, tags = folder / CARD_FILE, list[str]()
    if readme.is_file():
        card = ModelCard.load(readme)
        if WRITTEN_BY_LIBRARY not in card.text:
            card.data["library_name"] = PACKAGE  # diffusers adds its own name to a card without one
            return card.save(readme)
        tags = card.data.get("tags") or []
        readme.unlink()
    if not HfApi().file_exists(repo_id, CARD_FILE, revision=revision, token=token):
        card = _card_of_any(folder, class_name, repo_id)
        card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or []), *tags]))
        card.save(readme)


def _card_of_any(folder: Path, class_name: str, repo_id: str) -> ModelCard:
    """A card for whatever a class saved: of a component by itself no more is known than its class."""
    if class_name in {model_class.__name__ for model_class in CLASSES.values()}:
        return build_card(folder, repo_id=repo_id)
    metadata = ModelCardData(library_name=PACKAGE, tags=[PACKAGE]).to_yaml()
    return ModelCard(f"---\n{metadata}\n---\n{COMPONENT_CARD.format(class_name=class_name, repo_id=repo_id)}")


def _stale_weights(present: list[str], bundle: Bundle) -> list[str]:
    """Weight files in the places of the new ones that would be taken for a part of them."""
    places = {Path(path).parent for path in bundle.files if WEIGHTS.fullmatch(Path(path).name)}
    weights = [path for path in present if WEIGHTS.fullmatch(Path(path).name) and Path(path).parent in places]
    return [path for path in weights if path not in bundle.files]


@contextmanager
def _as_folder(source: Any) -> Iterator[Path]:
    """A folder as it is; anything loaded, saved to a temporary one."""
    if isinstance(source, str | Path):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(folder)
        yield Path(folder)
