"""The typed configuration of a run: load, merge, override, print.

Later layers win: defaults < the recipe's options < preset < `--config FILE` < options given by name. A layer that
puts another component into a slot starts that slot's options afresh.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from . import mixing
from .errors import ConfigError, PluginError, nearest
from .plugins import Plugins
from .recipe import SLOTS, Component, ComponentConfig, Gives, Recipe, Slot, Takes

SECTIONS = (*SLOTS, "training")


class TrainingConfig(ComponentConfig):
    """How a model is fitted; the same for every method."""

    levels: Literal["apart", "together"] = Field(
        "apart",
        description="levels of a tree: apart, each with an encoder of its own, or together, with one encoder for all",
    )
    epochs: tuple[int, ...] = Field(
        (10,), description="passes over the training texts, per level; the last repeats; levels together take the first"
    )
    minutes: float | None = Field(
        None,
        gt=0,
        description="end after so many minutes by the clock, fitting and dev included, with one more evaluation, and "
        "keep the best weights; levels share them, a resumed run has what is left. The clock repeats nothing to the "
        "digit, and what is solved without steps takes its time. none: all epochs",
    )
    batch_size: int = Field(64, ge=1, description="texts in a step")
    micro_batch: int | None = Field(
        None, ge=1, description="texts that go through the model at once, their gradients summed over a step; none: all"
    )
    learning_rate: float = Field(1e-3, gt=0, description="step size of Adam")
    schedule: Literal["constant", "linear"] = Field("constant", description="learning rate after warm-up")
    warmup: float = Field(0.0, ge=0, le=1, description="share of the steps in which the learning rate rises from 0")
    clip_norm: float | None = Field(5.0, gt=0, description="largest L2 norm of a step's gradient; none: no clipping")
    swa_start: float | None = Field(
        0.5, ge=0, le=1, description="share of the steps after which weights are averaged; none: no averaging"
    )
    swa_every: int = Field(10, ge=1, description="steps between two weights that enter the average")
    evaluations: int = Field(1, ge=1, description="evaluations on dev per epoch")
    dev_documents: int | None = Field(
        None, ge=1, description="evaluate on at most so many dev texts while training; none: all"
    )
    metric: str = Field("nDCG@5", description="dev metric that chooses the weights to keep")
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without a better metric")
    checkpoint_every: int = Field(500, ge=1, description="steps between two checkpoints")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor multiplies it natively, else float32"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random: weights, order, dropout, trees")

    @field_validator("epochs")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("give at least one epoch for each level")
        return value

    @field_validator("metric")
    @classmethod
    def _ranking_metric(cls, value: str) -> str:
        name, _, k = value.partition("@")
        if name not in {"P", "nDCG", "R", "RP", "PSP", "PSnDCG"} or not k.isdigit() or int(k) < 1:
            raise ValueError("give P@k, nDCG@k, R@k, RP@k, PSP@k or PSnDCG@k with a number for k")
        return f"{name}@{int(k)}"

    def epochs_at(self, level: int) -> int:
        """Passes over the data at `level`, the first level being 0."""
        return self.epochs[min(level, len(self.epochs) - 1)]


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run, resolved and checked."""

    recipe: Recipe
    preset: str | None
    components: Mapping[Slot, Component]
    options: Mapping[Slot, ComponentConfig]
    training: TrainingConfig

    def given(self, source: str) -> Gives | None:
        """What a slot's component gives; of an option of training, its value.

        Raises PluginError for a source that is neither.
        """
        if source in SLOTS:
            return self.components[source].given(self.options[source])
        options = {f"training.{name}": name for name in TrainingConfig.model_fields}
        if source not in options:
            raise PluginError(f"a component takes something from {source!r}: {nearest(source, (*SLOTS, *options))}")
        return (str(getattr(self.training, options[source])),)

    def taken(self, slot: Slot) -> Takes | None:
        """What a slot's component takes from others."""
        return self.components[slot].taken(self.options[slot])

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `resolve` reads it back to the same configuration."""
        sections: dict[str, Any] = {
            slot: {"component": self.components[slot].id, **self.options[slot].model_dump(mode="json")}
            for slot in SLOTS
        }
        return {"recipe": self.recipe.name, **sections, "training": self.training.model_dump(mode="json")}


def read_config(path: str | Path) -> dict[str, Any]:
    """A configuration file: one JSON object, as `xmplug config` prints it.

    Raises ConfigError when it is missing, is not JSON or is not an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"config file {str(path)!r} does not exist; `xmplug config` prints one to start from"
        ) from None
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"config file {str(path)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {str(path)!r} holds {type(content).__name__}, expected a JSON object")
    return content


