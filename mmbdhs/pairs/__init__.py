"""From a data set to a data set: pairs on disk, and what there is to see about them.

Read in this order: `config` (settings), `sampling_run` (`sample_dataset`, the front door), `run_folder` (what a run
keeps on disk), `shard_sampler` (one shard after another), `shards` (Parquet files), `figures` (what is counted),
`progress` and `card` (how it is shown). `ray_workers` spreads a run over a cluster, `command` is `mmbdhs sample`.
`report` writes a page to look at the pairs, with `charts` and `thumbnails`. Before a run, `tune` tries settings on a
few records, `tune_report` says what follows, `tune_plot` draws it, and `tune_command` is `mmbdhs tune`.
"""

from mmbdhs.pairs.config import DatasetConfig
from mmbdhs.pairs.figures import Figures
from mmbdhs.pairs.report import write_report
from mmbdhs.pairs.sampling_run import SamplingResult, sample_dataset
from mmbdhs.pairs.tune import tune
from mmbdhs.pairs.tune_report import TuneReport

__all__ = ["DatasetConfig", "Figures", "SamplingResult", "TuneReport", "sample_dataset", "tune", "write_report"]
