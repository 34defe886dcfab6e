"""Runs the test-suites of transformers and diffusers against the models, processors, schedulers and pipelines here.

    python scripts/run_peer_tests.py                                # transformers' tests, from its source distribution
    python scripts/run_peer_tests.py --diffusers ~/src/diffusers    # those of diffusers too, from a checkout
    python scripts/run_peer_tests.py --suites transformers --tests "AlexNet and save_load" --report report.md

The libraries keep tests for any model, which a class of their own or of somebody else's can inherit. tests/peers holds
our classes that do. pip fetches the source distribution of the installed transformers; that of diffusers has no tests,
so it takes a checkout of its repository, at the tag of the installed version. What passed, what was skipped and why
goes into a page, by default docs/conformance.md; what was not run this time stays there as it is. The exit status is 1
if a test failed. It needs `pip install 'hf-vq[medical,dev,peers]'`.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from hf_vq.training.arguments import run

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = REPOSITORY / "tests" / "peers"
OUTCOMES = ("passed", "skipped", "failed")
PAGE_HEAD = """# Conformance

transformers and diffusers test their own models with common tests that any class can be put to. Here they are run
against ours, unchanged but for what is listed under "adapted". This page is written by

```bash
make test-peers DIFFUSERS=~/src/diffusers    # a checkout, at the tag of the installed diffusers
```

