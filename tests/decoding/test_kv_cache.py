"""Capacities, growth, compaction."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmbdhs.decoding.kv_cache import BranchKVCache, Extents, bucket

HEADS, SIZE, LAYERS = 2, 4, 3


def prompt(number: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys that tell prompt, layer and place; values are their negatives."""
    places = torch.arange(length, dtype=torch.float32)[None, :, None].expand(HEADS, -1, SIZE)
    return [(keys, -keys) for keys in (1000.0 * number + 100 * layer + places for layer in range(LAYERS))]


def indices(number: int, length: int) -> torch.Tensor:
    return torch.arange(length) * 2 + number


def check(stores: BranchKVCache, contents: list[tuple[int, int]]) -> None:
    """The stores hold the prompts `contents` (number, length), in this order."""
    assert torch.equal(stores.prefix_offsets[: len(stores.offsets)], torch.tensor(stores.offsets, dtype=torch.int32))
    assert stores.prefix_offsets.max() == stores.offsets[-1] <= stores.extents.prefix
    for place, (number, length) in enumerate(contents):
        span = slice(stores.offsets[place], stores.offsets[place + 1])
        assert torch.equal(stores.prefix_index[span], indices(number, length))
        for layer, (keys, values) in zip(stores.layers, prompt(number, length), strict=True):
            assert torch.equal(layer.key_store.prefix[:, span], keys)
            assert torch.equal(layer.value_store.prefix[:, span], values)


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=12))
def test_prompts_survive_growth_and_compaction(plan: list[tuple[int, bool]]) -> None:
    stores, held = BranchKVCache(torch.device("cpu")), []
    for number, (length, compact) in enumerate(plan):
        assert stores.add_prompt(indices(number, length), prompt(number, length)) == len(held)
        held.append((number, length))
        if compact:
            stores.keep_prompts(list(range(len(held)))[::2])
            held = held[::2]
        stores.reserve(Extents(number // 2, 3 * number, stores.extents.prefix))
        check(stores, held)


def test_suffixes_survive_growth_and_moves() -> None:
    stores = BranchKVCache(torch.device("cpu"))
    stores.add_prompt(indices(1, 5), prompt(1, 5))
    stores.reserve(Extents(3, 2, 5))
    new = torch.arange(3.0)[:, None, None, None].expand(-1, HEADS, 1, SIZE) + 1
    layer = stores.layers[1]
    layer.write(torch.arange(3), torch.tensor([0, 1, 1]), new, -new)
    stores.reserve(Extents(5, 40, 5))
    stores.add_prompt(indices(2, 50), prompt(2, 50))
    stores.move(torch.tensor([2]), torch.tensor([0]))
    written = layer.key_store.suffix[:, 0, :2, 0]
    assert written[:3].tolist() == [[0.0, 3.0], [0.0, 2.0], [0.0, 3.0]] and not written[3:].any()
    assert torch.equal(layer.value_store.suffix, -layer.key_store.suffix)
    assert layer.key_store.suffix.sum() == (3 + 2 + 3) * HEADS * SIZE
    check(stores, [(1, 5), (2, 50)])


@given(st.integers(1, 10**6))
def test_buckets_are_half_apart_at_most(count: int) -> None:
    assert count <= bucket(count) <= max(count, 1.5 * count)
    assert bucket(bucket(count)) == bucket(count)
    odd = bucket(count)
    while odd % 2 == 0:
        odd //= 2
    assert odd in (1, 3)


def test_nothing_needs_no_room() -> None:
    assert [bucket(count) for count in range(10)] == [0, 1, 2, 3, 4, 6, 6, 8, 8, 12]
