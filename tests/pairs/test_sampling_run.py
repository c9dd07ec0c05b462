"""`sample_dataset`: its pairs are those of `bdhs_sample`, and any stop leaves a folder that goes on."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pair_runs import QUICK, contents, loaded, shared_words, small_shards, write_scenes

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.data import open_records
from mmbdhs.pairs import DatasetConfig, SamplingResult, sample_dataset
from mmbdhs.pairs.shard_sampler import ShardSampler
from mmbdhs.pairs.shards import read_columns, shard_paths
from mmbdhs.runs import FolderInUseError
from mmbdhs.sampling.scheduler import Scheduler

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 12)


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(scenes, out).missing == 0
    return out


def run(data: Any, out: Path, config: BDHSConfig = QUICK, **settings: Any) -> SamplingResult:
    return sample_dataset(*loaded(), data, out, config, shared_words, small_shards(**settings), progress=False)


def rows_of(folder: Path, *columns: str) -> list[dict[str, Any]]:
    return [row for path in shard_paths(folder) for row in read_columns(path, columns)]


def text(messages: list[dict[str, Any]]) -> str:
    return messages[0]["content"][0]["text"]


def test_pairs_are_those_of_bdhs_sample(scenes: Path, whole: Path) -> None:
    records = open_records(scenes)
    images, prompts, references = zip(*((r["images"], r["prompt"], r["chosen"]) for r in records), strict=True)
    samples = bdhs_sample(*loaded(), images, prompts, references, QUICK, shared_words)
    rows = rows_of(whole, "chosen", "rejected", "key", "similarity", "iterations", "row", "id", "visible_image_tokens")
    assert [text(row["chosen"]) for row in rows] == list(references)
    assert [text(row["rejected"]) for row in rows] == [sample.rejected for sample in samples]
    assert [row["key"] for row in rows] == [sample.key for sample in samples]
    assert [row["similarity"] for row in rows] == [sample.similarity for sample in samples]
    assert [row["iterations"] for row in rows] == [sample.iterations for sample in samples]
    assert [tuple(row["visible_image_tokens"]) for row in rows] == [sample.visible_image_tokens for sample in samples]
    assert [row["row"] for row in rows] == list(range(12))
    assert [row["id"] for row in rows] == [f"scene-{number}" for number in range(12)]


def test_a_pair_can_be_drawn_again_from_its_address(scenes: Path, whole: Path) -> None:
    row = rows_of(whole, "rejected", "address", "seed")[7]
    record = open_records(scenes)[7]
    one = [[record["images"]], [record["prompt"]], [record["chosen"]]]
    config = BDHSConfig(seed=row["seed"], max_iterations=2, max_new_tokens=24)
    (sample,) = bdhs_sample(*loaded(), *one, config, shared_words, keys=[row["address"]])
    assert sample.rejected == text(row["rejected"])


def test_the_same_call_samples_nothing_twice(scenes: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(whole)
    monkeypatch.setattr(ShardSampler, "sample", lambda *_: pytest.fail("sampled again"))
    result = run(scenes, whole)
    assert result.missing == 0 and result.figures.pairs == 12
    assert contents(whole) == before


def test_a_lost_shard_comes_back_as_it_was(scenes: Path, whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    run(scenes, cut)
    shard_paths(cut)[1].unlink()
    (cut / "errors.jsonl").write_text("torn")
    (cut / "data" / ".train-00001.parquet.x1").write_text("left by a process that was killed")
    run(scenes, cut)
    assert contents(cut) == contents(whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"config": BDHSConfig(max_iterations=2, max_new_tokens=24, mask_threshold=0.5)},
            "config.mask_threshold: 0.99, now 0.5",
        ),
        ({"config": BDHSConfig(max_iterations=2, max_new_tokens=24, seed=3)}, "config.seed: 0, now 3"),
        ({"size": 4}, "settings.shard_size: 5, now 4"),
        ({"drop_garbled": True}, "settings.drop_garbled: False, now True"),
    ],
)
def test_other_settings_in_the_folder_are_refused(
    change: dict[str, Any], named: str, scenes: Path, whole: Path
) -> None:
    before = contents(whole)
    with pytest.raises(FolderInUseError, match=named):
        run(scenes, whole, **change)
    assert contents(whole) == before


def test_other_data_or_another_model_in_the_folder_is_refused(scenes: Path, whole: Path, tmp_path: Path) -> None:
    other = write_scenes(tmp_path / "other", 11)
    with pytest.raises(FolderInUseError, match=r"data\.fingerprint: .*data\.records: 12, now 11"):
        run(other, whole)
    model, _ = loaded()
    with torch.no_grad():
        weight = next(model.parameters())
        kept = weight.clone()
        weight += 1
        try:
            with pytest.raises(FolderInUseError, match=r"model\.fingerprint"):
                run(scenes, whole)
        finally:
            weight.copy_(kept)


def test_workers_that_read_change_nothing(scenes: Path, whole: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "run", BDHSConfig(max_iterations=2, max_new_tokens=24, num_workers=2))
    assert contents(tmp_path / "run") == contents(whole)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Let decoding more than so many branches run out of memory. Returns the numbers that were tried."""

    def limited(most: int) -> list[int]:
        tried: list[int] = []
        advance = Scheduler.advance

        def checked(self: Scheduler, *arguments: Any) -> Any:
            ended = advance(self, *arguments)
            tried.append(self.branch_count)
            if self.branch_count > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return ended

        monkeypatch.setattr(Scheduler, "advance", checked)
        return tried

    return limited


