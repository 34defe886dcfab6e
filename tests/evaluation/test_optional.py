"""What evaluation needs is imported when it is needed, and its absence is explained."""

import subprocess
import sys

import pytest

from hf_vq.evaluation.optional import import_extra


def test_a_missing_library_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"no_such_library.*pip install hf-vq\[eval\]"):
        import_extra("no_such_library.metrics")


def test_importing_evaluation_is_cheap() -> None:
    code = "import sys, hf_vq.evaluation; print([n for n in ('matplotlib', 'prdc', 'skimage') if n in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
