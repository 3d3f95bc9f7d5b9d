"""Finding the native kernels, and saying why an operation runs without them."""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from xmplug.errors import KernelError

OPERATIONS = (
    "label_attention",
    "beam_step",
    "tree_beam_search",
    "ranking_metrics",
    "build_label_tree",
    "sparse_adam_step",
    "train_linear",
    "linear_scores",
    "linear_bce",
)
GPU_OPERATIONS = (
    "label_attention",
    "beam_step",
    "tree_beam_search",
    "ranking_metrics",
    "sparse_adam_step",
    "linear_bce",
)
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512bf16")  # in the order of csrc/cpu/instruction_sets.h
OLDEST_GPU = (7, 5)  # compute capability


@functools.cache
def _load(name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f"xmplug.{name}")
    except ImportError as error:
        return error


def _mode() -> str:
    mode = os.environ.get("XMPLUG_KERNELS", "auto")
    if mode not in ("auto", "reference", "native"):
        raise KernelError(f"XMPLUG_KERNELS={mode} is not one of auto, reference, native")
    return mode


def cpu() -> ModuleType | None:
    """The native CPU module, or None where the reference is to be used.

    `XMPLUG_KERNELS` decides: `auto` (default) takes the native module where it loads, `reference` never, and
    `native` raises KernelError where it does not load.
    """
    mode = _mode()
    if mode == "reference":
        return None
    module = _load("_cpu")
    if isinstance(module, ModuleType):
        return module
    if mode == "native":
        raise KernelError(
            f"XMPLUG_KERNELS=native, but the native kernels do not load ({module}); "
            "install xmplug where a C++ compiler is, with XMPLUG_BUILD=cpu, or set XMPLUG_KERNELS=auto"
        )
    return None


@dataclass(frozen=True)
class Gpu:
    """The native CUDA kernels on one device: `gpu(name, *arguments)` queues one on the device's current stream."""

    module: ModuleType
    device: torch.device
    capability: tuple[int, int]

    def __call__(self, name: str, *arguments: Any) -> Any:
        with torch.cuda.device(self.device):
            return getattr(self.module, name)(*arguments, torch.cuda.current_stream().cuda_stream)


def gpu(tensor: torch.Tensor) -> Gpu | None:
    """The native CUDA kernels for the device that a tensor is on, or None where the reference is to be used.

    None for a tensor that is not on a GPU; else `XMPLUG_KERNELS` decides as for `cpu`, where `native` also raises
    KernelError for a GPU that is older than the kernels know.
    """
    if tensor.device.type != "cuda":
        return None
    mode = _mode()
    if mode == "reference":
        return None
    found = _gpu(tensor.device)
    if isinstance(found, Gpu):
        return found
    if mode == "native":
        raise KernelError(f"XMPLUG_KERNELS=native, but {found}; or set XMPLUG_KERNELS=auto")
    return None


@functools.cache
def _gpu(device: torch.device) -> Gpu | str:
    """The kernels for a device, or why there are none and what to do."""
    module = _load("_cuda")
    if not isinstance(module, ModuleType):
        return f"the native CUDA kernels do not load ({module}); install xmplug where nvcc is, with XMPLUG_BUILD=cuda"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and the "
            f"native CUDA kernels need {OLDEST_GPU[0]}.{OLDEST_GPU[1]}; take a newer GPU"
        )
    return Gpu(module, device, capability)


def kernels() -> dict[str, str]:
    """What runs each operation: `native cpu`, or `reference (why)`; on a GPU, after a comma, likewise."""
    if _mode() == "reference":
        return dict.fromkeys(OPERATIONS, "reference (XMPLUG_KERNELS=reference)")
    on_cpu = "native cpu" if cpu() is not None else f"reference (native kernels do not load: {_load('_cpu')})"
    states = dict.fromkeys(OPERATIONS, on_cpu)
    if torch.cuda.is_available():
        found = _gpu(torch.device("cuda", torch.cuda.current_device()))
        on_gpu = "native cuda" if isinstance(found, Gpu) else f"reference on the GPU ({found})"
        states |= {name: f"{states[name]}, {on_gpu}" for name in GPU_OPERATIONS}
    return states


def instruction_set() -> int:
    """The index in INSTRUCTION_SETS of the one that native kernels use: the best that the processor has.

    `XMPLUG_INSTRUCTION_SET` asks for a lesser one; KernelError for one that is not known or not there.
    """
    best = int(_load("_cpu").best_instruction_set())  # type: ignore[union-attr]
    asked = os.environ.get("XMPLUG_INSTRUCTION_SET")
    if asked is None:
        return best
    if asked not in INSTRUCTION_SETS[: best + 1]:
        raise KernelError(
            f"XMPLUG_INSTRUCTION_SET={asked} is not one of those that this processor has: "
            f"{', '.join(INSTRUCTION_SETS[: best + 1])}"
        )
    return INSTRUCTION_SETS.index(asked)


def threads() -> int:
    """The number of threads a native kernel may use: PyTorch's."""
    return torch.get_num_threads()
