"""PyTorch's SDPA as the library calls it: against the plain definition, and what it is handed on a GPU."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from mmbdhs.native import sdpa_attention, softmax_attention

GROUPS = ((1, 1), (8, 2), (7, 1))  # query heads, key heads


def draw(heads: tuple[int, int], queries: int, keys: int, **settings: Any) -> list[torch.Tensor]:
    shapes = ((heads[0], queries, 32), (heads[1], keys, 32), (heads[1], keys, 32))
    return [torch.randn(shape, **settings) for shape in shapes]


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 129), (31, 31)])
@pytest.mark.parametrize("heads", GROUPS)
def test_masked_sdpa_is_the_definition(heads: tuple[int, int], queries: int, keys: int, softcap: float) -> None:
    torch.manual_seed(0)
    operands = draw(heads, queries, keys)
    seen = torch.rand(queries, keys) < 0.5
    seen[:, 0] = True
    wanted, _ = softmax_attention(*operands, seen, 0.3, softcap)
    torch.testing.assert_close(sdpa_attention(*operands, seen, 0.3, softcap), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("heads", GROUPS)
def test_sdpa_without_a_mask_is_causal(heads: tuple[int, int], softcap: float) -> None:
    torch.manual_seed(0)
    operands = draw(heads, 31, 31)
    wanted, _ = softmax_attention(*operands, torch.ones(31, 31).tril().bool(), 0.3, softcap)
    torch.testing.assert_close(sdpa_attention(*operands, None, 0.3, softcap), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("device", "masked", "key_heads"), [("cuda", True, 8), ("cuda", False, 2), ("cpu", True, 2), ("cpu", False, 2)]
)
def test_heads_are_expanded_under_a_mask_on_cuda(
    device: str, masked: bool, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes alone: a build without CUDA answers no question about its kernels (`can_use_efficient_attention`)."""
    calls: list[tuple[list[int], bool]] = []

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
        calls.append(([x.shape[1] for x in (q, k, v)], settings["enable_gqa"]))
        return q

    monkeypatch.setattr(functional, "scaled_dot_product_attention", sdpa)
    with FakeTensorMode():
        seen = torch.ones(5, 9, dtype=torch.bool, device=device)
        sdpa_attention(*draw((8, 2), 5, 9, device=device), seen if masked else None, 0.3)
    assert calls == [([8, key_heads, key_heads], key_heads == 2)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_heads_need_no_score_matrix_on_cuda(dtype: torch.dtype) -> None:
    operands = draw((8, 2), 129, 500, device="cuda", dtype=dtype)
    seen = torch.rand(129, 500, device="cuda") < 0.5
    seen[:, 0] = True
    wanted, _ = softmax_attention(*(x.double() for x in operands), seen, 0.3, 0.0)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
        found = sdpa_attention(*operands, seen, 0.3)  # raises where that kernel cannot take them
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=tolerance)
