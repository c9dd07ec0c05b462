"""Runs that are killed at random moments and continued until they finish.

A moment is a number of Python function calls, so no test depends on the clock. Each attempt is a fork, because
importing takes longer than the runs.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

Run = Callable[[Path], object]


def kill_runs(folder: Path, run: Run, compared: Callable[[Path, Path], list[str]], kills: int, seed: int) -> dict:
    """Kill runs until there were so many kills, and compare each that finishes with an undisturbed one.

    run: works in a folder from wherever it stands to the end.
    compared: (folder of the undisturbed run, another) -> differences.

    Returns the numbers of kills and of finished runs, and all differences.
    """
    chance, killed, finished = random.Random(seed), 0, 0
    differences: list[str] = []
    assert in_a_fork(lambda: (folder / "calls").write_text(str(counted(run, folder / "whole", 0)))) == 0
    calls = int((folder / "calls").read_text())
    while killed < kills or (folder / "cut").exists():
        moment = chance.randrange(1, calls) if killed < kills else 0
        status = in_a_fork(lambda moment=moment: counted(run, folder / "cut", moment))
        if status == -signal.SIGKILL:
            killed += 1
            continue
        assert status == 0, f"a resumed run failed with status {status}"
        finished += 1
        differences += compared(folder / "whole", folder / "cut")
        (folder / "cut").rename(folder / f"finished-{finished}")
    return {"kills": killed, "runs": finished, "differences": differences}


def counted(run: Run, folder: Path, moment: int) -> int:
    """Run, and kill this process at its function call number `moment`, 0 for never. Returns the number of calls."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    run(folder)
    sys.setprofile(None)
    return calls


def in_a_fork(work: Callable[[], Any]) -> int:
    """Run the work in a process of its own. Returns its status, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
