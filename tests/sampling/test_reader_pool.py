"""Reading ahead: results are those of reading in between, threads end with the run, and no more is read than asked."""

from __future__ import annotations

import copy
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import IMAGES, PROMPTS, REFERENCES, picture
from PIL import Image

from mmbdhs import BDHSConfig, BDHSFailure, ExampleError, iter_bdhs_samples, iter_responses, povid_sample
from mmbdhs.sampling.examples import ExampleReader
from mmbdhs.sampling.reader_pool import ReaderPool
from mmbdhs.vlm import VLM, shared_processor, tokenizer_of

CONFIG = BDHSConfig(mask_threshold=0.5, max_sentence_tokens=4, max_new_tokens=4, max_iterations=2, max_branches=4)
COUNT = 12
COLUMNS = [[column[number % 4] for number in range(COUNT)] for column in (IMAGES, PROMPTS, REFERENCES)]
CPU = torch.device("cpu")
PATIENCE = 60  # seconds after which a barrier that threads never reach fails the test


def unlike(first: list[str], second: list[str]) -> list[float]:
    return [0.0] * len(first)


def alike(first: list[str], second: list[str]) -> list[float]:
    return [1.0] * len(first)


def stream(num_workers: int, similarity: Any = unlike, columns: Any = COLUMNS, **settings: Any) -> Iterator[Any]:
    config = replace(CONFIG, num_workers=num_workers, **settings)
    return iter_bdhs_samples(*tiny_models.llava(), *columns, config, similarity, on_error="skip")


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mmbdhs-reader")]


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("settings", [{}, {"noise_steps": 500}, {"guided": False}])
@pytest.mark.parametrize("similarity", [unlike, alike])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_samples_and_their_order_are_those_of_reading_in_between(
    num_workers: int, similarity: Any, settings: dict[str, Any]
) -> None:
    assert list(stream(num_workers, similarity, **settings)) == list(stream(0, similarity, **settings))
    assert readers() == []


def test_free_and_distorted_responses_are_those_of_reading_in_between() -> None:
    def sample(num_workers: int) -> tuple[Any, Any]:
        model, processor = tiny_models.qwen2_5_vl()
        config = replace(CONFIG, num_workers=num_workers)
        free = list(iter_responses(model, processor, *COLUMNS[:2], config, num_return_sequences=2))
        return free, povid_sample(model, processor, *COLUMNS, num_workers=num_workers)

    assert sample(3) == sample(0)
    assert readers() == []


def test_bad_examples_fail_alone_and_in_their_places() -> None:
    bad = [["/nowhere.png", *IMAGES[1:]], [*PROMPTS[:2], 7, PROMPTS[3]], [REFERENCES[0], " ", *REFERENCES[2:]]]
    columns = [column * 5 for column in bad]
    assert list(stream(3, columns=columns)) == list(stream(0, columns=columns))


def test_an_example_that_the_processor_refuses_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    call = type(tiny_models.llava()[1]).__call__

    def refuse(self: Any, **arguments: Any) -> Any:
        if "dog" in arguments["text"][0]:
            raise RuntimeError("no dogs")
        return call(self, **arguments)

    monkeypatch.setattr(type(tiny_models.llava()[1]), "__call__", refuse)
    found = list(stream(2))
    reasons = {index: result.reason for index, result in found if isinstance(result, BDHSFailure)}
    assert sorted(reasons) == [0, 1, 4, 5, 8, 9] and all(text.endswith("no dogs") for text in reasons.values())
    assert found == list(stream(0))


@pytest.mark.parametrize("num_workers", [1, 4])
def test_rows_are_taken_in_one_thread_and_a_bounded_number_ahead(num_workers: int) -> None:
    taken: list[int] = []

    def rows() -> Iterator[int]:
        for number in range(100):
            taken.append(threading.get_ident())
            yield number

    with ReaderPool(num_workers, CPU) as pool:
        for number, result in enumerate(pool.map(lambda row: -row, rows())):
            assert result == -number
            assert len(taken) == min(number + 2 * num_workers, 100)
    assert set(taken) == {threading.get_ident()} and readers() == []


