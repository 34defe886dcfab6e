"""The examples of docs/quantizers.md run as they stand."""

import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "quantizers.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs_without_a_warning(example, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(example, str(PAGE), "exec"), {})
    assert "False" not in capsys.readouterr().out
