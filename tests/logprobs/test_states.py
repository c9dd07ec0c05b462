"""Hidden states and entropies of packed rows against rows of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import picture, prompt_inputs

from mmbdhs.logprobs.packed import last_states, response_logps, scored_states

RESPONSES = [[[5, 9, 11, 7], [8], [6, 5, 10]], [[7, 7], [12, 6, 9, 5, 8], [10]]]


def asked(family: str) -> tuple[Any, list[Any]]:
    model, processor = getattr(tiny_models, family)()
    images = [picture(0, 64, 64), picture(1, 90, 40)]
    return model, [
        prompt_inputs(processor, [image], text) for image, text in zip(images, ("What?", "Is it red?"), strict=True)
    ]


def own_row(model: Any, inputs: Any, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the prompt's last token and of the response's, and the logits of the same places."""
    row = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([ids], dtype=torch.int64)], dim=1)}
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    if "mm_token_type_ids" in row:
        row["mm_token_type_ids"] = torch.nn.functional.pad(row["mm_token_type_ids"], (0, len(ids)))
    output = model(**row, use_cache=False, output_hidden_states=True)
    return output.hidden_states[-1][0, -len(ids) - 1 :], output.logits[0, -len(ids) - 1 :]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_states_and_entropies_are_those_of_rows_of_their_own(family: str) -> None:
    model, prompts = asked(family)
    with torch.no_grad():
        logps, entropy, states = scored_states(model, prompts, RESPONSES)
        last = last_states(model, prompts, RESPONSES)
        expected = response_logps(model, prompts, RESPONSES)
        for row, texts in enumerate(RESPONSES):
            for column, ids in enumerate(texts):
                hidden, logits = own_row(model, prompts[row], ids)
                torch.testing.assert_close(last[row, column], hidden[-1], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(states[row, column, : len(ids)], hidden[:-1], rtol=1e-4, atol=1e-4)
                plain = torch.distributions.Categorical(logits=logits[:-1]).entropy()
                torch.testing.assert_close(entropy[row, column, : len(ids)], plain, rtol=1e-4, atol=1e-4)
                assert not entropy[row, column, len(ids) :].any() and not states[row, column, len(ids) :].any()
    assert torch.equal(logps.tokens, expected.tokens) and torch.equal(logps.mask, expected.mask)


def test_gradients_are_those_of_rows_of_their_own() -> None:
    model, prompts = asked("llava")
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = torch.randn(2, 3, model.lm_head.weight.shape[1], generator=torch.Generator().manual_seed(0))

    def gradient(states: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad((states * weights).sum(), parameters, allow_unused=True)
        return torch.cat([one.flatten() for one in found if one is not None])

    packed = gradient(last_states(model, prompts, RESPONSES))
    rows = [own_row(model, prompts[row], ids)[0][-1] for row, texts in enumerate(RESPONSES) for ids in texts]
    separate = gradient(torch.stack(rows).view_as(weights))
    assert float((packed - separate).norm() / separate.norm()) < 1e-5


def test_an_empty_response_has_the_state_of_its_prompt() -> None:
    model, prompts = asked("llava")
    with torch.no_grad():
        found = last_states(model, prompts[:1], [[[5, 6], [], [7]]])
        hidden, _ = own_row(model, prompts[0], [5, 6])
    torch.testing.assert_close(found[0, 1], hidden[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0, 0], hidden[-1], rtol=1e-4, atol=1e-4)
