"""Flat tensors from lists, and back."""

from itertools import accumulate, pairwise
from types import ModuleType

import torch


def flat(texts: list[str | bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts as uint8 [T] and offsets int64 [R + 1]."""
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    offsets = torch.tensor(list(accumulate(map(len, raw), initial=0)))
    return torch.tensor(list(b"".join(raw)), dtype=torch.uint8), offsets


def rows(values: torch.Tensor, offsets: torch.Tensor) -> list[torch.Tensor]:
    """The rows of a ragged tensor."""
    return [values[begin:end] for begin, end in pairwise(offsets.tolist())]


def texts_of(values: torch.Tensor, offsets: torch.Tensor) -> list[bytes]:
    """The rows of ragged uint8 as bytes."""
    return [bytes(row.tolist()) for row in rows(values, offsets)]


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def random_keys(count: int, seed: int = 0) -> torch.Tensor:
    """Keys that use all 64 bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)


def arange32(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


def spans_of(implementation: ModuleType, text: str | bytes) -> list[bytes]:
    """The spans that a backend splits a text into."""
    raw = text.encode() if isinstance(text, str) else text
    table, offsets = implementation.split_sentences(*flat([raw]))
    assert offsets.tolist() == [0, len(table)]
    bounds = [0, *table[:, 1].tolist()]
    return [raw[begin:end] for begin, end in pairwise(bounds)]
