"""Code data sets as `scripts/encode_codes.py` writes them, and the figures of models that predict masked codes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import Dataset as TorchDataset

from ..data.locating import holds_dataset, load_splits, local_folder
from ..models import CodeTransformer, VQTokenizer
from ..schedulers import AbsorbingScheduler
from .arguments import TrainingArguments
from .losses import CODE_LOSSES, MASK_RATES, masked_code_loss

# Enough for guidance and for samples without a label, as in published class-conditional models.
DEFAULT_LABEL_DROPOUT = 0.1
VALIDATION_RATES = (0.25, 0.5, 0.75, 1.0)
Conditions = Callable[[torch.Tensor], dict[str, Any]]


@dataclass
class CodeTransformerArguments(TrainingArguments):
    """Flags of `scripts/train_code_transformer.py`."""

    tokenizer: str = field(default="", metadata={"help": "Image codes: folder or Hub id of the tokenizer."})
    volume_tokenizer: str = field(
        default="", metadata={"help": "Paired codes: folder or Hub id of the 3D tokenizer and its processor."}
    )
    view_tokenizer: str = field(
        default="", metadata={"help": "Paired codes: folder or Hub id of the 2D tokenizer and its processor."}
    )
    validation_data: str | None = field(
        default=None, metadata={"help": "Paired data whose validation split is generated and compared (PSNR)."}
    )
    class_conditional: bool = field(
        default=True, metadata={"help": "Learn to generate from labels, if paired codes have any."}
    )
    loss_type: str = field(
        default="reweighted_elbo", metadata={"help": f"One of {CODE_LOSSES}; no matter for a causal model."}
    )
    mask_rates: str = field(default="uniform", metadata={"help": f"Distribution of mask rates, one of {MASK_RATES}."})
    soft_target_temperature: float = field(
        default=0.0, metadata={"help": "Targets spread over close codes; 0 for the true codes alone."}
    )
    code_vector_weight: float = field(
        default=0.0, metadata={"help": "Weight of the distance between expected and true code vectors."}
    )
    initialize_from_codebooks: bool = field(
        default=True, metadata={"help": "Start from what the tokenizers' codebooks know about their codes."}
    )
    shuffle_view_order: bool = field(
        default=False, metadata={"help": "Paired codes: let views change places at random, as the paper's code does."}
    )
    num_validation_subjects: int = field(default=8, metadata={"help": "Subjects generated at a validation."})
    num_validation_images: int = field(default=512, metadata={"help": "Images whose codes a validation predicts."})
    num_inference_steps: int = field(default=16, metadata={"help": "Sampling steps at a validation."})
    scheduler: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of the scheduler's config."})


class CodeRows(TorchDataset[dict[str, torch.Tensor]]):
    """Rows of the tensor columns of a code data set, held in memory.

    Args:
        codes: data set with the format `torch`.
    """

    def __init__(self, codes: Dataset) -> None:
        self.columns = {name: column for name, column in codes[:].items() if isinstance(column, torch.Tensor)}

    def __len__(self) -> int:
        return len(self.columns["codes"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def load_codes(source: str) -> DatasetDict:
    """The code data set, from a folder that `save_to_disk` wrote or from the Hub.

    Args:
        source: folder, or id on the Hub; see `hf_vq.data.locating.local_folder`.

    Raises:
        ValueError: if it is none, or lacks a split, the column of codes or a second row.
    """
    folder = local_folder(source)
    if not holds_dataset(folder):
        raise ValueError(f"--data {source}: the folder holds no code data set; run encode_codes.py first")
    codes = DatasetDict(load_splits(folder, f"--data {source}"))
    if not {"train", "validation"} <= set(codes):
        raise ValueError(
            f"--data {source}: expected a data set with the splits train and validation, as encode_codes.py writes it"
        )
    if min(len(codes[split]) for split in ("train", "validation")) < 2:
        raise ValueError(f"--data {source}: at least two rows are needed in train and in validation")
    if "codes" not in codes["train"].column_names:
        raise ValueError(
            f"--data {source}: column 'codes' is missing; found {codes['train'].column_names}. Run "
            "encode_codes.py first."
        )
    return codes.with_format("torch")


def check_codes(codes: CodeRows, tokenizers: Mapping[str, tuple[str, VQTokenizer]]) -> None:
    """Refuses codes that the tokenizers cannot have made.

    Args:
        codes: rows of one split.
        tokenizers: for each column of codes the flag that named its tokenizer, and the tokenizer.

    Raises:
        ValueError: naming the column and the flag.
    """
    for column, (flag, tokenizer) in tokenizers.items():
        size, highest = tokenizer.config.quantizer_config.codebook_size, int(codes.columns[column].max())
        if highest >= size:
            raise ValueError(
                f"--data: column {column!r} holds the code {highest}, but --{flag} has {size} codes; encode the "
                "data with this tokenizer"
            )


def hide_codes(
    model: CodeTransformer,
    scheduler: AbsorbingScheduler,
    codes: torch.Tensor,
    rates: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model is shown of the true codes, and which of them it has to predict.

    Args:
        model: a causal one hides the later codes by itself, so it is shown all and predicts all.
        scheduler: masks the codes for any other model.
        codes: `(B, N)` int64 true codes.
        rates: `(B,)` mask rates in (0, 1].
        generator: source of randomness, one or a list of one per sample.

    Returns:
        `(B, N)` int64 codes, and `(B, N)` bool.
    """
    if model.config.causal:
        return codes, torch.ones_like(codes, dtype=torch.bool)
    shown = scheduler.add_noise(codes, rates.to(codes.device), generator)
    return shown, shown == model.mask_token_id


