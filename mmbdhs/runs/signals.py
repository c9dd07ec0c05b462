"""Signals that end a run at its next good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Signals = list[signal.Signals]


@contextmanager
def caught_signals(*numbers: signal.Signals) -> Iterator[Signals]:
    """Collect signals in a list instead of ending the process.

    numbers: the signals to collect.

    The second signal of a kind has its usual effect. Outside of the main thread, which alone can handle signals, none
    are caught.
    """
    received: Signals = []
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, previous[signal.Signals(number)])

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
