"""Answers of questions that share an image: against `generate`, question by question."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_models
from helpers.families import BUILDERS
from helpers.plain import picture, prompt_inputs

from mmbdhs import SamplingConfig, miniature
from mmbdhs.data import load_images
from mmbdhs.decoding import BranchPool, vision_token_ids
from mmbdhs.errors import ExampleError
from mmbdhs.evaluation.answers import Answerer, by_image
from mmbdhs.evaluation.benchmark import Question
from mmbdhs.vlm import VLM

GREEDY = SamplingConfig(temperature=0, max_new_tokens=8)
TEXTS = ["Is there a dog?", "Is there a red car in the image?", "What is it?", "Is there a dog?"]


def asked(folder: Path, images: int = 3, texts: Sequence[str] = TEXTS) -> list[Question]:
    """Questions about pictures of unlike sizes; the second has one question alone."""
    for number in range(images):
        picture(number, 40 + 9 * number, 60).save(folder / f"{number}.png")
    pairs = [(number, text) for number in range(images) for text in (texts[:1] if number == 1 else texts)]
    return [Question(f"{number}/{place}", folder / f"{number}.png", text) for place, (number, text) in enumerate(pairs)]


def answered(model: Any, processor: Any, questions: list[Question]) -> list[str]:
    return list(Answerer(model, processor, GREEDY).answers(questions))


def generated(model: Any, processor: Any, questions: list[Question], limit: int = 8) -> list[str]:
    suppressed = vision_token_ids(VLM.of(model), processor.tokenizer)
    answers = []
    for question in questions:
        inputs = prompt_inputs(processor, load_images(str(question.image)), question.text)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=limit, suppress_tokens=suppressed)
        new = ids[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize(
    ("family", "path"),
    [
        *(
            (name, "tokens run once")
            for name in ("llava", "llava_llama", "llava_next", "qwen2_5_vl", "gemma3", "idefics2")
        ),
        ("paligemma", "lets it see them"),
        ("mllama", "one at a time, by generate"),
    ],
)
def test_answers_are_those_of_generate(
    family: str, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = (BUILDERS | {"llava_llama": tiny_models.llava_llama})[family]()
    questions = asked(tmp_path)
    with caplog.at_level(logging.INFO, "mmbdhs"):
        found = answered(model, processor, questions)
    assert found == generated(model, processor, questions) and path in caplog.text
    assert len(set(found)) > 2


def test_answers_of_the_miniature_are_those_of_generate(tmp_path: Path) -> None:
    questions = asked(
        tmp_path, texts=["Is there a cat in the image?", "What colour is the kite?", "Describe the image."]
    )
    model, processor = miniature.load()
    assert answered(model, processor, questions) == generated(model, processor, questions)


def test_an_image_runs_once_whatever_is_asked_about_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_models.llava()
    prefills: list[tuple[int, int]] = []
    add = BranchPool.add

    def counted(self: Any, batch: list) -> None:
        prefills.extend((len(prompt), len(branches)) for prompt, branches in batch)
        add(self, batch)

    monkeypatch.setattr(BranchPool, "add", counted)
    questions = asked(tmp_path)
    answered(model, processor, questions)
    whole = [prompt_inputs(processor, load_images(str(q.image)), q.text)["input_ids"].shape[1] for q in questions]
    assert [branches for _, branches in prefills] == [3, 1, 3]  # of four questions two are the same
    assert prefills[1][0] == whole[4] and prefills[0][0] < min(whole[:4])


def test_a_repetition_penalty_of_the_model_does_not_count(tmp_path: Path) -> None:
    for family in ("llava", "mllama"):
        model, processor = BUILDERS[family]()
        questions = asked(tmp_path, 1)
        expected = generated(model, processor, questions)
        model.generation_config.repetition_penalty = 3.0
        try:
            assert generated(model, processor, questions) != expected
            assert answered(model, processor, questions) == expected
        finally:
            model.generation_config.repetition_penalty = 1.0


def test_a_question_before_the_image_is_answered_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, processor = tiny_models.llava()
    questions = asked(tmp_path, 1)
    turned = processor.chat_template.replace("message['content'] %}", "message['content'] | reverse %}")
    assert turned != processor.chat_template
    template, processor.chat_template = processor.chat_template, turned
    try:
        assert answered(model, processor, questions) == generated(model, processor, questions)
    finally:
        processor.chat_template = template
    assert "their prompts may differ before the image ends" in caplog.text


def test_questions_go_image_by_image() -> None:
    questions = [Question(f"{image}{number}", Path(image), "?") for number in range(2) for image in "bac"]
    assert [question.id for question in by_image(questions)] == ["b0", "b1", "a0", "a1", "c0", "c1"]


def test_a_question_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    questions = [*asked(tmp_path, 2), Question("bad", tmp_path / "1.png", "An <image> too many?")]
    with pytest.raises(ExampleError, match=r"question 'bad': prompts: needs text, got the token '<image>'"):
        answered(*tiny_models.llava(), questions)
    with pytest.raises(ExampleError, match=r"question 'x': .*nowhere"):
        answered(*tiny_models.llava(), [Question("x", tmp_path / "nowhere.png", "?")])


def test_no_questions_have_no_answers() -> None:
    assert answered(*tiny_models.llava(), []) == []
