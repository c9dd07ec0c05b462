"""The model card of a run, and the upload of its model to the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbdhs.runs import fill_card
from mmbdhs.training.config import TrainConfig

_NAME_ON_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_card(identity: Mapping[str, Any], base_model: str, is_adapter: bool, step: int, numbers: Any) -> str:
    """The text of a model card.

    identity: from `run_identity`.
    base_model: folder or name of the model that was trained.
    is_adapter: whether the folder holds adapters alone.
    step: number of optimiser steps that were done.
    numbers: the newest value of each number of the log.
    """
    return fill_card(
        "mmbdhs.training",
        "model_card.md.jinja",
        identity=identity,
        source=_fields(identity["source"]),
        objective=_fields(identity["objective"]),
        base_model=base_model,
        is_on_hub=bool(_NAME_ON_HUB.fullmatch(base_model)),
        is_adapter=is_adapter,
        step=step,
        numbers=numbers,
    )


def _fields(part: Any) -> Mapping[str, Any]:
    """A part of the identity by its fields; functions and other objects have their name alone."""
    return part if isinstance(part, Mapping) else {"type": part}


@dataclass(frozen=True)
class HubModel:
    """A model's repository on the Hub."""

    name: str

    @classmethod
    def create(cls, config: TrainConfig) -> HubModel:
        """Create the repository, or find it. Raises ValueError if it cannot be written to."""
        from huggingface_hub import create_repo

        name = config.hub_model_id or Path(config.output_dir).absolute().name
        try:
            return cls(create_repo(name, private=config.hub_private_repo, exist_ok=True).repo_id)
        except Exception as error:  # of the network, of the login, of the name
            raise ValueError(f"push_to_hub: cannot create the repository {name!r} on the Hub: {error}") from error

    def upload(self, folder: Path) -> None:
        """Upload a folder. Raises OSError that says where the model is if that fails."""
        from huggingface_hub import upload_folder

        try:
            upload_folder(repo_id=self.name, folder_path=folder, commit_message="Add the model")
        except Exception as error:
            raise OSError(
                f"push_to_hub: the model is complete in {folder}, but was not uploaded: {error}. "
                f"Try again with: hf upload {self.name} {folder}"
            ) from error
