"""Where image tokens are: the token whose features change most is where the image was changed."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_models
from helpers.model_zoo import ZOO
from helpers.plain import picture, prompt_inputs
from PIL import Image, ImageDraw

from mmbdhs import miniature
from mmbdhs.vlm import VLM, capture_decoder_inputs, image_grids

SQUARES = [(0, 0), (1, 3), (4, 1)]  # rows and columns


def features(model: object, processor: object, images: list[Image.Image]) -> tuple[torch.Tensor, object]:
    """What the decoder receives for each image token, and the grids."""
    inputs = prompt_inputs(processor, images, "Describe it.")
    seen = capture_decoder_inputs(VLM.of(model), inputs, inputs["input_ids"].shape[1])
    grids = image_grids(VLM.of(model), inputs, seen.image_positions, len(images))
    return seen.embeds[seen.image_positions], grids


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_a_change_of_the_image_is_where_the_grid_says(family: str) -> None:
    model, processor = getattr(tiny_models, family)()
    images = [Image.new("RGB", (112, 112), "grey"), Image.new("RGB", (196, 140), "grey")]
    if family == "llava":
        images[1] = images[0]  # it cuts what is not square
    before, grids = features(model, processor, images)
    assert grids is not None and sum(rows * columns for rows, columns in grids) == len(before)
    offset = 0
    for number, (rows, columns) in enumerate(grids):
        width, height = images[number].size
        if family.startswith("qwen"):
            assert columns / rows == pytest.approx(width / height, rel=0.2)
        for row, column in ((row, column) for row, column in SQUARES if row < rows and column < columns):
            changed = images[number].copy()
            left, top = column * width / columns, row * height / rows
            box = (left + 1, top + 1, left + width / columns - 2, top + height / rows - 2)
            ImageDraw.Draw(changed).rectangle(box, fill="red")
            after, _ = features(
                model, processor, [changed if one == number else image for one, image in enumerate(images)]
            )
            assert int((after - before).norm(dim=1).argmax()) == offset + row * columns + column
        offset += rows * columns


@torch.no_grad()
def test_the_miniature_has_a_square_grid() -> None:
    assert features(*miniature.load(), [picture(0)])[1] == ((12, 12),)


@pytest.mark.parametrize("family", ["llava_next", "idefics3"])
@torch.no_grad()
def test_tiles_form_no_plain_grid(family: str) -> None:
    model, processor = tiny_models.llava_next() if family == "llava_next" else ZOO[family]()
    _, grids = features(model, processor, [picture(0, 90, 33)])
    assert grids is None
