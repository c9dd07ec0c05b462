"""What the commands that run a model over data take alike: model, data and device by name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmbdhs.data import Records, open_records

_NAME_ON_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What a command over a data set takes, by the names of TRL's scripts.

    model_name_or_path: folder or name of model and processor.
    dataset_name: a JSON, JSONL or Parquet file, a folder of Parquet files, or one saved by `datasets`, in any layout of
        docs/data.md; or the name of a data set on the Hub.
    dataset_config: name of a configuration of the data set on the Hub.
    dataset_train_split: the split that is read where there are several.
    image_folder: where relative paths of images start; None: the folder of the data.
    dtype: dtype of the weights; auto: the stored one.
    config: YAML or JSON file with options; those of the command line override it.
    """

    model_name_or_path: str = field(metadata={"aliases": ["--model"]})
    dataset_name: str = field(metadata={"aliases": ["--data"]})
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    image_folder: str | None = None
    dtype: str = "auto"
    config: str | None = None

    def open_records(self, turns: str, split: str | None = None) -> Records:
        """The records of the data set, of its training split unless another is named."""
        split = split or self.dataset_train_split
        return open_named(self.dataset_name, self.dataset_config, split, turns, self.image_folder)


def open_named(
    name: str, config: str | None = None, split: str = "train", turns: str = "last", image_folder: str | None = None
) -> Records:
    """The records of a file or folder, or of a data set on the Hub if there is none of this name.

    Raises what `open_records` raises, and ValueError for a data set that cannot be loaded from the Hub.
    """
    data: Any = name
    if not Path(name).exists() and _NAME_ON_HUB.fullmatch(name) and not Path(name).suffix:
        data = _of_hub(name, config, split)
    return open_records(data, turns=turns, image_folder=image_folder, split=split)


def _of_hub(name: str, config: str | None, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("dataset_name: needs the extra 'data' for the Hub: pip install 'mmbdhs[data]'") from error
    try:
        return load_dataset(name, config, split=split)
    except Exception as error:  # of the network, of the login, of the files
        raise ValueError(
            f"dataset_name: needs a file, a folder or a data set of the Hub, got {name!r}: {error}"
        ) from error


def load_model(name: str, dtype: str) -> tuple[Any, Any]:
    """Model and processor, from a folder or by name.

    dtype: "auto" for the stored one, or the name of a torch dtype.

    Raises ValueError that names the option if they cannot be loaded.
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype: needs auto or the name of a torch dtype, got {dtype!r}")
    try:
        return AutoModelForImageTextToText.from_pretrained(name, dtype=dtype), AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model_name_or_path: needs a folder or name of model and processor, got {name!r}: {error}"
        ) from error


def check_device(name: str | None) -> torch.device:
    """The device with this name; without one an accelerator if there is any, under torchrun one for each process.
    Raises ValueError that names the option."""
    if name is not None:
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device: needs a device such as cuda:1 or cpu, got {name!r}") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, local_rank)
