"""Figure 10 of the paper: how many rejected captions differ from their reference after so many iterations."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

from alignment_methods import PAPER
from alignment_world import PAIR_SEED, base
from plot import Line, line_plot
from table import RESULTS, Options, Table

from mmbdhs import bdhs_sample, miniature
from mmbdhs.miniature.demo import minilm
from mmbdhs.miniature.language import BIASED, CAPTION_PROMPT, caption
from mmbdhs.miniature.world import make_scene, render

IMAGES = 100


def plot_iterations(pool: ProcessPoolExecutor, options: Options) -> None:
    """Shares by mask threshold and by noise, as rows and as a plot."""
    settings = {f"rho_th {share:g}": {"mask_threshold": share} for share in (0.99, 0.0, 0.9, 0.98, 1.0)}
    settings |= {f"noise {steps}": {"noise_steps": steps} for steps in (100, 300, 500)}
    shares = dict(zip(settings, pool.map(_shares, settings.values()), strict=True))
    with Table("alignment_iterations", {"setting": "<12s"} | dict.fromkeys("1234", ">.2f"), options) as table:
        for name, found in shares.items():
            table.add(setting=name, **{str(number): share for number, share in enumerate(found, 1)})
    lines = [Line(name, list(enumerate(found, 1))) for name, found in shares.items()]
    title = "Rejected captions that differ in meaning from their reference, by iteration"
    line_plot(RESULTS / "alignment-iterations.png", title, lines, shares=True)


def _shares(settings: dict[str, Any]) -> list[float]:
    """The shares of samples accepted by iterations 1 … 4, judged by MiniLM; the fifth is unguided."""
    scenes = [make_scene("uniform", index, PAIR_SEED) for index in range(IMAGES)]
    columns = [render(scene) for scene in scenes], [CAPTION_PROMPT] * IMAGES, [caption(one, BIASED) for one in scenes]
    samples = bdhs_sample(*miniature.load(base(0)), *columns, replace(PAPER, **settings), minilm())
    return [sum(sample.iterations <= most for sample in samples) / IMAGES for most in range(1, PAPER.max_iterations)]
