"""Pictures of runs, drawn without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmbdhs.data import whole_file

_COLORS = ("#2471a3", "#c0392b", "#1e8449", "#b9770e", "#6c3483", "#5d6d7e")
_GRID = "#e5e8e8"


def require_matplotlib(what: str) -> None:
    """Raise ImportError that begins with `what` and names the extra if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{what} needs the extra 'tune': pip install 'mmbdhs[tune]'") from error


@contextmanager
def drawn_figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure of this size in inches, which is saved as a PNG at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def plot_color(number: int) -> str:
    """The color of the curve or row with this number."""
    return _COLORS[number % len(_COLORS)]


def finish_panel(axes: Any, title: str, grid: str) -> None:
    """Give a panel its title and its look. grid: the axis whose values have lines, "x" or "y"."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis=grid, color=_GRID)
    axes.spines[["top", "right"]].set_visible(False)
