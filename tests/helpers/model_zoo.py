"""More tiny random vision-language models than `tiny_models` has: one builder for each family, by its name."""

from __future__ import annotations

from helpers import zoo_decoders, zoo_images, zoo_layers, zoo_pixels, zoo_windows

ZOO = {
    builder.__name__: builder
    for builder in (
        *zoo_windows.BUILDERS,
        *zoo_images.BUILDERS,
        *zoo_decoders.BUILDERS,
        *zoo_layers.BUILDERS,
        *zoo_pixels.BUILDERS,
    )
}
