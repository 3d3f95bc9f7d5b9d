"""Finding the native kernels, and saying why an operation runs without them."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

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
)
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512bf16")  # in the order of csrc/cpu/instruction_sets.h


@functools.cache
def _load() -> ModuleType | ImportError:
    try:
        return importlib.import_module("xmplug._cpu")
    except ImportError as error:
        return error


def cpu() -> ModuleType | None:
    """The native CPU module, or None where the reference is to be used.

    `XMPLUG_KERNELS` decides: `auto` (default) takes the native module where it loads, `reference` never, and
    `native` raises KernelError where it does not load.
    """
    mode = os.environ.get("XMPLUG_KERNELS", "auto")
    if mode not in ("auto", "reference", "native"):
        raise KernelError(f"XMPLUG_KERNELS={mode} is not one of auto, reference, native")
    if mode == "reference":
        return None
    module = _load()
    if isinstance(module, ModuleType):
        return module
    if mode == "native":
        raise KernelError(
            f"XMPLUG_KERNELS=native, but the native kernels do not load ({module}); "
            "install xmplug where a C++ compiler is, with XMPLUG_BUILD=cpu, or set XMPLUG_KERNELS=auto"
        )
    return None


def kernels() -> dict[str, str]:
    """What runs each operation: `native cpu`, or `reference (why)`."""
    if cpu() is not None:
        state = "native cpu"
    elif os.environ.get("XMPLUG_KERNELS") == "reference":
        state = "reference (XMPLUG_KERNELS=reference)"
    else:
        state = f"reference (native kernels do not load: {_load()})"
    return dict.fromkeys(OPERATIONS, state)


def instruction_set() -> int:
    """The index in INSTRUCTION_SETS of the one that native kernels use: the best that the processor has.

    `XMPLUG_INSTRUCTION_SET` asks for a lesser one; KernelError for one that is not known or not there.
    """
    best = int(_load().best_instruction_set())  # type: ignore[union-attr]
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
