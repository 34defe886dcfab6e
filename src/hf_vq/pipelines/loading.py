"""Loading a pipeline that is known to be of the wanted kind."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ..models.loading import PIPELINE_FILE, check_folder, not_found

# Which script generates with which pipeline.
SCRIPTS = {"ViewsToVolumePipeline": "generate.py", "CodeGenerationPipeline": "generate_images.py"}


def open_pipeline(source: str | Path, pipeline_class: Any) -> Any:
    """A saved pipeline, refused unless it is what was asked for.

    Args:
        source: folder or Hub id.
        pipeline_class: `ViewsToVolumePipeline` or `CodeGenerationPipeline`.

    Raises:
        ValueError: if there is none, or one of another class.
    """
    check_folder(source, PIPELINE_FILE)
    try:
        index = Path(source) / PIPELINE_FILE
        index = index if index.is_file() else Path(hf_hub_download(str(source), PIPELINE_FILE))
        found = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError) as error:
        raise not_found(source, error) from error
    if found != pipeline_class.__name__:
        advice = f"use {SCRIPTS[found]} for it" if found in SCRIPTS else "choose another one"
        raise ValueError(f"{source}: found a {found}, expected a {pipeline_class.__name__}; {advice}")
    return pipeline_class.from_pretrained(source)
