"""Order of the training data."""

import pytest

from hf_vq.training.sampler import PartsTogether, ResumableSampler


def test_every_epoch_is_a_new_permutation():
    draws = list(ResumableSampler(10, 0, 30, seed=0))
    epochs = [draws[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("start", [0, 4, 10, 23])
def test_resuming_continues_the_same_order(start):
    whole = list(ResumableSampler(10, 0, 30, seed=3))
    rest = ResumableSampler(10, start, 30, seed=3)
    assert list(rest) == whole[start:]
    assert len(rest) == 30 - start


def test_seeds_differ():
    assert list(ResumableSampler(10, 0, 10, seed=0)) != list(ResumableSampler(10, 0, 10, seed=1))


def test_empty_data_is_refused():
    with pytest.raises(ValueError, match="empty"):
        ResumableSampler(0, 0, 10, seed=0)


def test_parts_of_a_step_give_every_process_a_stretch_of_it():
    draws = list(ResumableSampler(24, 0, 24, seed=0))
    handed_out = list(PartsTogether(ResumableSampler(24, 0, 24, seed=0), 2, num_parts=3, num_processes=2))
    batches = [handed_out[first : first + 2] for first in range(0, 24, 2)]
    by_process = [[n for batch in batches[process : 6 + process : 2] for n in batch] for process in (0, 1)]
    assert by_process[0] + by_process[1] == draws[:12]
    assert sorted(handed_out) == sorted(draws)
