"""What a run's results depend on, as JSON-ready records without secrets, and where two such records differ."""

from __future__ import annotations

import inspect
import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from mmbdhs.doctor import installed_version
from mmbdhs.vlm import VLM

_SECRET = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)


def installed_versions(*packages: str) -> dict[str, str | None]:
    """The versions of Python and of the packages."""
    return {"python": platform.python_version(), **{name: installed_version(name) for name in packages}}


def describe(value: Any) -> Any:
    """A value as JSON: dataclasses by their fields, functions and other objects by their names."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _described(str(name), item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": _name(type(value))} | {
            one.name: _described(one.name, getattr(value, one.name)) for one in fields(value)
        }
    if isinstance(value, partial):
        return {"type": describe(value.func), "args": describe(value.args), **describe(value.keywords)}
    return _name(value if inspect.isroutine(value) or isinstance(value, type) else type(value))


def _described(name: str, value: Any) -> Any:
    secret = isinstance(value, str) and _SECRET.search(name)
    return "(not recorded)" if secret else describe(value)


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None) or 'builtins'}.{getattr(value, '__qualname__', type(value).__name__)}"


def model_fingerprint(model: nn.Module) -> str:
    """A hash of the parameters' names, shapes, dtypes and up to 16 values of each that has values here."""
    digest = blake2b(digest_size=16)
    for part in _parameter_parts(model):
        digest.update(repr(part).encode())
    return digest.hexdigest()


def processor_fingerprint(processor: Any) -> str:
    """A hash of a processor's settings, chat template and tokenizer."""
    tokenizer, images = getattr(processor, "tokenizer", processor), getattr(processor, "image_processor", None)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Every call sets these two anew.
    rules = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    parts = [type(processor).__name__, template, rules, images and images.to_dict()]
    return blake2b(json.dumps(parts, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def model_identity(model: nn.Module, processor: Any) -> dict[str, Any]:
    """What the results of a run depend on, of its model, processor and machine.

    The number of threads counts on a CPU, because sums are cut by it.
    """
    vlm = VLM.of(model)
    device = vlm.device.type
    return {
        "model": {
            "name": vlm.model.name_or_path,
            "fingerprint": model_fingerprint(model),
            "dtype": str(vlm.dtype),
        },
        "processor": processor_fingerprint(processor),
        "device": device,
        "threads": torch.get_num_threads() if device == "cpu" else None,
    }


def _parameter_parts(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    for name, parameter in model.named_parameters():
        values: list[float] = []
        if parameter.device.type != "meta" and parameter.numel():
            flat = parameter.detach().reshape(-1)
            picked = torch.linspace(0, len(flat) - 1, min(16, len(flat)), dtype=torch.float64).long()
            values = flat[picked.to(flat.device)].double().tolist()
        yield name, tuple(parameter.shape), str(parameter.dtype), values


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two records differ, as "path: old, now new". What the old one lacks is not compared."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [differences(old[name], new.get(name), f"{path}.{name}".lstrip(".")) for name in sorted(old)]
        return [line for part in parts for line in part]
    return [] if old == new else [f"{path}: {old!r}, now {new!r}"]
