"""Validation, registration and tracing of the ops, and the choice of the backend."""

import logging
import os
import subprocess
import sys
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import torch
from helpers.op_arguments import OPERANDS, arguments, assert_same, call_backend
from helpers.ragged import arange32, int32, random_keys

from mmbdhs import doctor
from mmbdhs.native import backend, binding, checks, ops, reference

INT64, INT32, BOOL = torch.int64, torch.int32, torch.bool


NAMES = tuple(arguments())


def call(name: str, **changes: Any) -> Any:
    """Call an op with good arguments, except for those that change."""
    return getattr(ops, name)(**{**arguments()[name], **changes})


@pytest.mark.parametrize("name", NAMES)
def test_every_op_equals_both_backends(name: str) -> None:
    assert_same(call(name), call_backend(name, reference))
    assert_same(call(name), call_backend(name, binding))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("module", [binding, reference])
def test_backends_have_the_same_arguments(name: str, module: ModuleType) -> None:
    """Either the parameters of the op, or one named tuple with a field for each of them."""
    hints, own = get_type_hints(getattr(ops, name)), get_type_hints(getattr(module, name))
    hints.pop("return"), own.pop("return")
    if name in OPERANDS:
        assert list(own.values()) == [OPERANDS[name]]
        own = get_type_hints(OPERANDS[name])
    assert list(own.items()) == list(hints.items())


@pytest.mark.parametrize("name", NAMES)
def test_slices_of_larger_tensors(name: str) -> None:
    """Arguments may be every second element of a larger tensor: the pointers are those of a contiguous copy."""
    plain = arguments()[name]
    strided = {
        key: torch.stack([value, torch.zeros_like(value)], -1)[..., 0] if isinstance(value, torch.Tensor) else value
        for key, value in plain.items()
    }
    assert_same(getattr(ops, name)(**strided), call(name))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    good = arguments()[name]
    if "seed" in good:
        good["seed"] = -1  # the same bits as 2^64 - 1: schemas know signed integers only
    torch.library.opcheck(getattr(torch.ops.mmbdhs, name).default, tuple(good.values()))


