"""Trains the transformer over volume codes, conditional on the views' codes, and saves the whole pipeline.

    accelerate launch scripts/train_code_transformer.py --config scripts/configs/quickstart-code-transformer.yaml \
        --data codes --volume_tokenizer volume-tokenizer --view_tokenizer view-tokenizer --validation_data cohort \
        --output_dir pipeline

`--data` is what scripts/encode_codes.py wrote. Validation logs the loss in bits per code and the PSNR of generated
volumes with the right views and, side by side, with another subject's: a model that ignores its views scores the same
with both.
"""

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from torch import nn
from torch.utils.data import DataLoader

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    XrayImageProcessor,
)
from hf_vq.data import PairedDataset
from hf_vq.files import move_files_into
from hf_vq.processors.geometry import VIEW_AXES, VOLUME_AXES
from hf_vq.training.arguments import TrainingArguments, parse_arguments, run
from hf_vq.training.losses import CODE_LOSSES, masked_code_loss
from hf_vq.training.run import TrainingRun, make_accelerator

VALIDATION_RATES = (0.25, 0.5, 0.75, 1.0)


@dataclass
class CodeTransformerArguments(TrainingArguments):
    """Flags of this script."""

    volume_tokenizer: str = field(
        default="", metadata={"help": "Folder or Hub id of the 3D tokenizer and its processor."}
    )
    view_tokenizer: str = field(
        default="", metadata={"help": "Folder or Hub id of the 2D tokenizer and its processor."}
    )
    validation_data: str | None = field(
        default=None, metadata={"help": "Paired data whose validation split is generated and compared (PSNR)."}
    )
    loss_type: str = field(default="reweighted_elbo", metadata={"help": f"One of {CODE_LOSSES}."})
    num_validation_subjects: int = field(default=8, metadata={"help": "Subjects generated at a validation."})
    num_inference_steps: int = field(default=16, metadata={"help": "Sampling steps at a validation."})
    scheduler: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of the scheduler's config."})


def load_codes(source: str) -> DatasetDict:
    """The code data set, from a folder that `save_to_disk` wrote or from the Hub."""
    codes = load_from_disk(source) if Path(source).is_dir() else load_dataset(source)
    if not isinstance(codes, DatasetDict) or not {"train", "validation"} <= set(codes):
        raise ValueError(
            f"--data {source}: expected a data set with the splits train and validation, as encode_codes.py writes it"
        )
    if "codes" not in codes["train"].column_names:
        raise ValueError(
            f"--data {source}: column 'codes' is missing; found {codes['train'].column_names}. Run "
            "encode_codes.py first."
        )
    return codes.with_format("torch")


def view_names(codes: Dataset) -> list[str]:
    """The views that a code data set holds."""
    return [name for name in codes.column_names if name not in ("subject", "codes")]


def transformer_fields(
    args: CodeTransformerArguments, codes: Dataset, pipeline_parts: dict[str, Any]
) -> dict[str, Any]:
    """Fields of the transformer that data and tokenizers determine, overridden by the flags."""
    names = view_names(codes)
    axes = {**VIEW_AXES, **args.model.get("view_axes", {})}
    unknown = [name for name in names if name not in axes]
    if unknown:
        raise ValueError(
            f"the axes of the views {unknown} are not known; give them as --model.view_axes.{unknown[0]} "
            "'[inferior, left]'"
        )
    return {
        "num_codes": pipeline_parts["volume_tokenizer"].config.quantizer["codebook_size"],
        "code_grid": codes.features["codes"].shape,
        "context_dim": pipeline_parts["view_tokenizer"].config.quantizer["codebook_dim"],
        "context_grid": codes.features[names[0]].shape,
        "volume_axes": VOLUME_AXES,
        **args.model,
        "view_axes": {name: axes[name] for name in names},
    }


def context_of(batch: dict[str, Any], names: list[str], view_tokenizer: VQTokenizer) -> torch.Tensor:
    """`(B, V, context_tokens, context_dim)` embeddings of the views' codes through the effective codebook."""
    codes = torch.stack([batch[name] for name in names], dim=1)
    with torch.no_grad():
        vectors = view_tokenizer.quantizer.decode(codes.flatten(0, 1))
    return vectors.flatten(2).transpose(1, 2).unflatten(0, codes.shape[:2])


