"""Trains an image classifier with a vector quantizer inside: AlexNet, ResNet or ViT.

    accelerate launch scripts/train_classifier.py --config scripts/configs/fashion-mnist-classifier-resnet.yaml \\
        --data /usr/share/datasets/fashion-mnist --output_dir classifier

`--data` is a folder with MNIST-format files, or a `datasets` data set: a folder or a Hub id. Any flag of the YAML file
can be given on the command line; fields of the model with dots: `--model.quantizer_position stage3`, or
`--model.quantizer null` for the same network without quantisation. The plain quantizer of van den Oord et al., 2017, is
`--model.quantizer.parameterization plain --model.quantizer.codebook_lr_scale 1 --model.quantizer.sync_weight 0
--model.quantizer.init random --model.quantizer.replace_after null --model.quantizer.commitment_weight 0.25
--model.quantizer.codebook_weight 1`.

Figures of the validation split go to `logs.jsonl` while it trains, those of the test split to `metrics.json` at the
end, after the model was saved; `--max_eval_samples` bounds how many images of each split are looked at. Images are
resized to the model's `image_size`, with as many channels as its `num_channels`.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from hf_vq import CodebookUsage, VQForImageClassification, VQImageClassifierConfig
from hf_vq.data import ImageDataset, make_image_processor
from hf_vq.files import atomic_file, move_files_into, staging_directory
from hf_vq.training.arguments import TrainingArguments, check_fields, parse_arguments, run
from hf_vq.training.processes import share_of, sums_of_all
from hf_vq.training.run import TrainingRun, make_accelerator

QUANTIZER_FIGURES = ("quantizer_loss", "commitment_loss", "codebook_loss", "perplexity", "active_fraction")


@dataclass
class ClassifierArguments(TrainingArguments):
    """Flags of this script."""

    eval_batch_size: int = field(default=256, metadata={"help": "Images per step of an evaluation."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Images of validation and test split that are evaluated; all if absent."}
    )
    cache_data: bool = field(default=False, metadata={"help": "Keep all processed images in memory."})
    image_column: str | None = field(default=None, metadata={"help": "Column of images, where there are several."})
    label_column: str | None = field(default=None, metadata={"help": "Column of labels, where there are several."})
    label_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the labels, e.g. for MNIST-format files, which have none."}
    )


def figures_of(output: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is logged of a training batch."""
    quantizer_figures = {name: output[name] for name in QUANTIZER_FIGURES if name in output}
    return {
        "cross_entropy": output.loss - quantizer_figures.get("quantizer_loss", 0.0),
        "accuracy": (output.logits.argmax(dim=1) == labels).float().mean(),
        **quantizer_figures,
    }


def evaluated_part(dataset: ImageDataset, args: ClassifierArguments) -> Dataset:
    """The images of a split that are evaluated: drawn at random, since the first ones may all have one label."""
    if args.max_eval_samples is None or args.max_eval_samples >= len(dataset):
        return dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
    return Subset(dataset, order[: args.max_eval_samples].tolist())


@torch.no_grad()
def evaluate(
    model: VQForImageClassification, dataset: Dataset, batch_size: int, name: str, shows: bool
) -> dict[str, float]:
    """Accuracy, cross-entropy and, with a quantizer, its error and its codebook's usage, with a progress bar."""
    config = model.config.quantizer_config
    usage = None if config is None else CodebookUsage(config.codebook_size, getattr(config, "num_codebooks", 1))
    # a generator of its own: without one every loader takes a number from those that dropout draws in training
    loader = DataLoader(share_of(dataset), batch_size=batch_size, generator=torch.Generator())
    sums = {"accuracy": 0.0, "cross_entropy": 0.0, **({} if usage is None else {"quantization_error": 0.0})}
    for batch in tqdm(loader, desc=f"evaluate {name}", leave=False, disable=not shows):
        labels = batch["labels"].to(model.device)
        output = model(batch["pixel_values"].to(model.device))
        sums["accuracy"] += float((output.logits.argmax(dim=1) == labels).sum())
        sums["cross_entropy"] += float(F.cross_entropy(output.logits.float(), labels, reduction="sum"))
        if usage is not None:
            sums["quantization_error"] += float(output.commitment_loss) * len(labels)
            usage.update(output.codes)
    totals = zip(sums, sums_of_all(list(sums.values()), model.device), strict=True)
    means = {figure: value / len(dataset) for figure, value in totals}  # type: ignore[arg-type]
    return means if usage is None else {**means, **usage.compute(model.device)}


def save(training: TrainingRun, model: VQForImageClassification, processor: Any) -> None:
    """Writes the model and its processor, which are never there in part."""
    with staging_directory(training.output_dir) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        training.save_record(temporary)
        move_files_into(temporary, training.output_dir, last="config.json")


def save_metrics(training: TrainingRun, test: dict[str, float], num_samples: int) -> None:
    """Writes `metrics.json` and prints the accuracy."""
    metrics = {"steps": training.step, "test_samples": num_samples, "test": test}
    with atomic_file(training.output_dir / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(f"test accuracy {test['accuracy']:.4f} ({num_samples} images)")


def main() -> None:
    """Parse, build, loop, save, test."""
    args = parse_arguments(ClassifierArguments, __doc__)
    if args.max_eval_samples is not None and args.max_eval_samples < 1:
        raise ValueError(f"--max_eval_samples: found {args.max_eval_samples}, expected at least 1")
    accelerator = make_accelerator(args)
    check_fields(args.model, VQImageClassifierConfig, "--model")
    config = VQImageClassifierConfig(**args.model)
    processor = make_image_processor(config.image_size, config.num_channels)
    columns = {name: getattr(args, name) for name in ("image_column", "label_column", "label_names")}
    train_set, validation_set, test_set = (
        ImageDataset(args.data, split, processor, args.cache_data, **columns)
        for split in ("train", "validation", "test")
    )
    if not all(dataset.label_names for dataset in (train_set, validation_set, test_set)):
        raise ValueError(f"--data {args.data}: found no column of labels in every split; name it with --label_column")
    config.id2label = dict(enumerate(train_set.label_names))
    config.label2id = {name: label for label, name in config.id2label.items()}

    validation_part, test_part = (evaluated_part(dataset, args) for dataset in (validation_set, test_set))
    shows = accelerator.is_main_process

    training = TrainingRun(accelerator, VQForImageClassification(config), args)
    training.model.train()

    def validate() -> None:
        with training.validation(), training.averaged_weights() as model:
            figures = evaluate(model, validation_part, args.eval_batch_size, "validation", shows)
            training.log({f"validation_{name}": value for name, value in figures.items()})

    if training.validation_missed:
        validate()
    for batches in training.steps(train_set):
        training.begin_step([batch["pixel_values"] for batch in batches])
        for batch in batches:
            with training.accumulate():
                output = training.model(**batch)
                training.optimize(output.loss, figures_of(output, batch["labels"]))
        if training.validation_due:
            validate()

    with training.averaged_weights() as model:
        if accelerator.is_main_process:
            save(training, model, processor)
        # by all processes, which count codes together
        test = evaluate(model, test_part, args.eval_batch_size, "test", shows)
    if accelerator.is_main_process:
        save_metrics(training, test, len(test_part))  # type: ignore[arg-type]
    training.end()


if __name__ == "__main__":
    run(main)
