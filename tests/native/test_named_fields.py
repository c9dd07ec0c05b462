"""Structs cross into C++ by the names of their fields: none can be missing, be left over or change places."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import attention_truth as truth
from helpers.ragged import flat

from mmbdhs.native import Masked, SharedPrefix, Splices, _extension, binding

Operands = SharedPrefix | Masked | Splices


def record(monkeypatch: pytest.MonkeyPatch, op: str, operands: Operands) -> tuple[dict[str, int], tuple]:
    """The fields that `binding` hands to the op of the extension, and what else it hands over."""
    seen: list[Any] = []
    run = getattr(_extension, op)
    with monkeypatch.context() as patch:
        patch.setattr(binding, "_extension", SimpleNamespace(**{op: lambda *given: seen.append(given) or run(*given)}))
        getattr(binding, op)(operands)
    fields, *rest = seen[0]
    return fields, tuple(rest)


def cases() -> dict[str, tuple[str, Operands]]:
    """For each struct an op that fills it, with operands."""
    prefix = truth.random_shared_prefix(3, (4, 2), 32, 9, 5, examples=2, gather=True)
    q, k = torch.randn(2, 4, 3, 32), torch.randn(2, 2, 5, 32)
    text = flat(["Yes, a cat. It sits.", "No"])
    splices = (*text, *binding.split_sentences(*text), torch.tensor([True, False, True]), torch.tensor([5, 3, 2]))
    return {
        "SharedPrefix": ("shared_prefix_attention", SharedPrefix(**prefix)),
        "Masked": ("masked_attention", Masked(q, k, k.clone(), torch.ones(2, 5, dtype=torch.bool), causal=True)),
        "Splices": ("join_splices", Splices(*splices, *flat(["a", "b", "c"]))),
    }


@pytest.mark.parametrize("struct", cases())
def test_names_are_those_of_the_struct(monkeypatch: pytest.MonkeyPatch, struct: str) -> None:
    fields, _ = record(monkeypatch, *cases()[struct])
    assert set(fields) == set(_extension.struct_fields()[struct])


@pytest.mark.parametrize("struct", cases())
def test_wrong_names_are_refused(monkeypatch: pytest.MonkeyPatch, struct: str) -> None:
    op, operands = cases()[struct]
    fields, rest = record(monkeypatch, op, operands)
    for name in fields:
        others = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(TypeError, match=f"fields: needs {len(fields)} names, got {len(fields) - 1}"):
            getattr(_extension, op)(others, *rest)
        with pytest.raises(TypeError, match=f"fields: needs '{name}', which is missing"):
            getattr(_extension, op)({**others, "stray": 0}, *rest)
        with pytest.raises(TypeError):
            getattr(_extension, op)({**fields, name: None}, *rest)
    with pytest.raises(TypeError, match=f"fields: needs {len(fields)} names, got {len(fields) + 1}"):
        getattr(_extension, op)({**fields, "stray": 0}, *rest)
    with pytest.raises(TypeError):
        getattr(_extension, op)(tuple(fields.values()), *rest)


def test_order_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers come out of fields in any order."""
    operands = cases()["SharedPrefix"][1]
    expected = truth.shared_prefix(operands._asdict())
    run, shuffle = _extension.shared_prefix_attention, random.Random(0)

    def shuffled(fields: dict[str, int], *rest: Any) -> None:
        run(dict(shuffle.sample(list(fields.items()), len(fields))), *rest)

    monkeypatch.setattr(binding, "_extension", SimpleNamespace(shared_prefix_attention=shuffled))
    for _ in range(5):
        truth.assert_close(binding.shared_prefix_attention(operands), expected)


def test_every_stride_has_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors with strides that differ from each other: each is found under the name of its tensor and dimension."""
    shapes = {"q": (3, 4), "k_prefix": (2, 9), "v_prefix": (2, 9), "k_suffix": (3, 2, 5), "v_suffix": (3, 2, 5)}
    views = {
        name: torch.zeros(*(size + pad for size in shape), 32)[tuple(slice(size) for size in shape)]
        for pad, (name, shape) in enumerate(shapes.items())
    }
    count = torch.ones(3, dtype=torch.int32)
    operands = SharedPrefix(**views, prefix_count=count, suffix_length=count)
    fields, _ = record(monkeypatch, "shared_prefix_attention", operands)
    dimensions = {
        "q": ("q", "branch head"),
        "kp": ("k_prefix", "head row"),
        "vp": ("v_prefix", "head row"),
        "ks": ("k_suffix", "branch head row"),
        "vs": ("v_suffix", "branch head row"),
    }
    for short, (name, names) in dimensions.items():
        strides = [fields[f"{short}_{dimension}"] for dimension in names.split()]
        assert strides == list(views[name].stride()[:-1])
