"""Trains a VQ tokenizer, 3D for the volumes or 2D for the views of a paired data set.

    accelerate launch scripts/train_tokenizer.py --config scripts/configs/quickstart-volume-tokenizer.yaml \\
        --data cohort --output_dir volume-tokenizer

Any flag of the YAML file can be given on the command line; fields of the model and the processor with dots:
`--model.quantizer.codebook_size 1024 --processor.hu_window "[-1000, 1000]"`.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from hf_vq import CodebookUsage, CTVolumeProcessor, VQTokenizer, VQTokenizerConfig, XrayImageProcessor
from hf_vq.data import PairedDataset
from hf_vq.evaluation.optional import import_extra
from hf_vq.evaluation.sheets import save_reconstruction_sheet
from hf_vq.files import move_files_into
from hf_vq.training.arguments import TrainingArguments, check_fields, parse_arguments, run
from hf_vq.training.run import TrainingRun, make_accelerator


@dataclass
class TokenizerArguments(TrainingArguments):
    """Flags of this script."""

    cache_data: bool = field(default=False, metadata={"help": "Keep all processed samples in memory."})
    num_sheet_samples: int = field(default=4, metadata={"help": "Samples on a validation sheet."})
    processor: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of the processor's config."})


def images_of(batch: dict[str, Any], spatial_dims: int) -> torch.Tensor:
    """Volumes `(B, 1, D, H, W)`, or all views of all subjects folded into the batch `(B * V, 1, H, W)`."""
    return batch["pixel_values"] if spatial_dims == 3 else batch["view_pixel_values"].flatten(0, 1)


@torch.no_grad()
def validate(training: TrainingRun, dataset: PairedDataset, args: TokenizerArguments, value_range: list[float]) -> None:
    """Reconstruction PSNR and codebook usage of the averaged weights on the validation split, and a sheet."""
    low, high = value_range
    device = training.accelerator.device
    with training.averaged_weights() as model:
        usage, errors, first = CodebookUsage(model.config.quantizer["codebook_size"]), [], None
        for batch in DataLoader(dataset, batch_size=args.train_batch_size):
            images = images_of(batch, model.config.spatial_dims).to(device)
            output = model(images)
            usage.update(output.codes)
            errors.append((output.sample.clamp(low, high) - images).square().flatten(1).mean(dim=1))
            first = first or (images, output.sample)
        psnr = (10 * torch.log10((high - low) ** 2 / torch.cat(errors))).mean()
        training.log({"validation_psnr": psnr, **{f"validation_{k}": v for k, v in usage.compute(device).items()}})
        if training.accelerator.is_main_process:
            path = training.output_dir / "validation" / f"step-{training.step:07d}.png"
            shown = (tensor[: args.num_sheet_samples].cpu() for tensor in first)
            save_reconstruction_sheet(*shown, path, value_range=(low, high))


def main() -> None:
    """Parse, build, loop, save."""
    args = parse_arguments(TokenizerArguments, __doc__)
    accelerator = make_accelerator(args)
    check_fields(args.model, VQTokenizerConfig, "--model")
    config = VQTokenizerConfig(**args.model)
    processor_class = CTVolumeProcessor if config.spatial_dims == 3 else XrayImageProcessor
    check_fields(args.processor, processor_class, "--processor")
    processor = processor_class(**args.processor)
    import_extra("matplotlib")  # the first validation draws a sheet: better to stop now than then
    loads = {"volume_processor" if config.spatial_dims == 3 else "view_processor": processor, "cache": args.cache_data}
    train_set, validation_set = (PairedDataset(args.data, split, **loads) for split in ("train", "validation"))

    training = TrainingRun(accelerator, VQTokenizer(config), args)
    training.model.train()
    for batch in training.dataloader(train_set):
        with accelerator.accumulate(training.model):
            output = training.model(images_of(batch, config.spatial_dims))
            figures = {
                name: output[name]
                for name in ("reconstruction_loss", "commitment_loss", "codebook_loss", "perplexity", "active_fraction")
            }
            stepped = training.optimize(output.loss, figures)
        if stepped and training.validation_due:
            validate(training, validation_set, args, processor.output_range)

    if accelerator.is_main_process:
        with training.averaged_weights() as model, tempfile.TemporaryDirectory(dir=args.output_dir) as temporary:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            move_files_into(Path(temporary), training.output_dir, last="config.json")
    training.end()


if __name__ == "__main__":
    run(main)
