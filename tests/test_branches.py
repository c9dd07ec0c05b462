"""The pool gives back what it no longer needs."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from plain import picture

from mmbdhs.branches import Branch, BranchPool
from mmbdhs.decoder_inputs import DecoderInputs
from mmbdhs.examples import ExampleReader
from mmbdhs.tokens import TokenChooser


@pytest.fixture
def encoded() -> tuple[Any, DecoderInputs]:
    model, processor = tiny_models.llava()
    reader = ExampleReader(model, processor)
    example = reader.read(0, picture(0), "Describe it.", "The image shows a red car.", None)
    return model, reader.encode(example, example.images).inputs


@torch.no_grad()
def test_pool_does_not_grow_with_the_number_of_prompts(encoded: tuple[Any, DecoderInputs]) -> None:
    model, prompt = encoded
    pool = BranchPool(model, 3, TokenChooser([], 0.0, 0, 1.0), lambda branches: [len(b.ids) >= 5 for b in branches])
    results, sizes = [], []
    for _ in range(30):
        pool.add([(prompt, [Branch(len(prompt)), Branch(len(prompt) - 3, forced_ids=(7, 8))])])
        while len(pool):
            results += [(branch.prefix_length, *branch.ids) for branch in pool.step()]
        sizes.append(pool._cache.layers[0].keys.shape[2])
    assert len(set(results)) == 2 and len(results) == 60
    assert max(sizes) < 4 * len(prompt)


@torch.no_grad()
def test_at_most_max_branches_decode_at_a_time(encoded: tuple[Any, DecoderInputs]) -> None:
    model, prompt = encoded
    widths = []

    def stop(branches: list[Branch]) -> list[bool]:
        widths.append(len(branches))
        return [len(branch.ids) >= 2 for branch in branches]

    pool = BranchPool(model, 2, TokenChooser([], 0.0, 0, 1.0), stop)
    pool.add([(prompt, [Branch(len(prompt)) for _ in range(5)])])
    assert pool.room == -3
    ended = []
    while len(pool):
        ended += pool.step()
    assert len(ended) == 5 and max(widths) == 2
