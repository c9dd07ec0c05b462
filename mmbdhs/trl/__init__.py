"""TRL's DPOTrainer with the image prompt run once for both responses of a pair.

    from mmbdhs.trl import PackedDPOTrainer  # in place of: from trl import DPOTrainer

`PackedDPOTrainer` changes how log-probabilities are computed and, if asked, where responses come from. The losses, the
metrics, the loop and every setting are TRL's.

Read in this order: `trainer`, `collator` (batches of pairs with each prompt once), `sourced` (batches of what a source
finds), `forward` (the packed forward pass in the form that TRL expects).
"""

try:
    import trl as _trl  # noqa: F401
except ImportError as error:
    raise ImportError("mmbdhs.trl needs the extra 'trl': pip install 'mmbdhs[trl]'") from error

from mmbdhs.trl.collator import PackedCollator
from mmbdhs.trl.trainer import PackedDPOTrainer

__all__ = ["PackedCollator", "PackedDPOTrainer"]
