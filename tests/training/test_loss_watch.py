"""A loss or gradient that is not finite stops the run: samples named, the state before them kept."""

import math

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Subjects, classifier, digests, make_run, tokenizer, train

RULES = {
    "gradient": {"update": "gradient"},
    "moving averages": {"update": "ema", "parameterization": "plain", "sync_weight": 0.0},
    "alternating": {"update": "alternating"},
    "running moments": {"parameterization": "affine_running"},
}


class Turning(Subjects):
    """Sound samples, one of which turns bad when it is read for the second time."""

    def __init__(self, index, value):
        super().__init__()
        self.index, self.value, self.reads = index, value, 0

    def __getitem__(self, index):
        item = super().__getitem__(index)
        self.reads += index == self.index
        is_bad = index == self.index and self.reads == 2
        spoilt = torch.full_like(item["pixel_values"], self.value)
        return {**item, "pixel_values": spoilt} if is_bad else item


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_state_before_the_bad_batch_is_the_checkpoint_and_its_subjects_are_named(tmp_path, rule, value):
    flags = {"make_model": lambda: tokenizer(**RULES[rule]), "checkpointing_steps": 100, "train_batch_size": 3}
    with pytest.raises(
        ValueError, match=r"the loss became (nan|inf) at step [34], in the batch of .*patient_4"
    ) as error:
        train(make_run(tmp_path / "bad", **flags), Turning(4, value))
    (kept,) = (tmp_path / "bad").glob("checkpoint-*")
    assert f"--resume_from_checkpoint {kept.name}" in str(error.value)
    step = int(kept.name[-7:])
    train(make_run(tmp_path / "good", **{**flags, "checkpointing_steps": step}), until=step)
    expected, found = digests(tmp_path / "good" / kept.name), digests(kept)
    del expected["random_states_0.pkl"], found["random_states_0.pkl"]  # `random` and NumPy have moved on
    assert found == expected
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept / "model.safetensors").values())


def test_data_without_names_are_told_by_their_numbers_and_the_first_step_has_no_checkpoint(tmp_path):
    dataset = Subjects(spoilt=slice(None))
    del dataset.subjects
    run = make_run(tmp_path, classifier, train_batch_size=2)
    with pytest.raises(ValueError, match=r"step 1, in the batch of (\d), (\d); .* No step had been made yet") as error:
        train(run, dataset)
    generator = torch.Generator().manual_seed(0)
    first = torch.randperm(6, generator=generator)[:2].tolist()
    assert f"in the batch of {first[0]}, {first[1]};" in str(error.value)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_what_the_model_itself_refuses_is_told_with_the_subjects_too(tmp_path):
    run = make_run(tmp_path, lambda: tokenizer(init="kmeans"), train_batch_size=6)
    with pytest.raises(ValueError, match=r"NaN.* \(in the batch of patient_\d, .*patient_3"):
        train(run, Subjects(spoilt=3))


def test_a_checkpoint_of_that_step_is_not_written_twice(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint-000000[23] was kept") as error:
        train(make_run(tmp_path, train_batch_size=3, checkpointing_steps=1), Turning(0, math.nan))
    last = max(tmp_path.glob("checkpoint-*"))
    assert last.name in str(error.value)
    assert len(list(tmp_path.glob("checkpoint-*"))) == int(last.name[-1])


class Overflowing(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.inf


@pytest.mark.parametrize("scales", [False, True])
def test_an_infinite_gradient_stops_too_unless_a_scaler_looks_for_its_scale(tmp_path, scales):
    run = make_run(tmp_path, train_batch_size=2)
    if scales:
        run.accelerator.scaler = torch.amp.GradScaler("cpu")
    batches = next(run.steps(Subjects()))
    loss = Overflowing.apply(run.model(batches[0]["pixel_values"]).loss)
    if scales:
        assert run.optimize(loss, {})
        run.end()
        return
    with pytest.raises(
        ValueError, match=r"the gradient became NaN or infinite at step 1, in the batch of patient_\d, p"
    ):
        run.optimize(loss, {})