WRONG = [
    ("sample_visible", "seed", -1, "seed: needs a number in 0"),
    ("sample_visible", "seed", 2**64, "seed: needs a number in 0"),
    ("sample_visible", "keys", random_keys(3).int(), "keys: needs dtype torch.int64, got torch.int32"),
    ("sample_visible", "keys", random_keys(3)[None], r"keys: needs 1 dimension, got shape \(1, 3\)"),
    ("sample_visible", "tokens", arange32(2), r"tokens: needs 3 row\(s\), got 2"),
    ("sample_visible", "tokens", torch.arange(3), "tokens: needs dtype torch.int32, got torch.int64"),
    ("sample_visible", "tokens", int32(1, -2, 3), "tokens: needs numbers of at least 0, got -2 at row 1"),
    ("sample_visible", "iteration", 4096, "iteration: needs a number in 0 … 4095, got 4096"),
    ("sample_visible", "iteration", -1, "iteration: needs a number in 0 … 4095, got -1"),
    ("sample_visible", "threshold", 1.01, r"threshold: needs a number in \[0, 1\], got 1.01"),
    ("sample_visible", "threshold", -0.1, r"threshold: needs a number in \[0, 1\], got -0.1"),
    ("sample_visible", "threshold", float("nan"), r"threshold: needs a number in \[0, 1\], got nan"),
    ("random_uniform", "purpose", 16, "purpose: needs a number in 0 … 15, got 16"),
    ("random_uniform", "iteration", 4096, "iteration: needs a number in 0 … 4095"),
    ("random_uniform", "sentences", int32(0, 65536, 1), "sentences: needs a number in 0 … 65535, got 65536"),
    ("random_uniform", "sentences", int32(0, -1, 1), "sentences: needs numbers of at least 0, got -1 at row 1"),
    ("random_uniform", "sentences", arange32(4), r"sentences: needs 3 row\(s\), got 4"),
    ("random_uniform", "count", -1, "count: needs a number in 0 …"),
    ("random_uniform", "keys", random_keys(3).double(), "keys: needs dtype"),
    ("split_sentences", "text", torch.zeros(23, dtype=torch.int8), "text: needs dtype torch.uint8"),
    ("split_sentences", "offsets", torch.tensor([], dtype=INT64), "offsets: needs at least 1 entry, got 0"),
    (
        "split_sentences",
        "offsets",
        torch.tensor([0, 24]),
        r"offsets: needs .* from 0 to 23, got \[ 0 24\]",
    ),
    ("split_sentences", "offsets", torch.tensor([1, 23]), "offsets: needs entries that rise from 0 to 23"),
    ("split_sentences", "offsets", torch.tensor([0, 9, 8, 23]), "offsets: needs entries that rise from 0 to 23"),
    ("split_sentences", "offsets", torch.tensor([0, 23], dtype=INT32), "offsets: needs dtype torch.int64"),
    ("sentence_ends", "final", torch.tensor([0, 1]), "final: needs dtype torch.bool"),
    ("sentence_ends", "final", torch.tensor([True]), r"final: needs 2 row\(s\)"),
    ("draw_splices", "swappable", int32(0, 1, 1), "swappable: needs dtype torch.bool"),
    ("draw_splices", "choices", int32(4, -5, 6), "choices: needs numbers of at least 0, got -5 at row 1"),
    ("draw_splices", "swapped_choices", int32(-1, 5, 6), "swapped_choices: needs numbers of at least 0"),
    ("draw_splices", "swapped_choices", int32(1), r"swapped_choices: needs 3 row\(s\), got 1"),
    ("join_splices", "table", torch.zeros(3, 3, dtype=INT64), r"table: needs shape \[S, 5\], got \(3, 3\)"),
    ("join_splices", "table", torch.zeros(12, dtype=INT64), r"table: needs shape \[S, 5\]"),
    ("join_splices", "table", torch.zeros(3, 5, dtype=INT32), "table: needs dtype torch.int64"),
    ("join_splices", "sentence_offsets", torch.tensor([0, 3]), "sentence_offsets: needs 3 entries, got 2"),
    ("join_splices", "sentence_offsets", torch.tensor([0, 1, 3]), "span_end, got others in sentence 2"),
    (
        "join_splices",
        "swapped",
        torch.tensor([True, True, True]),
        "swapped word inside its sentence, got others in sentence 1",
    ),
    (
        "join_splices",
        "kept_bytes",
        torch.tensor([11, 3, 3]),
        "kept_bytes: needs .* got others in sentence 0",
    ),
    (
        "join_splices",
        "kept_bytes",
        torch.tensor([9, -3, 3]),
        "kept_bytes: needs .* got others in sentence 1",
    ),
    (
        "join_splices",
        "kept_bytes",
        torch.tensor([9, 3, 4]),
        "kept_bytes: needs .* got others in sentence 2",
    ),
    ("join_splices", "completion_offsets", torch.tensor([0, 3]), "completion_offsets: needs 4 entries, got 2"),
    (
        "join_splices",
        "completion_offsets",
        torch.tensor([0, 1, 1, 4]),
        "completion_offsets: needs .* rise from 0 to 3",
    ),
    (
        "join_splices",
        "completions",
        torch.zeros(4, dtype=torch.uint8),
        "completion_offsets: needs .* rise from 0 to 4",
    ),
]


@pytest.mark.parametrize(("name", "argument", "value", "message"), WRONG)
def test_wrong_arguments(name: str, argument: str, value: Any, message: str) -> None:
    with pytest.raises(TypeError if "dtype" in message else ValueError, match=message):
        call(name, **{argument: value})


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        (0, 0, 13, "begin ≤ content_end ≤ span_end, got others in sentence 0"),
        (0, 1, -1, "begin ≤ content_end ≤ span_end, got others in sentence 1"),
        (1, 1, 20, "tile their text, got others in text 0"),
        (1, 2, 2**62, "tile their text, got others in text 1"),
        (2, 0, -1, "swapped word inside its sentence, got others in sentence 0"),
        (3, 2, 3, "swapped word inside its sentence, got others in sentence 2"),
        (3, 0, 2, "yes or no as the word of a swapped sentence, got b'Ye' in sentence 0"),
        (2, 0, 3, "yes or no as the word of a swapped sentence, got b'' in sentence 0"),
    ],
)
def test_wrong_tables(column: int, row: int, value: Any, message: str) -> None:
    table = arguments()["join_splices"]["table"].clone()
    table[row, column] = value
    with pytest.raises(ValueError, match=message):
        call("join_splices", table=table)


