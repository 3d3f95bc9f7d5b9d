"""Compiles csrc/ with ninja; everything else is in pyproject.toml.

The environment variable XMPLUG_BUILD says what to compile:
    auto  (default) what this machine can: without a C++ compiler, a pure-Python package, which works, slower
    cpu   the CPU kernels; an error where they cannot be built
    cuda  the CPU and the CUDA kernels; an error where they cannot be built
    none  nothing
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")
# No -march=native: a wheel must run on other machines. No contraction: the kernels promise the reference's
# results. No errno from sqrt: with it, loops that take roots do not become vectors.
CXXFLAGS = "-O3 -std=c++17 -fPIC -pthread -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wall -Wextra"
# The files simd_*.cpp are one source compiled for several instruction sets; which of them runs is decided at run time.
SIMD_FLAGS = {
    "simd_baseline": "-ffp-contract=fast",
    "simd_avx2": "-ffp-contract=fast -mavx2 -mfma",
    "simd_avx512": "-ffp-contract=fast -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma",
    "simd_avx512bf16": "-ffp-contract=fast -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma",
}


def compiler() -> str | None:
    """The C++ compiler to call: $CXX, else the first one found."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)


def extensions() -> list[Extension]:
    mode = os.environ.get("XMPLUG_BUILD", "auto")
    if mode not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"XMPLUG_BUILD={mode} is not one of auto, cpu, cuda, none")
    if mode == "cuda" and not (ROOT / CSRC / "cuda").is_dir():
        sys.exit("XMPLUG_BUILD=cuda: this release carries no CUDA kernels (no csrc/cuda); use auto, cpu or none")
    if mode == "none":
        return []
    if compiler() is None:
        if mode != "auto":
            sys.exit(f"XMPLUG_BUILD={mode} needs a C++17 compiler and found none; install g++ or set CXX")
        warnings.warn("no C++ compiler: xmplug is installed without native kernels and is slower", stacklevel=2)
        return []
    sources = sorted((ROOT / CSRC / "cpu").glob("*.cpp"))
    if platform.machine().lower() not in ("x86_64", "amd64"):
        sources = [source for source in sources if not source.stem.startswith("simd_avx")]
    headers = sorted((ROOT / CSRC / "cpu").glob("*.h"))
    relative = [[str(path.relative_to(ROOT)) for path in paths] for paths in (sources, headers)]
    return [Extension("xmplug._cpu", sources=relative[0], depends=relative[1], optional=mode == "auto")]


class NinjaBuild(build_ext):
    """Writes a ninja file per extension and runs it, so that only what changed is compiled."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp, ext.name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # an old build must not pass for a new one that failed
        (folder / "build.ninja").write_text(self.ninja_file(ext, target), encoding="utf-8")
        ninja = shutil.which("ninja") or str(Path(sysconfig.get_path("scripts"), "ninja"))
        try:
            subprocess.run([ninja, "-C", str(folder)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"{ext.name}: {error}") from error

    def ninja_file(self, ext: Extension, target: Path) -> str:
        includes = [pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
        flags = shlex.join(f"-isystem{path}" for path in dict.fromkeys(includes))
        shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
        lines = [
            f"cxx = {compiler()}",
            f"cxxflags = {CXXFLAGS} {flags} {os.environ.get('CXXFLAGS', '')}",
            f"ldflags = {shared} -pthread {os.environ.get('LDFLAGS', '')}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $cxxflags $simd -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $cxx $in $ldflags -o $out",
        ]
        objects = []
        for source in ext.sources:
            objects.append(escaped(Path(source).with_suffix(".o").name))
            lines.append(f"build {objects[-1]}: compile {escaped(ROOT / source)}")
            lines.append(f"  simd = {SIMD_FLAGS.get(Path(source).stem, '')}")
        lines.append(f"build {escaped(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


def escaped(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
