"""How alike two responses are: cosine similarity of their sentence embeddings (section 3.4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Similarity = Callable[[list[str], list[str]], Sequence[float]]

DEFAULT_MODEL = "sentence-transformers/all-mpnet-base-v2"


def resolve_similarity(similarity: Any = None) -> Similarity:
    """Turn a SentenceTransformer, its name or path, a callable (list[str], list[str]) -> scores, or None for the
    paper's all-mpnet-base-v2 into the callable. Raises OSError, saying how to pass another, if it cannot be loaded."""
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


def _load(name: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name)
    except Exception as error:
        raise OSError(
            f"similarity: the sentence embedding model {name!r} could not be loaded ({error}). Pass similarity= a "
            "SentenceTransformer, the path of one on disk, or any callable (list[str], list[str]) -> scores"
        ) from error


def _cosine(encoder: Any) -> Similarity:
    def cosine(first: list[str], second: list[str]) -> list[float]:
        vectors = encoder.encode([*first, *second], normalize_embeddings=True, show_progress_bar=False)
        return (vectors[: len(first)] * vectors[len(first) :]).sum(axis=1).tolist()

    return cosine
