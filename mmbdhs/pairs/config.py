"""Settings of a run over a data set."""

from __future__ import annotations

from dataclasses import dataclass

from mmbdhs.checks import integer, number_in, one_of


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """How a data set becomes pairs on disk.

    turns: which turns of a conversation are sampled: "first", "last" or "every"; earlier turns stay in the prompt.
    limit: how many examples are sampled, from the first on; None for all.
    shard_size: examples in a shard. A shard is sampled on its own, so a run that was stopped repeats at most one.
    embed_images: whether shards hold the encoded images; False for their paths alone.
    drop_identical: leave out pairs whose rejected response says what the chosen one says.
    drop_garbled: leave out pairs with a response that is no language.
    max_length_ratio: leave out pairs of which one response has more than this many times the words of the other; None
        for no limit.
    """

    turns: str = "last"
    limit: int | None = None
    shard_size: int = 500
    embed_images: bool = True
    drop_identical: bool = True
    drop_garbled: bool = False
    max_length_ratio: float | None = None

    def __post_init__(self) -> None:
        one_of("turns", self.turns, ("first", "last", "every"))
        if self.limit is not None:
            integer("limit", self.limit, 1)
        integer("shard_size", self.shard_size, 1, 10**6)
        for name in ("embed_images", "drop_identical", "drop_garbled"):
            one_of(name, getattr(self, name), (True, False))
        if self.max_length_ratio is not None:
            number_in("max_length_ratio", self.max_length_ratio, 1, 1e6)
