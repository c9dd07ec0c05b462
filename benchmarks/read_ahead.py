"""Reading ahead: the miniature with an image processor that only waits, so that no core decides what can overlap."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

from measure import median_of
from table import Options

from mmbdhs import BDHSConfig, BDHSSample, bdhs_sample, miniature
from mmbdhs.miniature.language import CAPTION_PROMPT, caption
from mmbdhs.miniature.world import make_scene, render

WAIT, READERS = 0.03, 4  # an image processor takes 26 to 42 ms of one core for a pair
ITERATIONS = 3  # of every pair: so many give the model about as long a time, on one undisturbed core


class WaitingProcessor:
    """An image processor that waits, and returns what it made of the first image.

    wait: seconds.
    """

    def __init__(self, inner: Any) -> None:
        self.wait, self._inner, self._made = 0.0, inner, None

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        time.sleep(self.wait)
        self._made = self._made or self._inner(*arguments, **settings)
        return self._made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def measure(options: Options) -> dict[str, Any]:
    """A row: milliseconds for a pair with readers, without them, and without the wait, as the model alone needs."""
    pairs, runs = (8, 1) if options.quick else (48, 7)
    model, original = miniature.load()
    model.to(options.device)
    processor, waiting = copy.copy(original), WaitingProcessor(original.image_processor)
    processor.image_processor = waiting
    scenes = [make_scene("balanced", number) for number in range(pairs)]
    columns = [[render(scene)] for scene in scenes], [CAPTION_PROMPT] * pairs, [caption(scene) for scene in scenes]

    def sample(wait: float, num_workers: int) -> list[BDHSSample]:
        waiting.wait = wait
        config = BDHSConfig(max_iterations=ITERATIONS, num_workers=num_workers)
        return bdhs_sample(model, processor, *columns, config, lambda a, b: [1.0] * len(a))

    alone_samples = sample(0, 0)  # first, so that one thread makes what the others return
    assert sample(WAIT, READERS) == alone_samples, "samples depend on who reads"
    sides = partial(sample, WAIT, READERS), partial(sample, WAIT, 0), partial(sample, 0, 0)
    ours, in_between, alone = (seconds / pairs for seconds in median_of(runs, *sides))
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return {
        "shape": f"miniature, {size:.1f}M parameters, {model.dtype}",
        **{"pairs": pairs, "readers": READERS, "wait_ms": 1e3 * WAIT},
        **{"ours": 1e3 * ours, "in_between": 1e3 * in_between, "alone": 1e3 * alone, "of_alone": alone / ours},
    }
