"""Build the native extension with CMake. Everything else about the package stands in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SWITCHES = ("MMBDHS_CUDA", "MMBDHS_CUDA_ARCHS")


class CMakeBuild(build_ext):
    """Configure and build CMakeLists.txt, with MMBDHS_CUDA and MMBDHS_CUDA_ARCHS from the environment."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        options = {
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "MMBDHS_CUDA": "auto",
            "MMBDHS_CUDA_ARCHS": "",
        }
        options |= {name: os.environ[name] for name in SWITCHES if os.environ.get(name)}
        configure = ["cmake", "-S", ROOT, "-B", build]
        if ninja := shutil.which("ninja"):
            # Named each time: the path that an earlier isolated build left in the cache is gone.
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.check_call([*configure, *(f"-D{name}={value}" for name, value in options.items())])
        subprocess.check_call(["cmake", "--build", build, "--config", "Release"])


setup(ext_modules=[Extension("mmbdhs.native._extension", sources=[])], cmdclass={"build_ext": CMakeBuild})
