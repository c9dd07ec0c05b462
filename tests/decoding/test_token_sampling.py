"""The chooser follows the distribution, also at its ends."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.plain import chi_square

from mmbdhs.decoding.token_sampling import TokenChooser


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 7, 1.0), (1.5, 0, 0.8)]
)
def test_chooser_inverts_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(0)) * 2
    draws = np.random.default_rng(0).random(200_000).tolist()
    chooser = TokenChooser([5, 17], temperature, top_k, top_p)
    tokens = chooser(logits.expand(len(draws), -1), torch.tensor(draws))
    expected = (logits[0] / temperature).index_fill(0, torch.tensor([5, 17]), -torch.inf).softmax(0)
    if top_k:
        expected[expected < expected.sort(descending=True).values[top_k - 1]] = 0
    if top_p < 1:
        order = expected.argsort(descending=True)
        before = expected[order].cumsum(0) - expected[order]
        expected[order[before >= top_p]] = 0
    chi_square(Counter(tokens.tolist()), expected.log())


def test_chooser_at_the_ends_of_the_interval() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    chooser = TokenChooser([], 1.0, 0, 1.0)
    assert chooser(logits, torch.tensor([0.0])).tolist() == [1]
    assert chooser(logits, torch.tensor([1 - 2**-32])).tolist() == [2]
    assert chooser(torch.full((1, 4), torch.nan), torch.tensor([0.5])).tolist() == [-1]
    assert TokenChooser([], 0.0, 0, 1.0)(torch.tensor([[0.0, torch.nan]]), None).tolist() == [-1]
