"""Two processes with half of each batch, and one with the batch in parts, train what one trains with the whole."""

import pytest
import torch
from process_cases import FSDP, Case, in_two_processes, train_all

AFFINE = {"parameterization": "affine", "init": "random", "replace_after": 3, "sync_weight": 0.5}
PLAIN = {"parameterization": "plain", "init": "kmeans", "replace_after": None, "sync_weight": 0.0}
RUNNING = {"parameterization": "affine_running", "init": "random", "replace_after": 3, "sync_weight": 0.0}
BOTH = {"code_vector_weight": 0.5}
QUICK = {
    "ema": Case({**PLAIN, "update": "ema", "replace_after": 3}),
    "alternating": Case({**AFFINE, "update": "alternating", "init": "kmeans"}),
    "transformer": Case(flags={"model": BOTH}),
    "transformer_fsdp": Case(flags={"model": BOTH}, environment=FSDP, resumes=True),
}
ALL = QUICK | {
    "gradient": Case(PLAIN),
    "affine_replaced": Case(AFFINE),
    "running_affine": Case(RUNNING),
    "residual": Case({**AFFINE, "structure": "residual", "num_codebooks": 2}),
    "grouped_ema": Case({**PLAIN, "update": "ema", "structure": "grouped", "num_codebooks": 2}),
    "affine_replaced_parts": Case(AFFINE, parts=2),
    "transformer_parts": Case(parts=2),
    "transformer_fsdp_parts": Case(parts=2, environment=FSDP),
}
PARTS = {
    "gradient": Case(PLAIN, parts=2),
    "affine_replaced": Case(AFFINE, parts=4),
    "ema": Case({**PLAIN, "update": "ema", "replace_after": 3}, parts=2),
    "alternating": Case({**AFFINE, "update": "alternating", "init": "kmeans"}, parts=2),
    "running_affine": Case(RUNNING, parts=2),
    "residual_ema": Case({**PLAIN, "update": "ema", "structure": "residual", "num_codebooks": 2}, parts=2),
    "grouped": Case({**AFFINE, "structure": "grouped", "num_codebooks": 2}, parts=2),
    "transformer": Case(parts=2),
}


def in_one_process(cases, folder, steps):
    """Results of one process with the whole batch at once."""
    return train_all({name: Case(case.quantizer, 1, case.flags) for name, case in cases.items()}, folder, steps)


def differences(found, expected):
    """Largest absolute difference of the losses, of the codebooks and of everything else."""
    assert found.keys() == expected.keys()
    largest = {"losses": 0.0, "codes": 0.0, "others": 0.0}
    for name, theirs in expected.items():
        kind = name if name == "losses" else "codes" if name.endswith(("codebook.weight", "s.0.weight")) else "others"
        difference = float((found[name].double() - theirs.double()).abs().max())
        largest[kind] = max(largest[kind], difference)
    return largest


def check(found, expected):
    """Asserts that they are equal up to rounding, and prints by how much they are not; a resumed run is equal in every
    bit."""
    for name in expected:
        resumed = {key: found[name].pop(key) for key in list(found[name]) if key.startswith("resumed.")}
        for key, value in resumed.items():
            assert torch.equal(value, found[name][key.removeprefix("resumed.")]), key
        largest = differences(found[name], expected[name])
        print(name, " ".join(f"{kind} {value:.1e}" for kind, value in largest.items()))
        for key, value in expected[name].items():
            torch.testing.assert_close(
                found[name][key].to(value.dtype),
                value,
                atol=1e-5,
                rtol=1e-5,
                msg=lambda text, key=key: f"{key}: {text}",
            )


def check_ranks(ranks):
    """Asserts that both processes hold the same codebooks and weights."""
    for first, second in zip(ranks[0].values(), ranks[1].values(), strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items() if name != "losses")


def test_two_processes_train_what_one_does(tmp_path):
    short = {name: QUICK[name] for name in ("ema", "transformer_fsdp")}
    ranks = in_two_processes(short, tmp_path / "two", 8)
    check_ranks(ranks)
    check(ranks[0], in_one_process(short, tmp_path / "one", 8))


@pytest.mark.slow
def test_60_steps_of_two_processes_are_those_of_one(tmp_path):
    ranks = in_two_processes(ALL, tmp_path / "two", 60)
    check_ranks(ranks)
    check(ranks[0], in_one_process(ALL, tmp_path / "one", 60))


@pytest.mark.parametrize("steps", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_batch_in_parts_trains_what_the_whole_does(steps, tmp_path):
    check(train_all(PARTS, tmp_path / "parts", steps), in_one_process(PARTS, tmp_path / "one", steps))
