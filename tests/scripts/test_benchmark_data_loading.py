"""The benchmark of data loading measures both forms and leaves its table."""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_data_loading.py"


def test_the_table_has_a_row_for_each_arrangement(tmp_path, monkeypatch, capsys):
    flags = ["--sizes", "8", "--num_volumes", "3", "--num_workers", "0", "1", "--seconds", "0", "--batch_size", "2"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags, "--output_dir", str(tmp_path / "out")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    table = (tmp_path / "out" / "data-loading.md").read_text()
    assert table in capsys.readouterr().out
    rows = [line.split("|")[1:5] for line in table.splitlines() if line.startswith("| 8")]
    assert [(source.strip(), int(workers)) for _, source, _, workers in rows] == [
        *(("NIfTI folder", 0), ("NIfTI folder", 1)),
        *(("shards", 0), ("shards", 1)),
    ]
