"""What the layers refuse, before anything has changed, and how they show themselves."""

import copy

import pytest
import torch

from hf_vq import (
    FiniteScalarQuantizer,
    FiniteScalarQuantizerConfig,
    LookupFreeQuantizer,
    LookupFreeQuantizerConfig,
    VectorQuantizer,
    VectorQuantizerConfig,
)

DATA_DEPENDENT = {
    "kmeans": {},
    "cosine": {"distance": "cosine"},
    "residual": {"structure": "residual", "num_codebooks": 2},
    "grouped": {"structure": "grouped", "num_codebooks": 2},
    "ema": {"parameterization": "plain", "update": "ema", "sync_weight": 0.0},
    "running moments": {"parameterization": "affine_running", "init": "random"},
}
QUANTIZERS = [
    VectorQuantizer(codebook_size=16, codebook_dim=4),
    FiniteScalarQuantizer(levels=[3, 3, 3, 3]),
    LookupFreeQuantizer(codebook_dim=4),
]
EACH_QUANTIZER = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda each: type(each).__name__)


def features_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fields", DATA_DEPENDENT.values(), ids=DATA_DEPENDENT)
def test_a_first_batch_that_is_not_finite_is_refused_and_changes_nothing(fields, bad):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codebook_size=8, codebook_dim=4, **fields).train()
    untouched = copy.deepcopy(quantizer)
    features = features_of()
    features[1, 3, 7] = bad  # in the last channel: with groups only the last one sees it
    with pytest.raises(ValueError, match=r"found .*1 (NaN|infinite) values.* in the features of the first training"):
        quantizer(features)
    for name, value in untouched.state_dict().items():
        assert torch.equal(quantizer.state_dict()[name], value), name

    for each in (quantizer, untouched):
        each(features_of())
    for name, value in untouched.state_dict().items():
        assert torch.equal(quantizer.state_dict()[name], value), name


@EACH_QUANTIZER
def test_features_must_be_floating_point_numbers(quantizer):
    with pytest.raises(ValueError, match=r"dtype torch\.int64"):
        quantizer(torch.ones(2, 4, 5, dtype=torch.int64))


@EACH_QUANTIZER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64, torch.bool])
def test_codes_must_be_integers(quantizer, dtype):
    with pytest.raises(ValueError, match=f"codes have dtype {dtype}"):
        quantizer.decode(torch.zeros(2, 5, dtype=dtype))


@pytest.mark.parametrize(
    ("layer", "config"),
    [
        (VectorQuantizer, VectorQuantizerConfig(codebook_size=7)),
        (FiniteScalarQuantizer, FiniteScalarQuantizerConfig(levels=[5, 3])),
        (LookupFreeQuantizer, LookupFreeQuantizerConfig(codebook_dim=3)),
    ],
)
def test_a_config_may_be_its_dict_and_nothing_else(layer, config):
    assert layer(config.to_dict()).config == config
    with pytest.raises(ValueError, match="codebok"):
        layer({"codebok": 7})
    with pytest.raises(ValueError, match=f"config=512 is no {type(config).__name__}"):
        layer(512)


def test_repr_shows_the_main_choices():
    quantizer = VectorQuantizer(codebook_size=7, codebook_dim=4, parameterization="plain", update="alternating")
    shown = repr(quantizer)
    for part in ("codebook_size=7", "codebook_dim=4", "parameterization='plain'", "update='alternating'"):
        assert part in shown
    assert "levels=[5, 3], codebook_size=15" in repr(FiniteScalarQuantizer(levels=[5, 3]))
    assert "codebook_dim=3, codebook_size=8, spherical=True" in repr(
        LookupFreeQuantizer(codebook_dim=3, spherical=True)
    )
