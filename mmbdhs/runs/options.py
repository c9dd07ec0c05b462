"""What the commands that run a model have in common: dataclasses as options, values, and models by name."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the long usage, so that all wrong arguments are reported alike."""
        raise ValueError(message)


def parse_options(argv: Sequence[str], kinds: Sequence[type], usage: str, description: str) -> tuple[Any, ...]:
    """The options of a command, as one instance of each dataclass.

    argv: words of the command line.
    kinds: dataclasses whose fields are the options. A field's help is in its metadata or in the docstring, as a line
        "name: text". `--config FILE` takes a JSON object with fields of the last one; other words override it.
    usage, description: for --help.

    Raises ValueError or TypeError for wrong words.
    """
    parser = _Parser(cast("Any", list(kinds)), usage=usage, description=description)
    texts = {name: text for kind in kinds for name, text in documented_fields(kind).items()}
    for action in parser._actions:
        action.help = action.help or texts.get(action.dest, "").replace("%", "%%")
    every = [one for kind in kinds for one in fields(kind)]
    needed = [one.name for one in every if one.default is one.default_factory is MISSING]
    parser.set_defaults(**dict.fromkeys(needed, argparse.SUPPRESS))  # no "(default: None)"
    # Numbers are read as JSON, so that they can be None and the dataclasses' own checks report wrong ones.
    for number in (int, float):
        parser.register("type", number, parse_value)
    parser.register("type", str, lambda text: None if text == "None" else text)
    argv = [*_config_file_arguments(argv, kinds[-1]), *argv]
    *found, unused = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    words = (word.lstrip("-").partition("=")[0].replace("-", "_") for word in unused)
    check_known("option", words, [one.name for one in every])
    return tuple(found)


def documented_fields(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say about each field: lines "name: text" and what continues them."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        lines = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", one.__doc__ or "", re.MULTILINE)
        found |= {name: " ".join(text.split()).removesuffix(".") for name, text in lines}
    return found


def _config_file_arguments(argv: Sequence[str], kind: type) -> list[str]:
    """The settings in the file of --config as arguments. Arguments that follow override them."""
    parser = _Parser(add_help=False)
    parser.add_argument("--config", type=Path)
    if (file := parser.parse_known_args(argv)[0].config) is None:
        return []
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--config: needs a JSON file, got {file}: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config: needs a JSON object, got {settings!r} in {file}")
    check_known("config", settings, [one.name for one in fields(kind)])
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]


def check_known(what: str, names: Iterable[str], choices: Iterable[str]) -> None:
    """Raise ValueError for the first name that is not among the choices, and suggest the nearest choice."""
    choices = sorted(choices)
    for name in names:
        if name not in choices:
            nearest = difflib.get_close_matches(name, choices, n=1)
            hint = f"is it {nearest[0]!r}?" if nearest else f"known: {', '.join(choices)}"
            raise ValueError(f"{what}: {name!r} is unknown; {hint}")


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """The settings KEY=VALUE by name. Raises ValueError for anything else."""
    split = [word.partition("=") for word in words]
    if wrong := [word for word, (_, sign, _) in zip(words, split, strict=True) if not sign]:
        raise ValueError(f"settings: need KEY=VALUE, got {wrong[0]!r}")
    return {key: parse_value(value) for key, _, value in split}


def parse_value(text: str) -> Any:
    """The value of a JSON text, None for "None", or else the text itself."""
    try:
        return None if text == "None" else json.loads(text)
    except json.JSONDecodeError:
        return text


def load_model(name: str, dtype: str) -> tuple[Any, Any]:
    """Model and processor, from a folder or by name.

    dtype: "auto" for the stored one, or the name of a torch dtype.

    Raises ValueError that names the option if they cannot be loaded.
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"--dtype: needs auto or the name of a torch dtype, got {dtype!r}")
    try:
        return AutoModelForImageTextToText.from_pretrained(name, dtype=dtype), AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model: needs a folder or name of model and processor, got {name!r}: {error}") from error


def check_device(name: str | None) -> torch.device:
    """The device with this name; without one an accelerator if there is any, under torchrun one for each process.
    Raises ValueError that names the option."""
    if name is not None:
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"--device: needs a device such as cuda:1 or cpu, got {name!r}") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, local_rank)


def fail(command: str, error: Exception, status: int) -> int:
    """Print an error as one line. Returns the status."""
    print(f"mmbdhs {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return status
