"""The config of the vector quantizer: what it refuses, and round trips."""

import itertools

import pytest

from hf_vq import FiniteScalarQuantizer, LookupFreeQuantizer, VectorQuantizer, VectorQuantizerConfig
from hf_vq.quantizers import build_quantizer, quantizer_config
from hf_vq.quantizers.configuration import CHOICES


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codebook_size": 1}, "codebook_size=1"),
        ({"codebook_dim": 0}, "codebook_dim=0"),
        ({"parameterization": "afine"}, "parameterization='afine'"),
        ({"sync_weight": 3.0}, "sync_weight=3.0"),
        ({"replace_after": 0}, "replace_after=0"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"commitment_weight": float("nan")}, "commitment_weight=nan"),
        ({"affine_groups": 3}, "affine_groups=3"),
        ({"affine_lr_scale": 0.0}, "affine_lr_scale=0.0"),
        ({"parameterization": "plain", "affine_groups": 2}, "parameterization='plain'"),
        ({"codebok_size": 8}, "codebok_size"),
        ({"codebook_size": 8.0}, r"codebook_size=8.0 is out of range; it must be of type int"),
        ({"sync_weight": "1"}, "sync_weight='1'"),
        ({"channel_last": 1}, "channel_last=1"),
        ({"seed": True}, "seed=True"),
        ({"update": "ema"}, "update='ema' .* parameterization='affine'"),
        ({"update": "ema", "parameterization": "plain", "sync_weight": 1.0}, "update='ema' .* sync_weight=1.0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"update": "momentum"}, "update='momentum'"),
        ({"estimator": "gumbel"}, "estimator='gumbel'"),
        ({"distance": "l1"}, "distance='l1'"),
        ({"structure": "residual"}, "structure='residual' does not fit num_codebooks=1"),
        ({"num_codebooks": 2}, "structure='single' does not fit num_codebooks=2"),
        ({"structure": "grouped", "num_codebooks": 4}, "num_codebooks=4 must divide codebook_dim=6"),
        ({"structure": "residual", "num_codebooks": 2, "distance": "cosine"}, "distance='cosine'"),
        ({"parameterization": "linear", "affine_groups": 2}, "parameterization='linear'"),
        ({"quantizer_type": "finite_scalar"}, "quantizer_type='finite_scalar'"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        VectorQuantizer(**{"codebook_size": 16, "codebook_dim": 6, **fields})


def test_every_combination_either_works_or_names_the_fields_that_clash():
    axes = {**CHOICES, "sync_weight": (0.0, 1.0), "replace_after": (None, 5)}
    working = 0
    for values in itertools.product(*axes.values()):
        fields = dict(zip(axes, values, strict=True))
        fields["num_codebooks"] = 1 if fields["structure"] == "single" else 2
        clashes = {
            "parameterization": fields["update"] == "ema" and fields["parameterization"] != "plain",
            "sync_weight": fields["update"] == "ema" and fields["sync_weight"] > 0,
            "structure": fields["structure"] == "residual" and fields["distance"] == "cosine",
        }
        if not any(clashes.values()):
            VectorQuantizerConfig(**fields)
            working += 1
            continue
        with pytest.raises(ValueError) as error:
            VectorQuantizerConfig(**fields)
        assert any(f"{name}={fields[name]!r}" in str(error.value) for name, clash in clashes.items() if clash)
    assert working > 500


def test_plain_values_and_back():
    config = VectorQuantizerConfig(codebook_size=16, parameterization="linear", structure="residual", num_codebooks=3)
    values = config.to_dict()
    assert values["quantizer_type"] == "vector"
    assert VectorQuantizerConfig.from_dict(values) == config
    assert quantizer_config(values) == config


def test_build_quantizer_takes_a_config_or_its_values():
    values = {"codebook_size": 16, "codebook_dim": 6}
    for description in (values, VectorQuantizerConfig(**values)):
        quantizer = build_quantizer(description)
        assert isinstance(quantizer, VectorQuantizer)
        assert quantizer.config == VectorQuantizerConfig(**values)


@pytest.mark.parametrize(
    ("values", "expected", "size"),
    [
        ({"quantizer_type": "finite_scalar", "levels": [3, 4]}, FiniteScalarQuantizer, 12),
        ({"quantizer_type": "lookup_free", "codebook_dim": 3, "spherical": True}, LookupFreeQuantizer, 8),
    ],
)
def test_the_other_quantizers_are_built_from_their_values(values, expected, size):
    quantizer = build_quantizer(values)
    assert isinstance(quantizer, expected)
    assert quantizer.config.codebook_size == size
    assert isinstance(build_quantizer(quantizer.config.to_dict()), expected)


def test_an_unknown_quantizer_type_is_named():
    with pytest.raises(ValueError, match="quantizer_type='fourier'"):
        build_quantizer({"quantizer_type": "fourier"})
