"""The CUDA kernels under the sanitizers of a C++ compiler, in an emulator whose threads are fibres or real ones."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from helpers.emulated import CHECK, barriers, compile_for_cpu
from helpers.tools import lacking


def run(program: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", **environment}
    return subprocess.run([program, "quick"], env=environment, capture_output=True, text=True, timeout=300, check=False)


def compile_check(folder: Path, sanitizers: str, *options: str) -> Path:
    """Compile the program that runs every kernel, if a program with these sanitizers runs here."""
    (folder / "empty.cpp").write_text("int main() {}")
    try:
        compile_for_cpu(folder / "empty", [folder / "empty.cpp"], f"-fsanitize={sanitizers}")
        subprocess.run([folder / "empty"], check=True)
    except (subprocess.CalledProcessError, OSError):
        lacking("sanitizers", f"a C++ compiler with the sanitizers {sanitizers}")
    compile_for_cpu(folder / "check", CHECK, f"-fsanitize={sanitizers}", "-g1", *options)
    return folder / "check"


def check_is_right(program: Path) -> None:
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "WRONG" not in done.stdout and done.stdout.count("right") == 9


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    return compile_check(folder, "thread", "-O1", "-pthread", "-DMMBDHS_EMULATE_WITH_THREADS")


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    """No access is outside of an array, in global or shared memory, and no behaviour is undefined."""
    check_is_right(compile_check(tmp_path, "address,undefined", "-O0", "-fno-sanitize-recover=all"))


@pytest.mark.slow
def test_no_races(threads: Path) -> None:
    check_is_right(threads)


@pytest.mark.slow
@pytest.mark.parametrize("place", barriers())
def test_every_missing_barrier_is_a_race(threads: Path, place: str) -> None:
    done = run(threads, MMBDHS_REMOVED=place)
    # A wild pointer, where a thread has read what was not yet written, is noticed before the race.
    assert done.returncode == 66 and re.search("ThreadSanitizer: (data race|SEGV)", done.stderr)
