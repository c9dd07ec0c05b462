"""The CUDA sources compiled for the CPU with `cuda_emulator.h`, in place of the compiled extension."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mmbdhs.native import _extension

HERE = Path(__file__).parent / "emulator"
SOURCES = Path(__file__).parents[2] / "csrc"
# The program that needs neither torch nor Python.
CHECK = [HERE / "cuda_check.cu", *sorted(SOURCES.rglob("*.cu"))]
CHECK += [SOURCES / "image_mask/image_mask.cpp", SOURCES / "random/philox.cpp"]
WRONG_KERNELS = ("leaves_early", "parts_ways", "overruns", "slips", "strays", "takes_much")
SCHEDULES = {"ascending": 0, "descending": 1, "random": 2}
_STREAM = 0x5EA
_GUARD = 1 << 14  # bytes around a buffer, which a wrong kernel may overwrite and a right one leaves unchanged


def compile_for_cpu(output: Path, sources: Iterable[Path], *options: str) -> None:
    """Compile CUDA sources with a C++ compiler and the emulator's headers."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")))
    folders = [f"-I{HERE / 'fake_cuda_runtime'}", f"-I{SOURCES}"]
    always = ["-x", "c++", "-std=c++17", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas", *folders]
    subprocess.run([*compiler.split(), *always, *options, *sources, "-o", output], check=True, timeout=300)


def build(folder: Path) -> ctypes.CDLL:
    """Compile the kernels as a library."""
    library = folder / "emulated_kernels.so"
    compile_for_cpu(library, [HERE / "emulated_kernels.cpp"], "-O2", "-shared", "-fPIC")
    loaded = ctypes.CDLL(str(library))
    loaded.last_stream.restype = ctypes.c_void_p
    for op in ("shared_prefix", "masked"):
        getattr(loaded, f"{op}_workspace").restype = ctypes.c_int64
    for name in ("shared_memory_of", "tiles_of_block"):
        getattr(loaded, name).restype = ctypes.c_int64
    launchers = ("shared_prefix_attention", "masked_attention", "count_visible", "write_visible")
    for name in (*launchers, *(f"run_{kernel}" for kernel in WRONG_KERNELS)):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


def barriers() -> list[str]:
    """The places "file:line" of all barriers, votes and waits for copies in the kernels."""
    files = {path.name: path.read_text().splitlines() for path in sorted(SOURCES.rglob("*.cuh"))}
    pattern = re.compile(r"__sync(threads|warp)|wait_for_copies\(\);")
    return [f"{name}:{n}" for name, lines in files.items() for n, line in enumerate(lines, 1) if pattern.search(line)]


class Extension:
    """The attention functions of the compiled extension, run by the CUDA launchers."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.schedule("ascending")
        self.remove_barrier("")

    def schedule(self, name: str) -> None:
        """Choose which thread continues when one has to wait."""
        self._library.set_schedule(SCHEDULES[name])

    def remove_barrier(self, place: str) -> None:
        """Skip the barrier at "file:line", or none."""
        self._library.remove_barrier(place.encode())

    def launch(self, name: str, *arguments: object) -> None:
        """Call a launcher on a stream. Raises RuntimeError with its message if it fails."""
        error = getattr(self._library, name)(*arguments, ctypes.c_void_p(_STREAM))
        if error:
            raise RuntimeError(error.decode())
        assert self._library.last_stream() == _STREAM

    def shared_prefix_attention(self, fields: dict[str, int], scale: float, softcap: float, _threads: int) -> None:
        self._attend("shared_prefix", "SharedPrefix", fields, scale, softcap)

    def masked_attention(self, fields: dict[str, int], scale: float, softcap: float, _threads: int) -> None:
        self._attend("masked", "Masked", fields, scale, softcap)

    def _attend(self, op: str, struct: str, fields: dict[str, int], scale: float, softcap: float) -> None:
        names = _extension.struct_fields()[struct]
        assert set(fields) == set(names)
        packed = (ctypes.c_int64 * len(names))(*(fields[name] for name in names))
        size = getattr(self._library, f"{op}_workspace")(packed)
        with guarded(size) as workspace:
            numbers = (ctypes.c_double(scale), ctypes.c_double(softcap))
            self.launch(f"{op}_attention", packed, *numbers, pointer(workspace))


@contextmanager
def guarded(size: int) -> Iterator[Tensor]:
    """Give uint8 [size] of 0xFF (NaN in every float), between guard bytes that must not change."""
    buffer = torch.full((size + 2 * _GUARD,), 0xFF, dtype=torch.uint8)
    yield buffer[_GUARD : _GUARD + size]
    assert bool((buffer[:_GUARD] == 0xFF).all() and (buffer[_GUARD + size :] == 0xFF).all()), "wrote outside"


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
