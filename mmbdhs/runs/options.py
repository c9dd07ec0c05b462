"""Commands made of dataclasses: options, values, and objects by name."""

from __future__ import annotations

import argparse
import difflib
import json
import operator
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from transformers import HfArgumentParser


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the long usage, so that all wrong arguments are reported alike."""
        raise ValueError(message)


def parse_options(argv: Sequence[str], kinds: Sequence[type], usage: str, description: str) -> tuple[Any, ...]:
    """The options of a command, as one instance of each dataclass.

    argv: words of the command line.
    kinds: dataclasses whose fields are the options. A field's help is in its metadata or in the docstring, as a line
        "name: text". `--config FILE` takes a YAML or JSON file with options; other words override it.
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
    for kind in (int, float, dict[str, Any]):
        parser.register("type", kind, parse_value)
    parser.register("type", str, lambda text: None if text == "None" else text)
    argv = [*_config_file_arguments(argv, [one.name for one in every]), *argv]
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


def _config_file_arguments(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The options in the file of --config as arguments. Arguments that follow override them."""
    parser = _Parser(add_help=False)
    parser.add_argument("--config", type=Path)
    if (file := parser.parse_known_args(argv)[0].config) is None:
        return []
    try:
        options = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"--config: needs a YAML or JSON file, got {file}: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"--config: needs options by their names, got {options!r} in {file}")
    check_known("config", options, names)
    words = ((name, value if isinstance(value, list) else [value]) for name, value in options.items())
    return [word for name, values in words if values for word in (f"--{name}", *map(_word, values))]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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


def load_object(option: str, name: str) -> Any:
    """What `module:name` names, from a module that can be imported from the current folder.

    option: named in the errors.

    Raises ValueError for a module or a name that is not there.
    """
    module, _, attribute = name.partition(":")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
    try:
        return operator.attrgetter(attribute)(import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option}: needs an object that can be imported, got {name!r}: {error}") from error


def fail(command: str, error: Exception, status: int) -> int:
    """Print an error as one line. Returns the status."""
    print(f"mmbdhs {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return status
