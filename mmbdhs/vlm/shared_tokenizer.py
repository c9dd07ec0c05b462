"""One tokenizer for several threads, whose calls take turns."""

from __future__ import annotations

import inspect
import threading
from typing import Any
from weakref import WeakKeyDictionary

# A tokenizer keeps padding and truncation as settings of its own, which every call changes. Some versions refuse that
# while another thread is at work ("Already borrowed"). All users of a tokenizer therefore wait for the same lock.
_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class TakesTurns:
    """An object whose calls and methods run in one thread at a time; others wait.

    inner: the object itself.
    lock: an RLock, held by whoever runs.
    """

    def __init__(self, inner: Any, lock: Any) -> None:
        self.inner, self.lock = inner, lock

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        with self.lock:
            return self.inner(*arguments, **settings)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        return TakesTurns(value, self.lock) if inspect.isroutine(value) else value


class SharedTokenizer(TakesTurns):
    """A tokenizer that several threads may use at a time, through this object and all others made of it."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, _LOCKS.setdefault(tokenizer, threading.RLock()))

    def __len__(self) -> int:
        return len(self.inner)
