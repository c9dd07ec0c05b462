"""Which examples a step takes, from sequences and from streams, and when their images are decoded."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.preference_records import apart, fresh_miniature, full_run, scene_records

from mmbdhs.errors import ExampleError
from mmbdhs.losses import dpo_loss
from mmbdhs.sampling.reader_pool import ReaderPool
from mmbdhs.training import DistortedSource, MixedSource, OnlineBDHSSource, StoredSource, learner, pairwise, train
from mmbdhs.training.batches import Batch, ReadAhead, Shares, UnreadExample, make_batches

datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate")

DPO = pairwise(dpo_loss, beta=0.1)
COLUMNS = ("images", "prompt", "chosen", "rejected")
STEPS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "logging_steps": 1}


def dataset(count: int, **columns: Any) -> Any:
    rows = [
        record | {name: values[n] for name, values in columns.items()} for n, record in enumerate(scene_records(count))
    ]
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.Sequence(datasets.Image()))


class Lines:
    """An iterable without a length."""

    def __init__(self, records: list[Any]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[Any]:
        return iter(self.records)


def keys(batch: Batch) -> list[Any]:
    return [example.read().address for example in batch.own]


def first(batches: Any, count: int, position: Any = (0, 0)) -> list[Batch]:
    return [batch for batch, _ in zip(batches.begin(position), range(count), strict=False)]


@pytest.mark.parametrize("kind", ["sequence", "stream"])
def test_every_process_takes_its_share_of_the_same_steps(kind: str) -> None:
    records: Any = scene_records(11) if kind == "sequence" else Lines(scene_records(11))
    whole, *parts = (
        make_batches(records, COLUMNS, "raise", 5, Shares(4, *who)) for who in ((0, 1), *((n, 3) for n in range(3)))
    )
    steps = first(whole, 6)
    assert [batch.size for batch in steps] == [4, 4, 3, 4, 4, 3]
    for epoch in range(2):
        seen = [key for batch in steps[3 * epoch : 3 * epoch + 3] for key in keys(batch)]
        assert sorted(seen) == sorted(f"scene-{n}#{epoch}" for n in range(11))
        assert kind == "sequence" or seen == [f"scene-{n}#{epoch}" for n in range(11)]
    for number, batch in enumerate(steps):
        shares = [first(part, 6)[number] for part in parts]
        assert [keys(share) for share in shares] == [keys(batch)[n::3] for n in range(3)]
        assert {(share.size, share.position) for share in shares} == {(batch.size, batch.position)}
        assert [keys(one) for one in first(whole, 2, batch.position)] == [
            keys(one) for one in first(whole, 8)[number + 1 :][:2]
        ]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_no_image_is_decoded_before_its_step(
    is_streamed: bool, workers: int, decodings: list[int], tmp_path: Path
) -> None:
    """Neither by checks and fingerprints, nor for stored columns, nor for steps that a resumed run has done. With
    readers the examples of the next step are decoded too, and of no other."""
    counts: list[int] = []

    def source(model: Any, processor: Any, examples: Any) -> Any:
        counts.append(len(decodings))
        return StoredSource()(model, processor, examples)

    source.columns, source.stored_reference = ("chosen", "rejected"), True  # type: ignore[attr-defined]
    data = dataset(12, reference_logps=[[-9.0, -9.0]] * 12)
    data[0]
    each = len(decodings)  # for one example
    decodings.clear()

    def run(steps: int) -> list[int]:
        counts.clear()
        decodings.clear()
        config = full_run(
            tmp_path,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=1,
            max_steps=steps,
            save_steps=1,
            resume_from_checkpoint=True,
            dataloader_num_workers=workers,
        )
        train(*fresh_miniature(), data.to_iterable_dataset() if is_streamed else data, source, DPO, config)
        return [count // each for count in counts]

    assert each and max(run(1)) <= 2
    for number, found in enumerate(run(4)):
        assert 2 * (number + 1) <= found <= 2 * min(number + 1 + workers, 3)


def stop_after(step: int) -> Any:
    def evaluate(model: Any, now: int) -> dict[str, float]:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return evaluate


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("workers", [0, 3])
def test_a_resumed_stream_ends_with_the_same_weights(workers: int, tmp_path: Path) -> None:
    """In the second of three epochs, of which the last batch is smaller, in a shuffled order and past a bad row. Only
    without threads are they the same to the bit."""
    data = dataset(11, rejected=[None if n == 4 else f"A bed {n}." for n in range(11)])
    stream = data.to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=4)

    def run(name: str, stop: int = -1, **settings: Any) -> Any:
        config = full_run(
            tmp_path / name,
            max_steps=8,
            eval_steps=1,
            on_error="skip",
            dataloader_num_workers=workers,
            **STEPS | settings,
        )
        return train(*fresh_miniature(), stream, StoredSource(), DPO, config, evaluate=stop_after(stop))

    whole = weights(run("whole").model)
    assert run("cut", 4).steps == 5
    resumed = run("cut", resume_from_checkpoint=True)
    assert resumed.steps == 8
    found = weights(resumed.model)
    assert apart(found, whole, weights(fresh_miniature()[0])) < 1e-3
    assert workers or [name for name, value in found.items() if not torch.equal(value, whole[name])] == []


def test_readers_change_no_more_than_rounding(tmp_path: Path) -> None:
    online = OnlineBDHSSource(similarity=lambda a, b: [0.0] * len(a))
    sources = [StoredSource(), MixedSource(StoredSource(), online)]
    for number, source in enumerate(sources):
        found = []
        for workers in (0, 1, 4):
            config = full_run(tmp_path / f"{number}{workers}", dataloader_num_workers=workers, **STEPS)
            found.append(weights(train(*fresh_miniature(), dataset(9), source, DPO, config).model))
        start = weights(fresh_miniature()[0])
        assert all(apart(other, found[0], start) < 1e-3 for other in found[1:])


def test_a_list_and_a_stream_of_it_train_alike(tmp_path: Path) -> None:
    records = scene_records(4)
    found = []
    for name, given in (("list", records), ("stream", Lines(records))):
        config = full_run(
            tmp_path / name, max_steps=1, **STEPS | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
        )
        found.append(train(*fresh_miniature(), given, StoredSource(), DPO, config).model)
    for (name, one), (_, other) in zip(weights(found[0]).items(), weights(found[1]).items(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3, msg=name)  # in another order; Adam moves by 1e-3


def test_streams_that_cannot_be_trained_on_are_named(tmp_path: Path) -> None:
    def run(records: Any, **settings: Any) -> None:
        train(*fresh_miniature(), records, StoredSource(), DPO, full_run(tmp_path, **settings))

    with pytest.raises(ValueError, match=r"max_steps: needs a number for records without a length \(Lines\), got -1"):
        run(Lines(scene_records(1)))
    with pytest.raises(TypeError, match="records: needs an iterable that can begin again, got list_iterator"):
        run(iter(scene_records(1)), max_steps=1)
    with pytest.raises(ValueError, match="records: row 1: needs the columns images, prompt, chosen, rejected, got"):
        run(Lines([*scene_records(1), {"images": [], "prompt": "What?"} | {"images": "a.png"}]), max_steps=2)
    with pytest.raises(TypeError, match="eval_records: needs a list or a dataset with a length, got Lines"):
        train(*fresh_miniature(), scene_records(1), StoredSource(), DPO, full_run(tmp_path), eval_records=Lines([]))


def test_images_that_a_dataset_cannot_decode_are_bad_examples(tmp_path: Path) -> None:
    data = dataset(3)
    rows = [
        record | {"images": [{"bytes": b"not an image", "path": None}] if n == 1 else record["images"]}
        for n, record in enumerate(data)
    ]
    broken = datasets.Dataset.from_list(rows, features=data.features)
    run = (*fresh_miniature(), broken, StoredSource(), DPO)
    with pytest.raises(ValueError, match="records: example '1': images: needs images that can be decoded, got a row"):
        train(*run, full_run(tmp_path / "a"))
    train(*run, full_run(tmp_path / "b", on_error="skip"))
    assert '"skipped": 1' in (tmp_path / "b/log.jsonl").read_text()


def unread(numbers: Sequence[int]) -> list[UnreadExample]:
    return [UnreadExample(dict, number, 0) for number in numbers]


def batch(*numbers: int) -> Batch:
    return Batch(unread(numbers), len(numbers), (0, 0))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reading_ahead_keeps_order_and_delivers_errors_at_their_example(workers: int) -> None:
    def prepare(example: UnreadExample) -> int:
        if example.row == 2:
            raise ExampleError("the third")
        return example.row

    def batches() -> Iterator[Batch]:
        yield batch(0, 1)
        yield batch(2, 3)
        raise ValueError("a bad stream")

    with ReaderPool(workers, torch.device("cpu")) as pool:
        ahead = ReadAhead(batches(), prepare, pool)
        assert [one() for one in ahead.next_batch()[1]] == [0, 1]
        failing, after = ahead.next_batch()[1]
        with pytest.raises(ExampleError, match="the third"):
            failing()
        assert after() == 3 and list(ahead.others(unread((7, 5)))) == [7, 5]
        with pytest.raises(ValueError, match="a bad stream"):
            ahead.next_batch()


def test_the_next_batch_is_prepared_while_one_is_in_work_and_no_other() -> None:
    prepared: list[int] = []
    seen = threading.Event()

    def prepare(example: UnreadExample) -> int:
        prepared.append(example.row)
        if example.row == 3:
            seen.set()
        return example.row

    with ReaderPool(1, torch.device("cpu")) as pool:
        ahead = ReadAhead([batch(0, 1), batch(2, 3), batch(4, 5)], prepare, pool)
        _, first_examples = ahead.next_batch()
        assert seen.wait(timeout=60)  # without anybody asking for the second batch
        assert [one() for one in first_examples] == [0, 1] and prepared == [0, 1, 2, 3]


def test_a_distorted_image_is_loaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loads: list[int] = []
    own = learner.load_images
    monkeypatch.setattr(learner, "load_images", lambda images: (loads.append(1), own(images))[1])
    train(*fresh_miniature(), scene_records(3), DistortedSource(), DPO, full_run(tmp_path))
    assert len(loads) == 3
