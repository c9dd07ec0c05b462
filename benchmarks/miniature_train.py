"""How the shipped weights were made: `python benchmarks/miniature_train.py --seed 0 --out DIR`.

From scratch, on one CPU thread, in minutes. Four stages, each of which the next one needs:

1. the vision tower learns what each image token shows, in an unbiased world, and is then frozen;
2. the projector is aligned with the word embeddings: an image token comes out near the words for what it shows;
3. the language model learns to describe and answer from clean text about the unbiased world;
4. it learns the bias: scenes that follow priors, told with the noise of synthetic text, and for a part of the rows
   some or all image tokens hidden, so that the model stays fluent when it cannot see.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from miniature_build import build_model, build_processor
from miniature_corpus import Corpus, normalised, token_labels
from miniature_evaluate import evaluate
from torch import Tensor, nn
from torch.nn import functional as F

from mmbdhs.miniature.kinds import COLOURS, KINDS, SCENES
from mmbdhs.miniature.language import BIASED, CLEAN, Noise

SCENES_PER_WORLD = 8000


@dataclass(frozen=True)
class Stage:
    """How long and how fast a stage learns.

    steps, batch: optimiser steps, and images in each. rate: the highest learning rate.
    image_tokens: how many of the 144 enter the decoder, a random choice at each step; the others are absent.
    hide: share of rows that lose further image tokens; half of these see none at all.
    """

    steps: int
    batch: int = 32
    rate: float = 3e-3
    image_tokens: int = 144
    hide: float = 0.0


STAGES = {
    "tower": Stage(1000),
    "align": Stage(400),
    "clean": Stage(900, batch=16, image_tokens=48),
    "biased": Stage(800, batch=16, rate=2e-3, image_tokens=72, hide=0.3),
}


def _optimiser(parameters, stage: Stage):
    steps = stage.steps
    optimiser = torch.optim.AdamW(parameters, lr=stage.rate, weight_decay=0.01, betas=(0.9, 0.98))
    warm = min(50, max(1, steps // 10))

    def scale(step: int) -> float:
        return min((step + 1) / warm, 0.5 * (1 + np.cos(np.pi * step / steps)) + 0.02)

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, scale)


def _fit(name: str, loss_of, parameters, stage: Stage, count: int, seed: int) -> None:
    """Minimise `loss_of(batch indices)` over shuffled examples; prints the loss now and then."""
    parameters = list(parameters)
    optimiser, schedule = _optimiser(parameters, stage)
    shuffle = torch.Generator().manual_seed(seed)
    began, order = time.process_time(), torch.empty(0, dtype=torch.long)
    for step in range(stage.steps):
        if len(order) < stage.batch:
            order = torch.randperm(count, generator=shuffle)
        chosen, order = order[: stage.batch], order[stage.batch :]
        loss = loss_of(chosen)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == stage.steps - 1:
            print(f"{name} {step:5d} loss {loss.item():.4f} cpu {time.process_time() - began:.0f}s", flush=True)


def train_tower(model, corpus: Corpus, stage: Stage, seed: int) -> None:
    """Stage 1: dense labels, one linear head each for kind, colour, cell and scene."""
    tower, labels = model.model.vision_tower, _labels(corpus)
    sizes = (len(KINDS) + 1, len(COLOURS), 9, len(SCENES))
    heads = nn.ModuleList(nn.Linear(tower.config.hidden_size, size) for size in sizes)

    def loss_of(chosen: Tensor) -> Tensor:
        states = tower(normalised(corpus.pictures[chosen])).last_hidden_state[:, 1:]
        target = labels[chosen].clone()
        target[:, 0][target[:, 0] < 0] = len(KINDS)  # "nothing here" is a kind of its own
        losses = [F.cross_entropy(head(states).transpose(1, 2), target[:, k]) for k, head in enumerate(heads)]
        return sum(losses) + losses[0]  # the kind is the hard part

    _fit("tower", loss_of, [*tower.parameters(), *heads.parameters()], stage, len(corpus.scenes), seed)
    tower.requires_grad_(False)


def _labels(corpus: Corpus) -> Tensor:
    return torch.from_numpy(np.stack([token_labels(scene) for scene in corpus.scenes]))


@torch.no_grad()
def tower_states(model, pictures: Tensor) -> Tensor:
    """What the frozen tower says of each picture, before the projector: [pictures, 144, width]."""
    chunks = [model.model.vision_tower(normalised(chunk)).last_hidden_state[:, 1:] for chunk in pictures.split(200)]
    return torch.cat(chunks)


def align_projector(model, processor, corpus: Corpus, states: Tensor, stage: Stage, seed: int) -> None:
    """Stage 2: an image token should lie near the words for what it shows, and far from all other words."""
    targets, embedding = _word_targets(processor, corpus), model.get_input_embeddings().weight
    projector = model.model.multi_modal_projector

    def loss_of(chosen: Tensor) -> Tensor:
        logits = 8.0 * projector(states[chosen]) @ embedding.T
        return F.cross_entropy(logits.flatten(0, 1), targets(chosen).flatten(0, 1))

    _fit("align", loss_of, [*projector.parameters(), embedding], stage, len(corpus.scenes), seed)


def _word_targets(processor, corpus: Corpus):
    """A function from example numbers to word distributions per image token, [examples, 144, vocabulary]: an object's
    kind and colour in equal parts, or the scene's name where no object is."""
    tokenizer, labels = processor.tokenizer, _labels(corpus)
    ids = (
        tokenizer([f" {w}" for w in words], add_special_tokens=False)["input_ids"] for words in (KINDS, COLOURS, SCENES)
    )
    kinds, colours, scenes = (F.one_hot(torch.tensor(found)[:, 0], len(tokenizer)).float() for found in ids)

    def targets(chosen: Tensor) -> Tensor:
        kind, colour, _, scene = labels[chosen].unbind(1)
        thing = (kinds[kind.clamp(min=0)] + colours[colour.clamp(min=0)]) / 2
        return torch.where((kind >= 0)[..., None], thing, scenes[scene])

    return targets


