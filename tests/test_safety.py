"""Nothing that comes with a model, a data set or a checkpoint is executed; see docs/security.md."""

import ast
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

import hf_vq
from hf_vq import CTVolumeProcessor, VQTokenizer, VQTokenizerConfig
from hf_vq.data.locating import load_splits

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*Path(hf_vq.__file__).parent.rglob("*.py"), *(ROOT / "scripts").glob("*.py")])

CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "__import__": "imports what a text names",
    "importlib.import_module": "imports what a text names",
    "runpy.run_path": "runs a file",
    "runpy.run_module": "runs a file",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "subprocess.getoutput": "goes through a shell",
    "subprocess.getstatusoutput": "goes through a shell",
    "torch.load": "can run a pickle's code",
    "torch.hub.load": "runs a repository's code",
    "joblib.load": "runs a pickle's code",
    "dill.load": "runs a pickle's code",
    "dill.loads": "runs a pickle's code",
    "cloudpickle.load": "runs a pickle's code",
    "marshal.loads": "reads code",
    "shelve.open": "runs a pickle's code",
    "yaml.load": "can make any object",
    "yaml.unsafe_load": "can make any object",
    "yaml.full_load": "can make any object",
    "pickle.load": "runs a pickle's code",
    "pickle.loads": "runs a pickle's code",
    "pickle.Unpickler": "runs a pickle's code",
    "jinja2.Template": "a foreign template reaches into Python",
    "jinja2.Environment": "a foreign template reaches into Python",
}
METHODS = {
    "register_for_checkpointing": "Accelerate loads what is registered as a pickle, weights_only off",
    "read_pickle": "runs a pickle's code",
}
"""Methods of any object."""

KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}
"""Arguments that must be absent or False."""

ALLOWED = {
    ("hf_vq/__init__.py", "importlib.import_module"): "the package's own modules, from a table in the same file",
    ("hf_vq/commands/cli.py", "importlib.import_module"): "the package's own commands, from a table in the same file",
    ("hf_vq/evaluation/optional.py", "importlib.import_module"): "optional libraries, named in the package",
    ("hf_vq/exporting/optional.py", "importlib.import_module"): "optional libraries, named in the package",
    ("scripts/benchmark_training.py", "runpy.run_path"): "the training script beside it, to measure it",
    ("scripts/run_fault_tests.py", "runpy.run_path"): "the training scripts beside it, to stop them at chosen moments",
    ("hf_vq/models/x2ct_checkpoints.py", "torch.load"): "the published checkpoints exist as pickles only: weights_only",
}


def short(path: Path) -> str:
    package = Path(hf_vq.__file__).parent
    return f"hf_vq/{path.relative_to(package).as_posix()}" if package in path.parents else f"scripts/{path.name}"


def dotted(node: ast.expr) -> str:
    """The name that is called, as it is written: `torch.load`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def aliases(tree: ast.AST) -> dict[str, str]:
    """What names that a module imports stand for: `from pickle import loads as read` gives read: pickle.loads."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update({name.asname: name.name for name in node.names if name.asname})
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({name.asname or name.name: f"{node.module}.{name.name}" for name in node.names})
    return found


