"""The errors that the library raises for a model that it cannot serve."""

from __future__ import annotations


class UnsupportedModelError(Exception):
    """The model mixes tokens in a way under which leaving hidden tokens out is not the same as masking them."""


class NonFiniteError(ArithmeticError):
    """The model's hidden states or logits hold NaN or infinity, so no token can be chosen."""
