"""Training text and pictures as tensors: rows in which several answers share one image prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from miniature_build import PATCH
from torch import Tensor

from mmbdhs.miniature.kinds import COLOURS, KINDS, SCENES
from mmbdhs.miniature.language import CAPTION_PROMPT, Noise, Question, caption, questions
from mmbdhs.miniature.world import SIDE, Scene, boxes, make_scene, render

GRID = SIDE // PATCH
IGNORED = -100


def conversation(question: str, answer: str | None = None) -> list[dict]:
    """A one-image chat: the question and, if given, the assistant's answer."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    return chat if answer is None else [*chat, {"role": "assistant", "content": answer}]


def render_all(scenes: list[Scene]) -> Tensor:
    """Pictures as uint8 [scenes, 3, 96, 96]."""
    return torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2)


def normalised(pictures: Tensor) -> Tensor:
    """What the image processor makes of uint8 pictures: float32 in [−1, 1]."""
    return pictures.float() / 127.5 - 1.0


def token_labels(scene: Scene) -> np.ndarray:
    """What each of the 144 image tokens shows, int64 [4, 144]: kind, colour, cell, scene.

    Kind, colour and cell are −100 where no object's box covers the centre of the patch.
    """
    labels = np.full((4, GRID, GRID), IGNORED)
    labels[3] = SCENES.index(scene.name)
    centres = (np.arange(GRID) + 0.5) * PATCH
    for thing, (left, top, right, bottom) in zip(scene.things, boxes(scene), strict=True):
        inside = np.outer((centres > top) & (centres < bottom), (centres > left) & (centres < right))
        values = (KINDS.index(thing.kind), list(COLOURS).index(thing.colour), thing.cell)
        for plane, value in zip(labels[:3], values, strict=True):
            plane[inside] = value
    return labels.reshape(4, -1)


@dataclass(frozen=True)
class Row:
    """One image prompt and its branches, each a list of token ids and how many of them ask rather than answer."""

    branches: list[tuple[list[int], int]]


class Corpus:
    """Scenes of one world with their pictures, and the token rows of what is said about them."""

    def __init__(self, processor, world: str, count: int, noise: Noise, seed: int):
        self.scenes = [make_scene(world, index, seed) for index in range(count)]
        self.pictures = render_all(self.scenes)
        self._processor, self._noise = processor, noise
        self._branches: dict[Question, tuple[list[int], int]] = {}  # short questions recur
        self.prefix: list[int] = []
        self.rows = [self._row(scene) for scene in self.scenes]

    def _row(self, scene: Scene) -> Row:
        told = [Question(CAPTION_PROMPT, caption(scene, self._noise), "caption")]
        told += [question for variant in range(2) for question in questions(scene, self._noise, variant)]
        self._branches |= {question: self._branch(question) for question in told if question not in self._branches}
        return Row([self._branches[question] for question in told])

    def _branch(self, question: Question) -> tuple[list[int], int]:
        """Token ids after the image, exactly as the processor and its chat template give them."""
        tokenizer, image = self._processor.tokenizer, self._processor.image_token_id
        text = self._processor.apply_chat_template(conversation(question.text, question.answer))
        asked = self._processor.apply_chat_template(conversation(question.text), add_generation_prompt=True)
        ids, asked_ids = tokenizer(text)["input_ids"], tokenizer(asked)["input_ids"]
        start = ids.index(image) + 1
        self.prefix = ids[: start - 1] + [image] * GRID**2
        return ids[start:], len(asked_ids) - start

    def batch(self, chosen: Tensor) -> dict[str, Tensor]:
        """Packed rows: the prompt once, then every branch, which sees the prompt and itself.

        Returns `input_ids`, `position_ids`, `branch` (0 in the prompt, −1 in padding) and `labels` (the next
        token where it belongs to an answer, else −100), each int64 [rows, tokens].
        """
        rows = [self._packed(self.rows[i]) for i in chosen.tolist()]
        length = max(row.shape[1] for row in rows)
        fill = torch.tensor([0, 0, -1, IGNORED])[:, None]
        padded = [torch.cat([row, fill.expand(4, length - row.shape[1])], 1) for row in rows]
        names = ("input_ids", "position_ids", "branch", "labels")
        return dict(zip(names, torch.stack(padded, 1), strict=True))

    def _packed(self, row: Row) -> Tensor:
        start = len(self.prefix)
        parts = [[self.prefix, range(start), [0] * start, [IGNORED] * start]]
        for number, (ids, asked) in enumerate(row.branches, 1):
            labels = [IGNORED] * (asked - 1) + ids[asked:] + [IGNORED]
            parts.append([ids, range(start, start + len(ids)), [number] * len(ids), labels])
        return torch.tensor([[v for part in parts for v in part[k]] for k in range(4)])
