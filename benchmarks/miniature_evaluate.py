"""Exact figures about a miniature: what it hallucinates, seeing and half blind, and whether it looks at all.

Generation here is plain: one row per answer, image tokens hidden by a 2-D mask, positions as they were.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from miniature_corpus import conversation, normalised, render_all
from torch import Tensor
from transformers import DynamicCache

from mmbdhs.miniature.kinds import COLOURS, KINDS, SCENES
from mmbdhs.miniature.language import (
    CAPTION_PROMPT,
    PLACES,
    Question,
    caption,
    colour_question,
    is_wrong,
    mentions,
    place_question,
    pope_questions,
    wrong_mentions,
)
from mmbdhs.miniature.world import Scene, make_scene

CHUNK = 100  # rows generated together
THRESHOLDS = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Task:
    """One answer to generate: its image, question, the start of the answer, and the mask threshold ρ_th."""

    image: int
    question: str
    start: str = ""
    threshold: float = 0.0


class Examinee:
    """A model with the pictures of some scenes encoded, ready to answer about them.

    scenes: ground truth; their pictures are rendered here.
    seed: of the masks and the sampling.
    """

    def __init__(self, model, processor, scenes: list[Scene], seed: int = 0):
        self.scenes = scenes
        self._model, self._processor = model, processor
        self._dice = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            found = [model.get_image_features(p).pooler_output for p in normalised(render_all(scenes)).split(CHUNK)]
        self._images = torch.stack([image for chunk in found for image in chunk])

    def answer(self, tasks: list[Task], temperature: float = 1.0, one_sentence: bool = False) -> list[str]:
        """The texts that continue each task's start; greedy at temperature 0."""
        chunks = [tasks[i : i + CHUNK] for i in range(0, len(tasks), CHUNK)]
        return [text for chunk in chunks for text in self._answer(chunk, temperature, one_sentence)]

    @torch.no_grad()
    def _answer(self, tasks: list[Task], temperature: float, one_sentence: bool) -> list[str]:
        embeds, mask, positions = self._prompt(tasks)
        cache, taken = DynamicCache(config=self._model.config.text_config), []
        stops = self._stops(one_sentence)
        done = torch.zeros(len(tasks), dtype=torch.bool)
        for _ in range(12 if one_sentence else 48):
            states = self._model.model.language_model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache
            ).last_hidden_state
            ids = self._choose(self._model.lm_head(states[:, -1]), temperature)
            taken.append(torch.where(done, self._processor.tokenizer.pad_token_id, ids))
            done |= torch.isin(ids, stops)
            if done.all():
                break
            embeds = self._model.get_input_embeddings()(ids)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(tasks), 1)], 1)
            positions = positions[:, -1:] + 1
        return self._processor.tokenizer.batch_decode(torch.stack(taken, 1), skip_special_tokens=True)

    def _stops(self, one_sentence: bool) -> Tensor:
        tokenizer = self._processor.tokenizer
        stop = tokenizer.encode(".", add_special_tokens=False) if one_sentence else []
        return torch.tensor([tokenizer.eos_token_id, *stop])

    def _choose(self, logits: Tensor, temperature: float) -> Tensor:
        logits[:, self._processor.image_token_id] = -torch.inf
        if temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial((logits / temperature).softmax(-1), 1, generator=self._dice)[:, 0]

    def _prompt(self, tasks: list[Task]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings, 2-D mask and positions of left-padded prompts and starts."""
        texts = [
            self._processor.apply_chat_template(conversation(t.question), add_generation_prompt=True) + t.start
            for t in tasks
        ]
        images = self._images[[t.image for t in tasks]]
        wide = self._processor.image_token * images.shape[1]
        encoded = self._processor.tokenizer(
            [t.replace(self._processor.image_token, wide) for t in texts], return_tensors="pt", padding=True
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        is_image = ids == self._processor.image_token_id
        embeds = self._model.get_input_embeddings()(ids).masked_scatter(is_image[..., None], images)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        threshold = torch.tensor([t.threshold for t in tasks])[:, None]
        hidden = is_image & (torch.rand(ids.shape, generator=self._dice) < threshold)
        return embeds, mask.masked_fill(hidden, 0), positions

    def rejected(self, threshold: float) -> list[str]:
        """Every scene's caption, each sentence cut after 1 … n−1 words and completed under a mask."""
        tasks, kept = [], []
        for number, scene in enumerate(self.scenes):
            before = ""
            for sentence in caption(scene).replace(". ", ".\n").split("\n"):
                words = sentence[:-1].split()  # the stop is a token of its own: cuts lie after 1 … n−1 of n+1 tokens
                cut = int(torch.randint(1, len(words) + 1, (1,), generator=self._dice))
                start = " ".join(words[:cut])
                tasks.append(Task(number, CAPTION_PROMPT, f" {before}{start}", threshold))
                kept.append(start)
                before += sentence + " "
        completed = self.answer(tasks, one_sentence=True)
        texts = [""] * len(self.scenes)
        for task, start, text in zip(tasks, kept, completed, strict=True):
            texts[task.image] += f" {start}{text}"
        return [text.strip() for text in texts]

    def accuracy(self, questions: list[list[Question]]) -> float:
        """Share of greedy answers that equal the true one; of yes/no questions only that word counts."""
        tasks = [Task(number, q.text) for number, asked in enumerate(questions) for q in asked]
        truth = [q for asked in questions for q in asked]
        answers = self.answer(tasks, temperature=0.0, one_sentence=True)
        right = [_agree(answer.strip(), q) for answer, q in zip(answers, truth, strict=True)]
        return sum(right) / max(1, len(right))


def _agree(answer: str, question: Question) -> bool:
    if question.topic == "object":
        return answer.split(",")[0] == question.answer.split(",")[0]
    return answer == question.answer


_NOUN, _COLOUR, _SCENE, _PLACE = ("|".join(words) for words in (KINDS, COLOURS, SCENES, PLACES))
_FLUENT = re.compile(rf"The image shows an? ({_SCENE})\.( The ({_NOUN}) is (({_COLOUR})|in the ({_PLACE}))\.)+")


def is_fluent(text: str) -> bool:
    """Whether a caption is well formed, true or not."""
    return _FLUENT.fullmatch(text.strip()) is not None


def hallucination(texts: list[str], scenes: list[Scene]) -> dict[str, float]:
    """Wrong objects, wrong colours and both, as shares of the object mentions of all texts, and Recall.

    Recall is the share of all objects of the scenes that their text speaks of.
    """
    wrong = [w.error for text, scene in zip(texts, scenes, strict=True) for w in wrong_mentions(text, scene)]
    spoken = [[m for m in mentions(text) if m.topic == "object"] for text in texts]
    total = max(1, sum(map(len, spoken)))
    pairs = zip(spoken, scenes, strict=True)
    found = sum(len({m.kind for m in said} & {thing.kind for thing in s.things}) for said, s in pairs)
    objects, colours = wrong.count("object") / total, wrong.count("colour") / total
    recall = found / sum(len(scene.things) for scene in scenes)
    return {"objects": objects, "colours": colours, "both": objects + colours, "recall": recall}


def wrong_share(texts: list[str], scenes: list[Scene]) -> float:
    """Share of texts with at least one wrong object or colour."""
    return sum(is_wrong(text, scene) for text, scene in zip(texts, scenes, strict=True)) / max(1, len(texts))


def evaluate(model, processor, images: int = 500, seed: int = 0) -> dict[str, dict[str, float]]:
    """All figures on the `balanced` and `prior` worlds, rounded to three digits.

    images: scenes per world.
    seed: of masks and sampling; the scenes are always the same.
    """
    figures = {}
    for world in ("balanced", "prior"):
        scenes = [make_scene(world, index) for index in range(images)]
        found = _world_figures(Examinee(model, processor, scenes, seed), scenes)
        figures[world] = {name: round(value, 3) for name, value in found.items()}
    return figures


def _world_figures(examinee: Examinee, scenes: list[Scene]) -> dict[str, float]:
    every = range(len(scenes))
    seen = examinee.answer([Task(i, CAPTION_PROMPT) for i in every])
    greedy = examinee.answer([Task(i, CAPTION_PROMPT) for i in every], temperature=0.0)
    blind = examinee.answer([Task(i, CAPTION_PROMPT, threshold=1.0) for i in every])
    figures = {f"sampled {k}": v for k, v in hallucination(seen, scenes).items()}
    figures |= {f"greedy {k}": v for k, v in hallucination(greedy, scenes).items()}
    figures |= {"fluent seen": sum(map(is_fluent, seen)) / len(seen)}
    figures |= {"fluent blind": sum(map(is_fluent, blind)) / len(blind)}
    for negatives in ("random", "popular", "adversarial"):
        figures[f"POPE {negatives}"] = examinee.accuracy([pope_questions(s, negatives) for s in scenes])
    figures["colour accuracy"] = examinee.accuracy(
        [[colour_question(t.kind, t.colour) for t in s.things] for s in scenes]
    )
    figures["place accuracy"] = examinee.accuracy([[place_question(t) for t in s.things] for s in scenes])
    for threshold in THRESHOLDS:
        figures[f"wrong at {threshold}"] = wrong_share(examinee.rejected(threshold), scenes)
    return figures
