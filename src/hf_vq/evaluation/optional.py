"""Imports of the libraries that only evaluation needs (the extra `eval`)."""

import importlib
from types import ModuleType


def import_extra(name: str) -> ModuleType:
    """Import a library of the extra `eval` when it is first needed.

    Args:
        name: module name, such as `torchmetrics` or `matplotlib.pyplot`.

    Returns:
        The imported module.

    Raises:
        ImportError: the library is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Evaluation needs {name}, which could not be imported: pip install hf-vq[eval]") from error