@torch.no_grad()
def bits_per_code(
    model: CodeTransformer,
    scheduler: AbsorbingScheduler,
    codes: torch.Tensor,
    conditions: Mapping[str, Conditions],
    seed: int,
    batch_size: int = 8,
) -> dict[str, float]:
    """Bits per masked code, averaged over a few mask rates, under several conditions and the same masks.

    A row in which a rate happens to mask nothing does not count at this rate. Of a causal model, which predicts all
    codes whatever the rate, it is the entropy of the whole volume: it cannot be compared with the others' figure.

    Args:
        model: in eval mode.
        scheduler: masks the codes.
        codes: `(R, *code_grid)` int64 true codes.
        conditions: for each name of a figure a function from row numbers to further arguments of the model.
        seed: of the masks.
        batch_size: rows at once.

    Returns:
        For each name its figure.
    """
    generator = torch.Generator().manual_seed(seed)
    nats, num_rows = dict.fromkeys(conditions, 0.0), 0
    all_rates = (1.0,) if model.config.causal else VALIDATION_RATES
    for rows in torch.arange(len(codes)).split(batch_size):
        true = codes[rows].flatten(1)
        for rate in all_rates:
            rates = torch.full((len(true),), rate)
            noisy, masked = hide_codes(model, scheduler, true, rates, generator)
            num_rows += int(masked.any(dim=1).sum())
            for name, arguments_of in conditions.items():
                logits = model(noisy, **arguments_of(rows), positions=masked).sample
                nats[name] += float(masked_code_loss(logits, true, masked, rates, "mlm")) * len(true)
    return {name: total / (num_rows * math.log(2)) for name, total in nats.items()}


def class_fields(source: str, codes: Dataset) -> dict[str, Any]:
    """Fields of a class-conditional transformer that the column of labels determines."""
    names = getattr(codes.features.get("label"), "names", None)
    if not names:
        raise ValueError(
            f"--data {source}: a class-conditional model needs a column 'label' of type ClassLabel, as encode_codes.py "
            f"writes it; found {codes.column_names}. Encode images, or pass --class_conditional false."
        )
    return {"num_classes": len(names), "label_dropout": DEFAULT_LABEL_DROPOUT, "id2label": dict(enumerate(names))}


def make_scheduler(transformer: CodeTransformer, fields: Mapping[str, Any]) -> AbsorbingScheduler:
    """The scheduler with which a transformer is trained and saved: of a causal one, in its order.

    Args:
        transformer: knows the mask and, if it is causal, the order of the codes.
        fields: of the scheduler's config, which override these.
    """
    config = transformer.config
    order = {"sampling": "sequential", "code_order": config.code_order} if config.causal else {}
    return AbsorbingScheduler(**{"mask_token_id": transformer.mask_token_id, **order, **fields})


def inference_steps(transformer: CodeTransformer, asked_for: int) -> int:
    """Sampling steps of a validation: those asked for, or of a causal model one for each code."""
    return math.prod(transformer.config.code_grid) if transformer.config.causal else asked_for
