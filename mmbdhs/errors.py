"""Errors that say whether the model, the example or the numbers are at fault."""

from __future__ import annotations


class UnsupportedModelError(Exception):
    """The model mixes tokens in a way that makes leaving hidden tokens out different from masking them."""


class NonFiniteError(ArithmeticError):
    """The model's hidden states or logits contain NaN or infinity, so no token can be chosen."""


class ExampleError(ValueError):
    """An example that cannot be used: its images, prompt or reference, or what the processor makes of them.

    Only this error counts as a bad example, which `on_error="skip"` may skip; every other error ends the run.

    index: the example's number in the lists or the stream, where that is known.
    reason: what is wrong with it.
    """

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason if index is None else f"example {index}: {reason}")
        self.reason, self.index = reason, index

    def __reduce__(self) -> tuple[type[ExampleError], tuple[str, int | None]]:
        """Copies and pickles keep the index."""
        return type(self), (self.reason, self.index)


class TextOnlyError(ExampleError):
    """An example without an image, so there is nothing to hide."""
