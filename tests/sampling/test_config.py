"""Settings outside of their ranges are named."""

from __future__ import annotations

import pytest

from mmbdhs import BDHSConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_threshold": 1.5}, r"mask_threshold: needs a number in \[0, 1\], got 1.5"),
        ({"similarity_threshold": -0.1}, "similarity_threshold"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"noise_steps": 1001}, "noise_steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"max_branches": 0}, "max_branches"),
        ({"num_workers": -1}, r"num_workers: needs an integer in \[0, 1024\], got -1"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BDHSConfig(**settings)
