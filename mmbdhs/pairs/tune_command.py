"""`mmbdhs tune`: settings of sampling for one's own data, from a small sample."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mmbdhs.errors import UnsupportedModelError
from mmbdhs.pairs.tune import MASK_THRESHOLDS, SIMILARITY_THRESHOLDS, check_settings, tune
from mmbdhs.pairs.tune_plot import PICTURE
from mmbdhs.runs import InputOptions, check_device, fail, load_model, parse_options, require_matplotlib
from mmbdhs.sampling import DEFAULT_MODEL, BDHSConfig, resolve_similarity

DESCRIPTION = """Try ρ_th, ε_s and similarity models on a small sample of a data set, and recommend settings for `mmbdhs
sample`. Prints a table of the share of records with an accepted response after each iteration, and writes tune.json and
tune.png to OUT. If OUT is the folder of a run, `mmbdhs report` shows the table too. --mask-threshold and
--similarity-threshold are the settings to keep unless the sample speaks against them."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions(InputOptions):
    """The options of `mmbdhs tune` that are no settings of sampling.

    output_dir: folder for tune.json and tune.png.
    device: such as cuda, cuda:1 or cpu; None: a GPU if there is one.
    rows: how many records are sampled, evenly spaced in the data; None: all.
    mask_thresholds: the ρ_th to try.
    similarity_thresholds: the ε_s to try.
    similarity: folders or names of the sentence embedding models to try.
    turns: which turn of a conversation is the reference: first, last or every.
    """

    _argument_group_name: ClassVar[str] = "model, data and what to try"

    output_dir: str = field(metadata={"aliases": ["--output", "--out"]})
    device: str | None = None
    rows: int | None = 50
    mask_thresholds: list[float] = field(default_factory=list(MASK_THRESHOLDS).copy)
    similarity_thresholds: list[float] = field(default_factory=list(SIMILARITY_THRESHOLDS).copy)
    similarity: list[str] = field(default_factory=[DEFAULT_MODEL].copy)
    turns: str = "last"


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns the exit status: 1 if the run fails. Wrong arguments and data, which are found before
    the model is loaded, end the process with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options, config = parse_arguments(argv)
        records = options.open_records(options.turns)
        device = check_device(options.device)
        require_matplotlib(PICTURE)
        similarities = {name: resolve_similarity(one) for name, one in _short_names(options.similarity).items()}
        model, processor = load_model(options.model_name_or_path, options.dtype)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise SystemExit(fail("tune", error, 2)) from error
    try:
        report = tune(
            model.to(device),
            processor,
            records,
            config,
            mask_thresholds=options.mask_thresholds,
            similarity_thresholds=options.similarity_thresholds,
            similarities=similarities,
            rows=options.rows,
        )
        files = report.save(options.output_dir)
    except (UnsupportedModelError, OSError, ValueError) as error:
        return fail("tune", error, 1)
    print(report.side_by_side())
    print(f"\n{report}")
    print(f"\n{' and '.join(map(str, files))} have the details.")
    return 0


def parse_arguments(argv: Sequence[str]) -> tuple[TuneOptions, BDHSConfig]:
    """The command's options. Raises ValueError or TypeError for wrong arguments."""
    usage = "mmbdhs tune --model MODEL --data DATA --output OUT [OPTION ...]"
    options, config = parse_options(argv, (TuneOptions, BDHSConfig), usage, DESCRIPTION)
    check_settings(config, options.mask_thresholds, options.similarity_thresholds, options.similarity, options.rows)
    if (path := Path(options.output_dir)).exists() and not path.is_dir():
        raise ValueError(f"output_dir: needs a folder, {path} is a file")
    return options, config


def _short_names(models: Sequence[str]) -> dict[str, str]:
    """The models by the last parts of their names, or by their whole names if two of them end alike."""
    short = {Path(name).name: name for name in models}
    return short if len(short) == len(set(models)) else {name: name for name in models}
