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
end. Images are resized to the model's `image_size`, with as many channels as its `num_channels`.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from hf_vq import CodebookUsage, VQForImageClassification, VQImageClassifierConfig
from hf_vq.data import ImageDataset, make_image_processor
from hf_vq.files import atomic_file, move_files_into
from hf_vq.training.arguments import TrainingArguments, check_fields, parse_arguments, run
from hf_vq.training.run import TrainingRun, make_accelerator

QUANTIZER_FIGURES = ("quantizer_loss", "commitment_loss", "codebook_loss", "perplexity", "active_fraction")


@dataclass
class ClassifierArguments(TrainingArguments):
    """Flags of this script."""

    eval_batch_size: int = field(default=256, metadata={"help": "Images per step of an evaluation."})
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


@torch.no_grad()
def evaluate(model: VQForImageClassification, dataset: ImageDataset, batch_size: int) -> dict[str, float]:
    """Accuracy, cross-entropy and, with a quantizer, its error and its codebook's usage, over a whole split."""
    config = model.config.quantizer_config
    usage = None if config is None else CodebookUsage(config.codebook_size, getattr(config, "num_codebooks", 1))
    sums = {"accuracy": 0.0, "cross_entropy": 0.0, **({} if usage is None else {"quantization_error": 0.0})}
    for batch in DataLoader(dataset, batch_size=batch_size):
        labels = batch["labels"].to(model.device)
        output = model(batch["pixel_values"].to(model.device))
        sums["accuracy"] += float((output.logits.argmax(dim=1) == labels).sum())
        sums["cross_entropy"] += float(F.cross_entropy(output.logits.float(), labels, reduction="sum"))
        if usage is not None:
            sums["quantization_error"] += float(output.commitment_loss) * len(labels)
            usage.update(output.codes)
    means = {name: value / len(dataset) for name, value in sums.items()}
    return means if usage is None else {**means, **usage.compute(model.device)}


def save(training: TrainingRun, model: VQForImageClassification, processor: Any, metrics: dict[str, Any]) -> None:
    """Writes `metrics.json`, the model and its processor, none of which is ever there in part."""
    with atomic_file(training.output_dir / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=training.output_dir) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        move_files_into(Path(temporary), training.output_dir, last="config.json")


def main() -> None:
    """Parse, build, loop, save."""
    args = parse_arguments(ClassifierArguments, __doc__)
    accelerator = make_accelerator(args)
    check_fields(args.model, VQImageClassifierConfig, "--model")
    config = VQImageClassifierConfig(**args.model)
    processor = make_image_processor(config.image_size, config.num_channels)
    columns = {name: getattr(args, name) for name in ("image_column", "label_column", "label_names")}
    train_set, validation_set, test_set = (
        ImageDataset(args.data, split, processor, args.cache_data, **columns)
        for split in ("train", "validation", "test")
    )
    config.id2label = dict(enumerate(train_set.label_names))
    config.label2id = {name: label for label, name in config.id2label.items()}

    training = TrainingRun(accelerator, VQForImageClassification(config), args)
    training.model.train()
    for batch in training.dataloader(train_set):
        with accelerator.accumulate(training.model):
            training.move_codes(batch["pixel_values"])
            output = training.model(**batch)
            stepped = training.optimize(output.loss, figures_of(output, batch["labels"]))
        if stepped and training.validation_due:
            with training.averaged_weights() as model:
                validation = evaluate(model, validation_set, args.eval_batch_size)
            training.log({f"validation_{name}": value for name, value in validation.items()})

    with training.averaged_weights() as model:
        test = evaluate(model, test_set, args.eval_batch_size)  # by all processes, which count codes together
        if accelerator.is_main_process:
            save(training, model, processor, {"steps": training.step, "test": test})
    training.end()


if __name__ == "__main__":
    run(main)
