"""How a benchmark is run and what becomes of its rows: a table on screen, JSON lines with device and versions."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """quick: few small shapes, for a first look. rows: a file that gets every row as soon as it is measured. shape: one
    that a benchmark measures only if asked to."""

    quick: bool
    device: torch.device
    rows: Path | None = None
    shape: str = ""


class Table:
    """Prints each row under a common header. A full run that ends well replaces its device's rows in `results/`,
    those of the shape that was asked for or those of the others.

    columns: name -> format, such as ">9.2f". A row may hold more than is shown; what it lacks is shown as "–".
    """

    def __init__(self, benchmark: str, columns: dict[str, str], options: Options) -> None:
        self.rows: list[dict[str, Any]] = []
        self._benchmark, self._columns, self._options = benchmark, columns, options
        self._machine = machine(options.device)

    def __enter__(self) -> Table:
        print(f"\n{self._benchmark}: {self._machine['device']}, torch {torch.__version__}")
        print("  ".join(f"{name:{_aligned(form, name)}}" for name, form in self._columns.items()))
        return self

    def add(self, **row: Any) -> None:
        """Print and keep one row."""
        row = {"threads": torch.get_num_threads()} | row
        print("  ".join(_cell(row.get(name), form, name) for name, form in self._columns.items()), flush=True)
        rounded = {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in row.items()}
        asked = {"asked": self._options.shape} if self._options.shape else {}
        self.rows.append({"benchmark": self._benchmark, **rounded, **asked, **self._machine})
        if self._options.rows:
            with self._options.rows.open("a") as file:
                file.write(json.dumps(self.rows[-1], ensure_ascii=False) + "\n")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error or self._options.quick:
            return
        path = RESULTS / f"{self._benchmark}.jsonl"
        known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        replaced = self._machine["device"], self._options.shape
        kept = [row for row in known if (row["device"], row.get("asked", "")) != replaced]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept + self.rows))


def machine(device: torch.device) -> dict[str, Any]:
    """What a row was measured on."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def _aligned(form: str, name: str) -> str:
    """The alignment and width of a format, at least as wide as the column's name."""
    width = int(form[1:].split(".")[0].rstrip("dfgs") or 0)
    return f"{form[0]}{max(width, len(name))}"


def _cell(value: Any, form: str, name: str) -> str:
    shown = "–" if value is None else format(value, form)
    return f"{shown.strip():{_aligned(form, name)}}"
