"""Packed rows by FlexAttention: against SDPA part by part and against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers.masking_utils import and_masks, causal_mask_function, chunked_overlay, sliding_window_overlay

from mmbdhs.logprobs import flex_attention
from mmbdhs.logprobs.packed_attention import PackedAttention
from mmbdhs.vlm import CAUSAL, DecoderInputs, LayerCall, MaskRule
from mmbdhs.vlm.mask_rules import EVERYTHING, rule_mask, stacked

SIZE = 16
PROMPTS, LENGTHS = [13, 150, 7], [[5, 0, 9], [30, 1, 2], [3, 3, 3]]  # rows of 27, 183 and 16 tokens
WINDOW = MaskRule(and_masks(sliding_window_overlay(6), causal_mask_function))
CHUNKS = MaskRule(and_masks(chunked_overlay(8, torch.zeros(3, dtype=torch.int64)), causal_mask_function))
BOTH_WAYS = stacked([EVERYTHING.then(CAUSAL, prompt) for prompt in PROMPTS])
RULES = {"causal": CAUSAL, "window": WINDOW, "chunks": CHUNKS, "prefix": BOTH_WAYS, "everything": EVERYTHING}
CASES = [("causal", 0.0), ("window", 2.0), ("chunks", 0.0), ("prefix", 2.0), ("everything", 0.0)]


def packed(prompts: list[int], lengths: list[list[int]]) -> tuple[PackedAttention, int]:
    """The attention of packed rows, and their padded length."""
    rows = []
    for prompt, responses in zip(prompts, lengths, strict=True):
        indices = torch.cat([torch.arange(prompt), *(prompt + torch.arange(n) for n in responses)])
        embeds = torch.zeros(len(indices), 1)
        rows.append(DecoderInputs(embeds, indices[None], torch.zeros(0, dtype=torch.int64), indices, prompt))
    return PackedAttention(rows, lengths, eager=False), max(map(len, rows))


def draw_call(
    rule: MaskRule, length: int, queries: int, heads: tuple[int, int], softcap: float, learns: bool, rows: int = 3
) -> LayerCall:
    chance = torch.Generator().manual_seed(0)
    shapes = ((queries, heads[0]), (length, heads[1]), (length, heads[1]))
    query, key, value = (
        torch.randn(rows, tokens, count, SIZE, generator=chance).transpose(1, 2).requires_grad_(learns)
        for tokens, count in shapes
    )
    mask = rule_mask(rule, rows, length, length, "cpu")
    return LayerCall(nn.Identity(), query, key, value, mask, 0.3, softcap)


def with_gradients(attend: Callable[[LayerCall], Tensor], call: LayerCall) -> list[Tensor]:
    out = attend(call)
    weights = torch.linspace(-1, 1.5, out.numel()).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), (call.query, call.key, call.value))]


def in_double(rule: MaskRule, call: LayerCall, begins: list[int]) -> Tensor:
    """Attention in float64 with a mask that is written token by token, for the whole or a part of each row."""
    group = call.query.shape[1] // call.key.shape[1]
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (call.key, call.value))
    scores = call.query.double() @ key.transpose(2, 3) * call.scale
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    seen = torch.zeros(scores.shape[0], *scores.shape[2:], dtype=torch.bool)
    for row, (prompt, responses, begin) in enumerate(zip(PROMPTS, LENGTHS, begins, strict=True)):
        tokens = [(0, i) for i in range(prompt)]
        tokens += [(part, prompt + i) for part, length in enumerate(responses, 1) for i in range(length)]
        for q, (part, query) in enumerate(tokens[begin : begin + scores.shape[2]]):
            for k, (other, index) in enumerate(tokens):
                earlier = index <= query or (rule in (BOTH_WAYS, EVERYTHING) and part == other == 0)
                near = index > query - 6 if rule is WINDOW else rule is not CHUNKS or index // 8 == query // 8
                seen[row, q, k] = other in (0, part) and earlier and near
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(("rule", "softcap"), CASES)
def test_flex_equals_sdpa_and_float64(
    rule: str, windowed: bool, softcap: float, flex_twin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, length = packed(PROMPTS, LENGTHS)
    windows = attention.windows(length)
    heads = (3, 3) if rule == "causal" else (4, 2)
    call = draw_call(RULES[rule], length, windows.shape[1] if windowed else length, heads, softcap, True)
    attend = attention.attend_windows if windowed else attention.attend
    begins = windows[:, 0].tolist() if windowed else [0, 0, 0]
    found = with_gradients(attend, call)
    monkeypatch.setenv("MMBDHS_PACKED_ATTENTION", "sdpa")
    others = with_gradients(attend, call)
    truth = with_gradients(lambda call: in_double(RULES[rule], call, begins), call)
    for flex, sdpa, exact in zip(found, others, truth, strict=True):
        torch.testing.assert_close(flex, sdpa, rtol=0, atol=1e-5)
        torch.testing.assert_close(flex.double(), exact.double(), rtol=0, atol=1e-5)


def test_autocast_takes_what_sdpa_takes(flex_twin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary embeddings leave queries and keys in float32, values come out of a product in bfloat16."""
    attention, length = packed(PROMPTS, LENGTHS)
    call = draw_call(WINDOW, length, length, (4, 2), 0.0, True)
    mixed = call._replace(value=call.value.to(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.attend(mixed)
        monkeypatch.setenv("MMBDHS_PACKED_ATTENTION", "sdpa")
        assert found.dtype == attention.attend(mixed).dtype == torch.bfloat16
    truth = in_double(WINDOW, call, [0, 0, 0])
    assert (found - truth).norm() < 1e-2 * truth.norm()


def test_compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, length = packed(PROMPTS, LENGTHS)
    call = draw_call(BOTH_WAYS, length, length, (4, 2), 2.0, False)
    monkeypatch.setenv("MMBDHS_PACKED_ATTENTION", "flex")
    truth = in_double(BOTH_WAYS, call, [0, 0, 0])
    torch.testing.assert_close(attention.attend(call).double(), truth, rtol=0, atol=1e-5)


def test_not_every_batch_is_compiled_again(flex_twin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of other lengths and other numbers of rows need no graph of their own."""
    counter = CompileCounter()
    counted = torch.compile(flex_attention._attend, fullgraph=True, dynamic=True, backend=counter)
    monkeypatch.setattr(flex_attention, "compiled", lambda kind: counted)
    graphs = []
    for rows in (2, 3, 5):
        prompts, lengths = [130 + 60 * rows] * rows, [[129, rows]] * rows
        attention, length = packed(prompts, lengths)
        for rule in (CAUSAL, stacked([EVERYTHING.then(CAUSAL, prompt) for prompt in prompts])):
            attention.attend(draw_call(rule, length, length, (4, 1), 0.0, False, rows))
            count = attention.windows(length).shape[1]
            attention.attend_windows(draw_call(rule, length, count, (4, 1), 0.0, False, rows))
        graphs.append(counter.frame_count)
    assert 2 <= graphs[0] <= 4 and graphs[1:] == graphs[:1] * 2


def test_it_never_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, length = packed(PROMPTS, LENGTHS)
    monkeypatch.setenv("MMBDHS_PACKED_ATTENTION", "flex")
    with torch.compiler.set_stance("force_eager"), pytest.raises(RuntimeError, match=r"needs torch\.compile"):
        attention.attend(draw_call(CAUSAL, length, length, (4, 2), 0.0, False))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(("rule", "softcap"), CASES)
def test_compiled_on_a_gpu(
    rule: str, softcap: float, windowed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, length = packed(PROMPTS, LENGTHS)
    windows = attention.windows(length)
    call = draw_call(RULES[rule], length, windows.shape[1] if windowed else length, (4, 2), softcap, True)
    operands = {name: getattr(call, name).detach().to("cuda", dtype) for name in ("query", "key", "value")}
    call = call._replace(**{name: x.requires_grad_() for name, x in operands.items()})
    monkeypatch.setenv("MMBDHS_PACKED_ATTENTION", "flex")
    found = with_gradients(attention.attend_windows if windowed else attention.attend, call)
    exact = call._replace(**{name: x.detach().cpu().requires_grad_() for name, x in operands.items()})
    begins = windows[:, 0].tolist() if windowed else [0, 0, 0]
    truth = with_gradients(lambda call: in_double(RULES[rule], call, begins), exact)
    for flex, wanted in zip(found, truth, strict=True):
        assert (flex.cpu().double() - wanted).norm() < (2e-2 if dtype == torch.bfloat16 else 2e-3) * wanted.norm()
