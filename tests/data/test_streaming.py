"""Streams divided between processes and workers."""

from itertools import islice

import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from hf_vq.data.streaming import StreamedSamples

NUM_ROWS = 37


def stream(num_shards):
    """A stream of numbered rows."""
    return Dataset.from_dict({"number": list(range(NUM_ROWS))}).to_iterable_dataset(num_shards=num_shards)


@pytest.mark.parametrize("num_shards", [1, 3, 8])
@pytest.mark.parametrize("shuffle_seed", [None, 5])
def test_two_processes_with_two_workers_see_every_sample_once(num_shards, shuffle_seed):
    seen = []
    for rank in range(2):
        samples = StreamedSamples(stream(num_shards), rank, 2, shuffle_seed=shuffle_seed, buffer_size=4)
        loader = DataLoader(samples, batch_size=4, num_workers=2)
        seen.append([number for batch in loader for number in batch["number"].tolist()])
    assert all(seen)
    assert sorted(seen[0] + seen[1]) == list(range(NUM_ROWS))


def test_epochs_come_in_different_orders():
    samples = StreamedSamples(stream(2), process=lambda row: row["number"], shuffle_seed=3, buffer_size=20)
    first = list(samples)
    samples.set_epoch(1)
    second = list(samples)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(NUM_ROWS))


def test_a_stream_goes_on_where_it_was_left():
    samples = StreamedSamples(stream(4), 1, 2, process=lambda row: row["number"])
    whole, beginning = list(samples), islice(iter(samples), 5)
    seen, state = list(beginning), samples.state_dict()
    later = StreamedSamples(stream(4), 1, 2, process=lambda row: row["number"])
    later.load_state_dict(state)
    assert seen + list(later) == whole


def test_what_is_no_stream_and_a_rank_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="found a Dataset, expected a datasets"):
        StreamedSamples(Dataset.from_dict({"number": [1]}))
    with pytest.raises(ValueError, match="rank: found 2, expected 0 to 1"):
        StreamedSamples(stream(2), 2, 2)
