"""Where on its image an image token is: for pages that show what a model saw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from mmbdhs.vlm.vlm import VLM

Grids = tuple[tuple[int, int], ...]


def image_grids(vlm: VLM, inputs: Mapping[str, Any], image_positions: Tensor, image_count: int) -> Grids | None:
    """The rows and columns of each image's tokens, which lie on a plain grid in raster order.

    inputs: the processor's output for one prompt.
    image_positions: int64 [k], the places of its image tokens in the sequence.
    image_count: number of its images.

    None for models whose tokens form no plain grid, such as those that cut an image into tiles.
    """
    if (sizes := inputs.get("image_grid_thw")) is not None:
        merged = getattr(vlm.model.config.vision_config, "spatial_merge_size", 1)
        grids = tuple((height // merged, width // merged) for _, height, width in sizes.tolist())
    else:
        grids = tuple((side, side) for side in map(math.isqrt, _run_lengths(image_positions)))
    tokens = sum(rows * columns for rows, columns in grids)
    return grids if (len(grids), tokens) == (image_count, len(image_positions)) else None


def _run_lengths(positions: Tensor) -> list[int]:
    """The lengths of the runs of positions that follow one another."""
    breaks = [0, *((positions.diff() != 1).nonzero().flatten() + 1).tolist(), len(positions)]
    return [end - begin for begin, end in pairwise(breaks) if end > begin]
