"""`scripts/ablate_conditioning.py` without its trainings: its arms, and whose figures it takes over."""

import json
import runpy
from pathlib import Path

import pytest

from hf_vq import AbsorbingScheduler, CodeTransformer
from hf_vq.training.arguments import check_fields, parse_arguments
from hf_vq.training.codes import CodeTransformerArguments, make_scheduler
from hf_vq.training.losses import CodeObjective, draw_mask_rates

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "ablate_conditioning.py"))


def arguments_of(arm):
    return parse_arguments(CodeTransformerArguments, None, ["--data", "d", "--output_dir", "o", *SCRIPT["ARMS"][arm]])


@pytest.mark.parametrize("arm", SCRIPT["ARMS"])
def test_every_arm_can_be_trained(arm):
    args = arguments_of(arm)
    check_fields(args.model, CodeTransformer, "--model")
    check_fields(args.scheduler, AbsorbingScheduler, "--scheduler")
    transformer = CodeTransformer(**args.model)
    make_scheduler(transformer, args.scheduler)
    codebook = transformer.head.weight
    CodeObjective(args.loss_type, codebook, args.soft_target_temperature, args.code_vector_weight)
    draw_mask_rates(1, args.mask_rates)


def test_the_elbo_is_another_loss_than_mlm():
    """With an exact number of masks they are the same."""
    args = arguments_of("elbo")
    assert AbsorbingScheduler(4, **args.scheduler).masking_rule == "random"


def test_figures_of_a_training_with_other_flags_are_not_taken_over(tmp_path):
    row = dict.fromkeys(SCRIPT["FIGURES"], 1.0)
    (tmp_path / "model_index.json").touch()
    (tmp_path / "logs.jsonl").write_text(json.dumps({"step": 3, **row}) + "\n")
    (tmp_path / SCRIPT["FLAGS_FILE"]).write_text(json.dumps(["--data", "codes", "--loss_type", "elbo"]))
    with pytest.raises(ValueError, match="a training with other flags"):
        SCRIPT["train"]("config", 0, tmp_path, ["--data", "codes"])
    flags = ["--data", "codes", "--loss_type", "elbo"]
    assert SCRIPT["train"]("config", 0, tmp_path, flags) == {**row, "steps": 3}
