"""The templates in `model_cards/`: inside the package where it was installed, beside `src/` in a checkout."""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PACKAGE, FOLDER = __name__.partition(".")[0], "model_cards"


def card_folder() -> "Traversable":
    """The folder `model_cards` with the templates and the finished cards of the shipped configs.

    Raises:
        ValueError: if the installation has none.
    """
    installed = resources.files(PACKAGE).joinpath(FOLDER)
    checkout = Path(__file__).parents[3] / FOLDER
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise ValueError(
        f"{FOLDER}: found it neither in the package {PACKAGE} nor at {checkout}; install the package again"
    )


def read_template(name: str) -> str:
    """The text of a Jinja template.

    Args:
        name: without the suffix `.md.jinja`.

    Raises:
        ValueError: if there is no such template.
    """
    file = card_folder().joinpath(f"{name}.md.jinja")
    if not file.is_file():
        found = sorted(entry.name for entry in card_folder().iterdir() if entry.name.endswith(".jinja"))
        raise ValueError(f"template {name!r}: found {found}, expected {name}.md.jinja among them; install again")
    return file.read_text(encoding="utf-8")
