"""The progress bar of a run."""

from __future__ import annotations

from typing import Any

from mmbdhs.pairs.figures import Figures
from mmbdhs.pairs.run_folder import RunFolder


class ProgressBar:
    """Shows examples, their rate and the time left, the share of pairs accepted after each iteration, and how many
    branches are decoding.

    folder: of the run, with what is done already.
    iterations: N_BDHS.
    """

    def __init__(self, folder: RunFolder, iterations: int, shown: bool) -> None:
        from tqdm.auto import tqdm

        self._iterations, self._done = iterations, folder.figures() if shown else Figures()
        self._bar: Any = tqdm(
            total=folder.examples, initial=self._done.examples, desc="sampling", unit="pair", disable=not shown
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, figures: Figures, live_branches: int) -> None:
        """Show the figures of the current shard so far on top of those of the finished ones."""
        if self._bar.disable:
            return
        both = self._done + figures
        shares = " ".join(f"{share:.0%}" for share in both.accepted(self._iterations))
        self._bar.set_postfix_str(f"accepted {shares}, {live_branches} branches", refresh=False)
        self._bar.update(both.examples - self._bar.n)

    def finish_shard(self, figures: Figures) -> None:
        """Add the figures of a finished shard."""
        self._done += figures
        self.show(Figures(), 0)
