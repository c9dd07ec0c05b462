"""From records to log-probabilities, and references stored with the data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import masked_logits, picture, prompt_inputs

from mmbdhs.logprobs.packed import response_logps
from mmbdhs.logprobs.preferences import encode_record, encode_responses, reference_logps, stored_reference_logps

TEXTS = ["A red car stands here.", "A dog, and no car."]


def record(image: Any) -> dict[str, Any]:
    """As `preference_record` and TRL lay pairs out."""

    def message(role: str, *parts: dict[str, str]) -> list[dict[str, Any]]:
        return [{"role": role, "content": list(parts)}]

    chosen, rejected = (message("assistant", {"type": "text", "text": text}) for text in TEXTS)
    prompt = message("user", {"type": "image"}, {"type": "text", "text": "Describe it."})
    return {"images": [image], "prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize("family", ["llava", "llava_llama", "llava_next", "qwen2_5_vl"])
@torch.no_grad()
def test_responses_are_tokenised_as_the_chat_template_writes_them(family: str) -> None:
    model, processor = getattr(tiny_models, family)()
    inputs, ids = encode_responses(model, processor, picture(0), "Describe it.", TEXTS)
    expected = prompt_inputs(processor, [picture(0)], "Describe it.")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    ends = processor.tokenizer.eos_token_id
    assert all(ends in text for text in ids)
    found = response_logps(model, [inputs], [ids])
    for row, text in enumerate(ids):
        everything = tuple(range(int((inputs["input_ids"] == model.config.image_token_id).sum())))
        logits = masked_logits(model, expected, everything, text)[: len(text)]
        plain = logits.log_softmax(dim=-1).gather(1, torch.tensor(text)[:, None])[:, 0]
        torch.testing.assert_close(found.tokens[0, row, : len(text)], plain, rtol=0, atol=2e-5)
    assert encode_record(model, processor, record(picture(0)))[1] == ids


def test_responses_without_text_are_refused() -> None:
    model, processor = tiny_models.llava()
    for texts in ([], "A dog.", ["A dog.", " "], ["A dog.", None], ["A dog.", 3]):
        with pytest.raises(ValueError, match="responses: needs"):
            encode_responses(model, processor, picture(0), "Describe it.", texts)


def test_the_reference_is_another_model_or_the_one_without_adapters() -> None:
    peft = pytest.importorskip("peft")
    model, processor = tiny_models.llava()
    start = copy.deepcopy(model)
    inputs, ids = encode_record(model, processor, record(picture(0)))
    with torch.no_grad():
        expected = response_logps(model, [inputs], [ids]).sums
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.5)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).train()
    for reference in (None, start):
        found = reference_logps(adapted, [inputs], [ids], reference).sums
        assert not found.requires_grad and adapted.training
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="reference: needs a model, or adapters to switch off in Llava"):
        reference_logps(model, [inputs], [ids])


def test_stored_references_come_back_with_the_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    model, processor = tiny_models.llava()
    records = [record(picture(seed)) for seed in range(3)]
    values = stored_reference_logps(model, processor, records, model)
    table = datasets.Dataset.from_list(records).cast_column("images", datasets.List(datasets.Image()))
    table.add_column("reference_logps", values).to_parquet(tmp_path / "pairs.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "pairs.parquet"))
    assert loaded["reference_logps"][:] == values
    inputs, ids = encode_record(model, processor, loaded[1])
    torch.testing.assert_close(response_logps(model, [inputs], [ids]).sums[0].tolist(), values[1])
