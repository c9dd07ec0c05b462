"""The CUDA kernels under the sanitizers of a C++ compiler, in an emulator whose threads are fibres or real ones."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from helpers.emulated import CHECK, barriers, compile_for_cpu


def run(program: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", **environment}
    return subprocess.run([program, "quick"], env=environment, capture_output=True, text=True, timeout=300, check=False)


def check_is_right(program: Path) -> None:
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "WRONG" not in done.stdout and done.stdout.count("right") == 9


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("threads") / "check"
    compile_for_cpu(program, CHECK, "-DMMBDHS_EMULATE_WITH_THREADS", "-O1", "-g1", "-fsanitize=thread", "-pthread")
    return program


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    """No access is outside of an array, in global or shared memory, and no behaviour undefined."""
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    compile_for_cpu(tmp_path / "check", CHECK, "-O0", "-g1", *sanitizers)
    check_is_right(tmp_path / "check")


@pytest.mark.slow
def test_no_races(threads: Path) -> None:
    check_is_right(threads)


@pytest.mark.slow
@pytest.mark.parametrize("place", barriers())
def test_every_missing_barrier_is_a_race(threads: Path, place: str) -> None:
    done = run(threads, MMBDHS_REMOVED=place)
    # A wild pointer, where a thread has read what was not yet written, is noticed before the race.
    assert done.returncode == 66 and re.search("ThreadSanitizer: (data race|SEGV)", done.stderr)
