"""Imports of the libraries that only ONNX needs (the extra `onnx`)."""

import importlib
import os
from types import ModuleType


def import_onnx_extra(name: str) -> ModuleType:
    """Imports a library of the extra `onnx` when it is first needed, and asks onnxruntime to send no telemetry.

    Args:
        name: module name, such as `onnxruntime`.

    Raises:
        ImportError: the library is not installed; the message says what to install.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"ONNX needs {name}, which could not be imported: pip install hf-vq[onnx]") from error
