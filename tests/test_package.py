"""The package as a whole: which subpackage may import which, what `import hf_vq` loads, exports and registers."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_vq

PACKAGE = Path(hf_vq.__file__).parent

# Subpackage -> what it may import from hf_vq besides itself. `files`, `hub_access`, `scalars`, `sharing` and
# `tables` import nothing from the package. `hub` and `__init__` sit on top, so nothing in a subpackage imports them.
ALLOWED_IMPORTS = {
    "quantizers": set(),
    "models": {"quantizers", "files", "hub_access", "scalars", "sharing"},
    "processors": {"scalars", "sharing"},
    "schedulers": {"scalars", "sharing"},
    "pipelines": {"models", "quantizers", "schedulers", "processors", "files", "hub_access", "scalars", "sharing"},
    "data": {"processors", "files", "hub_access", "locking", "tables"},
    "training": {"quantizers", "models", "schedulers", "processors", "pipelines", "data", "files", "locking"},
    "evaluation": {"quantizers", "models", "schedulers", "processors", "pipelines", "data", "files", "tables"},
    "exporting": {"quantizers", "models", "files", "__version__"},
    "app": {"processors", "pipelines", "data", "evaluation"},
    "hub": {
        *("quantizers", "models", "schedulers", "processors", "pipelines", "data", "training", "evaluation"),
        *("files", "hub_access", "sharing", "__version__"),
    },
    "commands": {
        *("quantizers", "models", "schedulers", "processors", "pipelines", "data", "training", "evaluation"),
        *("hub", "exporting", "app", "files", "hub_access", "sharing", "__version__"),
    },
}

PUBLIC_NAMES = {
    "AbsorbingScheduler",
    "CTVolumeProcessor",
    "CodeGenerationPipeline",
    "CodeTransformer",
    "FiniteScalarQuantizer",
    "FiniteScalarQuantizerConfig",
    "LookupFreeQuantizer",
    "LookupFreeQuantizerConfig",
    "VQForImageClassification",
    "VQImageClassifierConfig",
    "VQTokenizer",
    "VQTokenizerConfig",
    "VectorQuantizer",
    "VectorQuantizerConfig",
    "ViewsToVolumePipeline",
    "XrayImageProcessor",
}
# diffusers asks the top level of a component's library for these, to learn how the component is loaded.
BASE_NAMES = {"ImageProcessingMixin", "ModelMixin", "PreTrainedModel", "SchedulerMixin"}

NOT_AT_IMPORT = {
    "datasets",
    "diffusers.pipelines.pipeline_utils",
    "gradio",
    "hf_vq.app",
    "hf_vq.commands",
    "hf_vq.data",
    "hf_vq.evaluation",
    "hf_vq.exporting",
    "hf_vq.hub",
    "hf_vq.pipelines",
    "hf_vq.training",
    "matplotlib",
    "monai",
    "nibabel",
    "onnx",
    "onnxruntime",
    "prdc",
    "pydicom",
    "skimage",
    "torchmetrics",
}


def imported_names(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Every import in a module's tree, functions included, as its line and the absolute dotted name in parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            base = (*start, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield node.lineno, (*base, alias.name)


def forbidden_imports(package: Path) -> list[str]:
    """The imports in the subpackages of `package` that `ALLOWED_IMPORTS` does not list."""
    found = []
    for file in sorted(package.glob("*/**/*.py")):
        parts = file.relative_to(package).parts
        subpackage = parts[0]
        allowed = {subpackage, *ALLOWED_IMPORTS[subpackage]}
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for line, name in imported_names(tree, ("hf_vq", *parts[:-1])):
            if name[0] == "hf_vq" and (len(name) == 1 or name[1] not in allowed):
                found.append(f"{'/'.join(parts)}:{line} imports {'.'.join(name)}")
    return found


def subpackages(package: Path) -> set[str]:
    return {folder.name for folder in package.iterdir() if folder.is_dir() and any(folder.glob("*.py"))}


def run_python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def modules_after_import() -> set[str]:
    """Names of the modules that a fresh interpreter holds after `import hf_vq`."""
    return set(json.loads(run_python("import hf_vq, json, sys; print(json.dumps(list(sys.modules)))")))


def test_imports_point_one_way() -> None:
    assert forbidden_imports(PACKAGE) == []


def test_every_subpackage_has_an_import_rule() -> None:
    assert subpackages(PACKAGE) <= set(ALLOWED_IMPORTS)


@pytest.mark.parametrize("module", ["files", "hub_access", "scalars", "sharing"])
def test_shared_modules_import_nothing_of_the_package(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    imported = {name[1] for _, name in imported_names(tree, ("hf_vq",)) if name[0] == "hf_vq"}
    assert imported <= ({"locking"} if module == "files" else set())


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("quantizers/codebook.py", "from hf_vq.training.losses import loss"),
        ("quantizers/codebook.py", "import hf_vq.models"),
        ("quantizers/codebook.py", "import hf_vq"),
        ("quantizers/codebook.py", "from hf_vq import VQTokenizer"),
        ("quantizers/residual/codebook.py", "from ...models import VQTokenizer"),
        ("models/modeling.py", "from ..data.cohort import CohortConfig"),
        ("models/modeling.py", "from .. import evaluation"),
        ("models/modeling.py", "import torch, hf_vq.pipelines.pipeline"),
        ("models/__init__.py", "from ..schedulers import AbsorbingScheduler"),
        ("processors/geometry.py", "def lazily():\n    from ..models import VQTokenizer"),
        ("schedulers/scheduling.py", "if TYPE_CHECKING:\n    from ..processors import XrayImageProcessor"),
        ("pipelines/pipeline.py", "from ..hub import push"),
        ("data/cohort.py", "from ..training import losses"),
        ("evaluation/metrics.py", "from ..training import losses"),
        ("training/run.py", "from ..commands import cli"),
    ],
)
def test_import_checker_finds_a_violation(tmp_path: Path, file: str, statement: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"import math\n{statement}\n", encoding="utf-8")
    violations = forbidden_imports(tmp_path)
    assert len(violations) == 1
    assert violations[0].startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("quantizers/codebook.py", "from .functional import nearest_codes\nfrom . import affine\nimport torch"),
        ("quantizers/residual/codebook.py", "from ..functional import nearest_codes"),
        ("models/modeling.py", "from ..quantizers.codebook import Codebook\nfrom transformers import models"),
        ("pipelines/pipeline.py", "from hf_vq.models import VQTokenizer\nfrom ..schedulers import AbsorbingScheduler"),
        ("data/cohort.py", "import datasets\nfrom ..processors import geometry"),
        ("training/losses.py", "def lazily():\n    from ..data import PairedDataset"),
    ],
)
def test_import_checker_accepts_what_is_allowed(tmp_path: Path, file: str, statement: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{statement}\n", encoding="utf-8")
    assert forbidden_imports(tmp_path) == []


def test_import_is_lazy(modules_after_import: set[str]) -> None:
    assert "hf_vq" in modules_after_import
    assert modules_after_import & NOT_AT_IMPORT == set()


def test_import_loads_no_diffusers_pipeline(modules_after_import: set[str]) -> None:
    loaded = {name for name in modules_after_import if name.startswith("diffusers.pipelines.")}
    assert {name for name in loaded if not name.endswith("_loading_utils")} == set()


def test_exports() -> None:
    assert set(hf_vq.__all__) >= PUBLIC_NAMES | BASE_NAMES
    assert set(hf_vq.__all__) <= set(dir(hf_vq))
    for name in hf_vq.__all__:
        assert getattr(hf_vq, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'NoSuchModel'"):
        hf_vq.NoSuchModel  # noqa: B018


def test_type_checkers_see_the_same_names_as_the_interpreter() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname for node in guarded for child in node.body for alias in child.names}
    assert seen == set(hf_vq.__all__)


def test_component_classes_are_registered_with_diffusers() -> None:
    import diffusers
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    assert "hf_vq" in LOADABLE_CLASSES
    assert diffusers.ViewsToVolumePipeline is hf_vq.ViewsToVolumePipeline
    assert diffusers.DDPMScheduler.__module__.startswith("diffusers.")
    assert not hasattr(diffusers, "NoSuchPipeline")


def test_auto_classes_know_the_tokenizer() -> None:
    from transformers import AutoConfig, AutoModel

    model_type = hf_vq.VQTokenizerConfig.model_type
    assert isinstance(AutoConfig.for_model(model_type), hf_vq.VQTokenizerConfig)
    assert AutoModel._model_mapping[hf_vq.VQTokenizerConfig] is hf_vq.VQTokenizer


@pytest.mark.parametrize("name", ["CTVolumeProcessor", "XrayImageProcessor"])
def test_auto_image_processor_tells_the_processors_apart(tmp_path: Path, name: str) -> None:
    from transformers import AutoImageProcessor

    processor_class = getattr(hf_vq, name)
    processor_class().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is processor_class
