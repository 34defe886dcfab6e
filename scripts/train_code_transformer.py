"""Trains the transformer over codes and saves the whole pipeline: volumes from views, or images with or without labels.

    accelerate launch scripts/train_code_transformer.py --config scripts/configs/quickstart-code-transformer.yaml \\
        --data codes --volume_tokenizer volume-tokenizer --view_tokenizer view-tokenizer --validation_data cohort \\
        --output_dir pipeline
    accelerate launch scripts/train_code_transformer.py --config scripts/configs/fashion-mnist-code-transformer.yaml \\
        --data codes --tokenizer tokenizer --output_dir pipeline

`--data` is what scripts/encode_codes.py wrote. Validation logs the loss in bits per code and, for volumes, the PSNR of
generated ones, with the right views and, side by side, with another subject's: a model that ignores its views scores
the same with both. For images the label takes the place of the views, and a sheet of generated images is drawn;
`--class_conditional false` trains without labels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_vq import CodeTransformer
from hf_vq.evaluation.optional import import_extra
from hf_vq.evaluation.sheets import save_sample_sheet
from hf_vq.files import move_files_into, staging_directory
from hf_vq.training.arguments import parse_arguments, run
from hf_vq.training.code_generation import CodeGenerationTask
from hf_vq.training.codes import CodeTransformerArguments, hide_codes
from hf_vq.training.losses import CodeObjective, draw_mask_rates
from hf_vq.training.record import read_record
from hf_vq.training.run import TrainingRun, make_accelerator
from hf_vq.training.views_to_volume import ViewsToVolumeTask

Task = CodeGenerationTask | ViewsToVolumeTask


def make_task(args: CodeTransformerArguments, device: torch.device) -> Task:
    """What is to be generated from what, told by the tokenizers that are given."""
    if args.tokenizer and (args.volume_tokenizer or args.view_tokenizer):
        raise ValueError(
            "--tokenizer is for image codes, --volume_tokenizer and --view_tokenizer are for paired ones; give either"
        )
    if not args.tokenizer:
        return ViewsToVolumeTask(args, device)
    import_extra("matplotlib")  # the first validation draws a sheet: better to stop now than then
    return CodeGenerationTask(args, device)


@contextmanager
def averaged_pipeline(training: TrainingRun, task: Task) -> Iterator[CodeTransformer]:
    """The transformer with the averaged weights, in its pipeline for as long as the block lasts; for all processes."""
    trained = task.pipeline.transformer
    with training.averaged_weights() as model:
        task.pipeline.register_modules(transformer=model)
        try:
            yield model
        finally:
            task.pipeline.register_modules(transformer=trained)


def validate(training: TrainingRun, task: Task) -> None:
    """Figures, and a sheet of generated images, of the averaged weights."""
    with training.validation(), averaged_pipeline(training, task) as model:
        training.log(task.validate(model))
        if isinstance(task, CodeGenerationTask) and training.accelerator.is_main_process:
            path = training.output_dir / "validation" / f"step-{training.step:07d}.png"
            save_sample_sheet(path, task.samples())


def tokenizer_records(args: CodeTransformerArguments) -> dict[str, dict[str, Any] | None]:
    """How the tokenizers of the pipeline were trained, as far as it is recorded."""
    names = ("tokenizer", "volume_tokenizer", "view_tokenizer")
    return {name: read_record(getattr(args, name)) for name in names if getattr(args, name)}


def save(training: TrainingRun, task: Task, args: CodeTransformerArguments) -> None:
    """Writes the pipeline, which is never there in part."""
    with staging_directory(args.output_dir) as temporary:
        task.pipeline.save_pretrained(temporary)
        training.save_record(temporary, tokenizers=tokenizer_records(args))
        move_files_into(temporary, training.output_dir, last="model_index.json")


def main() -> None:
    """Parse, build, loop, save."""
    args = parse_arguments(CodeTransformerArguments, __doc__)
    draw_mask_rates(1, args.mask_rates)  # a misspelt name is better found now
    accelerator = make_accelerator(args)
    task = make_task(args, accelerator.device)
    transformer, scheduler = task.pipeline.transformer, task.pipeline.scheduler
    codebook = task.tokenizer.quantizer.effective_codebook.detach()
    options = (args.soft_target_temperature, args.code_vector_weight, transformer.config.causal)
    objective = CodeObjective(args.loss_type, codebook, *options)

    training = TrainingRun(accelerator, transformer, args)
    training.model.train()
    if training.validation_missed:
        validate(training, task)
    for batches in training.steps(task.train_codes):
        for part, batch in enumerate(batches):
            generators, true = training.generators(part), batch["codes"].flatten(1)
            rates = draw_mask_rates(len(true), args.mask_rates, generators)
            noisy, masked = hide_codes(transformer, scheduler, true, rates, generators)
            if scheduler.masking_rule == "exact_count":  # which may be another rate than was asked for
                rates = masked.double().mean(dim=1)
            with training.accumulate():
                logits = training.model(noisy, **task.conditions(batch, generators), positions=masked).sample
                training.optimize(objective(logits, true, masked, rates), {})
        if training.validation_due:
            validate(training, task)

    with averaged_pipeline(training, task):
        if accelerator.is_main_process:
            save(training, task, args)
    training.end()


if __name__ == "__main__":
    run(main)
