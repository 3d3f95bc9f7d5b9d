"""Compiles csrc/ with ninja; everything else is in pyproject.toml.

The environment variable XMPLUG_BUILD says what to compile:
    auto  (default) what this machine can: without a C++ compiler, a pure-Python package, which works, slower
    cpu   the CPU kernels; an error where they cannot be built
    cuda  the CPU and the CUDA kernels; an error where they cannot be built
    none  nothing
XMPLUG_CUDA_ARCHITECTURES names the GPUs to compile for, as nvcc does after sm_, and newer ones take the last of them;
the default is "75 80 90a 100". An H100 or H200 is 90a, whose kernels plain 90 does not have: that is an error.
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
# Warnings and spills are errors, and each kernel's registers are in the output. Multiply-adds are fused, but where a
# kernel promises the reference's results and says so.
NVCCFLAGS = (
    "-O3 -std=c++17 --cudart static -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra -Werror all-warnings "
    "-Xptxas -v,-warn-spills"
)
ARCHITECTURES = "75 80 90a 100"


def compiler() -> str | None:
    """The C++ compiler to call: $CXX, else the first one found."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)


def nvcc() -> str | None:
    """CUDA's compiler: in $CUDA_HOME, else the one on the path, else where CUDA installs itself."""
    homes = [os.environ.get("CUDA_HOME"), None, "/usr/local/cuda"]
    return next(filter(None, (shutil.which("nvcc", path=home and str(Path(home, "bin"))) for home in homes)), None)


def extensions() -> list[Extension]:
    mode = os.environ.get("XMPLUG_BUILD", "auto")
    if mode not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"XMPLUG_BUILD={mode} is not one of auto, cpu, cuda, none")
    if mode == "cuda" and nvcc() is None:
        sys.exit("XMPLUG_BUILD=cuda needs nvcc and found none; install the CUDA toolkit or set CUDA_HOME")
    if mode == "none":
        return []
    if compiler() is None:
        if mode != "auto":
            sys.exit(f"XMPLUG_BUILD={mode} needs a C++17 compiler and found none; install g++ or set CXX")
        warnings.warn("no C++ compiler: xmplug is installed without native kernels and is slower", stacklevel=2)
        return []
    found = [extension("cpu", optional=mode == "auto")]
    if mode == "cuda":
        found.append(extension("cuda"))
    return found


def extension(folder: str, optional: bool = False) -> Extension:
    """The module xmplug._<folder>, of what lies in that folder of csrc."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / CSRC / folder).iterdir())
    sources = [str(path) for path in files if path.suffix in (".cpp", ".cu")]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        sources = [source for source in sources if not Path(source).stem.startswith("simd_avx")]
    headers = [str(path) for path in files if path.suffix == ".h"]
    return Extension(f"xmplug._{folder}", sources=sources, depends=headers, optional=optional)


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
        flags = " ".join(f"-isystem {shlex.quote(path)}" for path in dict.fromkeys(includes))
        shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
        lines = [
            f"cxx = {compiler()}",
            f"cxxflags = {CXXFLAGS} {flags} {os.environ.get('CXXFLAGS', '')}",
            f"ldflags = {shared} -pthread {os.environ.get('LDFLAGS', '')}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $cxxflags $simd -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
        compile, link = "compile", "$cxx $in $ldflags -o $out"
        if ext.sources[0].endswith(".cu"):
            compile, link = "compile_cuda", "$nvcc --cudart static -shared $in -o $out"
            architectures = os.environ.get("XMPLUG_CUDA_ARCHITECTURES", ARCHITECTURES).split()
            targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in architectures]
            targets.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
            lines += [
                f"nvcc = {nvcc()} -ccbin {compiler()}",
                f"nvccflags = {NVCCFLAGS} {' '.join(targets)} {flags}",
                "rule compile_cuda",
                "  command = $nvcc -MMD -MF $out.d $nvccflags -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
            ]
        lines += ["rule link", f"  command = {link}"]
        objects = []
        for source in ext.sources:
            objects.append(escaped(Path(source).with_suffix(".o").name))
            lines.append(f"build {objects[-1]}: {compile} {escaped(ROOT / source)}")
            lines.append(f"  simd = {SIMD_FLAGS.get(Path(source).stem, '')}")
        lines.append(f"build {escaped(target)}: link {' '.join(objects)}")
        return "\n".join(lines) + "\n"


def escaped(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
