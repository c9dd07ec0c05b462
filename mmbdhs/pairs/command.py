"""`mmbdhs sample`: from a data set to a data set of pairs."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from mmbdhs.data import Records
from mmbdhs.errors import UnsupportedModelError
from mmbdhs.pairs.config import DatasetConfig
from mmbdhs.pairs.ray_workers import sample_on_ray
from mmbdhs.pairs.run_folder import RunFolder
from mmbdhs.pairs.sampling_run import Parts, SamplingResult, open_folder, sample_dataset, sampling_parts
from mmbdhs.runs import FolderInUseError, InputOptions, check_device, fail, load_model, parse_options
from mmbdhs.sampling import BDHSConfig

DESCRIPTION = """Sample a rejected response for every example of a data set. OUT gets Parquet shards that TRL's
DPOTrainer and `mmbdhs train` read, errors.jsonl, and a dataset card. The same command continues a run that was stopped
at any moment, and on a CPU ends with the same bytes. SIGTERM ends it after the current shard, with status 143. For
several GPUs start it with torchrun or accelerate launch; --ray uses a cluster."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(InputOptions):
    """The options of `mmbdhs sample` that are no settings of sampling.

    output_dir: folder for the pairs.
    device: such as cuda, cuda:1 or cpu; None: a GPU if there is one, under torchrun one for each process.
    similarity: folder or name of a sentence embedding model; None: the paper's all-mpnet-base-v2.
    ray: address of a Ray cluster whose machines share the disk of OUT, or "local" for one on this machine.
    workers: processes of Ray; None: as many as the cluster's GPUs allow, or its cores where there is no GPU.
    """

    _argument_group_name: ClassVar[str] = "model and data"

    output_dir: str = field(metadata={"aliases": ["--output", "--out"]})
    device: str | None = None
    similarity: str | None = None
    ray: str | None = None
    workers: int | None = None


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns the exit status: 1 if the folder holds another run or the run fails, 128 + signal number
    after a signal. Wrong arguments and data, which are found before the model is loaded, end the process with status 2,
    as those of any other command do."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        arguments = options, settings, _ = parse_arguments(argv)
        records = options.open_records(settings.turns)
        folder = open_folder(options.output_dir, records, settings)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise SystemExit(fail("sample", error, 2)) from error
    try:
        result = _on_ray(folder, records, *arguments) if options.ray else _here(records, *arguments)
    except (FolderInUseError, UnsupportedModelError, ImportError, OSError, ValueError) as error:
        return fail("sample", error, 1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 128 + signal.SIGINT
    print(_told(result))
    return 128 + result.interrupted if result.interrupted else 0


def _here(records: Records, options: SampleOptions, settings: DatasetConfig, config: BDHSConfig) -> SamplingResult:
    model, processor = _loaded(options)
    return sample_dataset(model, processor, records, options.output_dir, config, options.similarity, settings)


def _on_ray(
    folder: RunFolder, records: Records, options: SampleOptions, settings: DatasetConfig, config: BDHSConfig
) -> SamplingResult:
    make_parts = partial(_parts, records, options, settings, config)
    return sample_on_ray(folder, make_parts, config.max_iterations, str(options.ray), options.workers, progress=True)


def _parts(records: Records, options: SampleOptions, settings: DatasetConfig, config: BDHSConfig) -> Parts:
    return sampling_parts(*_loaded(options), records, options.output_dir, config, options.similarity, settings)


def _loaded(options: SampleOptions) -> tuple[Any, Any]:
    model, processor = load_model(options.model_name_or_path, options.dtype)
    return model.to(check_device(options.device)), processor


def parse_arguments(argv: Sequence[str]) -> tuple[SampleOptions, DatasetConfig, BDHSConfig]:
    """The command's options. Raises ValueError or TypeError for wrong arguments."""
    usage = "mmbdhs sample --model MODEL --data DATA --output OUT [OPTION ...]"
    options, settings, config = parse_options(argv, (SampleOptions, DatasetConfig, BDHSConfig), usage, DESCRIPTION)
    return options, settings, config


def _told(result: SamplingResult) -> str:
    """What the run made, in words."""
    figures, dropped = result.figures, result.figures.of("dropped")
    lines = [f"{figures.pairs} pairs of {figures.examples} examples are in {result.folder}"]
    if dropped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in dropped.items())
        lines.append(f"without a pair: {kinds}; errors.jsonl names each")
    if result.missing:
        why = "interrupted" if result.interrupted else "other processes are at work"
        lines.append(f"{why}: {result.missing} of {result.shards} shards are missing; the same command continues")
    return "\n".join(lines)