which runs `scripts/run_peer_tests.py`; without `DIFFUSERS` only the first section is made anew. The tests are no part
of `make test`. Each line of a table counts the tests of one class, every set of parameters by itself. Tests about what
a model does not have skip it, or pass without a look at it, as they do with the libraries' own models.
"""


@dataclass(frozen=True)
class Suite:
    """The tests of a library.

    Attributes:
        name: of the library; ours are in `tests/peers/<name>_tests`.
        about: what the page says about the source of its tests.
        environment: variables that its tests read.
    """

    name: str
    about: str
    environment: dict[str, str] = field(default_factory=dict)


SUITES = (
    Suite(
        "transformers",
        "`ModelTesterMixin` and `ConfigTester` for models, `ImageProcessingTestMixin` for processors. The source "
        "distribution leaves out modules that these import from: the tests of exports and of text generation, which "
        "are not run here, a list of config fields, and the way to pictures of the Hub. Files of ours in "
        "`tests/peers/transformers_stand_ins` stand in their places. Tests that transformers marks as slow are run. "
        "`test_resize_embeddings` is `False` because there are no token embeddings.",
        {"RUN_SLOW": "1"},
    ),
    Suite(
        "diffusers",
        "`ModelTesterMixin` and `TrainingTesterMixin` for models, `SchedulerCommonTest` for schedulers, "
        "`PipelineTesterMixin` for pipelines, and those of offloading and compilation; only the repository has them. "
        "Tests that diffusers keeps for machines with an accelerator are run without one too where a CPU can do what "
        "they ask: sharded checkpoints, half precision, moving a pipeline, bringing its models one after another.",
    ),
)


@dataclass(frozen=True)
class Result:
    """What came out of one test.

    Attributes:
        subject: what was tested.
        test: its name, parameters included.
        outcome: one of `OUTCOMES`.
        reason: why it was skipped, or the first line of the failure.
        adapted: why it stands in the place of the library's own test of that name, if it does.
        ours: whether it is written here and not inherited.
    """

    subject: str
    test: str
    outcome: str
    reason: str = ""
    adapted: str = ""
    ours: bool = False


def kind(result: Result) -> str:
    """The column of the table in which a test counts."""
    if result.outcome != "skipped":
        return result.outcome
    if result.ours:
        return "skipped by us"
    return (
        "skipped: not on this machine"
        if re.search("requires|is not available on", result.reason)
        else "skipped: not applicable"
    )


SKIPS = {
    "skipped by us": "Skipped by our classes",
    "skipped: not on this machine": "Skipped by the tests, for want of hardware or of a library",
    "skipped: not applicable": "Skipped by the tests, because what they are about is not there",
}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [suite.name for suite in SUITES]
    parser.add_argument(
        "--transformers", type=Path, help="checkout of its repository instead of its source distribution"
    )
    parser.add_argument("--diffusers", type=Path, help="checkout of its repository; its tests are left out without one")
    parser.add_argument("--suites", nargs="+", choices=names, default=names, help="whose tests to run")
    parser.add_argument("--tests", help="only tests whose names this matches, as pytest's -k; goes with --report")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument(
        "--cache", type=Path, default=REPOSITORY / "build" / "peers", help="where sources and results go"
    )
    parser.add_argument("--report", type=Path, default=REPOSITORY / "docs" / "conformance.md", help="page to write")
    args = parser.parse_args(arguments)
    if args.tests and args.report == parser.get_default("report"):
        parser.error("--tests runs a part only, which must not overwrite docs/conformance.md; name another --report")
    return args


def fetch_sources(name: str, version: str, cache: Path) -> Path:
    """The unpacked source distribution of a library, from the cache if it is there, otherwise through pip.

    Raises:
        ValueError: if pip finds none, or it holds no tests.
    """
    root = cache / f"{name}-{version}"
    if not root.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"Fetching the source distribution of {name} {version}", flush=True)
        flags = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--no-binary", name]
        command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(cache), f"{name}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(
                f"found no source distribution of {name} {version} ({last}); name a checkout: --{name} PATH"
            )
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            shutil.unpack_archive(cache / f"{name}-{version}.tar.gz", folder)
            (Path(folder) / root.name).rename(root)
    if not (root / "tests").is_dir():
        raise ValueError(f"{root} holds no tests, expected the folder `tests`; name a checkout instead: --{name} PATH")
    return root


def complete_sources(root: Path, stand_ins: Path) -> None:
    """Copies modules that the sources lack to where they are imported from; nothing is overwritten."""
    for module in stand_ins.rglob("*.py"):
        target = root / module.relative_to(stand_ins)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(module, target)


def find_sources(suite: Suite, args: argparse.Namespace) -> tuple[Path, str] | None:
    """Folder that has the library's `tests`, and what it is in words; none without what the user must give.

    Raises:
        ValueError: if the checkout has no tests, or there is nothing to fetch.
    """
    installed, checkout = importlib.metadata.version(suite.name), getattr(args, suite.name)
    if checkout is not None:
        if not (checkout / "tests").is_dir():
            raise ValueError(
                f"--{suite.name} {checkout}: found no folder `tests` in it, expected a checkout of the repository"
            )
        text = (checkout / "src" / suite.name / "__init__.py").read_text(encoding="utf-8")
        found = re.search(r'__version__ = "(.+?)"', text)
        return checkout.resolve(), f"repository, version {found.group(1) if found else 'unknown'}"
    if suite.name == "diffusers":
        print("diffusers: not run, because its source distribution has no tests; name a checkout: --diffusers PATH")
        return None
    root = fetch_sources(suite.name, installed, args.cache)
    complete_sources(root, PEERS / f"{suite.name}_stand_ins")
    return root, f"source distribution, version {installed}"


def run_suite(suite: Suite, root: Path, args: argparse.Namespace) -> list[Result]:
    """Runs our classes with the library's tests first on the path.

    Raises:
        ValueError: if pytest could not run them.
    """
    args.cache.mkdir(parents=True, exist_ok=True)
    xml = args.cache.resolve() / f"{suite.name}.xml"
    xml.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(PEERS / "pytest.ini"),
        "--rootdir",
        str(PEERS),
        "-q",
        "--tb=short",
    ]
    command += [
        "-p",
        "no:cacheprovider",
        "-n",
        str(args.workers),
        f"--junitxml={xml}",
        *(["-k", args.tests] if args.tests else []),
    ]
    with tempfile.TemporaryDirectory(prefix="hf_vq_peers_") as home:
        settings = {
            "PYTHONPATH": os.pathsep.join([str(root), str(REPOSITORY / "src")]),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HOME": home,
            "HF_HUB_OFFLINE": "1",
        }
        environment = {**os.environ, **settings, **suite.environment}
        code = subprocess.run([*command, str(PEERS / f"{suite.name}_tests")], env=environment, cwd=PEERS).returncode
    if code not in (0, 1) or not xml.is_file():
        raise ValueError(
            f"the tests of {suite.name} could not be run (pytest's exit status {code}); its output says why"
        )
    return read_results(xml)


def read_results(xml: Path) -> list[Result]:
    """The results in a JUnit file; a test of several parts counts once, as the worst of them."""
    results: dict[tuple[str, str], Result] = {}
    for case in ElementTree.parse(xml).iter("testcase"):
        result, key = _result(case), (case.get("classname", ""), case.get("name", ""))
        if key not in results or OUTCOMES.index(result.outcome) > OUTCOMES.index(results[key].outcome):
            results[key] = result
    return list(results.values())


def _result(case: ElementTree.Element) -> Result:
    properties = {each.get("name"): each.get("value", "") for each in case.iter("property")}
    subject = properties.get("under_test", case.get("classname", "").rpartition(".")[2])
    outcome, reason = "passed", ""
    for child in case:
        found = {"failure": "failed", "error": "failed", "skipped": "skipped"}.get(child.tag, "passed")
        if OUTCOMES.index(found) > OUTCOMES.index(outcome):
            outcome, reason = found, " ".join(child.get("message", "").split()).rstrip(".")
    return Result(subject, case.get("name", ""), outcome, reason, properties.get("adapted", ""), "ours" in properties)


def write_report(path: Path, sections: dict[str, str]) -> None:
    """Writes the page; a section that is not among these stays as the page has it."""
    kept = read_sections(path.read_text(encoding="utf-8")) if path.is_file() else {}
    texts = {suite.name: sections.get(suite.name, kept.get(suite.name)) for suite in SUITES}
    parts = [f"<!-- {name} -->\n{text}" for name, text in texts.items() if text is not None]
    path.write_text("\n".join([PAGE_HEAD, *parts]), encoding="utf-8")


def read_sections(page: str) -> dict[str, str]:
    """The sections of a page by the library's name."""
    _, *parts = re.split(r"^<!-- (\w+) -->\n", page, flags=re.MULTILINE)
    return {name: text.rstrip("\n") + "\n" for name, text in zip(parts[::2], parts[1::2], strict=True)}


