"""One run of the alignment benchmark, and the file that keeps what each run counted."""

from __future__ import annotations

import base64
import json
import logging
import multiprocessing
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignment_judge import judge
from alignment_methods import MAIN, MORE, RATE, Method, Start
from alignment_world import base

from mmbdhs import miniature
from mmbdhs.data import write_jsonl
from mmbdhs.evaluation import Outcome
from mmbdhs.miniature.language import BIASED, Noise
from mmbdhs.training import TrainConfig, train

BASELINE = "baseline"
IMAGES, IMAGES_PER_STEP = 320, 4


@dataclass(frozen=True)
class Run:
    """One method on one base, or the base as it is.

    bias: of the references, as a multiple of the bias of the text that the bases have read; 0 for true references.
    images: how many to align with.
    judged: how many scenes of `world` to judge with.
    """

    method: str
    base: int
    bias: float = 1.0
    images: int = IMAGES
    judged: int = 400
    world: str = "balanced"

    def row(self) -> dict[str, Any]:
        """Align and judge: what the answers count, and the CPU minutes that either took."""
        begin = time.process_time()
        model, processor = miniature.load(base(self.base))
        if self.method != BASELINE:
            self._align((MAIN | MORE)[self.method], Start(model, processor, self.base))
        aligned = time.process_time()
        outcomes = judge(model, processor, self.world, self.judged, self.base)
        minutes = [round(seconds / 60, 2) for seconds in (aligned - begin, time.process_time() - aligned)]
        return {"run": asdict(self), "cpu_minutes": minutes, **packed(outcomes)}

    def _align(self, method: Method, start: Start) -> None:
        noise = Noise(*(self.bias * share for share in (BIASED.thing, BIASED.colour, BIASED.answer)))
        examples = method.mixture.records(self.images, noise)
        if method.rejected is not None:
            rejected = method.rejected(start, examples)
            examples = [example | {"rejected": text} for example, text in zip(examples, rejected, strict=True)]
        with tempfile.TemporaryDirectory() as output:
            config = self._config(output, method)
            trained(start.model, start.processor, examples, method.source(start), method.objective, config)

    def _config(self, output: str, method: Method) -> TrainConfig:
        """The same for all methods, settled on the validation world, but for what a method is about."""
        settings = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": IMAGES_PER_STEP * method.mixture.records_per_image,
            "learning_rate": RATE,
            "seed": self.base,
            "on_error": "skip",
        }
        return train_config(output, **(settings | method.training))


def train_config(output: str, **settings: Any) -> TrainConfig:
    """The settings of a training of the miniature, the whole decoder unless others are given."""
    common = {
        "lora_r": 0,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.05,
        "logging_steps": 1000,
    }
    return TrainConfig(output, **(common | settings))


def trained(*arguments: Any) -> Path:
    """The folder of the trained model. Raises SystemExit where a signal ended the run early, so that it is not kept."""
    result = train(*arguments)
    if result.interrupted:
        raise SystemExit(f"the training was ended by {result.interrupted.name}")
    return result.folder


def processes() -> ProcessPoolExecutor:
    """One process with one thread for each core; small models gain nothing from more."""
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would write over each other
    return ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"), _settle)


def _settle() -> None:
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    logging.getLogger("mmbdhs").setLevel(logging.ERROR)


def packed(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What each image counts, in a line of a file: the names of the metrics, and the numerators and denominators as
    uint16 [images, metrics, 2], compressed with zlib, in base64."""
    metrics = list(outcomes[0].counts)
    counts = np.array([[outcome.counts[name] for name in metrics] for outcome in outcomes]).astype("<u2")
    return {"metrics": metrics, "counts": base64.b64encode(zlib.compress(counts.tobytes(), 9)).decode()}


def unpacked(row: dict[str, Any], images: int | None = None) -> list[Outcome]:
    """The outcomes in a line of a file, of the first `images` images or of all."""
    metrics = row["metrics"]
    flat = np.frombuffer(zlib.decompress(base64.b64decode(row["counts"])), "<u2")
    counts = flat.reshape(-1, len(metrics), 2)[:images].tolist()
    return [
        Outcome(f"{row['run']['base']}/{image:04}", f"{image:04}", (), dict(zip(metrics, map(tuple, one), strict=True)))
        for image, one in enumerate(counts)
    ]


class RunFile:
    """The rows of runs that have ended, on disk: a run that is in the file is not made again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # killed while it wrote
            path.write_text(whole)
        self.rows = {Run(**row["run"]): row for row in map(json.loads, whole.splitlines())}

    def add(self, row: dict[str, Any]) -> None:
        self.rows[Run(**row["run"])] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write(self, path: Path, runs: Sequence[Run]) -> None:
        """Write the rows of these runs to another file."""
        write_jsonl(path, (self.rows[run] for run in runs))
