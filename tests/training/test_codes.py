"""Figures and checks of code data sets."""

import math

import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

from hf_vq import AbsorbingScheduler, CodeTransformer, VQTokenizer, VQTokenizerConfig
from hf_vq.training.codes import CodeRows, bits_per_code, check_codes, load_codes


def save_codes(folder, splits=("train", "validation"), rows=3):
    features = Features({"codes": Array2D((2, 2), "int32"), "label": ClassLabel(names=["bag", "boot"])})
    codes = torch.arange(rows * 4).view(rows, 2, 2)
    columns = {"codes": codes.numpy(), "label": [row % 2 for row in range(rows)]}
    DatasetDict({split: Dataset.from_dict(columns, features=features) for split in splits}).save_to_disk(folder)
    return str(folder)


def test_rows_are_those_of_the_data_set(tmp_path):
    codes = load_codes(save_codes(tmp_path))["train"]
    rows = CodeRows(codes)
    assert len(rows) == 3
    for index in range(3):
        for name in ("codes", "label"):
            assert torch.equal(rows[index][name], codes[index][name])
    assert rows[2]["codes"].dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"splits": ("train",)}, "train and validation"), ({"rows": 1}, "at least two rows")],
)
def test_incomplete_code_data_sets_are_refused(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        load_codes(save_codes(tmp_path, **arguments))


def test_codes_of_another_tokenizer_are_refused(tmp_path):
    quantizer = {"codebook_size": 11, "codebook_dim": 3}
    tokenizer = VQTokenizer(VQTokenizerConfig(spatial_dims=2, num_norm_groups=4, base_channels=4, quantizer=quantizer))
    rows = CodeRows(load_codes(save_codes(tmp_path))["train"])  # codes 0 to 11
    with pytest.raises(ValueError, match="'codes' holds the code 11, but --tokenizer has 11"):
        check_codes(rows, {"codes": ("tokenizer", tokenizer)})
    rows.columns["codes"] -= 1
    check_codes(rows, {"codes": ("tokenizer", tokenizer)})


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_model_that_knows_nothing_needs_as_many_bits_as_the_codebook_has(batch_size):
    model = CodeTransformer(
        num_codes=16, code_grid=(3, 3), context_dim=None, hidden_size=8, num_layers=1, num_heads=1, num_classes=2
    ).eval()
    codes = torch.randint(16, (5, 3, 3))
    conditions = {
        "plain": lambda rows: {},
        "labelled": lambda rows: {"class_labels": torch.zeros(len(rows), dtype=torch.int64)},
    }
    bits = bits_per_code(model, AbsorbingScheduler(16), codes, conditions, seed=0, batch_size=batch_size)
    assert bits["plain"] != bits["labelled"]
    torch.nn.init.zeros_(model.head.weight)
    bits = bits_per_code(model, AbsorbingScheduler(16), codes, conditions, seed=0, batch_size=batch_size)
    assert bits == pytest.approx(dict.fromkeys(conditions, math.log2(16)))


def test_rows_without_a_mask_do_not_count():
    """Of single codes an ancestral scheduler often masks none; the others still need all bits."""
    fields = {"context_dim": None, "hidden_size": 8, "num_layers": 1, "num_heads": 1}
    model = CodeTransformer(num_codes=16, code_grid=(1, 1), **fields).eval()
    torch.nn.init.zeros_(model.head.weight)
    scheduler, codes = AbsorbingScheduler(16, sampling="ancestral"), torch.randint(16, (9, 1, 1))
    bits = bits_per_code(model, scheduler, codes, {"plain": lambda rows: {}}, seed=0, batch_size=2)
    assert bits["plain"] == pytest.approx(math.log2(16))