@torch.no_grad()
def validation_bits(
    model: nn.Module, codes: Dataset, parts: dict[str, Any], device: torch.device, seed: int
) -> dict[str, float]:
    """Bits per masked code on the validation split, with the right views and with the next subject's."""
    names, bits = view_names(codes), {"right": 0.0, "shuffled": 0.0}
    generator = torch.Generator().manual_seed(seed)
    for batch in DataLoader(codes, batch_size=8):
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        context, true = context_of(batch, names, parts["view_tokenizer"]), batch["codes"].flatten(1)
        for rate in VALIDATION_RATES:
            rates = torch.full((len(true),), rate)
            noisy = parts["scheduler"].add_noise(true, rates, generator)
            for label, views in (("right", context), ("shuffled", context.roll(1, dims=0))):
                loss = masked_code_loss(model(noisy, views).sample, true, noisy == model.mask_token_id, rates, "mlm")
                bits[label] += float(loss) * len(true) / (len(codes) * len(VALIDATION_RATES) * math.log(2))
    return {"validation_bits": bits["right"], "validation_bits_shuffled": bits["shuffled"]}


@torch.no_grad()
def validation_psnr(
    pipeline: ViewsToVolumePipeline, data: PairedDataset, args: CodeTransformerArguments
) -> dict[str, float]:
    """PSNR (3D) of one generated volume per subject, with the right views and with the next subject's."""
    chosen = range(min(args.num_validation_subjects, len(data)))
    true = torch.stack([data[i]["pixel_values"] for i in chosen])
    low, high = pipeline.volume_processor.output_range
    figures = {}
    for label, shift in (("validation_psnr", 0), ("validation_psnr_shuffled", 1)):
        sources = [chosen[(i + shift) % len(chosen)] for i in range(len(chosen))]
        views = {name: [data.view_image(i, name) for i in sources] for name in pipeline.transformer.view_names}
        generator = torch.Generator().manual_seed(args.seed)
        volumes = pipeline(
            views, num_inference_steps=args.num_inference_steps, generator=generator, output_type="pt"
        ).volumes.cpu()
        errors = (volumes.clamp(low, high) - true).square().flatten(1).mean(dim=1)
        figures[label] = float((10 * torch.log10((high - low) ** 2 / errors)).mean())
    return figures


def main() -> None:
    """Parse, build, loop, save."""
    args = parse_arguments(CodeTransformerArguments, __doc__)
    if args.loss_type not in CODE_LOSSES:
        raise ValueError(f"--loss_type {args.loss_type} is unknown; choose one of {CODE_LOSSES}")
    accelerator = make_accelerator(args)
    codes = load_codes(args.data)
    parts: dict[str, Any] = {
        "volume_tokenizer": VQTokenizer.from_pretrained(args.volume_tokenizer).to(accelerator.device).eval(),
        "view_tokenizer": VQTokenizer.from_pretrained(args.view_tokenizer).to(accelerator.device).eval(),
        "volume_processor": CTVolumeProcessor.from_pretrained(args.volume_tokenizer),
        "view_processor": XrayImageProcessor.from_pretrained(args.view_tokenizer),
    }
    transformer = CodeTransformer(**transformer_fields(args, codes["train"], parts))
    with torch.no_grad():
        tokenizers = (parts["volume_tokenizer"], parts["view_tokenizer"])
        transformer.initialize_from_codebooks(
            *(tokenizer.quantizer.effective_codebook.cpu() for tokenizer in tokenizers)
        )
    parts["scheduler"] = AbsorbingScheduler(mask_token_id=transformer.mask_token_id, **args.scheduler)
    pipeline = ViewsToVolumePipeline(transformer=transformer, **parts)
    pipeline.set_progress_bar_config(disable=True)
    validation_data = None
    if args.validation_data:
        validation_data = PairedDataset(args.validation_data, "validation", volume_processor=parts["volume_processor"])

    training = TrainingRun(accelerator, transformer, args)
    names = view_names(codes["train"])
    training.model.train()
    for index, batch in enumerate(training.dataloader(codes["train"])):
        generator = training.generator(index % args.gradient_accumulation_steps)
        true = batch["codes"].flatten(1)
        rates = 1 - torch.rand(len(true), generator=generator, dtype=torch.float64)
        noisy = parts["scheduler"].add_noise(true, rates.to(true.device), generator)
        with accelerator.accumulate(training.model):
            logits = training.model(noisy, context_of(batch, names, parts["view_tokenizer"])).sample
            loss = masked_code_loss(logits, true, noisy == transformer.mask_token_id, rates, args.loss_type)
            stepped = training.optimize(loss, {})
        if stepped and training.validation_due:
            with training.averaged_weights() as model:
                figures = validation_bits(model, codes["validation"], parts, accelerator.device, args.seed)
                if validation_data is not None:
                    figures |= validation_psnr(pipeline, validation_data, args)
                training.log(figures)

    if accelerator.is_main_process:
        with training.averaged_weights(), tempfile.TemporaryDirectory(dir=args.output_dir) as temporary:
            pipeline.save_pretrained(temporary)
            move_files_into(Path(temporary), training.output_dir, last="model_index.json")
    training.end()


if __name__ == "__main__":
    run(main)