@pytest.mark.parametrize("name", NAMES)
def test_missing_tensors(name: str) -> None:
    for argument, value in arguments()[name].items():
        if isinstance(value, torch.Tensor):
            with pytest.raises(TypeError, match=f"^{argument}: needs a tensor, got None"):
                call(name, **{argument: None})


def test_seed_must_be_an_integer() -> None:
    with pytest.raises(TypeError, match=r"seed: needs an integer, got 1\.5"):
        call("sample_visible", seed=1.5)


def test_wrong_device() -> None:
    with pytest.raises(ValueError, match="keys: needs device cpu, got meta"):
        checks.tensor("keys", torch.zeros(1, device="meta"), torch.float32)


def test_registered_ops_check_too() -> None:
    """A call of the dispatcher goes through the same checks."""
    with pytest.raises(ValueError, match="offsets: needs entries that rise"):
        torch.ops.mmbdhs.split_sentences(torch.zeros(3, dtype=torch.uint8), torch.tensor([0, 4]))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


BLOCK = "import sys; sys.modules['mmbdhs.native._extension'] = None; "
ASK = "from mmbdhs.native import backend; print(backend.live().name)"


def test_backend_override() -> None:
    """If the reference is asked for, no binary is loaded; if the binary is asked for, its absence is an error."""
    assert run_python(ASK, MMBDHS_BACKEND="native").stdout == "native\n"
    blocked = run_python(BLOCK + ASK, MMBDHS_BACKEND="native")
    assert "ImportError: MMBDHS_BACKEND=native, but the compiled extension cannot be imported" in blocked.stderr
    assert run_python(BLOCK + ASK).stdout == "reference\n"
    unknown = run_python(ASK, MMBDHS_BACKEND="cuda")
    assert "MMBDHS_BACKEND: needs 'native' or 'reference', got 'cuda'" in unknown.stderr


def test_backend_is_announced_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBDHS_BACKEND", "reference")
    backend.live.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="mmbdhs"):
            assert backend.live() is backend.live()
        assert [record.message for record in caplog.records] == [
            "native ops run on the reference path: MMBDHS_BACKEND=reference"
        ]
        for name in NAMES:
            assert_same(call(name), call_backend(name, binding))
    finally:
        backend.live.cache_clear()


def test_doctor_without_binary_or_transformers() -> None:
    code = "import sys; sys.modules['transformers'] = None; " + BLOCK
    done = run_python(code + "from mmbdhs.cli import main; main(['doctor'])")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["backend"].startswith("reference (the compiled extension cannot be imported")
    assert lines["torch"] and lines["python"] == sys.version.split()[0]


def test_doctor_report() -> None:
    facts = doctor.report()
    assert facts["extension"].endswith(binding._extension.__file__.split("/")[-1])
    assert facts["backend"].startswith(backend.live().name)
    assert {"compiler", "cuda build", "cuda archs", "torch", "transformers", "python"} <= set(facts)


def test_doctor_says_what_to_do_about_missing_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(backend, "kernel_obstacle", lambda device: "the extension was built without CUDA")
    facts = doctor.report()
    assert facts["torch cuda"].endswith("NVIDIA H100")
    assert facts["cuda kernels"].startswith("none: the extension was built without CUDA. PyTorch's SDPA")
    assert "MMBDHS_CUDA=on pip install" in facts["cuda kernels"]
    monkeypatch.setattr(backend, "kernel_obstacle", lambda device: "")
    assert doctor.report()["cuda kernels"] == "for this device"
