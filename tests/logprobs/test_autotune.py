"""The choice between FlexAttention and SDPA. No device is needed: calls claim to come from one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from mmbdhs.logprobs import autotune
from mmbdhs.vlm import CAUSAL, LayerCall

Path = Callable[[LayerCall], Tensor]
CUDA = torch.device("cuda", 0)


def draw_call(dtype: torch.dtype = torch.float32, learns: bool = True) -> LayerCall:
    query, key, value = (torch.randn(1, heads, 3, 8, dtype=dtype).requires_grad_(learns) for heads in (4, 2, 2))
    return LayerCall(nn.Identity(), query, key, value, None, 0.3, 0.0)


def product(call: LayerCall) -> Tensor:
    return call.query * call.key.mean() + call.value.square().sum()


def failing(call: LayerCall) -> Tensor:
    raise RuntimeError("no such block size\nand more")


def wrong(call: LayerCall) -> Tensor:
    """The right values with wrong gradients."""
    return product(call) + 0.1 * (call.key - call.key.detach()).sum()


class Counted:
    """A path that counts its calls."""

    def __init__(self, path: Path) -> None:
        self.path, self.calls = path, 0

    def __call__(self, call: LayerCall) -> Tensor:
        self.calls += 1
        return self.path(call)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.MonkeyPatch:
    monkeypatch.delenv("MMBDHS_PACKED_ATTENTION", raising=False)
    monkeypatch.setattr(autotune, "_CHOSEN", {})
    caplog.set_level(logging.INFO, "mmbdhs")
    return monkeypatch


@pytest.fixture
def on_cuda(fresh: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Calls look like those of a device of capability 9.0, on which FlexAttention is faster."""
    kind = autotune._kind

    def moved(*arguments: object) -> autotune._Kind:
        found = kind(*arguments)
        return replace(found, shape=replace(found.shape, device=CUDA))

    fresh.setattr(autotune, "_kind", moved)
    fresh.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fresh.setattr(autotune, "least_seconds", lambda paths, device: {"flex": 0.001, "sdpa": 0.002})
    return fresh


def run(flex: Path, sdpa: Path = product, call: LayerCall | None = None, windowed: bool = False) -> Tensor:
    return autotune.attend(call or draw_call(), CAUSAL, windowed, {"flex": flex, "sdpa": sdpa})


def choices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "packed responses runs on" in message]


