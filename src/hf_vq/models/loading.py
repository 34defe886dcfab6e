"""Loading a tokenizer that other parts are going to rely on, and what to say where there is none."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..files import looks_like_path
from ..hub_access import loading
from .configuration_vq_tokenizer import VQTokenizerConfig
from .modeling_vq_tokenizer import VQTokenizer

MODEL_FILE, PIPELINE_FILE = "config.json", "model_index.json"
# The training scripts write it from the first step on.
LOG_FILE = "logs.jsonl"


def load_tokenizer(
    path: str | Path,
    spatial_dims: int | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> VQTokenizer:
    """A trained tokenizer in eval mode, refused unless it is what was asked for.

    `from_pretrained` alone turns the folder of any model into a tokenizer with random weights and a warning.

    Args:
        path: folder or Hub id.
        spatial_dims: 2 or 3; either when absent.
        device: where to put it.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: if there is none, it is another model type, has the other dimension, or lacks weights.
    """
    model_type = read_config(path, revision).get("model_type")
    if model_type != VQTokenizerConfig.model_type:
        raise ValueError(
            f"{path} holds a model of type {model_type!r}; expected a VQTokenizer "
            f"({VQTokenizerConfig.model_type!r}), as train_tokenizer.py writes it"
        )
    with loading(path, revision):
        tokenizer, info = VQTokenizer.from_pretrained(path, revision=revision, output_loading_info=True)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(
            f"{path} lacks weights of its model: {sorted(info['missing_keys'])[:3]} ...; train or copy it again"
        )
    if spatial_dims is not None and tokenizer.config.spatial_dims != spatial_dims:
        raise ValueError(
            f"{path} is a {tokenizer.config.spatial_dims}D tokenizer; expected a {spatial_dims}D one. Are the "
            "volume and the view tokenizer swapped?"
        )
    return tokenizer.to(device).eval()


def read_config(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The config of a saved model as it stands in its file.

    Args:
        source: folder or Hub id.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: if there is no such model.
    """
    check_folder(source, MODEL_FILE)
    try:
        with loading(source, revision):
            config: dict[str, Any] = PreTrainedConfig.get_config_dict(str(source), revision=revision)[0]
    except OSError as error:
        raise ValueError(f"{source}: found no JSON in {MODEL_FILE} ({error}); copy or save it again") from error
    if not config:
        raise ValueError(
            f"{source}: found a repository without {MODEL_FILE}, expected a single model; it may hold a whole "
            "pipeline, or nothing yet"
        )
    return config


def check_folder(source: str | Path, marker: str) -> None:
    """Refuses a folder without the file that its kind has, and a path to nothing; a name of the Hub passes.

    Args:
        source: folder or Hub id.
        marker: `MODEL_FILE` of a model or `PIPELINE_FILE` of a pipeline.

    Raises:
        ValueError: saying what is there instead.
    """
    folder = Path(source)
    if (folder / marker).is_file():
        return
    if folder.is_dir():
        raise ValueError(f"{source}: found a folder without {marker}: {_what_it_is(folder)}")
    if folder.exists():
        raise ValueError(f"{source}: found a file, expected the folder with {marker}")
    if looks_like_path(source):
        raise ValueError(
            f"{source}: found no such folder, expected one with {marker}; and it is not sought on the Hub, because it "
            "looks like a path. Check the path."
        )


def _what_it_is(folder: Path) -> str:
    """What a folder without the wanted file seems to be, and what to do."""
    if (folder / PIPELINE_FILE).is_file():
        parts = [str(path.parent) for path in sorted(folder.glob(f"*tokenizer/{MODEL_FILE}"))]
        return f"it holds a whole pipeline; did you mean {' or '.join(parts) or 'a model in it'}?"
    if (folder / MODEL_FILE).is_file():
        return "it holds a single model, not a pipeline, which train_code_transformer.py writes"
    if (folder / LOG_FILE).is_file():
        return (
            "its training has not finished; let it end, or go on with it by the same command and "
            "--resume_from_checkpoint latest"
        )
    return "nothing was saved there; check the path"
