"""Reading ahead. Sampling: the miniature with an image processor that only waits, so that no core decides what can
overlap. Training: steps of `train` on photographs from disk, which the cores that are there decode and process.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import llava
import numpy as np
from llava import Size
from measure import median_of
from PIL import Image
from table import Options

from mmbdhs import BDHSConfig, BDHSSample, bdhs_sample, miniature
from mmbdhs.losses import dpo_loss
from mmbdhs.miniature.language import CAPTION_PROMPT, caption
from mmbdhs.miniature.world import make_scene, render
from mmbdhs.training import StoredSource, TrainConfig, pairwise, train
from mmbdhs.vlm import VLM

WAIT, READERS = 0.03, 4  # an image processor takes 26 to 42 ms of one core for a pair
ITERATIONS = 3  # of every pair: so many give the model about as long a time, on one undisturbed core
PHOTOS = [(1024, 768), (768, 1024), (1280, 720), (1024, 768)]  # width and height; the second takes fewer tiles


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


def training_rows(options: Options) -> Iterator[dict[str, Any]]:
    """Milliseconds for a step of `train` with 4 stored pairs and LoRA: with one reader and one call of the vision
    tower, and from examples that the model waits for, with a call of the tower for each."""
    model, processor = miniature.load()
    yield _training_row(f"train, miniature, {model.dtype}", model.to(options.device), processor, options)
    texts = [CAPTION_PROMPT, "USER: ASSISTANT:", *(caption(make_scene("balanced", number)) for number in range(8))]
    processor = llava.processor(texts)
    words = processor.tokenizer
    model = llava.model(Size(2, 128), len(words), words.convert_tokens_to_ids("<image>"), options.device)
    yield _training_row(f"train, {llava.name(model)}", model, processor, options)


def _training_row(shape: str, model: Any, processor: Any, options: Options) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        records = [_record(number, *size, Path(folder)) for number, size in enumerate(PHOTOS)]
        side = partial(_step_seconds, model, processor, records, options)
        times = [(side(1, None), side(0, False)) for _ in range(1 if options.quick else 5)]
    ours, waiting = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    row = {"shape": shape, "prompts": len(PHOTOS), "responses": 2}
    return row | {"ours": ours, "waiting": waiting, "over_waiting": waiting / ours}


def _step_seconds(
    model: Any, processor: Any, records: list[dict[str, Any]], options: Options, workers: int, together: bool | None
) -> float:
    """The median over the steps of a run, after its first two.

    together: whether the vision tower takes several examples at a time; None: what it is found to do.
    """
    times: list[float] = []
    loss = pairwise(dpo_loss)

    def timed(policy: Any, reference: Any) -> Any:
        times.append(time.perf_counter())
        return loss(policy, reference)

    trained = copy.deepcopy(model)
    vlm = VLM.of(trained)
    vlm.batches_vision = vlm.mixes_vision = together
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"per_device_train_batch_size": len(records), "gradient_accumulation_steps": 1, "lora_r": 8}
        steps = 4 if options.quick else 12
        config = TrainConfig(folder, max_steps=steps, dataloader_num_workers=workers, **sizes)
        train(trained, processor, records, StoredSource(), timed, config)
    return float(np.median(np.diff(times[2:])))


def _record(number: int, width: int, height: int, folder: Path) -> dict[str, Any]:
    """A pair about a photograph on disk: as smooth as one, in JPEG."""
    pixels = np.random.default_rng(number).integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
    path = folder / f"{number}.jpg"
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    chosen, rejected = (caption(make_scene("balanced", one)) for one in (number, number + 4))
    return {"images": [str(path)], "prompt": CAPTION_PROMPT, "chosen": chosen, "rejected": rejected, "key": number}
