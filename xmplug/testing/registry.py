"""What a check is, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal


class Failed(Exception):
    """A promise is not kept: what was found, and what to do."""


class Skipped(Exception):
    """A check does not apply: why."""


@dataclass(frozen=True)
class Check:
    """One promise. scope: it is made by a plugin as a whole, or by each of its methods. needs: checks without which
    this one would fail for their reason; it is skipped when one of them fails."""

    name: str
    scope: Literal["plugin", "method"]
    function: Callable[[Any], None]
    needs: tuple[str, ...]

    @property
    def promise(self) -> str:
        return " ".join((self.function.__doc__ or "").split())


@dataclass(frozen=True)
class Result:
    """What came of a check. method: the one that was looked at, empty for the plugin as a whole."""

    method: str
    check: str
    outcome: Literal["ok", "failed", "skipped"]
    message: str = ""


_Decorator = Callable[[Callable[[Any], None]], Callable[[Any], None]]
CHECKS: dict[str, Check] = {}
"""All checks by name, in the order in which they are made."""


def of_plugin(*needs: str) -> _Decorator:
    """Register a check that gets the `Suite`. Its name is the function's."""
    return partial(_register, "plugin", needs)


def of_method(*needs: str) -> _Decorator:
    """Register a check that gets a `Method`. Its name is the function's."""
    return partial(_register, "method", needs)


def _register(
    scope: Literal["plugin", "method"], needs: tuple[str, ...], function: Callable[[Any], None]
) -> Callable[[Any], None]:
    name = function.__name__.replace("_", "-")
    CHECKS[name] = Check(name, scope, function, needs)
    return function
