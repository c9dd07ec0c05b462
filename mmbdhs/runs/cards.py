"""The cards of data sets and models, which are README.md in a folder of the Hub."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def fill_card(package: str, template: str, **values: Any) -> str:
    """The text of a card.

    package: the package that has the template.
    template: its file name.
    values: of all its names.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = files(package).joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)
