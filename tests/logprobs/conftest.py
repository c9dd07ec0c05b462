from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from mmbdhs.logprobs import autotune, flex_attention


@pytest.fixture
def flex_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention with gradients on a CPU: torch.compile traces the same functions, PyTorch runs them op by op.

    PyTorch compiles FlexAttention for a CPU without gradients only.
    """
    twin = torch.compile(flex_attention._attend, fullgraph=True, dynamic=True, backend="eager")

    def unchecked(*operands: Any) -> None:
        """In place of the check that a CPU is asked for no gradients."""

    monkeypatch.setattr(torch_flex, "_validate_device", unchecked)
    monkeypatch.setattr(flex_attention, "compiled", lambda kind: twin)
    monkeypatch.setattr(autotune, "_obstacle", lambda kind: "")
    monkeypatch.setenv("MMBDHS_PACKED_ATTENTION", "flex")
