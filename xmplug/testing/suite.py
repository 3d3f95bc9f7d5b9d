"""All checks of one plugin, and the pytest test made of them."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock
from weakref import finalize

from ..config import merge
from ..errors import ConfigError, PluginError, XmplugError, nearest
from ..mixing import clashes, takes_context
from ..plugins import Plugins
from ..recipe import SLOTS, Component, Recipe, Slot
from .methods import Method, train_elsewhere
from .registry import CHECKS, Check, Failed, Result, Skipped

Options = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
_EXEMPT = "gradients:"


class Suite:
    """The checks of a plugin: of what it declares, and of each of its methods.

    Methods are its recipes, named like them, and for each of its components that none of these has by default a recipe
    with that component exchanged, named recipe+plugin:component. What is trained is kept until the suite is gone.
    """

    def __init__(
        self,
        name: str,
        *,
        options: Options | None = None,
        recipe: str | None = None,
        plugin_files: Sequence[str] = (),
        expected_failures: Mapping[str, str] | None = None,
    ):
        """The arguments are those of `conformance`."""
        from . import declared, trained  # noqa: F401, they register the checks

        self.plugins, self.plugin_files = Plugins().load(tuple(plugin_files)), plugin_files
        self.plugin = self.plugins.plugin(name)
        self._options: Options = options or {}
        self._given: dict[Path, Mapping[str, Any]] = {}
        self._results: dict[tuple[str, str], Result] = {}
        self._not_made: dict[tuple[str, str], str] = {}
        self.expected = dict(expected_failures or {})
        self.exempt = {key.removeprefix(_EXEMPT): why for key, why in self.expected.items() if key.startswith(_EXEMPT)}
        self.methods = {method.name: method for method in self._find_methods(recipe)}
        keys = [key for method, check in self.pairs() for key in _keys(method, check)]
        for key in self.expected:
            if key not in keys and not key.startswith(_EXEMPT):
                raise ConfigError(f"expected_failures has {key!r}, which is no check: {nearest(key, keys)}")
        if not callable(self._options):
            try:
                self.given(Path())
            except Failed as error:
                raise ConfigError(str(error)) from None
            except PluginError:
                pass  # said by `declarations`

    @cached_property
    def folder(self) -> Path:
        """Corpora and runs."""
        folder = mkdtemp(prefix="xmplug-testing-")
        finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def pairs(self) -> list[tuple[str, str]]:
        """(method, check) of all checks, in order; the method is empty for those of the plugin as a whole."""
        of_plugin = [("", check.name) for check in CHECKS.values() if check.scope == "plugin"]
        of_method = [check.name for check in CHECKS.values() if check.scope == "method"]
        return of_plugin + [(method, check) for method in self.methods for check in of_method]

    def results(self) -> Iterator[Result]:
        """Make all checks, one by one."""
        for method, check in self.pairs():
            yield self.result(method, check)

    def result(self, method: str, check: str) -> Result:
        """What comes of one check; those that it needs are made before."""
        key = (method, check)
        if key not in self._results:
            with self._surroundings():
                self._results[key] = self._make(method, CHECKS[check])
        return self._results[key]

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """A cache of the suite's own, and the CPU, where sums have one order: the checks say the same everywhere."""
        environment = {"XMPLUG_CACHE": str(self.folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        with mock.patch.dict(os.environ, environment), mock.patch("torch.cuda.is_available", return_value=False):
            yield

    def _make(self, method: str, check: Check) -> Result:
        for needed in check.needs:
            key = (method if CHECKS[needed].scope == "method" else "", needed)
            before = self.result(*key)
            if before.outcome == "failed" or key in self._not_made:
                why = self._not_made.get(key, f"needs {needed}, which failed")
                self._not_made[method, check.name] = why
                return Result(method, check.name, "skipped", why)
        try:
            check.function(self.methods[method] if check.scope == "method" else self)
        except Skipped as reason:
            return Result(method, check.name, "skipped", str(reason))
        except Failed as found:
            return Result(method, check.name, "failed", str(found))
        except XmplugError as error:
            if check.name == "trains" and isinstance(error, ConfigError) and self.methods[method].exchanged:
                # A recipe runs with its defaults; a component may need an option that only its user can give.
                self._not_made[method, check.name] = "needs trains, which was skipped"
                return Result(method, check.name, "skipped", f"it needs options of its own: {error}")
            return Result(method, check.name, "failed", str(error))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
            return Result(method, check.name, "failed", " ".join(message.split()))
        return Result(method, check.name, "ok")

    def expectation(self, result: Result) -> str | None:
        """Why this check is expected to fail; None where it is not."""
        return next((self.expected[key] for key in _keys(result.method, result.check) if key in self.expected), None)

    def given(self, corpus: Path) -> Mapping[str, Any]:
        """The options that the author gave, for the corpus in a folder."""
        if corpus in self._given:
            return self._given[corpus]
        given = self._options(corpus) if callable(self._options) else self._options
        known: set[str] = {*SLOTS}
        for method in self.methods.values():
            options = method.known_options(given)
            known |= {*options, *(f"{method.name}/{name}" for name in (*SLOTS, *options))}
        for name in given:
            if name not in known:
                raise Failed(
                    f"no method of plugin {self.plugin.name!r} has the option {name!r}: {nearest(name, known)}"
                )
        self._given[corpus] = given
        return given

    def trained_elsewhere(self, method: Method) -> Path:
        """The short training of a method once more, from another process, which trains those of all methods at once."""
        run = method.folder / "elsewhere"
        if not run.exists() and not run.with_suffix(".error").exists():
            able = [other for name, other in self.methods.items() if self.result(name, "trains").outcome == "ok"]
            train_elsewhere([other.request() for other in able], self.folder)
        return run

    def _find_methods(self, recipe: str | None) -> Iterator[Method]:
        own = self.plugin.recipes
        hosts = own if recipe is None else [self.plugins.recipe(recipe)]
        for host in hosts:
            if host.plugin == self.plugin.name:
                yield Method(self, host.name, host.name)
        if recipe is not None and hosts[0].plugin == self.plugin.name:
            return
        for slot, components in self.plugin.components.items():
            for component in components:
                if recipe is None and any(self._uses(method, slot, component) for method in own):
                    continue
                able = hosts or list(self.plugins.recipes)
                fitting = [host for host in able if self._fits(host, slot, component)]
                if recipe is None:
                    fitting += able  # in a method that it does not fit, `trains` says why
                for host in fitting[:1]:
                    yield Method(self, f"{host.name}+{component.id}", host.name, (slot, component))

    def _uses(self, recipe: Recipe, slot: Slot, component: Component) -> bool:
        try:
            return self.plugins.components[slot].find(recipe.component(slot)) is component
        except PluginError:
            return False  # said by `declarations`

    def _fits(self, recipe: Recipe, slot: Slot, component: Component) -> bool:
        """Whether a recipe's other components can work with this one, and take what it gives."""
        try:
            config = merge(self.plugins, recipe.name, overrides=[(slot, component.id)])
            return not clashes(config) and (slot != "label_context" or takes_context(config))
        except XmplugError:
            return True  # said by `declarations`, `mixing` and `trains`


def conformance(
    plugin: str,
    *,
    options: Options | None = None,
    recipe: str | None = None,
    plugin_files: Sequence[str] = (),
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """A pytest test with a parameter for each check of a plugin: `test_conformance = conformance("treaderxml")`.

    plugin: its name. options: dotted names and values that make its models small and quick; each method takes those
    that it has, and "treaderxml/encoder.dropout" is for that method alone; or a function that gets the folder of a
    corpus and returns them, for options that name a file or a run. recipe: check this one only; one of another plugin:
    the method into which the components are put. plugin_files: paths of single-file plugins. expected_failures: reasons
    by name of a check ("padding"), of a check of one method ("treaderxml/padding"), or of a parameter that gets no
    gradient ("gradients:fusion.bias"); what is expected to fail and passes is a failure.
    """
    import pytest

    suite = Suite(
        plugin, options=options, recipe=recipe, plugin_files=plugin_files, expected_failures=expected_failures
    )
    pairs = suite.pairs()

    @pytest.mark.parametrize(("method", "check"), pairs, ids=["/".join(filter(None, pair)) for pair in pairs])
    def test_conformance(method: str, check: str) -> None:
        result = suite.result(method, check)
        why = suite.expectation(result)
        if result.outcome == "skipped":
            pytest.skip(result.message)
        if why is not None and result.outcome == "failed":
            pytest.xfail(f"{why}: {result.message}")
        if why is not None:
            pytest.fail(f"{check} passes, but is expected to fail ({why}); take it out of expected_failures", False)
        if result.outcome == "failed":
            pytest.fail(f"{check}: {result.message}\n\npromised: {CHECKS[check].promise}", False)

    return test_conformance


def _keys(method: str, check: str) -> tuple[str, str]:
    return f"{method}/{check}", check
