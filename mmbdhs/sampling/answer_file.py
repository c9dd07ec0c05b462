"""Answers of an endpoint on disk: what was paid for is never asked twice."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmbdhs.data import read_jsonl


class AnswerFile:
    """A JSONL file of requests (as hashes) and their answers, to which every answer is appended as it comes.

    path: the file. A last line that was cut short when a process stopped is left out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_jsonl(path, on_error="skip") if self._path.exists() else []
        self._known: dict[str, str] = {
            row["request"]: row["answer"] for row in rows if {"request", "answer"} <= row.keys()
        }

    def answer(self, request: Mapping[str, Any], ask: Callable[[Any], str]) -> str:
        """The stored answer to the request, or what `ask(request)` returns, which is stored."""
        found = self.find(request)
        if found is None:
            self.keep(request, found := ask(request))
        return found

    def find(self, request: Mapping[str, Any]) -> str | None:
        """The stored answer to the request; None without any."""
        return self._known.get(_key(request))

    def keep(self, request: Mapping[str, Any], answer: str) -> None:
        """Store the answer to the request."""
        key = _key(request)
        with self._lock, open(self._path, "a+b") as file:
            whole = not file.tell() or _last_byte(file) == b"\n"
            line = json.dumps({"request": key, "answer": answer}) + "\n"
            file.write((line if whole else "\n" + line).encode())
            file.flush()
            os.fsync(file.fileno())
            self._known[key] = answer


def _key(request: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(request, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    byte: bytes = file.read(1)
    return byte
