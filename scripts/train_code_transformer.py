"""Trains the transformer over volume codes, conditional on the views' codes, and saves the whole pipeline.

    accelerate launch scripts/train_code_transformer.py --config scripts/configs/quickstart-code-transformer.yaml \\
        --data codes --volume_tokenizer volume-tokenizer --view_tokenizer view-tokenizer --validation_data cohort \\
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
from hf_vq.models import load_tokenizer
from hf_vq.processors.geometry import VIEW_AXES, VOLUME_AXES
from hf_vq.training.arguments import TrainingArguments, check_fields, parse_arguments, run
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
    if Path(source).is_dir() and not (Path(source) / "dataset_dict.json").is_file():
        raise ValueError(f"--data {source}: the folder holds no code data set; run encode_codes.py first")
    codes = load_from_disk(source) if Path(source).is_dir() else load_dataset(source)
    if not isinstance(codes, DatasetDict) or not {"train", "validation"} <= set(codes):
        raise ValueError(
            f"--data {source}: expected a data set with the splits train and validation, as encode_codes.py writes it"
        )
    if min(len(codes[split]) for split in ("train", "validation")) < 2:
        raise ValueError(f"--data {source}: at least two subjects are needed in train and in validation")
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


def check_codes(codes: Dataset, names: list[str], parts: dict[str, Any]) -> None:
    """Refuses codes that the tokenizers cannot have made."""
    for column, part in [("codes", "volume_tokenizer"), *((name, "view_tokenizer") for name in names)]:
        size, highest = parts[part].config.quantizer["codebook_size"], int(codes[:][column].max())
        if highest >= size:
            raise ValueError(
                f"--data: column {column!r} holds the code {highest}, but --{part} has {size} codes; encode the "
                "data with this tokenizer"
            )


def context_of(batch: dict[str, Any], names: list[str], view_tokenizer: VQTokenizer) -> torch.Tensor:
    """`(B, V, context_tokens, context_dim)` embeddings of the views' codes through the effective codebook."""
    codes = torch.stack([batch[name] for name in names], dim=1)
    with torch.no_grad():
        return view_tokenizer.embed_codes(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])


@torch.no_grad()
def validation_bits(
    model: CodeTransformer, codes: Dataset, parts: dict[str, Any], device: torch.device, seed: int
) -> dict[str, float]:
    """Bits per masked code on the validation split, with the right views and with the next subject's."""
    generator = torch.Generator().manual_seed(seed)
    whole = {name: column.to(device) for name, column in codes[:].items() if isinstance(column, torch.Tensor)}
    contexts = context_of(whole, model.view_names, parts["view_tokenizer"])
    bits = {"validation_bits": 0.0, "validation_bits_shuffled": 0.0}
    for rows in torch.arange(len(codes)).split(8):
        true = whole["codes"][rows].flatten(1)
        for rate in VALIDATION_RATES:
            rates = torch.full((len(true),), rate)
            noisy = parts["scheduler"].add_noise(true, rates, generator)
            for label, shift in (("validation_bits", 0), ("validation_bits_shuffled", 1)):
                logits = model(noisy, contexts[(rows + shift) % len(codes)]).sample
                loss = masked_code_loss(logits, true, noisy == model.mask_token_id, rates, "mlm")
                bits[label] += float(loss) * len(true) / (len(codes) * len(VALIDATION_RATES) * math.log(2))
    return bits


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


def build_pipeline(args: CodeTransformerArguments, codes: DatasetDict, device: torch.device) -> ViewsToVolumePipeline:
    """The pipeline around a new transformer, its tokenizers and processors loaded."""
    for flag in ("volume_tokenizer", "view_tokenizer"):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} is missing; name the folder or Hub id of the tokenizer that made the codes")
    parts: dict[str, Any] = {
        "volume_tokenizer": load_tokenizer(args.volume_tokenizer, 3, device),
        "view_tokenizer": load_tokenizer(args.view_tokenizer, 2, device),
        "volume_processor": CTVolumeProcessor.from_pretrained(args.volume_tokenizer),
        "view_processor": XrayImageProcessor.from_pretrained(args.view_tokenizer),
    }
    check_fields(args.model, CodeTransformer, "--model")
    check_fields(args.scheduler, AbsorbingScheduler, "--scheduler")
    transformer = CodeTransformer(**transformer_fields(args, codes["train"], parts))
    check_codes(codes["train"], transformer.view_names, parts)
    with torch.no_grad():
        tokenizers = (parts["volume_tokenizer"], parts["view_tokenizer"])
        codebooks = (tokenizer.quantizer.effective_codebook.cpu() for tokenizer in tokenizers)
        transformer.initialize_from_codebooks(*codebooks)
    scheduler = AbsorbingScheduler(**{"mask_token_id": transformer.mask_token_id, **args.scheduler})
    pipeline = ViewsToVolumePipeline(transformer=transformer, scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    """Parse, build, loop, save."""
    args = parse_arguments(CodeTransformerArguments, __doc__)
    if args.loss_type not in CODE_LOSSES:
        raise ValueError(f"--loss_type {args.loss_type} is unknown; choose one of {CODE_LOSSES}")
    accelerator = make_accelerator(args)
    codes = load_codes(args.data)
    pipeline = build_pipeline(args, codes, accelerator.device)
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    names, parts = transformer.view_names, pipeline.components
    validation_data = None
    if args.validation_data:
        processor = pipeline.volume_processor
        validation_data = PairedDataset(args.validation_data, "validation", volume_processor=processor, views=names)

    training = TrainingRun(accelerator, transformer, args)
    training.model.train()
    for index, batch in enumerate(training.dataloader(codes["train"])):
        generator = training.generator(index % args.gradient_accumulation_steps)
        true = batch["codes"].flatten(1)
        rates = 1 - torch.rand(len(true), generator=generator, dtype=torch.float64)
        noisy = scheduler.add_noise(true, rates.to(true.device), generator)
        masked = noisy == transformer.mask_token_id
        if scheduler.config.sampling == "exact_count":
            rates = masked.double().mean(dim=1)
        with accelerator.accumulate(training.model):
            logits = training.model(noisy, context_of(batch, names, parts["view_tokenizer"])).sample
            loss = masked_code_loss(logits, true, masked, rates, args.loss_type)
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