def dangers(code: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls and arguments in a module that could run what a file holds."""
    tree = ast.parse(code)
    known = aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = dotted(node.func).partition(".")
        name = known.get(head, head) + dot + rest
        if name in CALLS:
            yield name, node
        elif name.rpartition(".")[2] in METHODS:
            yield name.rpartition(".")[2], node
        for keyword in node.keywords:
            is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None)
            if keyword.arg in KEYWORDS and not is_off:
                yield str(keyword.arg), node


def test_nothing_in_the_package_or_the_scripts_runs_what_a_file_holds():
    found = {
        (short(path), name): node.lineno for path in SOURCES for name, node in dangers(path.read_text(encoding="utf-8"))
    }
    unexpected = {f"{path}:{line} {name}" for (path, name), line in found.items() if (path, name) not in ALLOWED}
    assert not unexpected
    assert set(ALLOWED) == set(found), "an exception that nothing needs any more"


def test_the_one_load_takes_weights_only():
    loads = [
        node for path in SOURCES for name, node in dangers(path.read_text(encoding="utf-8")) if name == "torch.load"
    ]
    assert len(loads) == 1
    (load,) = loads
    assert {keyword.arg: ast.literal_eval(keyword.value) for keyword in load.keywords if keyword.arg == "weights_only"}
    assert [keyword.value.value for keyword in load.keywords if keyword.arg == "weights_only"] == [True]


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "from pickle import loads as read\nread(data)",
        "import marshal as m\nm.loads(data)",
        "import torch\ntorch.load(path, weights_only=True)",
        "model.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(command, shell=flag)",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "self.accelerator.register_for_checkpointing(scheduler)",
    ],
)
def test_the_search_finds_each_kind(code):
    assert list(dangers(code))


class Payload:
    """What pickle makes of it is a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def save_tokenizer(folder: Path) -> Path:
    config = VQTokenizerConfig(
        spatial_dims=3, channels=[8, 8], num_res_blocks=1, norm_num_groups=4, quantizer={"codebook_size": 8}
    )
    VQTokenizer(config).save_pretrained(folder)
    CTVolumeProcessor(size=[8, 8, 8], spacing=[8.0] * 3).save_pretrained(folder)
    return folder


def test_pickled_weights_are_not_executed(tmp_path):
    """A repository with pytorch_model.bin in place of safetensors; the pickle shows that it would act if it could."""
    folder, mark = save_tokenizer(tmp_path / "model"), tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Payload(mark)}, folder / "pytorch_model.bin")
    with pytest.raises((OSError, ValueError, pickle.UnpicklingError)):
        VQTokenizer.from_pretrained(folder)
    assert not mark.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"])
def test_pickles_in_a_checkpoint_are_not_executed(tmp_path, name):
    """What Accelerate leaves in a checkpoint besides weights, as the training scripts load it: nothing registered."""
    folder, mark = tmp_path / "checkpoint", tmp_path / "mark"
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    accelerator.prepare(model, optimizer, scheduler)
    accelerator.save_state(str(folder))
    torch.save({"state": Payload(mark)}, folder / name)
    with suppress(pickle.UnpicklingError, KeyError, RuntimeError):
        accelerator.load_state(str(folder))
    assert not mark.exists()
    torch.load(folder / name, weights_only=False)
    assert mark.exists()


HOSTILE = """
from pathlib import Path
Path({mark!r}).touch()
class VQTokenizer:
    pass
VQTokenizerConfig = CTVolumeProcessor = ViewsToVolumePipeline = VQTokenizer
"""


LOADING = """
import json
from transformers import AutoImageProcessor, AutoModel
from hf_vq import CTVolumeProcessor, VQTokenizer
from hf_vq.models import load_tokenizer
folder = {folder!r}
calls = (VQTokenizer.from_pretrained, CTVolumeProcessor.from_pretrained, load_tokenizer, AutoModel.from_pretrained,
         lambda path: AutoImageProcessor.from_pretrained(path, trust_remote_code=False))
print(json.dumps([type(call(folder)).__module__ for call in calls]))
"""


def test_code_beside_a_model_is_not_executed(tmp_path):
    """Configs that name a module in the folder as where their class comes from, read in another process."""
    folder, mark = save_tokenizer(tmp_path / "model"), tmp_path / "mark"
    (folder / "hostile.py").write_text(HOSTILE.format(mark=str(mark)))
    autos = {
        "config.json": {"AutoConfig": "hostile.VQTokenizerConfig", "AutoModel": "hostile.VQTokenizer"},
        "preprocessor_config.json": {"AutoImageProcessor": "hostile.CTVolumeProcessor"},
    }
    for name, entries in autos.items():
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "auto_map": entries}))
    command = [sys.executable, "-c", LOADING.format(folder=str(folder))]
    process = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert process.returncode == 0, process.stderr
    assert all(module.startswith("hf_vq.") for module in json.loads(process.stdout.splitlines()[-1]))
    assert not mark.exists()


def test_code_beside_a_data_set_is_not_executed(tmp_path):
    """A loading script with the folder's name, as `datasets` once ran them."""
    folder, mark = tmp_path / "rows", tmp_path / "mark"
    folder.mkdir()
    Dataset.from_dict({"subject": ["anna"]}).to_parquet(folder / "train.parquet")
    (folder / "rows.py").write_text(HOSTILE.format(mark=str(mark)))
    with pytest.raises(
        ValueError, match=r"rows: found no data set that `datasets` can load \(Dataset scripts are no lon"
    ):
        load_splits(folder, "rows")
    (folder / "rows.py").rename(folder / "hostile.py")
    assert list(load_splits(folder, "rows")) == ["train"]
    assert not mark.exists()
