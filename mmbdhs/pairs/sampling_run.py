"""A run over a data set: a folder of shards that grows, may stop at any moment, and goes on."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from mmbdhs.checks import instance
from mmbdhs.data import Records, open_records
from mmbdhs.pairs.config import DatasetConfig
from mmbdhs.pairs.figures import Figures
from mmbdhs.pairs.progress import ProgressBar
from mmbdhs.pairs.run_folder import RunFolder
from mmbdhs.pairs.shard_sampler import Notify, ShardSampler
from mmbdhs.pairs.shards import require_pyarrow
from mmbdhs.runs import (
    caught_signals,
    describe,
    installed_versions,
    locked,
    model_fingerprint,
    model_identity,
)
from mmbdhs.sampling import DEFAULT_MODEL, BDHSConfig, SimilarityModel, resolve_similarity
from mmbdhs.vlm import Processor

_PACKAGES = ("mmbdhs", "torch", "transformers", "sentence-transformers", "pyarrow")


Parts = tuple[RunFolder, ShardSampler]


class SamplingResult(NamedTuple):
    """The result of `sample_dataset`.

    folder: of the run.
    figures: of all shards that are there. In a process of torchrun that is done before the others: of its own shards.
    shards: how many the run has.
    missing: how many of them are not there yet: after a signal, or while other processes are at work.
    interrupted: the signal that ended the run early, or None.
    """

    folder: Path
    figures: Figures
    shards: int
    missing: int
    interrupted: signal.Signals | None


def sample_dataset(
    model: nn.Module,
    processor: Processor,
    data: Any,
    out: str | os.PathLike[str],
    config: BDHSConfig | None = None,
    similarity: SimilarityModel = None,
    settings: DatasetConfig | None = None,
    progress: bool = True,
) -> SamplingResult:
    """Sample a rejected response for every example of a data set, into a folder that any stop leaves whole.

    The folder gets `data/train-*.parquet` (TRL's vision preference layout, and how each pair was made), `errors.jsonl`
    (every example without a pair, and why), `run.json` (what the results depend on) and `README.md`, a dataset card.
    The same call continues a run that was stopped or killed; on a CPU its shards end as those of an undisturbed run, to
    the byte. SIGTERM ends the run after the current shard. Under torchrun or Accelerate the processes share the shards
    out.

    model, processor: a VLM of `transformers` and its processor.
    data: examples with images and a good response, in any layout that `mmbdhs.data.open_records` reads: a path, a
        `datasets.Dataset`, a list of records, or what `open_records` returns.
    out: the folder.
    config: settings of Algorithm 1; None for the paper's.
    similarity: as in `bdhs_sample`.
    settings: how the data set is read, cut into shards and filtered; None for the defaults.
    progress: whether to show a progress bar.

    An example that cannot be used does not end the run. Raises ValueError for data in no known layout,
    `mmbdhs.runs.FolderInUseError` for a folder that holds another run or is in use, and OSError where a shard cannot be
    written; finished shards stay.
    """
    config, settings = config or BDHSConfig(), settings or DatasetConfig()
    instance("config", config, BDHSConfig)
    instance("settings", settings, DatasetConfig)
    records = data if isinstance(data, Records) else open_records(data, turns=settings.turns)
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    held = open_folder(out, records, settings)
    with locked(held.path) if rank == 0 else nullcontext(), caught_signals(signal.SIGTERM) as received:
        folder, sampler = sampling_parts(model, processor, records, out, config, similarity, settings)
        own = Figures()
        with ProgressBar(folder, config.max_iterations, shown=progress and rank == 0) as bar:
            for number in folder.missing(rank, world_size):
                if received:
                    break
                own += (figures := sample_into(folder, sampler, number, bar.show))
                bar.finish_shard(figures)
        stopped = received[-1] if received else None
        if rank and (missing := folder.missing()):  # the last of the processes to end tells of all shards
            return SamplingResult(folder.path, own, folder.shards, len(missing), stopped)
        return finished(folder, stopped)


def sampling_parts(
    model: nn.Module,
    processor: Processor,
    records: Records,
    out: str | os.PathLike[str],
    config: BDHSConfig,
    similarity: SimilarityModel,
    settings: DatasetConfig,
) -> Parts:
    """The folder of a run, claimed for it, and a sampler of its shards. The arguments are those of `sample_dataset`."""
    folder = open_folder(out, records, settings)
    folder.claim(run_identity(model, processor, records, config, similarity, settings))
    scored = resolve_similarity(similarity)
    return folder, ShardSampler(model, processor, records, folder.path, config, scored, settings)


def open_folder(out: str | os.PathLike[str], records: Records, settings: DatasetConfig) -> RunFolder:
    """The folder of a run, made if it is not there. Raises ValueError for a file in its place and for data without
    chosen responses, and ImportError that names the extra without the libraries for Parquet."""
    require_pyarrow()
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise ValueError(f"out: needs a folder, {path} is a file")
    if "chosen" not in records.columns:
        raise ValueError(f"data: needs a column chosen with good responses, got {', '.join(records.columns)}")
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, min(settings.limit or len(records), len(records)), settings.shard_size)


def sample_into(folder: RunFolder, sampler: ShardSampler, number: int, notify: Notify) -> Figures:
    """Sample a shard into the folder of a run, with as few branches as an earlier lack of memory left. Returns its
    figures."""
    sampler.max_branches = min(sampler.max_branches, folder.reduced_max_branches or sampler.max_branches)
    before = sampler.max_branches
    try:
        figures = sampler.sample(number, notify)
        folder.append_errors(number)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        whole = folder.shards - len(folder.missing())
        raise OSError(
            error.errno,
            f"shard {number} could not be written ({error.strerror}); {whole} of {folder.shards} shards are whole in "
            f"{folder.path}. Make room and repeat the call, which continues",
        ) from error
    if sampler.max_branches < before:
        folder.reduced_max_branches = sampler.max_branches
    return figures


def finished(folder: RunFolder, interrupted: signal.Signals | None = None) -> SamplingResult:
    """Write what tells of the shards that are there."""
    return SamplingResult(folder.path, folder.write_texts(), folder.shards, len(folder.missing()), interrupted)


def run_identity(
    model: nn.Module,
    processor: Processor,
    records: Records,
    config: BDHSConfig,
    similarity: SimilarityModel,
    settings: DatasetConfig,
) -> dict[str, Any]:
    """What the results of a run depend on."""
    return {
        "config": describe(config.identity()),
        "settings": {one.name: getattr(settings, one.name) for one in fields(settings)},
        "data": {"layout": records.layout, "records": len(records), "fingerprint": records.fingerprint},
        **model_identity(model, processor),
        "similarity": _similarity_identity(DEFAULT_MODEL if similarity is None else similarity),
        "versions": installed_versions(*_PACKAGES),
    }


def _similarity_identity(similarity: Any) -> dict[str, Any]:
    if not isinstance(similarity, nn.Module):
        return {"name": describe(similarity)}
    name = getattr(getattr(similarity, "model_card_data", None), "base_model", None) or type(similarity).__name__
    return {"name": name, "fingerprint": model_fingerprint(similarity)}
