"""How alike two responses are: cosine similarity of their sentence embeddings (section 3.4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

Similarity: TypeAlias = Callable[[list[str], list[str]], Sequence[float]]

DEFAULT_MODEL = "sentence-transformers/all-mpnet-base-v2"


class SentenceEncoder(Protocol):
    """A SentenceTransformer, or what encodes sentences as one does."""

    def encode(self, sentences: Any, /, **settings: Any) -> Any: ...


SimilarityModel: TypeAlias = SentenceEncoder | Similarity | str | None


def resolve_similarity(similarity: SimilarityModel = None) -> Similarity:
    """A function from responses and references to scores.

    similarity: a SentenceTransformer, its name or path, a callable (list[str], list[str]) -> scores, or None for the
        paper's all-mpnet-base-v2.

    Raises OSError, which says how to pass another one, if the model cannot be loaded, and TypeError for anything else.
    """
    if similarity is None or isinstance(similarity, str):
        return _cosine(_load(similarity or DEFAULT_MODEL))
    if hasattr(similarity, "encode"):
        return _cosine(similarity)
    if callable(similarity):
        return similarity
    raise TypeError(
        "similarity: needs a SentenceTransformer, its name, or a callable (list[str], list[str]) -> scores, "
        f"got {type(similarity).__name__}"
    )


def scores(similarity: Similarity, responses: list[str], references: list[str]) -> list[float]:
    """How alike each response and its reference are. Raises TypeError and ValueError for a similarity that does not
    return one finite number for each pair."""
    found = similarity(responses, references)
    try:
        numbers = [float(score) for score in found]
    except (TypeError, ValueError) as error:
        raise TypeError(f"similarity: needs a list of numbers, got {found!r}") from error
    if len(numbers) != len(responses) or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"similarity: needs {len(responses)} numbers for {len(responses)} pairs of texts, got {numbers}"
        )
    return numbers


def _load(name: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name)
    except Exception as error:
        raise OSError(
            f"similarity: the sentence embedding model {name!r} could not be loaded ({error}). Pass similarity= a "
            "SentenceTransformer, the path of one on disk, or any callable (list[str], list[str]) -> scores"
        ) from error


def _cosine(encoder: SentenceEncoder) -> Similarity:
    def cosine(first: list[str], second: list[str]) -> list[float]:
        vectors = encoder.encode([*first, *second], normalize_embeddings=True, show_progress_bar=False)
        return (vectors[: len(first)] * vectors[len(first) :]).sum(axis=1).tolist()

    return cosine
