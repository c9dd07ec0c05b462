"""What all runs have in common, whether they sample or train.

`identity` says what a run's results depend on, `folder` keeps a folder to one run, `signals` ends a run at a good
moment, `options` makes commands of dataclasses, `inputs` finds model and data by name, `cards` describes a folder for
the Hub, and `plots` draws pictures.
"""

from mmbdhs.runs.cards import fill_card
from mmbdhs.runs.folder import FolderInUseError, check_same_run, locked, read_record, write_record
from mmbdhs.runs.identity import (
    describe,
    differences,
    installed_versions,
    model_fingerprint,
    model_identity,
    processor_fingerprint,
)
from mmbdhs.runs.inputs import InputOptions, check_device, load_model, open_named
from mmbdhs.runs.options import (
    check_known,
    fail,
    load_object,
    parse_options,
    parse_settings,
    parse_value,
)
from mmbdhs.runs.plots import drawn_figure, finish_panel, plot_color, require_matplotlib
from mmbdhs.runs.signals import Signals, caught_signals

__all__ = [
    "FolderInUseError",
    "InputOptions",
    "Signals",
    "caught_signals",
    "check_device",
    "check_known",
    "check_same_run",
    "describe",
    "differences",
    "drawn_figure",
    "fail",
    "fill_card",
    "finish_panel",
    "installed_versions",
    "load_model",
    "load_object",
    "locked",
    "model_fingerprint",
    "model_identity",
    "open_named",
    "parse_options",
    "parse_settings",
    "parse_value",
    "plot_color",
    "processor_fingerprint",
    "read_record",
    "require_matplotlib",
    "write_record",
]
