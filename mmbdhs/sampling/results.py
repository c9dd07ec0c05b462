"""What sampling returns."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from html import escape
from typing import TypeVar

from mmbdhs.errors import ExampleError
from mmbdhs.sampling.changes import Piece, pieces
from mmbdhs.sampling.splicing import SentenceSplice

_LOG = logging.getLogger("mmbdhs")
# Half transparent, so that the notebook's own colours stay readable, light or dark.
_MARK = "background:rgba(224,60,60,.22);color:inherit;border-bottom:2px solid rgba(224,60,60,.85)"


@dataclass(frozen=True)
class BDHSSample:
    """A rejected response, with all that is needed to replay it against a plain masked forward.

    key: the example's key.
    rejected: the response.
    similarity: to the reference.
    iterations: how many iterations were needed.
    guided: False if the unguided response was taken.
    visible_image_tokens: indices of the example's image tokens that the taken iteration could see.
    sentences: how each sentence was spliced; empty for an unguided response.
    response_ids: the tokens of an unguided response; None for a guided one.
    noise_steps, noise_range: as in the config, if the image was noisy; 0 and None if image tokens were hidden.
    image_tokens: number of the example's image tokens.
    image_grids: rows and columns of each image's tokens, in raster order; None where they form no plain grid.
    """

    key: int | str
    rejected: str
    similarity: float
    iterations: int
    guided: bool
    visible_image_tokens: tuple[int, ...]
    sentences: tuple[SentenceSplice, ...] = ()
    response_ids: tuple[int, ...] | None = None
    noise_steps: int = 0
    noise_range: str | None = None
    image_tokens: int = 0
    image_grids: tuple[tuple[int, int], ...] | None = None

    def pieces(self, chosen: str | None = None) -> list[Piece]:
        """The rejected response in stretches that tile it, changed and unchanged words apart.

        chosen: what an unguided response is compared with. None: all of it is changed.
        """
        return pieces(self.rejected, [(one.reference, one.kept + one.completion) for one in self.sentences], chosen)

    def _repr_html_(self) -> str:
        """The response with its changed words marked, and its figures, for notebooks."""
        marked = "".join(
            f'<mark style="{_MARK}">{escape(piece.text)}</mark>' if piece.changed else escape(piece.text)
            for piece in self.pieces()
        )
        visible = f"{len(self.visible_image_tokens):,} of {self.image_tokens:,} image tokens visible"
        image = f"noise N = {self.noise_steps}" if self.noise_steps else visible
        guided = "guided" if self.guided else "unguided"
        figures = f"similarity {self.similarity:.3f} · iteration {self.iterations} · {guided} · {image}"
        return (
            f'<div style="max-width:50em;white-space:pre-wrap;overflow-wrap:anywhere">{marked}</div>'
            f'<div style="margin-top:.4em;font-size:.85em;opacity:.75">{figures}</div>'
        )


@dataclass(frozen=True)
class SampledResponse:
    """A whole response of the model to an image prompt.

    key: the key of its random draws.
    text: the response.
    response_ids: its tokens, without the end of sequence.
    end_id: the token that ended it; None where it was cut at the most tokens that were allowed.
    """

    key: int | str
    text: str
    response_ids: tuple[int, ...]
    end_id: int | None = None

    @property
    def scored_ids(self) -> list[int]:
        """All tokens that the model chose, with the end of sequence, as `response_logps` takes them."""
        return [*self.response_ids, *([] if self.end_id is None else [self.end_id])]


@dataclass(frozen=True)
class POVIDSample:
    """A teacher-forced rejected response.

    key: the example's key.
    rejected: the response.
    response_ids: the arg-max after each number of the reference's tokens.
    """

    key: int | str
    rejected: str
    response_ids: tuple[int, ...]


@dataclass(frozen=True)
class BDHSFailure:
    """Takes the place of an example that could not be sampled (`on_error="skip"`).

    key: the example's key, where the user gave one.
    index: its number in the lists or the stream.
    reason: what was wrong.
    no_response: whether the example is fine, but the model gave no response to it that can be trained on.
    """

    key: int | str | None
    index: int
    reason: str
    no_response: bool = False


T = TypeVar("T")


def checked_result(result: T | BDHSFailure, on_error: str) -> T | BDHSFailure:
    """The result. A failure is raised as an ExampleError, or logged with on_error="skip"."""
    if isinstance(result, BDHSFailure):
        if on_error == "raise":
            raise ExampleError(result.reason, result.index)
        _LOG.warning("skipped example %d: %s", result.index, result.reason)
    return result
