"""What tests of the Hub share: a Hub on the loopback interface, and fresh processes that see it and no other."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from huggingface_hub import HfApi, constants

import hf_vq

sys.path.insert(0, str(Path(__file__).parent))

import card_models
from loopback_hub import LoopbackHub
from tiny_models import KINDS, save

SOURCES = Path(hf_vq.__file__).parents[1]
# Variables by which somebody's settings would reach the process, and those that the test session itself has set.
SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "PYTEST_")
# As where the package is not installed.
WITHOUT_PACKAGE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_vq":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


class FreshPython(Protocol):
    """Runs code in a new process and returns what the code left in `result`, which JSON must be able to hold."""

    def __call__(
        self,
        code: str,
        home: Path,
        token: str | None = None,
        offline: bool = False,
        with_package: bool = True,
    ) -> Any: ...


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    """A Hub of the module's own, empty at its start."""
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def fresh_python(hub: LoopbackHub) -> FreshPython:
    """Starts processes that have the Hub of this module; see `FreshPython` and `LoopbackHub.environment`."""

    def run(code: str, home: Path, token: str | None = None, offline: bool = False, with_package: bool = True) -> Any:
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(SETTINGS)}
        paths = [str(SOURCES), *kept.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            **kept,
            **hub.environment(home, token, offline),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "OMP_NUM_THREADS": "1",
        }
        program = "\n".join(
            (
                "" if with_package else WITHOUT_PACKAGE,
                textwrap.dedent(code),
                "import json",
                "print('\\n' + json.dumps(result))",
            )
        )
        process = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return run


@contextmanager
def client_of(hub: LoopbackHub) -> Iterator[HfApi]:
    """A client of the Hub in this process, whose session is offline otherwise; use no other client beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1")
        yield HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="module")
def connect(hub: LoopbackHub) -> Callable[[], AbstractContextManager[HfApi]]:
    """Gives fixtures of a module a client for the time of a `with` block; see `client_of`."""
    return lambda: client_of(hub)


@pytest.fixture
def api(hub: LoopbackHub) -> Iterator[HfApi]:
    """See `client_of`."""
    with client_of(hub) as api:
        yield api


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind of model and pipeline; see `tiny_models`."""
    return {kind: save(kind, tmp_path_factory.mktemp(kind) / "saved") for kind in KINDS}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of every kind of `card_models` without any record; tests write to copies."""
    root = tmp_path_factory.mktemp("plain")
    return {kind: card_models.save_model(kind, root / kind) for kind in card_models.KINDS}


@pytest.fixture(scope="session")
def trained(plain: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with the record of a training and, beside them, the metrics of an evaluation."""
    root = tmp_path_factory.mktemp("someone")
    data = card_models.write_cohort_record(root / "cohort")
    part = shutil.copytree(plain["volume_tokenizer"], root / "one" / "volume_tokenizer")
    inner = card_models.write_training(part, data)
    folders = {}
    for kind, folder in plain.items():
        folders[kind] = shutil.copytree(folder, root / kind / "model")
        names = {"views_to_volume": ("volume_tokenizer", "view_tokenizer"), "code_generation": ("tokenizer",)}
        parts = {"tokenizers": dict.fromkeys(names[kind], inner)} if kind in names else {}
        card_models.write_training(folders[kind], data, **parts)
        if kind == "classifier":
            card_models.write_test_figures(root / kind)
        elif kind in ("image_tokenizer", "code_generation"):
            card_models.write_image_metrics(root / kind, data)
        else:
            card_models.write_volume_metrics(root / kind, data)
    return folders
