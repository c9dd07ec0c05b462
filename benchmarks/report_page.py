"""The page of `mmbdhs report` with 5,000 pairs: how long it takes to write, and to open in headless Chromium.

Each pair has a photo of 640 x 480 pixels, 2,928 image tokens of which 1% stay visible, and five sentences. "first card"
is the time from the start of the navigation until the first pair is drawn, "loaded" until the whole page is read.
"""

from __future__ import annotations

import io
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from browser import browser, chromium
from PIL import Image
from table import Options, Table

from mmbdhs.data import message_text
from mmbdhs.pairs import Figures, write_report
from mmbdhs.pairs.shards import Dropped, shard_path, shard_schema, write_shard
from mmbdhs.runs import write_record
from mmbdhs.sampling import BDHSConfig, BDHSSample, SentenceSplice

COLUMNS = {"pairs": ">5", "seconds": ">7.1f", "MiB": ">6.1f", "first_card": ">10.2f", "loaded": ">6.2f", "runs": ">4"}
GRID, IMAGE_TOKENS = (48, 61), 2928
SENTENCES = (
    "A red bus stands at the crossing, and two people walk past it.",
    "Behind them there is a shop with a green door and a large window.",
    "A woman in a dark coat holds the leash of a small brown dog.",
    "The sky above the tall buildings is clear and blue.",
    "On the left side of the street a bicycle leans against a lamp post.",
)
OTHER = {"red": "yellow", "two": "several", "green": "wooden", "dog": "cat", "clear": "cloudy", "bicycle": "scooter"}
CONFIG = BDHSConfig()
_SHARD = 500


def main(options: Options) -> None:
    print("\nseconds: to write the page; first_card, loaded: to open it, median")
    pairs, runs = (200, 1) if options.quick else (5000, 7)
    program = chromium()
    with Table("report_page", COLUMNS, options) as table, tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), islice(synthetic_rows(), pairs))
        begin = time.perf_counter()
        page = write_report(folder)
        row = {"pairs": pairs, "seconds": time.perf_counter() - begin, "MiB": page.stat().st_size / 2**20}
        table.add(**row, **(opened(program, page, runs) if program else {}))


def opened(program: str, page: Path, runs: int) -> dict[str, float]:
    """Seconds until the page shows its first pair, and until it is complete: of a new browser each time."""
    first, loaded = [], []
    for _ in range(runs):
        with browser(program) as tab:
            tab.open(page)
            assert tab.run("document.querySelectorAll('.card').length") == 20, "the page shows no pairs"
            first.append(tab.run("performance.getEntriesByName('first-card')[0].startTime") / 1e3)
            loaded.append(tab.run("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd") / 1e3)
    return {"first_card": statistics.median(first), "loaded": statistics.median(loaded), "runs": runs}


def synthetic_rows() -> Iterator[dict[str, Any]]:
    """Rows of shards without end, as sampling with a large model would write them."""
    rng = random.Random(0)
    photos = [photo(seed) for seed in range(40)]
    for number in count():
        sentences = [spliced(rng, text) for text in rng.sample(SENTENCES, 5)]
        yield row(
            number,
            images=[{"bytes": photos[number % len(photos)], "path": None}],
            chosen="".join(one["reference"] for one in sentences).strip(),
            rejected="".join(f"{one['kept']}{one['completion']} " for one in sentences).strip(),
            sentences=sentences,
            similarity=1 - 0.03 - rng.random() ** 2 * 0.4,
            iterations=min(1 + int(rng.expovariate(1.4)), 4),
            image_tokens=IMAGE_TOKENS,
            visible_image_tokens=sorted(rng.sample(range(IMAGE_TOKENS), 29)),
            image_grids=[list(GRID)],
        )


def spliced(rng: random.Random, text: str) -> dict[str, Any]:
    """A sentence that was cut at a word and went on with other words."""
    words = text.split()
    cut = rng.randrange(1, len(words))
    ending = " ".join(OTHER.get(word, word) for word in words[cut:])
    return {
        **{"reference": f"{text} ", "swapped": False, "cut": cut, "kept": " ".join(words[:cut])},
        **{"completion": f" {ending}", "prefix_ids": [], "completion_ids": []},
    }


def photo(seed: int) -> bytes:
    """A JPEG with the detail of a photo: noise at several scales."""
    rng, size = np.random.default_rng(seed), (640, 480)
    total = np.zeros((size[1], size[0], 3), np.float32)
    for scale in (4, 12, 40, 160):
        noise = rng.integers(0, 256, (scale * 3 // 4, scale, 3), np.uint8)
        total += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), np.float32) / scale**0.5
    file = io.BytesIO()
    Image.fromarray((255 * total / total.max()).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def row(number: int, **columns: Any) -> dict[str, Any]:
    """A row of a shard; texts become messages, and columns that are not given have usual values."""
    values = {
        **{"images": [], "prompt": "Describe the image.", "chosen": "", "rejected": ""},
        **{"key": str(number), "address": number, "row": number, "id": None, "seed": 0, "similarity": 0.9},
        **{"iterations": 1, "guided": True, "image_tokens": 0, "visible_image_tokens": [], "image_grids": None},
        **{"sentences": [], "response_ids": None, "noise_steps": None, "noise_range": None, "pair_faults": None},
    } | columns
    placeholders = [{"type": "image", "text": None} for _ in values["images"]]
    for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
        if isinstance(text := values[name], str):
            content = [*(placeholders if role == "user" else []), {"type": "text", "text": text}]
            values[name] = [{"role": role, "content": content}]
    return values


def write_run(folder: Path, rows: Iterable[dict[str, Any]], dropped: Sequence[Dropped] = ()) -> None:
    """The folder of a run with these rows.

    dropped: its examples without a pair, which the first shard names.
    """
    write_record(folder, {"config": asdict(CONFIG)})
    waiting, schema = iter(rows), shard_schema([])
    for number in count():
        if not (shard := list(islice(waiting, _SHARD))):
            return
        figures = Figures()
        for one in shard:
            figures.add_response(as_sample(one), CONFIG.similarity_threshold)
            figures.add_pair(message_text(one["chosen"][0]), as_sample(one))
        for one in dropped:
            figures.add_dropped(one.kind)
        write_shard(shard_path(folder, number), schema, shard, dropped, figures)
        dropped = ()


def as_sample(row: Mapping[str, Any]) -> BDHSSample:
    """The sample of which a row tells."""
    names = ("key", "similarity", "iterations", "guided", "visible_image_tokens")
    sentences = tuple(SentenceSplice(**one) for one in row["sentences"])
    return BDHSSample(
        rejected=message_text(row["rejected"][0]), sentences=sentences, **{name: row[name] for name in names}
    )
