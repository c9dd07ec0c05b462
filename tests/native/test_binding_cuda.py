"""What `binding` passes to the CUDA functions of the extension, for tensors that claim to be on a device."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.attention_truth import random_shared_prefix
from helpers.ragged import int32, random_keys
from torch.overrides import TorchFunctionMode

from mmbdhs.native import Masked, SharedPrefix, backend, binding, reference

STREAM, WORKSPACE = 0x5EA, 96


class OnCuda(torch.Tensor):
    """Claims to be on the second CUDA device."""

    is_cpu, is_cuda, device = False, True, torch.device("cuda:1")


class OnMps(torch.Tensor):
    """Claims to be on an Apple GPU."""

    is_cpu, device = False, torch.device("mps")


class Allocations(TorchFunctionMode):
    """Allocates on the CPU what is asked for on the device, and keeps the last tensor."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if (kwargs or {}).get("device") != OnCuda.device:
            return func(*args, **kwargs or {})
        self.last = func(*args, **{**kwargs, "device": "cpu"})
        return self.last


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Allocations]:
    """The device has its own stream, which is current only inside `torch.cuda.device`."""
    entered = [None]

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        entered.append(chosen)
        yield
        entered.pop()

    def current_stream() -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=STREAM if entered[-1] == OnCuda.device else 0)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(binding, "kernel_obstacle", lambda device: "")
    with Allocations() as mode:
        yield mode


def test_visible_tokens(allocations: Allocations, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, tokens = random_keys(3).as_subclass(OnCuda), int32(5, 0, 9)
    inputs = (2**64 - 1, keys.data_ptr(), 7, tokens.data_ptr(), 3, 1 << 31)

    def count(*arguments: Any) -> None:
        assert arguments[:6] == inputs and arguments[7:] == (STREAM,)
        (ctypes.c_int64 * 3).from_address(arguments[6])[:] = 2, 0, 3

    def write(*arguments: Any) -> None:
        assert arguments[:6] == inputs and arguments[8:] == (STREAM,)
        assert list((ctypes.c_int64 * 4).from_address(arguments[6])) == [0, 2, 2, 5]
        (ctypes.c_int32 * 5).from_address(arguments[7])[:] = 1, 4, 0, 3, 8

    extension = SimpleNamespace(count_visible_cuda=count, write_visible_cuda=write)
    monkeypatch.setattr(binding, "_extension", extension)
    indices, offsets = binding.sample_visible(-1, keys, 7, tokens, 0.5)
    assert indices.tolist() == [1, 4, 0, 3, 8] and offsets.tolist() == [0, 2, 2, 5]
    assert (indices.dtype, offsets.dtype) == (torch.int32, torch.int64)
    assert binding.sample_visible(-1, keys, 7, int32(5, -1, 9), 0.5) is None


NUMBERS = {"scale": 0.5, "softcap": 3.0}
PREFIX = {**random_shared_prefix(3, (4, 2), 32, 9, 5, examples=2, gather=True), **NUMBERS}
Q, K, VISIBLE = torch.zeros(2, 4, 3, 32), torch.zeros(2, 2, 5, 32), torch.ones(2, 5, dtype=torch.bool)
MASKED = {"q": Q, "k": K, "v": K, "visible": VISIBLE, "causal": True, **NUMBERS}


@pytest.mark.parametrize(
    ("op", "operands"),
    [("shared_prefix_attention", SharedPrefix(**PREFIX)), ("masked_attention", Masked(**MASKED))],
)
def test_attention(
    allocations: Allocations, monkeypatch: pytest.MonkeyPatch, op: str, operands: SharedPrefix | Masked
) -> None:
    """Only the results differ from the fields of the CPU; the workspace has the size that the extension asks for."""
    seen = {}

    def launch(fields: dict[str, int], scale: float, softcap: float, room: int, stream: int) -> None:
        assert allocations.last.data_ptr() == room and allocations.last.nbytes == WORKSPACE
        seen["cuda"] = fields, scale, softcap, stream

    functions = {
        op: lambda fields, *numbers: seen.update(cpu=(fields, *numbers[:2])),
        f"{op}_workspace": lambda fields: seen.update(workspace=fields) or WORKSPACE,
        f"{op}_cuda": launch,
    }
    monkeypatch.setattr(binding, "_extension", SimpleNamespace(**functions))
    run = getattr(binding, op)
    on_cpu = run(operands)
    out, lse = run(operands._replace(q=operands.q.as_subclass(OnCuda)))
    assert (out.shape, lse.shape) == tuple(result.shape for result in on_cpu)
    fields = seen["workspace"]
    assert seen["cuda"] == (fields, 0.5, 3.0, STREAM) and seen["cpu"][1:] == (0.5, 3.0)
    assert (fields["out"], fields["lse"]) == (out.data_ptr(), lse.data_ptr())
    assert {name for name, value in fields.items() if value != seen["cpu"][0][name]} == {"out", "lse"}


@pytest.mark.parametrize(
    ("kind", "built", "capability", "obstacle"),
    [
        (OnCuda, False, (9, 0), "the extension was built without CUDA"),
        (OnCuda, True, (7, 5), "the extension was built for sm_80, sm_90, cuda:1 is sm_75"),
        (OnMps, True, (9, 0), "the extension was built without mps"),
    ],
)
def test_reference_runs_elsewhere(
    kind: type[torch.Tensor],
    built: bool,
    capability: tuple[int, int],
    obstacle: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On devices that the extension has no kernels for the reference backend runs, with one warning."""
    extension = SimpleNamespace(build_info=lambda: {"cuda_archs": "80 90"})
    if built:
        extension.masked_attention_cuda = None
    monkeypatch.setattr(backend, "extension", lambda: (extension, ""))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(reference, "masked_attention", lambda operands: type(operands.q))
    for cached in (backend.kernel_obstacle, binding._announce_plain_attention):
        cached.cache_clear()
    operands = Masked(**MASKED)._replace(q=Q.as_subclass(kind))
    with caplog.at_level(logging.WARNING, logger="mmbdhs"):
        assert [binding.masked_attention(operands) for _ in range(2)] == [kind, kind]
    assert [record.message for record in caplog.records] == [
        f"{obstacle}: attention there runs in plain PyTorch, slowly"
    ]
    counts = PREFIX["prefix_count"].as_subclass(OnMps)
    assert not binding.lengths_fit(SharedPrefix(**{**PREFIX, "prefix_count": counts}))
    backend.kernel_obstacle.cache_clear()


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((8, 0), ["80", "90"], True),
        ((8, 9), ["80", "90"], True),  # the machine code of sm_80
        ((9, 0), ["80", "90"], True),
        ((12, 0), ["80", "90"], True),  # the PTX of sm_90
        ((7, 5), ["80", "90"], False),
        ((8, 0), ["90"], False),
        ((8, 0), ["86", "90"], False),
        ((10, 0), ["100"], True),
    ],
)
def test_kernels_run_on(capability: tuple[int, int], archs: list[str], runs: bool) -> None:
    assert backend.runs_on(capability, archs) == runs
