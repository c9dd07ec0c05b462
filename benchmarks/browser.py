"""Headless Chromium, driven by its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_COMMAND = ("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--hide-scrollbars")
_PATIENCE = 60  # seconds
_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}


def chromium() -> str | None:
    """The path of a Chromium or Chrome; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """A page in the browser."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._number, self._session = os.fdopen(read, "rb"), write, 0, None
        self._rest, self._events = b"", []
        targets = self._send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self._send("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        self._send("Page.enable")
        self._send("Runtime.enable")

    def open(self, page: Path) -> None:
        """Load a file and wait until it is complete."""
        self._events.clear()
        self._send("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._message())

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self._send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys one after another, as a person does."""
        for key in keys:
            event = {"key": key, "windowsVirtualKeyCode": _CODES.get(key, 0)}
            self._send("Input.dispatchKeyEvent", type="keyDown", **event, **({} if key in _CODES else {"text": key}))
            self._send("Input.dispatchKeyEvent", type="keyUp", **event)

    def resize(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the view, its colour scheme, and whether it is that of a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> None:
        """Write what the view shows as a PNG file."""
        file.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"]))

    def errors(self) -> list[str]:
        """What the page's script has thrown since it was opened."""
        thrown = [event for event in self._events if event["method"] == "Runtime.exceptionThrown"]
        return [event["params"]["exceptionDetails"]["text"] for event in thrown]

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self._send("Browser.close")

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], _PATIENCE)[0]:
                raise RuntimeError(f"the browser has said nothing for {_PATIENCE} s")
            chunk = os.read(self._read.fileno(), 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(program: str) -> Iterator[Tab]:
    """A tab of a new browser, which ends with the context.

    program: as `chromium` finds it.
    """
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Chromium reads from 3 and writes to 4; the copies have numbers that these do not overwrite.
    source, target = (fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 10) for handle in (theirs_in, theirs_out))

    def connect() -> None:
        os.dup2(source, 3)
        os.dup2(target, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which root cannot have
        command = [program, *_COMMAND, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for handle in (theirs_in, theirs_out, source, target):
            os.close(handle)
        try:
            tab = Tab(ours_in, ours_out)
            yield tab
            tab.close()
            process.wait(timeout=20)
        finally:
            process.kill()
            process.wait()
            os.close(ours_out)