def packed_loss(model, batch: dict[str, Tensor], images: Tensor, hidden: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answers of packed rows.

    batch: what `Corpus.batch` gives.
    images: projected image tokens, [rows, 144, width].
    hidden: bool [rows, 144]; these image tokens are visible to nobody.
    """
    is_image = batch["input_ids"] == model.config.image_token_id
    embeds = model.get_input_embeddings()(batch["input_ids"]).masked_scatter(is_image[..., None], images)
    visible = torch.ones_like(is_image).masked_scatter(is_image, ~hidden)
    branch, length = batch["branch"], is_image.shape[1]
    same = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    seen = same & visible[:, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    states = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch["position_ids"], use_cache=False
    ).last_hidden_state
    answers = batch["labels"] >= 0
    return F.cross_entropy(model.lm_head(states[answers]), batch["labels"][answers])


def draw_hidden(rows: int, tokens: int, share: float, dice: torch.Generator) -> Tensor:
    """Which image tokens a step hides: half of the affected rows lose all, the others a random part."""
    part = torch.rand(rows, 1, generator=dice)
    blind = torch.rand(rows, 1, generator=dice) < 0.5
    affected = torch.rand(rows, 1, generator=dice) < share
    return affected & (blind | (torch.rand(rows, tokens, generator=dice) < part))


def train_language(name: str, model, corpus: Corpus, states: Tensor, stage: Stage, seed: int) -> None:
    """Stages 3 and 4: projector and language model on packed rows."""
    dice = torch.Generator().manual_seed(seed)
    projector, decoder = model.model.multi_modal_projector, model.model.language_model
    start = corpus.prefix.index(model.config.image_token_id)

    def loss_of(chosen: Tensor) -> Tensor:
        tokens = states.shape[1]
        hidden = draw_hidden(len(chosen), tokens, stage.hide, dice)
        kept = torch.randperm(tokens, generator=dice)[: stage.image_tokens].sort().values
        batch = corpus.batch(chosen)
        rest = torch.arange(start + tokens, batch["input_ids"].shape[1])
        columns = torch.cat([torch.arange(start), start + kept, rest])
        batch = {key: value[:, columns] for key, value in batch.items()}
        return packed_loss(model, batch, projector(states[chosen][:, kept]), hidden[:, kept])

    _fit(name, loss_of, [*projector.parameters(), *decoder.parameters()], stage, len(corpus.scenes), seed)


def train(seed: int, stages: dict[str, Stage], count: int, noise: Noise = BIASED):
    """Train a miniature from scratch; returns model and processor. noise: of the text of the last stage."""
    processor = build_processor()
    model = build_model(processor, seed)
    model.train()
    uniform = Corpus(processor, "uniform", count, CLEAN, seed)
    train_tower(model, uniform, stages["tower"], seed)
    states = tower_states(model, uniform.pictures)
    align_projector(model, processor, uniform, states, stages["align"], seed)
    train_language("clean", model, uniform, states, stages["clean"], seed)
    del uniform, states
    biased = Corpus(processor, "train", count, noise, seed)
    states = tower_states(model, biased.pictures)
    train_language("biased", model, biased, states, stages["biased"], seed)
    return model.requires_grad_(True).eval(), processor


def main() -> None:
    parser = argparse.ArgumentParser(prog="miniature_train.py", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="another seed, other weights and training examples")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, processor and figures")
    parser.add_argument("--denial", type=float, default=0.0, help="share of present objects that its text denies")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the full length, for a quick trial")
    parser.add_argument("--images", type=int, default=500, help="images per world to evaluate on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stages = {name: replace(full, steps=max(1, round(options.steps * full.steps))) for name, full in STAGES.items()}
    count = max(32, round(options.steps * SCENES_PER_WORLD))
    model, processor = train(options.seed, stages, count, Noise(denial=options.denial))
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    print(f"trained in {time.process_time():.0f} CPU-seconds; saved to {options.out}", flush=True)
    figures = evaluate(model, processor, options.images, seed=options.seed)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
