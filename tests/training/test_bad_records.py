"""Records that cannot be used are skipped or named, whatever is wrong with them; faults of the library are neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.preference_records import fresh_miniature, full_run, scene_records
from PIL import Image

from mmbdhs import BDHSConfig
from mmbdhs.losses import dpo_loss
from mmbdhs.training import train
from mmbdhs.training.objectives import pairwise
from mmbdhs.training.pair_sources import OnlineBDHSSource, StoredSource

DPO = pairwise(dpo_loss, beta=0.1)


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def log_row(folder: Path) -> dict[str, Any]:
    """The last row of a run's log."""
    row: dict[str, Any] = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    return row


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


IMAGE, ASKED = {"type": "image"}, {"type": "text", "text": "Describe the image."}
# What is wrong with a record, and how the message about it begins after the example's key.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "image that is no image": ({"images": [b"not an image"]}, "images: needs"),
    "empty image": ({"images": [Image.new("RGB", (0, 0))]}, "processor: could not encode"),
    "plain string as a part": ({"prompt": user("Describe the image.")}, "prompts: needs parts"),
    "video": ({"prompt": user(IMAGE, {"type": "video", "url": "x"}, ASKED)}, "prompts: needs parts"),
    "prompt that is a number": ({"prompt": 3}, "prompts: needs a string or a list of messages"),
    "prompt that the assistant ends": ({"prompt": [*user(IMAGE, ASKED), assistant("Yes.")]}, "prompts: needs messages"),
    "prompt with an image token": ({"prompt": "Describe the <image>."}, "prompts: needs text, got the token"),
    "prompt with a lone surrogate": ({"prompt": "Describe \ud83d."}, "prompts: needs text that can be written"),
    "prompt that the template refuses": ({"prompt": [*user(IMAGE, ASKED), *user(ASKED)]}, "prompts: the chat template"),
    "tools that are no JSON": ({"tools": "zoom"}, "tools: needs a JSON text"),
    "chosen that is a number": ({"chosen": 3}, "chosen: needs a string or a list of messages"),
    "empty chosen": ({"chosen": " "}, "chosen: needs text"),
    "rejected that the user ends": (
        {"rejected": [assistant("A dog."), *user(ASKED)]},
        "rejected: needs messages that begin and end",
    ),
    "rejected of several turns": (
        {"rejected": [assistant("A dog."), *user(ASKED), assistant("A cat.")]},
        "responses: needs one assistant turn",
    ),
    "image token in rejected": ({"rejected": "The <image> shows a dog."}, "rejected: needs text, got the token"),
    "end token in rejected": ({"rejected": "A dog.</s> A cat."}, "rejected: needs text, got the token"),
    "lone surrogate in rejected": ({"rejected": "A dog \udc00."}, "rejected: needs text that can be written"),
    "rejected beyond the context": ({"rejected": "a car " * 1500}, "responses: needs at most"),
    "prompt beyond the context": ({"prompt": "a car " * 1500}, "prompts: "),
}
SEES_CHOSEN_ONLY = [name for name in BAD if "rejected" in name]


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The miniature with a template that refuses two turns of the user in a row, as Gemma's and Mistral's do."""
    model, processor = fresh_miniature()
    alternate = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    )
    monkeypatch.setattr(processor, "chat_template", alternate + processor.chat_template)
    return model, processor


@pytest.mark.parametrize("problem", BAD)
def test_stored_pairs(problem: str, miniature: Any, tmp_path: Path) -> None:
    columns, message = BAD[problem]
    records = scene_records(3)
    records[1] |= columns | {"key": "the bad one"}
    run = (*miniature, records, StoredSource(), DPO)
    assert train(*run, full_run(tmp_path / "skip", per_device_train_batch_size=3, on_error="skip")).steps == 1
    row = log_row(tmp_path / "skip")
    assert (row["skipped"], row["undecided"]) == (1, 0)
    with pytest.raises(ValueError, match=rf"^records: example 'the bad one': {message}"):
        train(*run, full_run(tmp_path / "raise", per_device_train_batch_size=3))


@pytest.mark.parametrize("problem", [name for name in BAD if name not in SEES_CHOSEN_ONLY])
def test_sampled_pairs(problem: str, miniature: Any, tmp_path: Path) -> None:
    columns, message = BAD[problem]
    records = scene_records(3)
    records[1] |= columns | {"key": "the bad one"}
    source = OnlineBDHSSource(BDHSConfig(max_iterations=1, max_sentence_tokens=4), lambda a, b: [0.0] * len(a))
    run = (*miniature, records, source, DPO)
    train(*run, full_run(tmp_path / "skip", per_device_train_batch_size=3, on_error="skip"))
    assert log_row(tmp_path / "skip")["skipped"] == 1
    with pytest.raises(ValueError, match=rf"^records: example 'the bad one': {message}"):
        train(*run, full_run(tmp_path / "raise", per_device_train_batch_size=3))


def test_long_responses_are_cut_if_that_is_asked_for(tmp_path: Path) -> None:
    records = scene_records(2)
    records[1]["rejected"] = "a car " * 1500
    config = full_run(tmp_path, per_device_train_batch_size=2, truncate_responses=True)
    train(*fresh_miniature(), records, StoredSource(), DPO, config)
    assert log_row(tmp_path)["skipped"] == 0


def test_records_without_a_key_share_no_draws(tmp_path: Path) -> None:
    """Null keys, as Arrow and pandas write them, are no keys: the row number takes their place."""
    seen: list[str] = []

    class Source(StoredSource):
        def __call__(self, model: Any, processor: Any, examples: Any) -> Any:
            seen.extend(example.address for example in examples)
            return super().__call__(model, processor, examples)

    records = [
        record | {"key": key} for record, key in zip(scene_records(4), [None, float("nan"), "a", 7], strict=True)
    ]
    train(*fresh_miniature(), records, Source(), DPO, full_run(tmp_path, per_device_train_batch_size=4))
    assert sorted(seen) == ["0#0", "1#0", "7#0", "a#0"]


def test_a_fault_of_the_library_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr("mmbdhs.training.encoding.encode_chat", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        train(*fresh_miniature(), scene_records(2), StoredSource(), DPO, full_run(tmp_path, on_error="skip"))


def test_bad_records_are_named_before_the_run_or_skipped(tmp_path: Path) -> None:
    records = scene_records(4)
    records[2]["images"] = [str(tmp_path / "gone.png")]
    run = (*fresh_miniature(), records, StoredSource(), DPO)
    with pytest.raises(ValueError, match=r"records: row 2: images: needs a file that is there, got '.*gone.png'"):
        train(*run, full_run(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    assert train(*run, full_run(tmp_path / "a", per_device_train_batch_size=1, on_error="skip")).steps == 3
    del records[0]["rejected"]
    with pytest.raises(
        ValueError, match="row 0: needs the columns images, prompt, chosen, rejected, got images, prompt, chosen, key"
    ):
        train(*run, full_run(tmp_path / "b"))
    with pytest.raises(ValueError, match="records: needs at least one that can be used, got none"):
        train(*fresh_miniature(), [], StoredSource(), DPO, full_run(tmp_path / "b"))


def test_records_that_cannot_be_read_are_named_during_the_run_or_skipped(tmp_path: Path) -> None:
    records = scene_records(4)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    records[2]["images"] = [tmp_path / "broken.png"]
    run = (*fresh_miniature(), records, StoredSource(), DPO)
    with pytest.raises(ValueError, match=r"records: example 'scene-2': images: needs an image that can be decoded"):
        train(*run, full_run(tmp_path / "a"))
    train(*run, full_run(tmp_path / "b", on_error="skip"))
    assert log_row(tmp_path / "b")["skipped"] == 1
