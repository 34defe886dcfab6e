"""Training a code transformer that turns views into volumes: its pipeline, its conditions and its validation."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Array2D, Dataset

from ..data import PairedDataset
from ..models import CodeTransformer, VQTokenizer, load_tokenizer
from ..pipelines import ViewsToVolumePipeline
from ..processors import CTVolumeProcessor, XrayImageProcessor
from ..processors.geometry import VOLUME_AXES, is_view, view_axes
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


class ViewsToVolumeTask:
    """Volume codes to be predicted from views.

    Args:
        args: the script's flags.
        device: where tokenizers and codes of the validation are put.

    Attributes:
        pipeline: around a new transformer, its tokenizers and processors loaded.
        train_codes: rows with `codes` and one column for each view.

    Raises:
        ValueError: if a flag is missing or unknown, or the codes do not fit the tokenizers.
    """

    def __init__(self, args: CodeTransformerArguments, device: torch.device) -> None:
        self._args, self._device = args, device
        codes = load_codes(args.data)
        self.train_codes, self._validation_codes = (CodeRows(codes[split]) for split in ("train", "validation"))
        self.pipeline = self._build_pipeline(codes["train"])
        self._names = self.pipeline.transformer.view_names
        self._validation_data = None
        if args.validation_data:
            processor = self.pipeline.volume_processor
            self._validation_data = PairedDataset(
                args.validation_data, "validation", volume_processor=processor, views=self._names
            )

    @property
    def tokenizer(self) -> VQTokenizer:
        """The tokenizer of the codes that are to be predicted."""
        return self.pipeline.volume_tokenizer

    def conditions(self, batch: dict[str, torch.Tensor], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        """The transformer's further arguments for a batch to train on: its views, some of them hidden if the model asks
        for it."""
        context = self._context(batch)
        if self._args.shuffle_view_order:
            draws = torch.stack([torch.rand(context.shape[1], generator=generator) for generator in generators])
            order = draws.argsort(dim=1).to(context.device)
            context = context.take_along_dim(order[:, :, None, None], dim=1)
        transformer = self.pipeline.transformer
        shown = transformer.drop_views(len(context), generators)
        return {"context": context, "view_mask": shown, **self._labels(batch, generators)}

    def _labels(
        self, rows: dict[str, torch.Tensor], generators: Sequence[torch.Generator] | None = None
    ) -> dict[str, Any]:
        """The class labels of some rows, for a model with classes; with generators some are dropped."""
        transformer = self.pipeline.transformer
        if transformer.config.num_classes is None:
            return {}
        labels = rows["label"]
        return {"class_labels": labels if generators is None else transformer.drop_labels(labels, generators)}

    def _context(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """`(B, V, context_tokens, context_dim)` vectors of the views' codes through the effective codebook."""
        codes = torch.stack([batch[name] for name in self._names], dim=1)
        with torch.no_grad():
            return self.pipeline.view_tokenizer.embed_codes(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])

    def validate(self, model: CodeTransformer) -> dict[str, float]:
        """Bits per code and, with `--validation_data`, PSNR, with the right views and with the next subject's.

        Args:
            model: the pipeline's transformer with the weights to be judged, in eval mode.
        """
        rows = {name: column.to(self._device) for name, column in self._validation_codes.columns.items()}
        context, count = self._context(rows), len(self._validation_codes)

        def labels_of(index: torch.Tensor) -> dict[str, Any]:
            return self._labels({"label": rows["label"][index]}) if "label" in rows else {}

        conditions = {
            "validation_bits": lambda index: {"context": context[index], **labels_of(index)},
            "validation_bits_shuffled": lambda index: {"context": context[(index + 1) % count], **labels_of(index)},
        }
        figures = bits_per_code(model, self.pipeline.scheduler, rows["codes"], conditions, self._args.seed)
        return figures if self._validation_data is None else figures | self._psnr(self._validation_data)

    @torch.no_grad()
    def _psnr(self, data: PairedDataset) -> dict[str, float]:
        """PSNR (3D) of one generated volume per subject, with the right views and with the next subject's."""
        chosen = range(min(self._args.num_validation_subjects, len(data)))
        true = torch.stack([data[i]["pixel_values"] for i in chosen])
        low, high = self.pipeline.volume_processor.output_range
        figures = {}
        for label, shift in (("validation_psnr", 0), ("validation_psnr_shuffled", 1)):
            sources = [chosen[(i + shift) % len(chosen)] for i in range(len(chosen))]
            output: Any = self.pipeline(
                {name: [data.view_image(i, name) for i in sources] for name in self._names},
                num_inference_steps=inference_steps(self.pipeline.transformer, self._args.num_inference_steps),
                class_labels=self._class_labels(data, chosen),
                generator=torch.Generator().manual_seed(self._args.seed),
                output_type="pt",
            )
            errors = (output.volumes.cpu().clamp(low, high) - true).square().flatten(1).mean(dim=1)
            figures[label] = float((10 * torch.log10((high - low) ** 2 / errors)).mean())
        return figures

    def _class_labels(self, data: PairedDataset, subjects: Sequence[int]) -> list[str | None] | None:
        """Names of the subjects' classes, for a model with classes."""
        if self.pipeline.transformer.config.num_classes is None:
            return None
        labels = data.labels or [""] * len(data)
        return [labels[index] or None for index in subjects]

    def _build_pipeline(self, codes: Dataset) -> ViewsToVolumePipeline:
        args = self._args
        for flag in ("volume_tokenizer", "view_tokenizer"):
            if not getattr(args, flag):
                raise ValueError(f"--{flag} is missing; name the folder or Hub id of the tokenizer that made the codes")
        parts: dict[str, Any] = {
            "volume_tokenizer": load_tokenizer(args.volume_tokenizer, 3, self._device),
            "view_tokenizer": load_tokenizer(args.view_tokenizer, 2, self._device),
            "volume_processor": CTVolumeProcessor.from_pretrained(args.volume_tokenizer),
            "view_processor": XrayImageProcessor.from_pretrained(args.view_tokenizer),
        }
        check_fields(args.model, CodeTransformer, "--model")
        check_fields(args.scheduler, AbsorbingScheduler, "--scheduler")
        classes = class_fields(args.data, codes) if args.class_conditional and "label" in codes.features else {}
        transformer = CodeTransformer(**_transformer_fields({**classes, **args.model}, codes, parts))
        sources = {name: ("view_tokenizer", parts["view_tokenizer"]) for name in transformer.view_names}
        check_codes(self.train_codes, {"codes": ("volume_tokenizer", parts["volume_tokenizer"]), **sources})
        if args.initialize_from_codebooks:
            tokenizers = (parts["volume_tokenizer"], parts["view_tokenizer"])
            codebooks = (tokenizer.quantizer.effective_codebook.detach().cpu() for tokenizer in tokenizers)
            transformer.initialize_from_codebooks(*codebooks)
        scheduler = make_scheduler(transformer, args.scheduler)
        pipeline = ViewsToVolumePipeline(transformer=transformer, scheduler=scheduler, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _transformer_fields(model: dict[str, Any], codes: Dataset, parts: dict[str, Any]) -> dict[str, Any]:
    """Fields of the transformer that data and tokenizers determine, overridden by the flags."""
    names = [name for name, kind in codes.features.items() if isinstance(kind, Array2D) and name != "codes"]
    if not names:
        raise ValueError(
            f"--data: found the columns {codes.column_names}, expected the codes of at least one view beside 'codes'; "
            "encode paired data, or pass --tokenizer for images"
        )
    axes = {**{name: view_axes(name) for name in names if is_view(name)}, **model.get("view_axes", {})}
    unknown = [name for name in names if name not in axes]
    if unknown:
        raise ValueError(
            f"the axes of the views {unknown} are not known; give them as --model.view_axes.{unknown[0]} "
            "'[inferior, left]'"
        )
    return {
        "num_codes": parts["volume_tokenizer"].config.quantizer_config.codebook_size,
        "code_grid": codes.features["codes"].shape,
        "context_dim": parts["view_tokenizer"].config.quantizer_config.codebook_dim,
        "context_grid": codes.features[names[0]].shape,
        "volume_axes": VOLUME_AXES,
        **model,
        "view_axes": {name: axes[name] for name in names},
    }