def resolve(
    plugins: Plugins,
    recipe: str,
    *,
    preset: str | None = None,
    file: Mapping[str, Any] | None = None,
    overrides: Iterable[tuple[str, Any]] = (),
) -> RunConfig:
    """Merge all layers and check them.

    recipe: name of the method. preset: one of the recipe's presets. file: content of a configuration file.
    overrides: pairs of a dotted name and a value, e.g. `("training.epochs", "3")`; a slot's bare name exchanges its
    component, e.g. `("loss", "core:bce")`.

    Raises ConfigError for an unknown preset, section or option, a value out of bounds, or components that do not fit
    one another; PluginError for an unknown recipe or component.
    """
    config = merge(plugins, recipe, preset=preset, file=file, overrides=overrides)
    mixing.check(config, plugins)
    return config


def merge(
    plugins: Plugins,
    recipe: str,
    *,
    preset: str | None = None,
    file: Mapping[str, Any] | None = None,
    overrides: Iterable[tuple[str, Any]] = (),
) -> RunConfig:
    """What `resolve` gives, its components not held against one another."""
    method = plugins.recipe(recipe)
    if preset is not None and preset not in method.presets:
        raise ConfigError(f"recipe {recipe!r} has no preset {preset!r}: {nearest(preset, method.presets)}")
    if file is not None and file.get("recipe", recipe) != recipe:
        raise ConfigError(f"the config file is for recipe {file['recipe']!r}, asked was {recipe!r}; use one of them")

    merged: dict[str, dict[str, Any]] = {slot: {"component": method.component(slot)} for slot in SLOTS}
    merged["training"] = {}
    for layer in (method.options, method.presets.get(preset or "", {}), file or {}, _nested(overrides)):
        for section, options in layer.items():
            if section == "recipe":
                continue
            if section not in SECTIONS:
                raise ConfigError(f"no section {section!r} in the configuration: {nearest(section, SECTIONS)}")
            if not isinstance(options, Mapping):
                raise ConfigError(f"section {section!r} must hold options, found {options!r}")
            _merge(plugins, merged[section], section, options)

    components: dict[Slot, Component] = {}
    configs: dict[Slot, ComponentConfig] = {}
    for slot in SLOTS:
        components[slot] = plugins.components[slot].find(merged[slot].pop("component"))
        configs[slot] = _validate(components[slot].config, slot, merged[slot])
    training = _validate(TrainingConfig, "training", merged["training"])
    return RunConfig(method, preset, components, configs, training)


def options_of(config: type[ComponentConfig]) -> list[tuple[str, str, str]]:
    """(name, type, description) of each option, for help texts."""
    rows = []
    for name, schema in config.model_json_schema().get("properties", {}).items():
        choices = schema.get("enum")
        kinds = [schema] if "type" in schema else schema.get("anyOf", [])
        kind = "|".join(map(str, choices)) if choices else "|".join(str(item.get("type", "any")) for item in kinds)
        rows.append(
            (
                name,
                kind.replace("null", "none").replace("array", "N,N,..."),
                schema.get("description", ""),
            )
        )
    return rows


def _nested(overrides: Iterable[tuple[str, Any]]) -> dict[str, dict[str, Any]]:
    layer: dict[str, dict[str, Any]] = {}
    for name, value in overrides:
        section, _, option = name.partition(".")
        layer.setdefault(section, {})[option or "component"] = value
    return layer


def _merge(plugins: Plugins, into: dict[str, Any], section: str, options: Mapping[str, Any]) -> None:
    if section != "training" and "component" in options:
        if not isinstance(options["component"], str):
            raise ConfigError(f"{section}.component must be a component's id, found {options['component']!r}")
        registry = plugins.components[section]  # type: ignore[index]
        if registry.find(options["component"]).id != registry.find(into["component"]).id:
            into.clear()  # the options so far belong to another component
    into.update(options)


def _validate(model: type[Any], section: str, options: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join([section, *map(str, problem["loc"])])
        if problem["type"] == "extra_forbidden":
            known = [f"{section}.{field}" for field in model.model_fields]
            raise ConfigError(f"no option {name!r}: {nearest(name, known)}") from error
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"option {name!r} cannot be {problem['input']!r}: {message}") from error
