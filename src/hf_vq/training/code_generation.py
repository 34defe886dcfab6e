"""Training a code transformer that generates images, from a class label or without: its pipeline and its validation."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from ..models import CodeTransformer, VQTokenizer, load_tokenizer
from ..pipelines import CodeGenerationPipeline
from ..schedulers import AbsorbingScheduler
from .arguments import check_fields
from .codes import (
    CodeRows,
    CodeTransformerArguments,
    bits_per_code,
    check_codes,
    class_fields,
    inference_steps,
    load_codes,
    make_scheduler,
)

VALIDATION_BATCH_SIZE = 64


class CodeGenerationTask:
    """Image codes to be predicted, with or without the image's label.

    Args:
        args: the script's flags.
        device: where the tokenizer and codes of the validation are put.

    Attributes:
        pipeline: around a new transformer, its tokenizer loaded.
        train_codes: rows with `codes` and `label`.

    Raises:
        ValueError: if a flag is missing or unknown, or the codes do not fit the tokenizer.
    """

    def __init__(self, args: CodeTransformerArguments, device: torch.device) -> None:
        self._args, self._device = args, device
        codes = load_codes(args.data)
        self.train_codes = CodeRows(codes["train"])
        self.pipeline = self._build_pipeline(codes["train"])
        # Rows at random: the first ones of a data set may all have one label.
        order = torch.randperm(len(codes["validation"]), generator=torch.Generator().manual_seed(args.seed))
        validation = CodeRows(codes["validation"]).columns
        self._validation = {name: rows[order[: args.num_validation_images]] for name, rows in validation.items()}

    @property
    def tokenizer(self) -> VQTokenizer:
        """The tokenizer of the codes that are to be predicted."""
        return self.pipeline.tokenizer

    def conditions(self, batch: dict[str, torch.Tensor], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        """The transformer's further arguments for a batch to train on: the labels, some dropped, if it is to know
        them."""
        if not self._args.class_conditional:
            return {}
        return {"class_labels": self.pipeline.transformer.drop_labels(batch["label"], generators)}

    def validate(self, model: CodeTransformer) -> dict[str, float]:
        """Bits per code; of a class-conditional model also with another image's label and without one.

        Args:
            model: the pipeline's transformer with the weights to be judged, in eval mode.
        """
        rows = {name: column.to(self._device) for name, column in self._validation.items()}
        conditions: dict[str, Any] = {"validation_bits": lambda index: {}}
        if self._args.class_conditional:
            labels = rows["label"]
            conditions = {
                "validation_bits": lambda index: {"class_labels": labels[index]},
                "validation_bits_shuffled": lambda index: {"class_labels": labels[(index + 1) % len(labels)]},
            }
            if model.config.label_dropout:
                conditions["validation_bits_unlabelled"] = lambda index: {}
        scheduler, seed = self.pipeline.scheduler, self._args.seed
        return bits_per_code(model, scheduler, rows["codes"], conditions, seed, VALIDATION_BATCH_SIZE)

    def samples(self, images_per_row: int = 10, max_rows: int = 10) -> dict[str, torch.Tensor]:
        """A few generated images, `(images_per_row, C, H, W)` in [0, 1], by class; two rows without classes."""
        transformer = self.pipeline.transformer
        names = {number: name for name, number in transformer.label2id.items()}
        num_classes = transformer.config.num_classes
        labels = list(range(min(num_classes, max_rows))) if num_classes else [-1, -1]
        output: Any = self.pipeline(
            labels,
            num_images_per_prompt=images_per_row,
            num_inference_steps=inference_steps(transformer, self._args.num_inference_steps),
            generator=torch.Generator().manual_seed(self._args.seed),
            output_type="pt",
        )
        titles = [names.get(label, str(label)) if num_classes else f"row {row + 1}" for row, label in enumerate(labels)]
        return dict(zip(titles, output.images.cpu().split(images_per_row), strict=True))

    def _build_pipeline(self, codes: Dataset) -> CodeGenerationPipeline:
        args = self._args
        tokenizer = load_tokenizer(args.tokenizer, 2, self._device)
        check_fields(args.model, CodeTransformer, "--model")
        check_fields(args.scheduler, AbsorbingScheduler, "--scheduler")
        check_codes(self.train_codes, {"codes": ("tokenizer", tokenizer)})
        classes = class_fields(args.data, codes) if args.class_conditional else {}
        num_codes, code_grid = tokenizer.config.quantizer_config.codebook_size, codes.features["codes"].shape
        fields = {"num_codes": num_codes, "code_grid": code_grid, "context_dim": None, **classes, **args.model}
        transformer = CodeTransformer(**fields)
        if args.initialize_from_codebooks:
            transformer.initialize_from_codebooks(tokenizer.quantizer.effective_codebook.detach().cpu())
        scheduler = make_scheduler(transformer, args.scheduler)
        pipeline = CodeGenerationPipeline(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