def section(suite: Suite, source: str, results: list[Result]) -> str:
    """What the page says about one library."""
    versions = {name: importlib.metadata.version(name) for name in (suite.name, "torch")}
    installed = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [f"## {suite.name}", "", f"Tests: {source}. Installed: {installed}, Python {platform.python_version()}."]
    lines += ["", suite.about, "", *count_table(results)]
    failures = [result for result in results if result.outcome == "failed"]
    if failures:
        lines += ["", "Failed:", "", *(f"- {each.subject}: `{each.test}`: {each.reason}" for each in failures)]
    adapted = [(each.adapted, each) for each in results if each.adapted]
    if adapted:
        lines += ["", "Adapted, the same law being checked by a test of ours:", "", *by_reason(adapted)]
    for column, title in SKIPS.items():
        skipped = [(each.reason, each) for each in results if kind(each) == column]
        if skipped:
            lines += ["", f"{title}:", "", *by_reason(skipped)]
    return "\n".join(lines) + "\n"


def count_table(results: Iterable[Result]) -> list[str]:
    """A table of how many tests of each subject passed, were skipped and failed."""
    columns = ["passed", *SKIPS, "failed"]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        counts[result.subject][kind(result)] += 1
    rows = [
        f"| {subject} | {' | '.join(str(row[name]) for name in columns)} |" for subject, row in sorted(counts.items())
    ]
    return [f"| | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns), *rows]


def by_reason(pairs: Iterable[tuple[str, Result]]) -> list[str]:
    """A list of reasons, each with the tests that it holds for and whose they are."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for reason, result in pairs:
        counts[reason, family(result.test)][result.subject] += 1
    tests: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (reason, name), owners in sorted(counts.items()):
        most = max(owners.values())
        tests[reason, "; ".join(sorted(owners))].append(f"`{name}`" + (f" ({most} variants)" if most > 1 else ""))
    return [f"- {reason}. *{owners}*: {', '.join(names)}" for (reason, owners), names in tests.items()]


def family(test: str) -> str:
    """The name of a test without its parameters, as pytest and the library `parameterized` append them."""
    parameters = r"_\d\d_(fp16|fp32|bf16)_.*$|_\d(_(fp16|fp32|bf16|linear|dynamic|yarn))?$"
    return re.sub(parameters, "", test.partition("[")[0])


def main() -> None:
    """Runs the script."""
    args, sections, failed = parse_args(), {}, 0
    for suite in SUITES:
        sources = find_sources(suite, args) if suite.name in args.suites else None
        if sources is None:
            continue
        results = run_suite(suite, sources[0], args)
        sections[suite.name] = section(suite, sources[1], results)
        failed += sum(result.outcome == "failed" for result in results)
        print("\n".join(count_table(results)))
    write_report(args.report, sections)
    print(f"Wrote {args.report}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
