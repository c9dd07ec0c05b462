"""Reading ahead: examples are read and their images processed in threads while the model runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import torch

R = TypeVar("R")

_WORKERS = 4  # with these, 40 ms of processing keep up with a model that takes 10 ms
_AHEAD = 2  # rows for each thread that are being read or wait to be taken


class ReaderPool:
    """A bounded number of threads. At the end of the context, calls that have not begun are cancelled and the threads
    end, after the calls that are under way.

    num_workers: how many threads; 0 to make every call in the caller's own. None: 4, or 0 for a model on the CPU, which
        needs the cores itself.
    device: where the model is.
    """

    def __init__(self, num_workers: int | None, device: torch.device) -> None:
        if num_workers is None:
            num_workers = 0 if device.type == "cpu" else _WORKERS
        self.num_workers = num_workers
        self._executor = ThreadPoolExecutor(num_workers, "mmbdhs-reader") if num_workers else None
        self._most_ahead = _AHEAD * num_workers

    def __enter__(self) -> ReaderPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        """Make a call whose result is needed later. Without threads it is made now, and its error is raised now."""
        if self._executor:
            return self._executor.submit(function, *arguments)
        done: Future[R] = Future()
        done.set_result(function(*arguments))
        return done

    def map(self, function: Callable[[Any], R], rows: Iterable[Any]) -> Iterator[R]:
        """Yield function(row) for each of `rows`, in their order.

        rows: taken in the caller's thread, ahead of the results by at most two rows for each thread. An error that they
            raise comes after the results of the rows before it.
        """
        if not self._executor:
            yield from map(function, rows)
            return
        submitted, ahead = self._submitted(function, rows), deque[Future[R]]()
        while True:
            ahead.extend(islice(submitted, self._most_ahead - len(ahead)))
            if not ahead:
                return
            yield ahead.popleft().result()

    def _submitted(self, function: Callable[[Any], R], rows: Iterable[Any]) -> Iterator[Future[R]]:
        try:
            for row in rows:
                yield self.submit(function, row)
        except Exception as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            yield failed
