"""The benchmark of quantizers at tiny sizes: what it measures, what it says of rivals that can't run, its errors."""

import importlib.util
import json
import os
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_quantizers.py"
PRODUCT, SEARCH, LAYER = "matrix product", "hf_vq nearest_codes", "hf_vq VectorQuantizer"
LUCIDRAINS = "lucidrains VectorQuantize"


@pytest.fixture(scope="module")
def script():
    """The names that the script defines."""
    return runpy.run_path(str(SCRIPT), run_name="benchmark_quantizers")


def test_measures_what_runs_and_names_what_does_not(tmp_path):
    stub = tmp_path / "modules" / "vector_quantize_pytorch.py"
    stub.parent.mkdir()
    stub.write_text("raise ModuleNotFoundError('hidden by a test')")
    modules = os.pathsep.join([str(stub.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    small, large = (77, 3, 5), (20000, 1, 20000)
    output = tmp_path / "new" / "out.json"
    flags = ["--sizes", *(",".join(map(str, size)) for size in (small, large)), "--tasks", "codes", "training"]
    flags += ["--competitors", PRODUCT, SEARCH, LAYER, LUCIDRAINS, "--repeats", "2", "--threads", "1"]
    # The script measures in processes of its own, so it needs a real one itself.
    command = [sys.executable, str(SCRIPT), *flags, "--memory_limit_gb", "1.3", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": modules}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert process.returncode == 0, process.stderr

    report = json.loads(output.read_text())
    assert report["machine"]["threads"] == 1
    assert report["machine"]["versions"]["torch"] == torch.__version__
    rows = {(tuple(row["job"]["size"]), row["job"]["task"], row["job"]["competitor"]): row for row in report["results"]}
    tasks = [("codes", PRODUCT), ("codes", SEARCH), ("codes", LAYER), ("codes", LUCIDRAINS)]
    tasks += [("training", PRODUCT), ("training", LAYER), ("training", LUCIDRAINS)]
    assert set(rows) == {(size, *task) for size in (small, large) for task in tasks}
    for (size, _, name), row in rows.items():
        expected = "not installed" if name == LUCIDRAINS else "ok"
        if (size, name) == (large, PRODUCT):
            expected = "out of memory"  # its result alone has 1.6 GB
        assert row["status"] == expected
        assert len(row["seconds"]) == (2 if expected == "ok" else 0)
        assert row["median"] == (statistics.median(row["seconds"]) if expected == "ok" else None)
    if rows[large, "codes", SEARCH]["memory"] is not None:
        assert rows[large, "codes", SEARCH]["memory"] < 100e6
    assert process.stdout.count("\n### N = ") == 2
    assert process.stdout.count(f"\n| {LUCIDRAINS} | not installed |  |  | not installed |  |  |") == 2


@pytest.mark.parametrize("task", ["codes", "forward", "training"])
def test_every_layer_runs_and_returns_codes(script, task):
    rival_installed = importlib.util.find_spec("vector_quantize_pytorch") is not None
    for name in (name for name in script["LAYERS"] if rival_installed or not name.startswith("lucidrains")):
        case = script["make_case"](script["Job"](script["Size"](64, 4, 8), task, name), "cpu")
        codes = case()
        if task == "codes":
            assert codes.numel() == 64
            assert codes.dtype == torch.int64
            assert bool(((codes >= 0) & (codes < 8)).all())


def test_table_gives_times_ratios_and_memory(script):
    size = script["Size"](10, 2, 4)
    results = [
        script["Result"](script["Job"](size, "codes", PRODUCT), "ok", [0.5, 0.001, 0.002], 3 * 2**20),
        script["Result"](script["Job"](size, "codes", SEARCH), "ok", [0.003], None),
        script["Result"](script["Job"](size, "codes", LUCIDRAINS), "out of memory"),
    ]
    machine = {"hardware": "a chip", "capability": "X", "threads": 1, "versions": {}, "date": "today", "repeats": 3}
    lines = script["markdown"](machine, results).splitlines()
    assert "### N = 10, C = 2, K = 4" in lines
    assert f"| {PRODUCT} | 2.0 | 1.00 | 3 |" in lines
    assert f"| {SEARCH} | 3.0 | 1.50 |  |" in lines
    assert f"| {LUCIDRAINS} | out of memory |  |  |" in lines


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sizes", "10,2"], "--sizes: found '10,2'"),
        (["--sizes", "10,2,0"], "--sizes: found '10,2,0'"),
        (["--repeats", "0"], "--repeats: found 0"),
        (["--memory_limit_gb", "-1"], "--memory_limit_gb: found -1.0"),
        (["--device", "tpu"], "--device: found 'tpu'"),
    ],
)
def test_bad_flags_are_named(script, flags, words):
    with pytest.raises(ValueError, match=words):
        script["check_args"](script["parse_args"](flags))


def test_check_looks_at_ratios_within_the_run(script):
    size = script["Size"](10, 64, 4)

    def broken(ours, product, rival, task="forward"):
        figures = {LAYER: ours, PRODUCT: product, LUCIDRAINS: rival}
        jobs = {name: script["Job"](size, task, name) for name in figures}
        return script["broken_limits"]([script["Result"](jobs[name], "ok", [figures[name]]) for name in figures])

    assert broken(1.3, 1.0, 1.4) == []
    assert broken(1.3, 1.0, 1.2) == [f"(10, 64, 4), forward: 1.08 times {LUCIDRAINS}, expected at most 1.0"]
    assert broken(1.4, 1.0, 1.5) == [f"(10, 64, 4), forward: 1.40 times {PRODUCT}, expected at most 1.35"]
    assert broken(1.4, 1.0, 1.5, "training") == []


def test_cost_against_size_has_a_row_for_each(script):
    sizes = [script["Size"](rows, 2, 4) for rows in (10, 20)]
    results = [
        script["Result"](script["Job"](size, "codes", SEARCH), "ok", [0.001 * size.vectors], 0) for size in sizes
    ]
    lines = script["cost_against_size"](results)
    assert lines[-2:] == ["| 10, 2, 4 | 10.0 (0) |", "| 20, 2, 4 | 20.0 (0) |"]
    assert script["cost_against_size"](results[:1]) == []
