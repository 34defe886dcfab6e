"""What the arms of the ablation are."""

import pytest

from hf_vq.evaluation.ablation_arms import (
    ARMS,
    DEFAULT_ARM,
    GRID,
    NO_WEIGHTS,
    PLAIN,
    TECHNIQUES,
    VECTOR_ARMS,
    arm_fields,
    choices,
    find_arm,
    search_grid,
)
from hf_vq.quantizers import FiniteScalarQuantizerConfig, VectorQuantizerConfig


def test_every_arm_of_the_vector_quantizer_is_a_valid_config_of_its_own() -> None:
    configs = [choices(VectorQuantizerConfig(**PLAIN | fields)) for fields in VECTOR_ARMS.values()]
    assert all(configs.count(config) == 1 for config in configs)


@pytest.mark.parametrize("name", list(TECHNIQUES))
def test_all_without_a_technique_has_the_four_others(name: str) -> None:
    without = VECTOR_ARMS[f"all-{name}"]
    assert {**without, **TECHNIQUES[name]} == VECTOR_ARMS["all"]
    assert not set(without) & set(TECHNIQUES[name])


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if name != "kmeans"])
def test_a_single_technique_comes_on_top_of_kmeans(name: str) -> None:
    assert VECTOR_ARMS[f"kmeans+{name}"] == {**VECTOR_ARMS["kmeans"], **TECHNIQUES[name]}


def test_the_default_config_is_found_whatever_its_weights_sizes_and_seed() -> None:
    changed = VectorQuantizerConfig(codebook_size=8, codebook_dim=3, commitment_weight=2.0, codebook_weight=3.0, seed=4)
    assert find_arm(VECTOR_ARMS, changed) == DEFAULT_ARM
    assert find_arm(VECTOR_ARMS, VectorQuantizerConfig(**PLAIN)) == "vq"
    assert find_arm(VECTOR_ARMS, VectorQuantizerConfig(**PLAIN | {"distance": "cosine"})) is None
    assert find_arm({"vq": {}}, VectorQuantizerConfig(**PLAIN | {"init": "kmeans"})) is None


def test_weights_are_searched_where_a_loss_uses_them() -> None:
    assert search_grid("vq") == list(GRID)
    assert search_grid("ema+replacement") == search_grid("all") == [(0.25, None), (0.0625, None), (1.0, None)]
    assert search_grid("all-alternating") == list(GRID)
    assert search_grid("fsq") == search_grid("none") == [NO_WEIGHTS]


def test_the_grid_is_that_of_the_paper_in_our_names() -> None:
    """alpha in {1.25, 5}, beta in {0.8, 0.95}: (alpha (1 - beta), alpha beta)."""
    wanted = [(alpha * (1 - beta), alpha * beta) for alpha in (1.25, 5) for beta in (0.8, 0.95)]
    assert [pytest.approx(point) for point in wanted] == list(GRID)
    default = VectorQuantizerConfig()
    assert (default.commitment_weight, default.codebook_weight) in GRID


@pytest.mark.parametrize(("size", "codes"), [(256, 240), (1024, 1000)])
def test_levels_of_fsq_are_close_to_the_nominal_size(size: int, codes: int) -> None:
    assert FiniteScalarQuantizerConfig.from_dict(arm_fields("fsq", size)).codebook_size == codes
    with pytest.raises(ValueError, match=r"arm fsq: found no levels for K = 7, expected K in \[256, 1024\]"):
        arm_fields("fsq", 7)


def test_the_ceiling_has_no_quantizer() -> None:
    assert arm_fields("none", 0) == {}
    assert ARMS[-2:] == ("fsq", "none")
