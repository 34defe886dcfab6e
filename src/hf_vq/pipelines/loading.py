"""Loading a pipeline that is known to be of the wanted kind."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ..hub_access import loading
from ..models.loading import PIPELINE_FILE, check_folder

# Which command generates with which pipeline; the script of the same name does so too.
COMMANDS = {"ViewsToVolumePipeline": "hf-vq generate", "CodeGenerationPipeline": "hf-vq generate-images"}


def open_pipeline(source: str | Path, pipeline_class: Any, revision: str | None = None) -> Any:
    """A saved pipeline, refused unless it is what was asked for.

    Args:
        source: folder or Hub id.
        pipeline_class: `ViewsToVolumePipeline` or `CodeGenerationPipeline`.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: if there is none, or one of another class.
    """
    check_folder(source, PIPELINE_FILE)
    index = Path(source) / PIPELINE_FILE
    if not index.is_file():
        with loading(source, revision):
            index = Path(hf_hub_download(str(source), PIPELINE_FILE, revision=revision))
    try:
        found = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except ValueError as error:
        raise ValueError(f"{source}: found no JSON in {PIPELINE_FILE} ({error}); copy or save it again") from error
    if found != pipeline_class.__name__:
        advice = f"use `{COMMANDS[found]}` for it" if found in COMMANDS else "choose another one"
        raise ValueError(f"{source}: found a {found}, expected a {pipeline_class.__name__}; {advice}")
    with loading(source, revision):
        return pipeline_class.from_pretrained(source, revision=revision)
