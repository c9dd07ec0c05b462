"""One self-contained HTML page to look at the pairs of a run."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmbdhs.checks import integer
from mmbdhs.data import message_text, write_whole
from mmbdhs.pairs.charts import Chart, accepted_chart, length_chart, similarity_chart
from mmbdhs.pairs.figures import Figures
from mmbdhs.pairs.shards import Dropped, read_columns, read_footer, require_pyarrow, shard_paths
from mmbdhs.pairs.thumbnails import thumbnails
from mmbdhs.runs import read_record
from mmbdhs.sampling import pieces

_TEXTS = (
    *("prompt", "chosen", "rejected", "key", "id", "row", "similarity", "iterations", "guided"),
    *("image_tokens", "visible_image_tokens", "noise_steps", "noise_range", "pair_faults"),
    *(f"sentences.list.element.{name}" for name in ("reference", "swapped", "kept", "completion")),
)
_IMAGES = ("images", "image_tokens", "visible_image_tokens", "image_grids", "noise_steps")
_CHUNK = 40  # pairs whose thumbnails the page reads at a time
_SETTINGS = {
    "mask_threshold": ("ρ", "th"),
    "similarity_threshold": ("ε", "s"),
    "max_iterations": ("N", "BDHS"),
    "noise_steps": ("noise N", ""),
    "temperature": ("temperature", ""),
    "seed": ("seed", ""),
}


def write_report(
    folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, *, most: int = 5000
) -> Path:
    """Write a page with the images and responses of a run's pairs, and what one asks first about them.

    The page is one HTML file that loads nothing. It has thumbnails of about 5 kB, with the visible image tokens
    outlined and the hidden ones dimmed, and filters, search and keys to go through the pairs. The memory that this
    needs grows with the texts of the pairs on the page, not with their images.

    folder: of a run of `sample_dataset`.
    output: the file. None: report.html in the folder.
    most: how many pairs, and examples without one, the page has at most. Its charts are about all of them.

    Returns the path of the page. Raises ValueError for any other folder, and for a file in it that is no shard. An
    image that is not there or cannot be decoded has a placeholder with the reason.
    """
    integer("most", most, 1)
    require_pyarrow()
    run = Path(folder)
    shards, config = shard_paths(run), read_record(run).get("config", {})
    if "similarity_threshold" not in config:
        raise ValueError(f"folder: needs the folder of a sampling run, got {str(run)!r} without the run.json of one")
    figures, dropped = _footers(shards, most)
    pairs = [_pair(row) for row in islice(_rows(shards, _TEXTS), most)]
    parts = {
        "name": run.resolve().name,
        "settings": _settings(config),
        "figures": figures,
        "iterations": config["max_iterations"],
        "charts": _charts(figures, config) if figures.pairs else [],
        "tune": _tuned(run / "tune.json"),
        "most": most,
        "data": {"chunk": _CHUNK, "pairs": pairs, "failures": [asdict(one) for one in dropped]},
        "thumbnails": _thumbnail_chunks(islice(_rows(shards, _IMAGES), most)),
    }
    page = run / "report.html" if output is None else Path(output)
    write_whole(page, _rendered(parts))
    return page


def _footers(shards: Sequence[Path], most: int) -> tuple[Figures, list[Dropped]]:
    """The figures of all shards, and their first examples without a pair."""
    figures, dropped = Figures(), list[Dropped]()
    for path in shards:
        more_dropped, more_figures = read_footer(path)
        figures += more_figures
        dropped += more_dropped[: most - len(dropped)]
    return figures, dropped


def _rows(shards: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    return chain.from_iterable(read_columns(path, columns) for path in shards)


def _settings(config: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """The settings that the page names, by sign and index."""
    unused = "mask_threshold" if config.get("noise_steps") else "noise_steps"
    return {sign: config[name] for name, sign in _SETTINGS.items() if name in config and name != unused}


def _charts(figures: Figures, config: Mapping[str, Any]) -> list[Chart]:
    last_unguided = config["guided"] and 0 in figures.of("guided")
    return [
        accepted_chart(figures, config["max_iterations"], last_unguided),
        similarity_chart(figures, config["similarity_threshold"]),
        length_chart(figures),
    ]


def _tuned(path: Path) -> dict[str, Any] | None:
    """What `mmbdhs tune` found: its recommendation, and for each setting that was tried the share of records with an
    accepted response after each iteration. None where it has not run."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: needs what mmbdhs tune writes, got another text ({error})") from error
    names = ("mask_threshold", "similarity_threshold", "similarity")
    settings: dict[tuple[Any, ...], list[float]] = {}
    for row in found["rows"]:
        settings.setdefault(tuple(row[name] for name in names), []).append(row["accepted"])
    best = tuple(found["recommended"][name] for name in names)
    return {"reason": found["recommendation"], "best": best, "settings": settings}


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    chosen, rejected = message_text(row["chosen"][0]), message_text(row["rejected"][0])
    sentences = [(one["reference"], one["kept"] + one["completion"]) for one in row["sentences"]]
    noise = f"N = {row['noise_steps']}, {row['noise_range']}" if row["noise_steps"] else None
    return {
        **{name: row[name] for name in ("row", "id", "key", "similarity", "iterations", "guided")},
        "prompt": [[message["role"], message_text(message)] for message in row["prompt"]],
        "chosen": chosen,
        "rejected": [[piece.text, piece.changed] for piece in pieces(rejected, sentences, chosen)],
        "swapped": any(sentence["swapped"] for sentence in row["sentences"]),
        "tokens": row["image_tokens"],
        "visible": len(row["visible_image_tokens"]),
        "noise": noise,
        "faults": row["pair_faults"] or [],
    }


def _thumbnail_chunks(rows: Iterator[Mapping[str, Any]]) -> Iterator[list[list[dict[str, Any]]]]:
    """The thumbnails of the rows, for _CHUNK rows at a time."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        while chunk := list(islice(rows, _CHUNK)):
            yield list(pool.map(thumbnails, chunk))


def _rendered(parts: Mapping[str, Any]) -> Iterator[bytes]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    # The browser runs the page's own script alone, whatever stands in the data.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("report.html.jinja")
    for text in template.generate(parts, style=Markup(style), script=Markup(script), script_hash=digest):
        yield text.encode("utf-8", "xmlcharrefreplace")  # of half a character, which UTF-8 does not have
