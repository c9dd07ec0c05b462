"""What a pair of a large data set costs the CPU, the disk and the slots of decoding (docs/scale.md counts with it).

Milliseconds are CPU time of one thread, so that other programs hardly disturb them. Images are JPEGs of 640 x 480
pixels with the detail of photos. Pairs have five sentences of 12 words, as `report_page` makes them. Those that are
written also have token ids, 1% of 2,928 visible image tokens, and an image of 100 kB.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llava
import torch
from report_page import photo, synthetic_rows
from table import Options, Table
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmbdhs import BDHSConfig, bdhs_sample, miniature
from mmbdhs.data import load_images, message_text, open_records
from mmbdhs.decoding import BranchPool
from mmbdhs.miniature.demo import minilm
from mmbdhs.miniature.language import CAPTION_PROMPT, caption
from mmbdhs.miniature.world import make_scene, render
from mmbdhs.pairs import Figures
from mmbdhs.pairs.shards import read_footer, shard_schema, write_shard
from mmbdhs.sampling import resolve_similarity

COLUMNS = {
    **{"work": "<34", "of": ">5d", "ms": ">8.3f", "bytes": ">8.0f"},
    **{"shard_size": ">5d", "tokens": ">6.1f", "steps": ">6.2f", "slots_used": ">5.0%"},
}
ACCEPTED, NEVER = 0.82, 0.1  # with which 74% of the pairs are accepted after one iteration and 90% after four


def main(options: Options) -> None:
    print("\nms, bytes: for one image, pair, shard or row; steps, tokens: for one pair, of decoding with 64 branches")
    torch.set_num_threads(1)
    with Table("scale", COLUMNS, options) as table:
        for row in (*images(options.quick), similarity(options.quick), *files(options.quick)):
            table.add(**row)
        for shard_size in (20,) if options.quick else (100, 500):
            table.add(**slots(shard_size))


def images(quick: bool) -> list[dict[str, Any]]:
    """Reading an encoded image, and processing it for two models."""
    photos = [photo(seed) for seed in range(2 if quick else 20)]
    clip = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    next_ = llava.processor(["USER: ASSISTANT:"]).image_processor

    calls = {
        "read an image for LLaVA-1.5": lambda: [clip(load_images([one]), return_tensors="pt") for one in photos],
        "read an image for LLaVA-1.6": lambda: [next_(load_images([one]), return_tensors="pt") for one in photos],
    }
    size = statistics.mean(map(len, photos))
    return [row(name, call, len(photos), quick) | {"bytes": size} for name, call in calls.items()]


def similarity(quick: bool) -> dict[str, Any]:
    """Scoring responses with MiniLM."""
    pairs = list(islice(synthetic_rows(), 8 if quick else 128))
    rejected, chosen = ([message_text(pair[name][0]) for pair in pairs] for name in ("rejected", "chosen"))
    score = resolve_similarity(minilm())
    return row("score a pair with MiniLM", lambda: score(rejected, chosen), len(pairs), quick)


def files(quick: bool) -> list[dict[str, Any]]:
    """Writing a shard, reading its footer, and opening JSON lines."""
    pairs, lines = (20, 100) if quick else (500, 100_000)
    rows = [as_large_as_sampled(pair) for pair in islice(synthetic_rows(), pairs)]
    with tempfile.TemporaryDirectory() as folder:
        shard, data = Path(folder) / "shard.parquet", Path(folder) / "data.jsonl"
        written = row(
            "write a pair into a shard",
            lambda: write_shard(shard, shard_schema([]), iter(rows), [], Figures()),
            pairs,
            quick,
        )
        written["bytes"] = shard.stat().st_size / pairs
        footer = row("read a shard's footer", lambda: read_footer(shard), 1, quick)
        line = {"images": ["0.jpg"], "prompt": "Describe the image.", "chosen": message_text(rows[0]["chosen"][0])}
        data.write_text("".join(json.dumps(line | {"key": number}) + "\n" for number in range(lines)))
        opened = row("open a row of JSON lines", lambda: open_records(data), lines, quick)
        opened["bytes"] = data.stat().st_size / lines
    return [written, footer, opened]


def as_large_as_sampled(pair: dict[str, Any]) -> dict[str, Any]:
    """The pair with token ids, and with an image of its own that cannot be compressed, as a JPEG cannot."""
    chance = random.Random(pair["row"])
    sentences = [
        one | {"prefix_ids": chance.choices(range(32_000), k=60), "completion_ids": chance.choices(range(32_000), k=11)}
        for one in pair["sentences"]
    ]
    return pair | {"images": [{"bytes": chance.randbytes(100_000), "path": None}], "sentences": sentences}


def row(work: str, call: Callable[[], Any], count: int, quick: bool) -> dict[str, Any]:
    """The median CPU time of a call, for one of the things that it does."""
    call()
    seconds = [_cpu_seconds(call) for _ in range(1 if quick else 7)]
    return {"work": work, "of": count, "ms": 1e3 * statistics.median(seconds) / count}


def _cpu_seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def slots(shard_size: int) -> dict[str, Any]:
    """Steps and tokens of a shard of the miniature's captions, sampled as a shard is: by itself."""
    model, processor = miniature.load()
    scenes = [make_scene("balanced", number) for number in range(shard_size)]
    columns = [render(scene) for scene in scenes], [CAPTION_PROMPT] * shard_size, list(map(caption, scenes))
    steps, tokens, step = 0, 0, BranchPool.step

    def counted(pool: Any) -> Any:
        nonlocal steps, tokens
        steps, tokens = steps + 1, tokens + min(len(pool), config.max_branches)
        return step(pool)

    config = BDHSConfig()
    with patch.object(BranchPool, "step", counted):
        bdhs_sample(model, processor, *columns, config, like_the_paper(columns[2]))
    return {
        **{"work": "decode a pair", "of": shard_size, "shard_size": shard_size},
        **{"tokens": tokens / shard_size, "steps": steps / shard_size},
        "slots_used": tokens / steps / config.max_branches,
    }


def like_the_paper(references: list[str]) -> Callable[[list[str], list[str]], list[float]]:
    """A similarity of chance, that accepts as many responses as the paper's Figure 10 shows for masked attention."""
    chance = random.Random(0)
    never = set(chance.sample(references, round(NEVER * len(references))))
    return lambda _, found: [float(one in never or chance.random() >= ACCEPTED) for one in found]