def test_a_cpu_runs_sdpa_and_times_nothing(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    sdpa = Counted(product)
    run(failing, sdpa)
    run(failing, sdpa)
    (message,) = caplog.messages
    assert sdpa.calls == 2 and "on the sdpa path (causal, 4/2 heads of size 8" in message


@pytest.mark.parametrize("faster", ["flex", "sdpa"])
def test_the_faster_path_is_chosen_and_announced_once(
    faster: str, on_cuda: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_cuda.setattr(autotune, "least_seconds", lambda paths, device: {"flex": 0.002, "sdpa": 0.002} | {faster: 0.001})
    paths = {name: Counted(product) for name in ("flex", "sdpa")}
    run(**paths)
    assert {name: path.calls for name, path in paths.items()} == {"flex": 1, "sdpa": 1} | {faster: 2}
    run(**paths)
    assert paths[faster].calls == 3
    (message,) = choices(caplog)
    assert f"on the {faster} path" in message and "with gradients" in message and f"{faster} 1.000 ms" in message


def test_kinds_of_calls_are_measured_one_by_one(on_cuda: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    calls = [draw_call(), draw_call(torch.bfloat16), draw_call(learns=False), draw_call()._replace(softcap=2.0)]
    for call in [*calls, *calls]:
        run(product, call=call)
        run(product, call=call, windowed=True)
    with torch.no_grad():
        run(product, call=calls[0])  # like the one without gradients
    assert len(choices(caplog)) == 8
    assert sum("last layer" in message for message in choices(caplog)) == 4


def test_policy_and_reference_share_a_path_on_a_gpu() -> None:
    """Only inference mode, in which nothing can be tried with gradients, is a kind of its own."""

    def kind() -> autotune._Kind:
        operands = [torch.empty(1, heads, 3, 8, device="cuda") for heads in (4, 2, 2)]
        return autotune._kind(LayerCall(nn.Identity(), *operands, None, 0.3, 0.0), CAUSAL, False)

    with FakeTensorMode():
        policy = kind()
        with torch.no_grad():
            reference = kind()
        with torch.inference_mode():
            inference = kind()
    assert policy.learns and policy == reference
    assert inference == replace(policy, learns=False)


@pytest.mark.parametrize(
    ("flex", "reason"),
    [(failing, "FlexAttention failed with RuntimeError: no such block size"), (wrong, "computed something else")],
)
def test_sdpa_takes_over_where_flex_attention_fails(
    flex: Path, reason: str, on_cuda: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flex, sdpa, call = Counted(flex), Counted(product), draw_call()
    for number in (1, 2):
        assert torch.equal(run(flex, sdpa, call), product(call))
        assert flex.calls == 1 and sdpa.calls >= number
    (message,) = choices(caplog)
    assert "on the sdpa path" in message and message.endswith(reason)


def test_sdpa_takes_over_where_a_later_batch_fails(
    on_cuda: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flex, call = Counted(product), draw_call()
    run(flex, call=call)
    flex.path = failing
    assert torch.equal(run(flex, call=call), product(call))
    assert flex.calls == 3
    assert torch.equal(run(flex, call=call), product(call))
    assert flex.calls == 3
    assert ["flex path" in message for message in choices(caplog)] == [True, False]


@pytest.mark.parametrize("later", [False, True])
def test_a_full_device_is_no_reason_to_change_paths(later: bool, on_cuda: pytest.MonkeyPatch) -> None:
    def full(call: LayerCall) -> Tensor:
        raise torch.OutOfMemoryError("full")

    if later:
        run(product)
    with pytest.raises(torch.OutOfMemoryError):
        run(full)


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [((7, 5), torch.float32, "compute capability 8.0"), ((9, 0), torch.float64, "float16, got torch.float64")],
)
def test_what_flex_attention_does_not_take(
    capability: tuple[int, int],
    dtype: torch.dtype,
    reason: str,
    on_cuda: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    on_cuda.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    run(failing, call=draw_call(dtype))
    assert choices(caplog)[0].endswith(reason)
    on_cuda.setenv("MMBDHS_PACKED_ATTENTION", "flex")
    with pytest.raises(ValueError, match=f"MMBDHS_PACKED_ATTENTION must be 'sdpa' here, got 'flex': .*{reason}"):
        run(failing, call=draw_call(dtype))


def test_the_override(fresh: pytest.MonkeyPatch) -> None:
    call = draw_call(learns=False)
    fresh.setenv("MMBDHS_PACKED_ATTENTION", "flex")
    assert torch.equal(run(product, failing, call), product(call))
    with pytest.raises(RuntimeError, match="no such block size"):
        run(failing, product, call)
    with pytest.raises(ValueError, match="got 'flex': FlexAttention computes no gradients on a CPU"):
        run(product, product, draw_call())
    fresh.setenv("MMBDHS_PACKED_ATTENTION", "sdpa")
    assert torch.equal(run(failing, product, call), product(call))
    fresh.setenv("MMBDHS_PACKED_ATTENTION", "fast")
    with pytest.raises(ValueError, match="MMBDHS_PACKED_ATTENTION must be 'flex' or 'sdpa', got 'fast'"):
        run(product)


def test_a_trial_inside_a_checkpoint_leaves_no_trace(on_cuda: pytest.MonkeyPatch) -> None:
    """The layer runs again in backward, but the trial does not."""
    flex, call = Counted(product), draw_call()
    operands = (call.query, call.key, call.value)

    def layer(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return run(flex, call=call._replace(query=query, key=key, value=value))

    wanted = torch.autograd.grad(product(call).square().sum(), operands)
    found = torch.autograd.grad(checkpoint(layer, *operands, use_reentrant=False).square().sum(), operands)
    assert flex.calls == 3  # the trial, forward and backward
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_clock_takes_turns() -> None:
    calls: list[str] = []
    paths = {name: (lambda name=name: calls.append(name)) for name in ("flex", "sdpa")}
    seconds = autotune.least_seconds(paths, torch.device("cpu"))
    assert list(seconds) == ["flex", "sdpa"] and all(time > 0 for time in seconds.values())
    assert calls == ["flex", "sdpa"] * (len(calls) // 2) and len(calls) >= 8