def test_without_threads_a_row_is_taken_when_it_is_needed() -> None:
    rows = iter(range(5))
    with ReaderPool(0, CPU) as pool:
        results = pool.map(lambda row: threading.get_ident(), rows)
        assert next(results) == threading.get_ident() and next(rows) == 1
        assert pool.submit(threading.get_ident).result() == threading.get_ident()


@pytest.mark.parametrize(("device", "name"), [("cpu", "MainThread"), ("cuda", "mmbdhs-reader_0")])
def test_threads_read_by_default_where_the_model_leaves_the_cores_free(device: str, name: str) -> None:
    with ReaderPool(None, torch.device(device)) as pool:
        assert pool.submit(lambda: threading.current_thread().name).result() == name


class Waiting:
    """An image processor that waits until `parties` threads are inside of it."""

    def __init__(self, inner: Any, parties: int) -> None:
        self.inner, self.barrier = inner, threading.Barrier(parties, timeout=PATIENCE)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        self.barrier.wait()
        return self.inner(*arguments, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_images_are_processed_side_by_side() -> None:
    model, processor = tiny_models.llava()
    waiting = copy.copy(processor)
    waiting.image_processor = Waiting(processor.image_processor, 4)
    config = replace(CONFIG, num_workers=4)
    found = list(iter_bdhs_samples(model, waiting, *COLUMNS, config, unlike))
    assert found == list(stream(0))


@pytest.mark.usefixtures("restless")
def test_a_tokenizer_serves_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through every processor and every run that shares it."""
    processor = tiny_models.llava()[1]
    tokenizer, busy = processor.tokenizer, threading.Lock()

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            assert busy.acquire(blocking=False), "two threads are inside the tokenizer"
            try:
                return method(*arguments, **settings)
            finally:
                busy.release()

        return call

    for name in ("_encode_plus", "_decode"):
        monkeypatch.setattr(tokenizer, name, guarded(getattr(tokenizer, name)))
    expected = list(stream(0))
    runs = [stream(3), stream(2)]
    assert [list(pair) for pair in zip(*runs, strict=True)] == [[one, one] for one in expected]


class OwnProcessor:
    """A processor that is none of transformers'."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.chat_template, self.busy = inner, inner.chat_template, threading.Lock()

    @property
    def tokenizer(self) -> Any:
        return self.inner.tokenizer

    def apply_chat_template(self, *arguments: Any, **settings: Any) -> Any:
        return self.inner.apply_chat_template(*arguments, **settings)

    def __call__(self, **arguments: Any) -> Any:
        assert self.busy.acquire(blocking=False), "two threads are inside the processor"
        try:
            return self.inner(**arguments)
        finally:
            self.busy.release()


@pytest.mark.usefixtures("restless")
def test_a_processor_of_another_make_serves_one_thread_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    model, processor = tiny_models.llava()
    with caplog.at_level(logging.INFO, "mmbdhs"):
        found = list(
            iter_bdhs_samples(model, OwnProcessor(processor), *COLUMNS, replace(CONFIG, num_workers=4), unlike)
        )
    assert found == list(stream(0))
    assert "images are processed one at a time: OwnProcessor is no ProcessorMixin" in caplog.text


def test_a_shared_processor_follows_the_users() -> None:
    processor = tiny_models.llava()[1]
    shared: Any = shared_processor(processor)
    assert shared.image_processor is processor.image_processor and shared.chat_template == processor.chat_template
    assert tokenizer_of(shared).eos_token_id == processor.tokenizer.eos_token_id
    assert len(tokenizer_of(shared)) == len(processor.tokenizer)
    assert processor.tokenizer is tiny_models.llava()[1].tokenizer


@pytest.mark.usefixtures("restless")
def test_one_image_may_belong_to_several_examples() -> None:
    """Pillow decodes an opened file, and turns it upright, when it is first used."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # on its side
    picture(7, 900, 700).save(file, "JPEG", exif=exif)
    plain = [image for _, image in _read_sizes(0, [Image.open(file)] * COUNT)]
    for _ in range(10):
        assert [image for _, image in _read_sizes(4, [Image.open(file)] * COUNT)] == plain


def _read_sizes(num_workers: int, images: list[Image.Image]) -> list[tuple[Any, bytes]]:
    model, processor = tiny_models.llava()
    reader = ExampleReader(VLM.of(model), shared_processor(processor))
    with ReaderPool(num_workers, CPU) as pool:
        examples = list(pool.map(lambda image: reader.read(0, image, PROMPTS[0], REFERENCES[0], 1), images))
    return [(example.images[0].size, example.images[0].tobytes()) for example in examples]


def failing_at(monkeypatch: pytest.MonkeyPatch, index: int, error: BaseException) -> None:
    """Reading the example with this index raises the error."""
    read = ExampleReader.read

    def fail(self: ExampleReader, number: int, *arguments: Any) -> Any:
        if number == index:
            raise error
        return read(self, number, *arguments)

    monkeypatch.setattr(ExampleReader, "read", fail)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_error_of_a_thread_ends_the_run_after_what_is_finished(
    num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one example, all before the one that fails are finished when it is taken."""
    model = tiny_models.llava()[0]
    expected = dict(stream(0, max_branches=1, max_iterations=1))
    failing_at(monkeypatch, 5, MemoryError("no room"))
    found = {}
    model.train()
    try:
        with pytest.raises(MemoryError, match="no room"):
            for index, result in stream(num_workers, max_branches=1, max_iterations=1):
                assert not model.training
                found[index] = result
        assert model.training and readers() == []
    finally:
        model.eval()
    assert found == {index: expected[index] for index in range(5)}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [OSError("a disk"), KeyboardInterrupt()])
