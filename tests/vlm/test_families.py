"""Every family of decoders: exact against a plain masked forward of the whole model, or refused for a reason.

`PYTHONPATH=tests python tests/vlm/test_families.py` writes the table of docs/models.md from the lists that these tests
run over.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import BUILDERS, CONDITIONS, EXACT, GROUPS, IMAGES, LIMIT, PROMPTS, REFERENCES, REFUSED
from helpers.plain import assert_replays, masked_logits, prompt_inputs

from mmbdhs import BDHSConfig, UnsupportedModelError, bdhs_sample
from mmbdhs.decoding.exactness import check_decoding
from mmbdhs.logprobs import response_logps
from mmbdhs.sampling.examples import ExampleReader
from mmbdhs.vlm import VLM
from mmbdhs.vlm.output_head import logits_of
from mmbdhs.vlm.prompt_attention import run_decoder
from mmbdhs.vlm.text_decoder import find_text_decoder

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def sample(model: Any, processor: Any, **settings: Any) -> list:
    config = BDHSConfig(temperature=0, max_sentence_tokens=LIMIT, max_new_tokens=LIMIT, max_iterations=1, **settings)
    return bdhs_sample(model, processor, IMAGES, PROMPTS, REFERENCES, config, lambda a, b: [0.0] * len(a))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("family", EXACT)
def test_greedy_completions_replay(family: str, threshold: float) -> None:
    model, processor = BUILDERS[family]()
    samples = sample(model, processor, mask_threshold=threshold, seed=3)
    for found, images, prompt in zip(samples, IMAGES, PROMPTS, strict=True):
        assert_replays(model, processor, images, prompt, found, LIMIT)


@pytest.mark.parametrize("family", EXACT)
@torch.no_grad()
def test_kept_tokens_see_the_same_logits(family: str) -> None:
    model, processor = BUILDERS[family]()
    reader = ExampleReader(VLM.of(model), processor)
    example = reader.read(0, IMAGES[1], PROMPTS[1], REFERENCES[1], None)
    visible = torch.tensor([1, 4, 7])
    shown = reader.encode([reader.process(example)])[0].inputs.keep_visible(visible)
    dropped = logits_of(VLM.of(model), run_decoder(VLM.of(model), [shown])[0, -len(example.turn.token_ids) - 1 :])
    inputs = prompt_inputs(processor, IMAGES[1], PROMPTS[1])
    masked = masked_logits(model, inputs, tuple(visible.tolist()), list(example.turn.token_ids))
    torch.testing.assert_close(dropped, masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe", "ernie4_5_vl_moe"]
)
def test_generated_tokens_stand_where_the_rope_index_puts_them(family: str) -> None:
    """Three rows of positions, at every step of decoding, after an image that is mostly hidden."""
    model, processor = BUILDERS[family]()
    config = BDHSConfig(mask_threshold=0.9, guided=False, temperature=0, max_new_tokens=LIMIT, max_iterations=1)
    arguments = IMAGES[1:], PROMPTS[:1], REFERENCES[:1], config, lambda a, b: [0.0]
    bdhs_sample(model, processor, *arguments)  # probes the model
    found = []
    handle = find_text_decoder(model).register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["position_ids"]), with_kwargs=True
    )
    (sample,) = bdhs_sample(model, processor, *arguments)
    handle.remove()
    inputs = prompt_inputs(processor, IMAGES[1], PROMPTS[0])
    before = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([sample.response_ids])], dim=1)
    kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(sample.response_ids)))
    expected, _ = model.model.get_rope_index(ids, image_grid_thw=inputs["image_grid_thw"], mm_token_type_ids=kinds)
    steps = torch.cat([positions for positions in found if positions.shape[-1] == 1], dim=2)
    assert steps.shape[2] == len(sample.response_ids) - 1 > 0 and int(expected.max()) < before
    assert torch.equal(steps[-3:], expected[:, :, before : before + steps.shape[2]])


@pytest.mark.parametrize("family", REFUSED)
def test_refusals_say_why(family: str) -> None:
    model, processor = BUILDERS[family]()
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
        sample(model, processor)


@torch.no_grad()
def test_a_count_of_the_models_own_is_seen_before_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 scales its queries by the logarithm of how many 8,192 tokens it believes came before."""
    model, processor = BUILDERS["llama4"]()
    reader = ExampleReader(VLM.of(model), processor)
    example = reader.read(0, IMAGES[0], PROMPTS[0], REFERENCES[0], None)
    inputs = reader.encode([reader.process(example)])[0].inputs
    ids = prompt_inputs(processor, IMAGES[0], PROMPTS[0])["input_ids"][0]
    check_decoding(VLM.of(model), inputs, ids, 8000)
    with pytest.raises(UnsupportedModelError, match="its decoder after 9000 tokens against the same as if none came"):
        check_decoding(VLM.of(model), inputs, ids, 9000)
    VLM.of(model).exact_tokens = 9000
    with pytest.raises(UnsupportedModelError, match="decoding a token against doing so at once"):
        check_decoding(VLM.of(model), inputs, ids, 9000)
    VLM.of(model).forget_checks()
    monkeypatch.setattr(VLM.of(model).decoder.config, "max_position_embeddings", 10_000)
    prompt = prompt_inputs(processor, IMAGES[0], PROMPTS[0])
    with pytest.raises(UnsupportedModelError, match=r"its decoder after 9\d\d\d tokens against"):
        response_logps(model, [prompt], [[[5] * 9000]])
    model, processor = BUILDERS["llama4_temperature"]()  # at every eighth token instead
    with pytest.raises(UnsupportedModelError, match="leaving image tokens out against masking them: by 0"):
        sample(model, processor)


def test_every_model_of_the_zoo_is_in_the_table() -> None:
    listed = [name for group in GROUPS.values() for name in group]
    assert len(listed) == len(set(listed)) and set(listed) == BUILDERS.keys() - {"llama4_temperature"}


def table() -> str:
    lines = ["| in the decoder | families | |", "|---|---|---|"]
    for particular, families in GROUPS.items():
        conditions = {CONDITIONS.get(name, "") for name in families}
        verdict = "refused" if families.keys() <= REFUSED.keys() else f"exact {', '.join(conditions)}".strip()
        lines.append(f"| {particular} | {', '.join(families.values())} | {verdict} |")
    return "\n".join(lines)


def test_the_docs_show_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "run PYTHONPATH=tests python tests/vlm/test_families.py"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    marked = r"(<!-- families -->\n).*(<!-- /families -->)"
    PAGE.write_text(re.sub(marked, lambda m: f"{m[1]}{table()}\n{m[2]}", text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
