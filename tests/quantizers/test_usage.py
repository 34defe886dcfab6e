"""Usage figures of a codebook."""

import pytest
import torch

from hf_vq import CodebookUsage
from hf_vq.quantizers.functional import active_fraction, perplexity


@pytest.mark.parametrize("used", [1, 3, 8])
def test_perplexity_of_even_usage_is_the_number_of_codes_used(used):
    counts = torch.zeros(8)
    counts[:used] = 5
    assert perplexity(counts).item() == pytest.approx(used)
    assert active_fraction(counts).item() == pytest.approx(used / 8)


def test_perplexity_of_nothing_is_zero():
    assert perplexity(torch.zeros(8)).item() == 0


def test_each_codebook_counts_for_itself():
    usage = CodebookUsage(4, num_codebooks=2)
    usage.update(torch.tensor([[[0, 1, 0, 1], [2, 2, 2, 2]]]))
    figures = usage.compute()
    assert figures == {"active_fraction": 3 / 8, "active_codes": 1.5, "perplexity": pytest.approx(1.5)}


def test_usage_accumulates_over_batches():
    usage = CodebookUsage(4)
    usage.update(torch.tensor([[0, 0], [1, 1]]))
    usage.update(torch.tensor([2, 2]))
    figures = usage.compute()
    assert figures == {"active_fraction": 0.75, "active_codes": 3, "perplexity": pytest.approx(3)}
