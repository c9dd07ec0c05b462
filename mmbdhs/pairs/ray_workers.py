"""A run on a Ray cluster: Ray Data maps the shard sampler over the numbers of the shards."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from mmbdhs.pairs.figures import Figures
from mmbdhs.pairs.progress import ProgressBar
from mmbdhs.pairs.run_folder import RunFolder
from mmbdhs.pairs.sampling_run import Parts, SamplingResult, finished, sample_into
from mmbdhs.runs import locked


def sample_on_ray(
    folder: RunFolder,
    make_parts: Callable[[], Parts],
    iterations: int,
    address: str,
    workers: int | None,
    progress: bool,
) -> SamplingResult:
    """Sample the missing shards of a run in actors, each of which loads the model once. Ray starts another actor for
    one that died, and gives it the shard that was lost.

    folder: of the run, on a disk that all machines share.
    make_parts: makes the folder and a sampler in an actor, on the actor's GPU if it has one. The folder is claimed.
    iterations: N_BDHS.
    address: of the cluster, or "local" for one on this machine.
    workers: how many actors; None for as many as the cluster's GPUs allow, or its cores where there is no GPU.

    Raises ImportError that names the extra without Ray, and what an actor raised.
    """
    with (
        locked(folder.path),
        _cluster(address, workers) as (ray, gpus, cores),
        ProgressBar(folder, iterations, progress) as bar,
    ):
        threads = torch.get_num_threads()
        numbers = [{"shard": number} for number in folder.missing()]
        shards = ray.data.from_items(numbers, override_num_blocks=max(len(numbers), 1))
        figures = shards.map_batches(
            _ShardActor,
            fn_constructor_args=(make_parts, threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers or gpus or max(cores // threads, 1)),
            **({"num_gpus": 1} if gpus else {"num_cpus": threads}),
        )
        for row in figures.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            bar.finish_shard(Figures(json.loads(row["figures"])))
        return finished(folder)


class _ShardActor:
    """Samples one shard after another in a process of Ray."""

    def __init__(self, make_parts: Callable[[], Parts], threads: int) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        torch.set_num_threads(threads)  # Ray sets one; sums, and so the bytes of a shard, depend on it
        self._parts = cache(make_parts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (number,) = batch["shard"]
        try:
            folder, sampler = self._parts()
            figures = sample_into(folder, sampler, int(number), lambda figures, branches: None)
        except Exception as error:  # Ray would hand on its text alone
            return {"figures": [""], "error": [pickle.dumps(error)]}
        return {"figures": [json.dumps(figures.rows())], "error": [b""]}


@contextmanager
def _cluster(address: str, workers: int | None) -> Iterator[tuple[Any, int, int]]:
    """Ray, connected to the cluster, and the numbers of its GPUs and cores."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("ray: needs the extra 'ray': pip install 'mmbdhs[ray]'") from error
    local = {"num_cpus": workers and workers * torch.get_num_threads(), "include_dashboard": False}
    ray.init(**(local if address == "local" else {"address": address}))
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        found = ray.cluster_resources()
        yield ray, int(found.get("GPU", 0)), int(found.get("CPU", 0))
    finally:
        ray.shutdown()
