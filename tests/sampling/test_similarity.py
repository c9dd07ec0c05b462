"""What stands in for the similarity model."""

from __future__ import annotations

import pytest
from helpers import tiny_models
from helpers.plain import IMAGES, PROMPTS, REFERENCES

from mmbdhs import bdhs_sample


def test_a_missing_similarity_model_says_how_to_pass_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise OSError(f"cannot reach {name}")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", unreachable)
    with pytest.raises(OSError, match=r"all-mpnet-base-v2.*Pass similarity="):
        bdhs_sample(*tiny_models.llava(), IMAGES, PROMPTS, REFERENCES)
