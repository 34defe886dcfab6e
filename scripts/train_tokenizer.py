"""Trains a VQ tokenizer: 3D for the volumes or 2D for the views of a paired data set, or 2D for an image data set.

    accelerate launch scripts/train_tokenizer.py --config scripts/configs/quickstart-volume-tokenizer.yaml \\
        --data cohort --output_dir volume-tokenizer
    accelerate launch scripts/train_tokenizer.py --config scripts/configs/fashion-mnist-tokenizer.yaml \\
        --data /usr/share/datasets/fashion-mnist --output_dir tokenizer

Any flag of the YAML file can be given on the command line; fields of the model and the processor with dots:
`--model.quantizer.codebook_size 1024 --processor.hu_window "[-1000, 1000]"`. An image data set (`--data_type images`)
is a folder with MNIST-format files, a folder of images or the id of a `datasets` data set; its processor has one field,
the `size` of the square images.

With `--adversarial_weight` above 0 a patch discriminator judges the reconstructions (VQGAN: hinge loss, adaptive
weight), from the step `--discriminator.start_step` on; `--perceptual_model FOLDER`, a pretrained backbone such as a
ResNet in transformers' format, adds a distance of its features.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from hf_vq import CodebookUsage, VQTokenizer, VQTokenizerConfig
from hf_vq.evaluation.optional import import_extra
from hf_vq.evaluation.sheets import save_reconstruction_sheet
from hf_vq.files import move_files_into, staging_directory
from hf_vq.training.arguments import check_fields, parse_arguments, run
from hf_vq.training.data_augmentation import ShiftAndFlip
from hf_vq.training.diagnostics import codebook_figures, gradient_gap
from hf_vq.training.processes import share_of, sums_of_all
from hf_vq.training.run import TrainingRun, make_accelerator
from hf_vq.training.tokenizer_data import DATA_TYPES, TokenizerData, open_tokenizer_data
from hf_vq.training.tokenizer_objective import ObjectiveArguments, TokenizerObjective
from hf_vq.training.usage import RunningUsage


@dataclass
class TokenizerArguments(ObjectiveArguments):
    """Flags of this script."""

    data_type: str = field(default="paired", metadata={"help": f"Kind of --data, one of {DATA_TYPES}."})
    image_column: str | None = field(default=None, metadata={"help": "Images: their column, where there are several."})
    label_column: str | None = field(
        default=None, metadata={"help": "Images: the column of labels, where it is not plain."}
    )
    cache_data: bool = field(default=False, metadata={"help": "Keep all processed samples in memory."})
    on_error: str = field(
        default="stop", metadata={"help": "Paired data with files that cannot be read: stop, or skip the subjects."}
    )
    num_sheet_samples: int = field(default=4, metadata={"help": "Samples on a validation sheet."})
    augmentation: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Training samples: max_shift and flip_axes, see ShiftAndFlip."}
    )
    processor: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of the processor's config."})


def usage_of(config: VQTokenizerConfig) -> CodebookUsage:
    """An empty count of the codes of a tokenizer."""
    return CodebookUsage(config.quantizer_config.codebook_size, config.num_codebooks)


@torch.no_grad()
def diagnostics(model: VQTokenizer, images: torch.Tensor) -> dict[str, float]:
    """Where the codes lie beside the encoder's outputs, and how far the straight-through gradient is off."""
    latents = model.encode_latents(images)
    quantized = model.quantizer(latents).quantized
    gap = gradient_gap(lambda point: model.reconstruction_loss(model.decoder(point), images), latents, quantized)
    return {**codebook_figures(model.quantizer, latents), "gradient_gap": gap}


@torch.no_grad()
def validate(training: TrainingRun, data: TokenizerData, args: TokenizerArguments) -> None:
    """Reconstruction PSNR and codebook usage of the averaged weights on the validation split, and a sheet."""
    low, high = data.value_range
    device = training.accelerator.device
    with training.validation(), training.averaged_weights() as model:
        usage, total, count = usage_of(model.config), 0.0, 0
        for batch in DataLoader(share_of(data.validation), args.train_batch_size, generator=torch.Generator()):
            images = data.pixels_of(batch).to(device)
            output = model(images)
            usage.update(output.codes)
            errors = (output.sample.clamp(low, high) - images).square().flatten(1).mean(dim=1)
            total += float((10 * torch.log10((high - low) ** 2 / errors)).sum())
            count += len(images)
        total, count = sums_of_all((total, count), device)
        first = DataLoader(data.validation, args.train_batch_size, generator=torch.Generator())
        images = data.pixels_of(next(iter(first))).to(device)  # the same ones on all processes
        figures = {"psnr": total / count, **usage.compute(device), **diagnostics(model, images)}
        training.log({f"validation_{name}": value for name, value in figures.items()})
        if training.accelerator.is_main_process:
            path = training.output_dir / "validation" / f"step-{training.step:07d}.png"
            shown = (tensor[: args.num_sheet_samples].cpu() for tensor in (images, model(images).sample))
            save_reconstruction_sheet(*shown, path, value_range=(low, high))


def main() -> None:
    """Parse, build, loop, save."""
    args = parse_arguments(TokenizerArguments, __doc__)
    accelerator = make_accelerator(args)
    check_fields(args.model, VQTokenizerConfig, "--model")
    config = VQTokenizerConfig(**args.model)
    check_fields(args.augmentation, ShiftAndFlip, "--augmentation")
    augment = ShiftAndFlip(**args.augmentation)
    import_extra("matplotlib")  # the first validation draws a sheet: better to stop now than then
    columns = {name: getattr(args, name) for name in ("image_column", "label_column")}
    data = open_tokenizer_data(
        args.data_type, args.data, config, args.processor, args.cache_data, columns, args.on_error
    )

    model = VQTokenizer(config)  # before the discriminator, whose random weights come after the tokenizer's
    objective = TokenizerObjective(args, config, data.value_range, accelerator.device)

    usage = RunningUsage(usage_of(config), accelerator.device)  # of all batches since the last validation
    training = TrainingRun(accelerator, model, args, objective.adversary, {"usage": usage})
    training.model.train()

    def look_back() -> None:
        training.log({f"train_{name}": value for name, value in usage.compute().items()})
        validate(training, data, args)
        usage.restart()

    if training.validation_missed:
        look_back()
    for batches in training.steps(data.train):
        noise = [data.per_image(batch, training.generators(part)) for part, batch in enumerate(batches)]
        parts = [augment(data.pixels_of(batch), own) for batch, own in zip(batches, noise, strict=True)]
        training.begin_step(parts)
        for images, own in zip(parts, noise, strict=True):
            with training.accumulate():
                output = training.model(images)
                usage.update(output.codes)
                training.optimize(*objective(training, output, images, own))
        if training.validation_due:
            look_back()

    if accelerator.is_main_process:
        with training.averaged_weights() as model, staging_directory(args.output_dir) as temporary:
            model.save_pretrained(temporary)
            data.processor.save_pretrained(temporary)
            training.save_record(temporary)
            move_files_into(temporary, training.output_dir, last="config.json")
    training.end()


if __name__ == "__main__":
    run(main)
