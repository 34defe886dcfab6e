"""Any value in any field of a config: an error that names the field, or a config that survives its own plain form."""

import math

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    FiniteScalarQuantizerConfig,
    LookupFreeQuantizerConfig,
    VectorQuantizerConfig,
    VQImageClassifierConfig,
    VQTokenizerConfig,
)
from hf_vq.models.configuration_vq_image_classifier import BACKBONE_SIZES
from hf_vq.quantizers.configuration import CHOICES

nonsense = st.sampled_from([-1, -(10**12), math.nan, -math.inf, "nonsense", b"", [], {}, object])
QUANTIZER_NUMBERS = [
    "codebook_size",
    "codebook_dim",
    "affine_groups",
    "affine_lr_scale",
    "codebook_lr_scale",
    "ema_decay",
    "sync_weight",
    "replace_after",
    "num_codebooks",
    "commitment_weight",
    "codebook_weight",
]
TOKENIZER_NUMBERS = [
    "spatial_dims",
    "in_channels",
    "base_channels",
    "stem_stride",
    "num_res_blocks",
    "num_norm_groups",
    "initializer_range",
    "latent_kernel_size",
]
TRANSFORMER_NUMBERS = [
    "num_codes",
    "hidden_size",
    "num_layers",
    "num_heads",
    "mlp_ratio",
    "dropout",
    "context_dim",
    "view_dropout",
    "context_dropout",
    "num_classes",
]
NAMES = ("position_embedding", "context_attention")
TINY = {
    "num_codes": 5,
    "code_grid": (2, 2, 2),
    "context_grid": (2, 2),
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
}


@pytest.mark.parametrize("field", [*QUANTIZER_NUMBERS, *CHOICES, "channel_last", "seed"])
@given(value=nonsense)
def test_nonsense_in_a_quantizer_field_is_refused(field, value):
    if field == "seed" and value == -1:
        assert VectorQuantizerConfig(seed=-1).seed == -1
        return
    with pytest.raises(ValueError, match=field):
        VectorQuantizerConfig(**{field: value})


@pytest.mark.parametrize("field", [*TOKENIZER_NUMBERS, "encoder_block_type", "resampling", "reconstruction_loss"])
@given(value=nonsense)
def test_nonsense_in_a_tokenizer_field_is_refused(field, value):
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        VQTokenizerConfig(**{field: value})


@pytest.mark.parametrize("field", [*TRANSFORMER_NUMBERS, *NAMES])
@given(value=nonsense)
def test_nonsense_in_a_transformer_field_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        CodeTransformer(**{**TINY, field: value})


@pytest.mark.parametrize("field", ["image_size", "num_channels", "quantizer_position", "backbone"])
@given(value=nonsense, backbone=st.sampled_from(list(BACKBONE_SIZES)))
def test_nonsense_in_a_classifier_field_is_refused(field, value, backbone):
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        VQImageClassifierConfig(**{"backbone": backbone, field: value})


@given(data=st.data(), backbone=st.sampled_from([name for name, sizes in BACKBONE_SIZES.items() if sizes]))
def test_sizes_of_a_backbone_that_make_no_sense_are_refused(data, backbone):
    field = data.draw(st.sampled_from(BACKBONE_SIZES[backbone]))
    bad = data.draw(st.one_of(st.integers(max_value=0), st.integers(2**17)))
    value = [64, bad, 64, 64] if field in ("hidden_sizes", "depths") else bad
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        VQImageClassifierConfig(backbone=backbone, backbone_config={field: value})


@given(depths=st.lists(st.integers(1, 3), max_size=4), widths=st.lists(st.integers(1, 64), max_size=4))
def test_a_resnet_has_as_many_depths_as_widths(depths, widths):
    values = {"backbone": "resnet", "backbone_config": {"depths": depths, "hidden_sizes": widths}}
    if depths and len(depths) == len(widths):
        config = VQImageClassifierConfig(**values, quantizer_position="stage1")
        assert config.quantizer_width == widths[0]
    else:
        with pytest.raises(ValueError, match="one entry for each stage"):
            VQImageClassifierConfig(**values)


@given(heads=st.integers(1, 12), width=st.integers(1, 64), patch=st.integers(1, 20), side=st.integers(1, 64))
def test_a_vit_divides_its_image_and_its_width(heads, width, patch, side):
    sizes = {"num_attention_heads": heads, "hidden_size": width, "patch_size": patch}
    values = {"backbone": "vit", "backbone_config": sizes, "image_size": side}
    if side % patch == 0 and width % heads == 0:
        assert VQImageClassifierConfig(**values).quantizer_width == width
    else:
        with pytest.raises(ValueError, match=r"patch_size|num_attention_heads"):
            VQImageClassifierConfig(**values)


@given(field=st.sampled_from(["codebook_size", "codebook_dim", "num_codebooks"]), exponent=st.integers(9, 60))
def test_enormous_codebooks_are_refused(field, exponent):
    with pytest.raises(ValueError, match=field):
        VectorQuantizerConfig(structure="residual" if field == "num_codebooks" else "single", **{field: 10**exponent})


@given(
    field=st.sampled_from(["schedule", "sampling", "masking", "choice_temperature", "mask_token_id"]), value=nonsense
)
def test_nonsense_in_a_scheduler_field_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        AbsorbingScheduler(**{"mask_token_id": 5, field: value})


@given(
    size=st.integers(2, 10**6),
    dim=st.integers(1, 512),
    parameterization=st.sampled_from(CHOICES["parameterization"]),
    estimator=st.sampled_from(CHOICES["estimator"]),
    distance=st.sampled_from(CHOICES["distance"]),
    sync_weight=st.floats(0, 2),
    replace_after=st.none() | st.integers(1, 10**6),
)
def test_a_quantizer_config_survives_its_dict(**fields):
    fields["codebook_size"], fields["codebook_dim"] = fields.pop("size"), fields.pop("dim")
    config = VectorQuantizerConfig(**fields)
    assert VectorQuantizerConfig.from_dict(config.to_dict()) == config


@given(levels=st.lists(st.integers(-2, 2**30), max_size=6))
def test_levels_multiply_to_the_codebook(levels):
    if levels and min(levels) >= 2 and math.prod(levels) <= 2**24:
        config = FiniteScalarQuantizerConfig(levels=levels)
        assert config.codebook_size == math.prod(levels)
        assert FiniteScalarQuantizerConfig.from_dict(config.to_dict()) == config
    else:
        with pytest.raises(ValueError, match="levels"):
            FiniteScalarQuantizerConfig(levels=levels)


@given(dim=st.integers(-5, 10**12), spherical=st.booleans())
def test_bits_are_bounded(dim, spherical):
    if (2 if spherical else 1) <= dim <= 24:
        assert LookupFreeQuantizerConfig(codebook_dim=dim, spherical=spherical).codebook_size == 2**dim
    else:
        with pytest.raises(ValueError, match="codebook_dim"):
            LookupFreeQuantizerConfig(codebook_dim=dim, spherical=spherical)


@given(
    dims=st.sampled_from([2, 3]),
    width=st.sampled_from([8, 16, 24]),
    levels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    stem=st.integers(1, 4),
    loss=st.sampled_from(["l1", "l2", "charbonnier"]),
)
def test_a_tokenizer_config_survives_its_dict(dims, width, levels, stem, loss):
    config = VQTokenizerConfig(
        spatial_dims=dims, base_channels=width, channel_multipliers=levels, stem_stride=stem, reconstruction_loss=loss
    )
    again = VQTokenizerConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.downsampling_factor == stem * 2 ** (len(levels) - 1)
