"""The pool gives back what it no longer needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import picture

from mmbdhs.decoding.branch_pool import Branch, BranchPool
from mmbdhs.decoding.token_sampling import TokenChooser
from mmbdhs.errors import NonFiniteError
from mmbdhs.sampling.examples import ExampleReader
from mmbdhs.vlm import VLM
from mmbdhs.vlm.decoder_inputs import DecoderInputs
from mmbdhs.vlm.text_decoder import find_text_decoder


@pytest.fixture
def encoded() -> tuple[Any, DecoderInputs]:
    model, processor = tiny_models.llava()
    reader = ExampleReader(VLM.of(model), processor)
    example = reader.read(0, picture(0), "Describe it.", "The image shows a red car.", None)
    return model, reader.encode([reader.process(example)])[0].inputs


def greedy_pool(model: Any, max_branches: int) -> BranchPool:
    """Branches end at their limits."""
    chooser = TokenChooser([], 0.0, 0, 1.0)
    return BranchPool(VLM.of(model), max_branches, chooser, lambda branches: [len(b.ids) >= b.limit for b in branches])


@torch.no_grad()
def test_pool_does_not_grow_with_the_number_of_prompts(encoded: tuple[Any, DecoderInputs]) -> None:
    model, prompt = encoded
    pool = greedy_pool(model, 3)
    results, sizes = [], []
    for _ in range(30):
        pool.add([(prompt, [Branch(len(prompt), 5), Branch(len(prompt) - 3, 5, forced_ids=(7, 8))])])
        while len(pool):
            results += [(branch.prefix_length, *branch.ids) for branch in pool.step()]
        sizes.append(pool._engine.cache.extents.prefix)
    assert len(set(results)) == 2 and len(results) == 60
    assert max(sizes) < 4 * len(prompt)


@torch.no_grad()
def test_at_most_max_branches_decode_at_a_time(encoded: tuple[Any, DecoderInputs]) -> None:
    model, prompt = encoded
    pool = greedy_pool(model, 2)
    pool.add([(prompt, [Branch(len(prompt), limit) for limit in (1, 2, 3, 2, 4)])])
    assert pool.room == -2  # the first had but one token to choose
    widths = []
    handle = find_text_decoder(model).register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    ended = []
    while len(pool):
        ended += pool.step()
    handle.remove()
    assert sorted(len(branch.ids) for branch in ended) == [1, 2, 2, 3, 4]
    assert widths == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("path", ["native", "sdpa"])
@torch.no_grad()
def test_nan_in_a_forced_token_ends_its_branch_alone(
    path: str, encoded: tuple[Any, DecoderInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = encoded
    monkeypatch.setenv("MMBDHS_ATTENTION", path)

    def decode() -> list[Branch]:
        pool = greedy_pool(model, 2)
        branches = [Branch(len(prompt), 4, forced_ids=ids) for ids in ((7, 8, 9, 10), (11, 12))]
        pool.add([(prompt, branches)])
        while len(pool):
            pool.step()
        return branches

    clean = decode()
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: output.masked_fill((args[0] == 8)[..., None], torch.nan)
    )
    spoiled = decode()
    handle.remove()
    assert isinstance(spoiled[0].error, NonFiniteError) and not spoiled[0].ids
    assert spoiled[1].ids == clean[1].ids and not spoiled[1].error
