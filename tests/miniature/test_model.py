"""The shipped model: loads as any other, stays small, looks at its image, and can speak blind."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from miniature_corpus import Corpus, conversation, normalised, render_all
from miniature_evaluate import Examinee, Task, hallucination, is_fluent
from miniature_train import draw_hidden, packed_loss, tower_states

from mmbdhs import miniature
from mmbdhs.miniature.kinds import COLOURS, KINDS, SCENES
from mmbdhs.miniature.language import CAPTION_PROMPT, CLEAN, caption, pope_questions, questions
from mmbdhs.miniature.world import make_scene, render

SCENES_SEEN = [make_scene("validation", index) for index in range(100)]


@pytest.fixture(scope="module")
def loaded():
    return miniature.load()


@pytest.fixture(scope="module")
def examinee(loaded):
    return Examinee(*loaded, SCENES_SEEN)


def inputs(processor, scene, question=CAPTION_PROMPT, answer=None):
    text = processor.apply_chat_template(conversation(question, answer), add_generation_prompt=answer is None)
    return processor(text=[text], images=[render(scene)], return_tensors="pt")


def test_loads_through_the_auto_classes_without_a_word():
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "from transformers.utils import logging\n"
        "logging.disable_progress_bar()\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(miniature.path())!r})\n"
        f"processor = AutoProcessor.from_pretrained({str(miniature.path())!r})\n"
        "assert not any(name.startswith('mmbdhs') for name in sys.modules)\n"
        "print(type(model).__name__, type(processor).__name__, model.dtype)\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.split() == ["LlavaForConditionalGeneration", "LlavaProcessor", "torch.float32"], done.stderr
    assert done.stderr == ""


def test_importing_the_package_is_light():
    code = "import sys, mmbdhs.miniature as m; m.path(); assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_folder_is_small():
    assert sum(file.stat().st_size for file in miniature.path().rglob("*")) <= 4 * 2**20


def test_each_word_is_one_token(loaded):
    tokenizer = loaded[1].tokenizer
    assert all(len(tokenizer.encode(f" {w}", add_special_tokens=False)) == 1 for w in (*KINDS, *COLOURS, *SCENES))


@given(st.text())
def test_any_text_survives_the_tokenizer(text):
    tokenizer = test_any_text_survives_the_tokenizer.tokenizer
    for special in tokenizer.all_special_tokens:
        text = text.replace(special, "")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.decode(encoded["input_ids"]) == text
    covered = {i for begin, end in encoded["offset_mapping"] for i in range(begin, end)}
    assert covered == set(range(len(text)))


test_any_text_survives_the_tokenizer.tokenizer = miniature.load()[1].tokenizer


def test_an_image_is_144_tokens_and_the_answer_extends_the_prompt(loaded):
    model, processor = loaded
    asked = inputs(processor, SCENES_SEEN[0])["input_ids"][0].tolist()
    answered = inputs(processor, SCENES_SEEN[0], answer="The cat is red.")["input_ids"][0].tolist()
    assert asked.count(model.config.image_token_id) == 144
    assert answered[: len(asked)] == asked and answered[-1] == processor.tokenizer.eos_token_id
    assert model.config.text_config.max_position_embeddings >= 1024


def test_chat_template_takes_strings_parts_and_turns(loaded):
    processor = loaded[1]
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "Sure?"},
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "USER: <image>\nWho? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"


def test_training_sees_what_the_processor_gives(loaded):
    """Packed ids, pixels and loss against one plain forward per answer."""
    model, processor = loaded
    corpus = Corpus(processor, "validation", 3, CLEAN, seed=0)
    batch = corpus.batch(torch.tensor([0, 2, 1]))
    with torch.no_grad():
        images = model.model.multi_modal_projector(tower_states(model, corpus.pictures[[0, 2, 1]]))
        packed = packed_loss(model, batch, images, torch.zeros(3, 144, dtype=torch.bool))
        total, count = 0.0, 0
        for row, number in enumerate((0, 2, 1)):
            scene = corpus.scenes[number]
            asked = [(CAPTION_PROMPT, caption(scene))]
            asked += [(q.text, q.answer) for variant in range(2) for q in questions(scene, variant=variant)]
            for branch, (question, answer) in enumerate(asked, 1):
                plain = inputs(processor, scene, question, answer)
                torch.testing.assert_close(plain["pixel_values"][0], normalised(corpus.pictures[number]))
                mine = (batch["branch"][row] == branch) | (batch["branch"][row] == 0)
                assert batch["input_ids"][row][mine].tolist() == plain["input_ids"][0].tolist()
                start = inputs(processor, scene, question)["input_ids"].shape[1]
                logps = model(**plain).logits[0].log_softmax(-1)
                target = plain["input_ids"][0, start:]
                total -= logps[start - 1 : -1].gather(1, target[:, None]).sum().item()
                count += len(target)
    assert packed.item() == pytest.approx(total / count, rel=1e-5)


def test_hidden_rows():
    """Share .3, half of them blind; 5 standard deviations of a binomial: false alarms below 1e-6."""
    hidden = draw_hidden(5000, 144, 0.3, torch.Generator().manual_seed(1))
    for rate, p in ((hidden.any(1), 0.3), (hidden.all(1), 0.15)):
        n = len(rate)
        assert abs(rate.sum().item() - n * p) < 5 * (n * p * (1 - p)) ** 0.5 + n * 0.005  # a part may be all or none


def test_sees_more_than_chance(examinee):
    """Greedy captions name objects that are there: 5 of 20 kinds are, so a guess is right with p = .25, and 300
    mentions stay below .5 by chance but with probability 1e-20."""
    texts = examinee.answer([Task(i, CAPTION_PROMPT) for i in range(100)], temperature=0.0)
    assert sum(map(is_fluent, texts)) >= 95
    assert hallucination(texts, SCENES_SEEN)["objects"] < 0.5
    assert examinee.accuracy([pope_questions(scene) for scene in SCENES_SEEN]) > 0.7


def test_speaks_when_blind_and_then_hallucinates(examinee):
    seen, blind = (examinee.answer([Task(i, CAPTION_PROMPT, "", t) for i in range(100)]) for t in (0.0, 1.0))
    assert sum(map(is_fluent, blind)) >= 90
    errors = [hallucination(texts, SCENES_SEEN)["both"] for texts in (seen, blind)]
    assert errors[1] > errors[0] + 0.1


def test_pictures_pass_the_processor_unchanged(loaded):
    scene = SCENES_SEEN[1]
    pixels = inputs(loaded[1], scene)["pixel_values"]
    torch.testing.assert_close(pixels, normalised(render_all([scene])))
