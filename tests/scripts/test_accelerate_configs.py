"""The launch configs parse with Accelerate's own reader, and say what their names promise."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from hf_vq.models.code_transformer_block import CodeTransformerBlock

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "configs" / "accelerate"
EXPECTED = {
    "single-gpu-bf16": ("NO", 1, 1),
    "multi-gpu": ("MULTI_GPU", 1, 4),
    "multi-node": ("MULTI_GPU", 2, 8),
    "fsdp2": ("FSDP", 1, 4),
    "fsdp2-multi-node": ("FSDP", 2, 8),
    "deepspeed-zero2": ("DEEPSPEED", 1, 4),
}


def test_every_config_is_checked():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_config_parses(name):
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (str(config.distributed_type), config.num_machines, config.num_processes)[1:] == EXPECTED[name][1:]
    assert str(config.distributed_type).removeprefix("DistributedType.") == EXPECTED[name][0]
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2-multi-node"])
def test_the_blocks_that_are_spread_exist(name):
    options = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["fsdp_config"]
    assert options["fsdp_transformer_layer_cls_to_wrap"] == CodeTransformerBlock.__name__
    assert options["fsdp_version"] == 2
