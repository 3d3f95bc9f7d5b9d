"""Every exception that a user can meet.

A message says what was asked, what was found and what to do next, in one line. The command line prints the message
without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class XmplugError(Exception):
    """Base of all errors that xmplug raises on purpose."""

    exit_code = 1


class ConfigError(XmplugError):
    """An option that does not exist, or a value that it cannot take."""

    exit_code = 2


class PluginError(XmplugError):
    """A plugin, component or recipe that is missing, broken or of another API generation."""


class PluginConflictError(PluginError):
    """Two distributions claim one plugin name, or two components one id."""


class DataError(XmplugError):
    """Input that cannot be read as what it was said to be."""

    def __init__(self, message: str, path: str | Path | None = None, line: int | None = None):
        self.path, self.line = path, line
        where = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(where + message)


class FetchError(DataError):
    """A download that could not be made or does not have the published checksum."""


class RunError(XmplugError):
    """A run directory that is missing, incomplete, corrupt or made by another format."""


class ResourceError(XmplugError):
    """Work that cannot fit into this machine's memory or disk."""


class KernelError(XmplugError):
    """A kernel that was demanded but is not there, or arguments that it cannot take."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown `name`: the closest known one, else all of them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are: {', '.join(names)}" if names else "there are none"
