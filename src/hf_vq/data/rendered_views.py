"""Whether the views of a paired data set are rendered from its volumes, and with which rays."""

import json
from pathlib import Path

from ..processors.radiographs import BeamGeometry

COHORT_FILE, PREPARATION_FILE = "cohort.json", "preparation.json"
RECORD_FILES = (COHORT_FILE, PREPARATION_FILE)
"""Files beside the splits that say how a data set was made."""


def rendered_beam(source: str | Path) -> BeamGeometry | None:
    """Returns the rays with which the views of a data set were rendered.

    They are the field `beam` of the settings in `cohort.json` or `preparation.json`. Where there is none, views of a
    cohort, and those of a preparation whose field `radiographs` is `rendered`, were rendered with parallel rays.

    Args:
        source: folder of a paired data set; see `locating.local_folder` for one on the Hub.

    Returns:
        The rays, or None where nothing says that the views were rendered.

    Raises:
        ValueError: the file is damaged, or the beam is malformed.
    """
    for name in RECORD_FILES:
        path = Path(source) / name
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            settings = record.get("settings", record)
            rendered = name == COHORT_FILE or "beam" in settings or settings.get("radiographs") == "rendered"
            return BeamGeometry(**settings.get("beam", {})) if rendered else None
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: found no readable record of a data set ({error}), expected the file that its script wrote; "
                "restore or remove it"
            ) from error
    return None
