"""xmplug: a plugin-based framework for extreme multi-label text classification."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, DataError, PluginError, ResourceError, RunError, XmplugError
from .hookspecs import hookimpl
from .recipe import Component, ComponentConfig, Paper, Recipe, Takes

if TYPE_CHECKING:
    from .api import Tagger, calibrate, copy_run, ensemble, load, train

# An LSTM meets at a barrier of all threads at each time step. Threads that spin there keep a busy machine from running
# the one they wait for (measured: 200 times slower beside one busy process); threads that sleep cost next to nothing.
# OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Large tensors come fresh from the operating system. In pages of 2 MB instead of 4 KB, filling one for the first time
# is four times faster. PyTorch reads this when it makes its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
__all__ = [
    "Component",
    "ComponentConfig",
    "ConfigError",
    "DataError",
    "Paper",
    "PluginError",
    "Recipe",
    "ResourceError",
    "RunError",
    "Tagger",
    "Takes",
    "XmplugError",
    "calibrate",
    "copy_run",
    "ensemble",
    "hookimpl",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    # Plugins import this package for their declarations; torch comes in with the first of these calls.
    if name in ("Tagger", "calibrate", "copy_run", "ensemble", "load", "train"):
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
