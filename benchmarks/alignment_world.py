"""What the alignment benchmark trains on, and how it judges: scenes whose every fact is known.

Bases have learned from biased text of scenes that follow priors. Pairs and questions are about scenes that do not: the
pairs' references have the noise of the bases' text, the judge has the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from miniature_evaluate import Examinee, Task

from mmbdhs import miniature
from mmbdhs.evaluation import ObjectVocabulary, chair, pope, ratio
from mmbdhs.miniature.kinds import KINDS
from mmbdhs.miniature.language import CAPTION_PROMPT, Noise, caption, mentions, pope_questions, wrong_mentions
from mmbdhs.miniature.world import Scene, make_scene, render
from mmbdhs.training import Comparison

BASES = Path(__file__).parent / "bases"
PAIR_SEED, JUDGE_SEED = 500, 900  # of scenes, which no base was trained on
POPE = tuple((split, metric) for split in ("random", "adversarial") for metric in ("accuracy", "f1"))
VOCABULARY = ObjectVocabulary.build([[kind] for kind in KINDS])


def base(seed: int) -> Path:
    """A miniature trained from scratch with this seed: 0 is the shipped one, others are trained at their first use and
    kept for as long as the code that trains them stays the same."""
    if seed == 0:
        return miniature.path()
    from miniature_train import SCENES_PER_WORLD, STAGES, train

    files = [*Path(__file__).parent.glob("miniature_*.py"), *miniature.path().parent.glob("*.py")]
    code = b"".join(path.read_bytes() for path in sorted(files))
    folder = BASES / f"{seed}-{blake2b(code, digest_size=4).hexdigest()}"
    if not (folder / "config.json").exists():
        model, processor = train(seed, STAGES, SCENES_PER_WORLD)
        processor.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def records(count: int, seed: int) -> list[dict[str, Any]]:
    """Images with a caption each, as biased as what the bases learned from; another seed, other images."""
    scenes = [make_scene("uniform", index, PAIR_SEED) for index in range(seed * count, (seed + 1) * count)]
    return [
        {
            "key": scene.index,
            "images": [render(scene)],
            "prompt": CAPTION_PROMPT,
            "chosen": caption(scene, Noise()),
        }
        for scene in scenes
    ]


def same_claims(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """How alike captions are: the share of their claims that both make."""
    pairs = [(set(mentions(one)), set(mentions(other))) for one, other in zip(first, second, strict=True)]
    return [len(one & other) / max(1, len(one | other)) for one, other in pairs]


def truthful(comparisons: Sequence[Comparison]) -> list[int | None]:
    """An annotator that knows the scene: the caption with the smaller share of wrong claims is better."""
    verdicts: list[int | None] = []
    for comparison in comparisons:
        scene = make_scene("uniform", int(str(comparison.key).split("#")[0]), PAIR_SEED)
        first, second = (_wrong_share(text, scene) for text in (comparison.first, comparison.second))
        verdicts.append(None if first == second else int(second < first))
    return verdicts


def _wrong_share(text: str, scene: Scene) -> float:
    return len(wrong_mentions(text, scene)) / max(1, len(mentions(text)))


def judge(model: Any, processor: Any, images: int, world: str, seed: int) -> dict[str, float]:
    """Hallucination, Recall and POPE of a model on scenes without priors.

    images: how many. world: "validation" or "balanced". seed: of the sampled captions.

    `objects`: wrong objects (CHAIRi), `colours`: wrong colours, both as shares of the object mentions of captions
    sampled at temperature 1; `hallucination`: their sum.
    """
    scenes = [make_scene(world, index, JUDGE_SEED) for index in range(images)]
    examinee = Examinee(model.eval(), processor, scenes, seed)
    texts = examinee.answer([Task(number, CAPTION_PROMPT) for number in range(images)])
    found = chair(texts, [{thing.kind for thing in scene.things} for scene in scenes], VOCABULARY)
    named = [len(caption.mentioned) for caption in found.captions]
    colours = ratio([_wrong_colours(*pair) for pair in zip(texts, scenes, strict=True)], named).value
    scores = {
        "hallucination": found.chair_i.value + colours,
        "objects": found.chair_i.value,
        "colours": colours,
        "recall": found.recall.value,
        "words": found.length.value,
    }
    return scores | _pope_scores(examinee, scenes)


def _wrong_colours(text: str, scene: Scene) -> int:
    return sum(wrong.error == "colour" for wrong in wrong_mentions(text, scene))


def _pope_scores(examinee: Examinee, scenes: list[Scene]) -> dict[str, float]:
    asked = [
        (number, split, question)
        for split in dict(POPE)
        for number, scene in enumerate(scenes)
        for question in pope_questions(scene, split)
    ]
    tasks = [Task(number, question.text) for number, _, question in asked]
    answers = examinee.answer(tasks, temperature=0.0, one_sentence=True)
    numbers, splits, questions = zip(*asked, strict=True)
    found = pope([text.strip() for text in answers], [q.affirmed for q in questions], numbers, splits)
    return {f"{split} {metric}": getattr(found[split], metric).value for split, metric in POPE}