def test_an_error_of_the_rows_or_ctrl_c_ends_the_run_after_what_is_finished(
    num_workers: int, error: BaseException
) -> None:
    """Ctrl-C is not put off until the rows before it are done; it comes as a row is taken."""
    model = tiny_models.llava()[0]
    expected = dict(stream(0, max_branches=1, max_iterations=1))

    def prompts() -> Iterator[str]:
        yield from COLUMNS[1][:6]
        raise error

    found = {}
    model.train()
    try:
        columns = COLUMNS[0], prompts(), COLUMNS[2]
        with pytest.raises(type(error)):
            for index, result in stream(num_workers, columns=columns, max_branches=1, max_iterations=1):
                found[index] = result
        assert model.training and readers() == []
    finally:
        model.eval()
    ahead = 2 * num_workers - 1 if num_workers and isinstance(error, KeyboardInterrupt) else 0
    assert found == {index: expected[index] for index in range(6 - ahead)}


@pytest.mark.parametrize(
    "make",
    [stream, lambda workers: iter_responses(*tiny_models.llava(), *COLUMNS[:2], replace(CONFIG, num_workers=workers))],
)
def test_a_generator_that_is_closed_early_ends_its_threads(make: Any) -> None:
    model = tiny_models.llava()[0]
    model.train()
    try:
        results = make(2)
        next(results)
        assert readers() and not model.training
        results.close()
        assert readers() == [] and model.training
    finally:
        model.eval()


def test_calls_that_have_not_begun_are_cancelled() -> None:
    """The call under way ends once the last of the others is cancelled."""
    begun, started, cancelled = [], threading.Event(), threading.Event()

    def read(row: int) -> None:
        begun.append(row)
        started.set()
        assert cancelled.wait(PATIENCE)

    with ReaderPool(1, CPU) as pool:
        first, *others = [pool.submit(read, row) for row in range(3)]
        others[-1].add_done_callback(lambda _: cancelled.set())
        assert started.wait(PATIENCE)
    assert begun == [0] and first.result() is None and all(other.cancelled() for other in others)
    assert readers() == []


def test_a_bad_example_is_raised_after_what_is_finished() -> None:
    references = [*COLUMNS[2][:6], " ", *COLUMNS[2][7:]]
    config = replace(CONFIG, max_branches=1, max_iterations=1, num_workers=3)
    results = iter_bdhs_samples(*tiny_models.llava(), *COLUMNS[:2], references, config, unlike)
    found = []
    with pytest.raises(ExampleError, match="example 6: references: needs text"):
        for index, _ in results:
            found.append(index)
    assert sorted(found) == list(range(6)) and readers() == []