def test_out_of_memory_halves_the_branches_and_samples_the_same(
    scenes: Path,
    whole: Path,
    tmp_path: Path,
    little_memory: Callable[[int], list[int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    little_memory(12)
    out = tmp_path / "run"
    with caplog.at_level(logging.WARNING, "mmbdhs"):
        assert run(scenes, out).missing == 0
    assert [record.getMessage().rpartition("=")[2] for record in caplog.records] == ["32", "16", "8"]
    assert json.loads((out / "run.json").read_text())["reduced_max_branches"] == 8
    caplog.clear()
    shard_paths(out)[2].unlink()
    assert run(scenes, out).missing == 0 and not caplog.records  # what was learnt is kept
    names = ("rejected", "iterations", "row", "visible_image_tokens")
    assert rows_of(out, *names) == rows_of(whole, *names)


def test_memory_that_suffices_for_no_branch_ends_the_run(
    scenes: Path, tmp_path: Path, little_memory: Callable[[int], list[int]]
) -> None:
    little_memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        run(scenes, tmp_path / "run")


def test_sigterm_ends_the_run_after_the_shard(
    scenes: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = ShardSampler.sample

    def signalled(self: ShardSampler, number: int, notify: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return sample(self, number, notify)

    out = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr(ShardSampler, "sample", signalled)
        result = run(scenes, out)
    assert (result.interrupted, result.missing, result.shards) == (signal.SIGTERM, 2, 3)
    assert "1 of 3 shards so far" in (out / "README.md").read_text()
    assert run(scenes, out).interrupted is None
    assert contents(out) == contents(whole)


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond a number of bytes, as on a disk that is full."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_whole_shards_and_says_so(
    scenes: Path, whole: Path, tmp_path: Path, small_disk: Callable[[int], None]
) -> None:
    out = tmp_path / "run"
    run(scenes, out)
    shard_paths(out)[1].unlink()
    small_disk(4096)
    with pytest.raises(
        OSError, match=r"shard 1 could not be written .*; 2 of 3 shards are whole in .*continues"
    ) as caught:
        run(scenes, out)
    assert caught.value.errno == errno.EFBIG
    small_disk(resource.RLIM_INFINITY)
    assert sorted(path.name for path in (out / "data").iterdir()) == ["train-00000.parquet", "train-00002.parquet"]
    run(scenes, out)
    assert contents(out) == contents(whole)


def test_the_folder_belongs_to_one_process(scenes: Path, tmp_path: Path) -> None:
    from mmbdhs.runs import locked

    out = tmp_path / "run"
    out.mkdir()
    with locked(out), pytest.raises(FolderInUseError, match="in use by another process"):
        run(scenes, out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turns": "all"}, "turns: needs one of 'first', 'last', 'every', got 'all'"),
        ({"limit": 0}, "limit: needs an integer of at least 1, got 0"),
        ({"shard_size": 0}, "shard_size: needs an integer"),
        ({"max_length_ratio": 0.5}, "max_length_ratio: needs a number in"),
        ({"drop_identical": 1}, "drop_identical: needs one of"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**settings)


def test_data_that_cannot_be_sampled_and_a_file_in_place_of_the_folder(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out: needs a folder, .* is a file"):
        run(scenes, tmp_path / "file")
    with pytest.raises(ValueError, match="data: needs at least one row, got none"):
        run([], tmp_path / "run")
    with pytest.raises(ValueError, match="data: needs a column chosen with good responses, got images, prompt"):
        run([{"images": ["a.png"], "prompt": "What?"}], tmp_path / "run")


def test_a_limit_samples_the_first_examples(scenes: Path, whole: Path, tmp_path: Path) -> None:
    assert run(scenes, tmp_path / "run", limit=7).figures.pairs == 7
    assert rows_of(tmp_path / "run", "rejected") == rows_of(whole, "rejected")[:7]


def test_filters_leave_out_and_count(scenes: Path, tmp_path: Path) -> None:
    """Of texts that the model wrote itself, greedily and with all of the image, many are written again."""
    config = BDHSConfig(max_iterations=1, mask_threshold=0.0, temperature=0.0)
    records = [dict(record) for record in open_records(scenes)]
    run(records, tmp_path / "own", config)
    for record, row in zip(records, rows_of(tmp_path / "own", "rejected"), strict=True):
        record["chosen"] = text(row["rejected"])
    kept = run(records, tmp_path / "kept", config, drop_identical=False)
    same = kept.figures.of("faults")["identical"]
    assert 0 < same < 12 and kept.figures.pairs == 12
    result = run(records, tmp_path / "run", config)
    assert result.figures.of("dropped") == {"identical": same} and result.figures.pairs == 12 - same
    assert result.figures.accepted(1) == kept.figures.accepted(1)  # what a filter leaves out counts here
    errors = [json.loads(line) for line in (tmp_path / "run/errors.jsonl").read_text().splitlines()]
    assert len(errors) == same and all(error["rejected"] == records[error["row"]]["chosen"] for error in errors)


def test_responses_of_other_lengths_are_left_out_on_request() -> None:
    from mmbdhs.pairs.shard_sampler import _filter_of

    texts = "one two three four", "one two"
    assert _filter_of(*texts, DatasetConfig()) is None
    assert _filter_of(*texts, DatasetConfig(max_length_ratio=2)) is None
    assert _filter_of(*texts, DatasetConfig(max_length_ratio=1.9)) == "length_ratio"
    assert _filter_of("a b", "b b b b b", DatasetConfig(drop_garbled=True)) == "garbled"
    assert _filter_of("a b", "b b b b b", DatasetConfig()) is None
    assert _filter_of("a b", " a  b", DatasetConfig()) == "identical"
