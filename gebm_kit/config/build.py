"""Building the objects of a checked recipe, through registry records and never by import."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gebm_kit.config.class_keys import CLASS_KEYS, name_classes
from gebm_kit.config.schema import COMPONENT_SECTIONS, SCHEMA_VERSION, ComponentNode, Recipe
from gebm_kit.config.supplied import SuppliedNode
from gebm_kit.config.supplied_parts import component_of
from gebm_kit.core.attribution import is_out_of_memory, passes_through_component
from gebm_kit.core.components import parameters
from gebm_kit.core.contracts import check_dataset_facts, check_kind
from gebm_kit.core.datasets import Dataset
from gebm_kit.core.errors import DataError, RecipeError
from gebm_kit.core.plugins import installed


def build(kind: str, node: ComponentNode, injected: Mapping[str, Any] | None = None) -> Any:
    """Construct the component that ``node`` names, and the components nested in its parameters.

    Args:
        injected: values for constructor parameters that the kit fills in, by name.

    Raises:
        UsageError: ``node`` stands for an object of the caller's that is not here.
        RecipeError: the constructor refuses a combination of values, or needs an injected value that is not known here.
        PluginError: the component's class can't be imported, or is not of its kind.
    """
    injected = injected or {}
    if isinstance(node, SuppliedNode):
        made = component_of(kind, node, injected)
        check_kind(kind, made)
        return made
    target = installed().registry.get(kind, node.name).load()
    arguments = dict(node.parameters)
    for parameter in parameters(target).values():
        if parameter.kind is not None:
            arguments |= _built_inside(parameter.name, parameter.kind, arguments.get(parameter.name), injected)
        if not parameter.injected:
            continue
        if parameter.name in injected:
            arguments[parameter.name] = injected[parameter.name]
        elif parameter.default is inspect.Parameter.empty:
            raise RecipeError(f"{kind} {node.name!r} needs {parameter.name}, which is not known here")
    try:
        built = target(**arguments)
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, TypeError) and passes_through_component(error):
            raise
        raise RecipeError(f"{kind} {node.name!r} can't be built: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        reason = str(error).partition("\n")[0] or "not enough memory"
        raise RecipeError(f"{kind} {node.name!r} is too large for this machine: {reason}") from error
    except OSError as error:
        if passes_through_component(error):  # what a plugin opens is not the recipe's: its own file and line are named
            raise
        raise DataError(f"{kind} {node.name!r} can't be built: {error}") from error
    check_kind(kind, built)
    return built


def _built_inside(name: str, kind: str, value: Any, injected: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameter ``name`` with the components of its nodes, by its name; {} where it holds no nodes."""
    if isinstance(value, ComponentNode):
        return {name: build(kind, value, injected)}
    if isinstance(value, list) and any(isinstance(item, ComponentNode) for item in value):
        return {name: [build(kind, v, injected) if isinstance(v, ComponentNode) else v for v in value]}
    return {}


def is_memory_error(error: Exception) -> bool:
    """Return whether an allocation failed, or asked for more than any machine can address."""
    words = ("out of memory", "Storage size calculation overflowed", "invalid sizes, got")
    return is_out_of_memory(error) or any(word in str(error) for word in words)


def build_dataset(recipe: Recipe) -> Any:
    """Build the recipe's dataset.

    Raises:
        DataError: its files are missing or malformed, or one of its parts is empty.
        RecipeError: ``data.class_names`` does not fit its classes.
    """
    dataset = build("dataset", recipe.data, {"directory": recipe.directory})
    check_dataset_facts(dataset)
    for name in ("train", "valid", "test"):
        if len(dataset.split(name)) == 0:
            raise DataError(f"dataset {recipe.data.title!r} has an empty {name} part")
    name_classes(dataset, recipe.class_names, how_to_label(recipe))
    return dataset


def how_to_label(recipe: Recipe) -> str:
    """Return what someone does who needs labels of the recipe's data and has none, for messages."""
    if isinstance(recipe.data, SuppliedNode):
        return "Give gk.fit the classes of the rows: labels=..."
    target = installed().registry.get("dataset", recipe.data.name).load()
    return str(getattr(target, "how_to_label", Dataset.how_to_label))


def data_facts(recipe: Recipe, dataset: Any) -> dict[str, Any]:
    """Return the facts about data and recipe that a component may ask to be injected."""
    return {
        "data_shape": tuple(dataset.data_shape),
        "value_range": dataset.value_range,
        "num_classes": getattr(dataset, "num_classes", None),
        "latent_dim": recipe.base.parameters.get("latent_dim"),
        "directory": recipe.directory,
    }


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data with every default written out; loading it again gives the same recipe."""
    tree: dict[str, Any] = {"schema": SCHEMA_VERSION, "requires": list(recipe.requires)}
    for name in COMPONENT_SECTIONS:
        if name != "sampler":
            tree[name] = _plain(getattr(recipe, name))
    tree["data"] |= {key: _plain(value) for key in CLASS_KEYS if (value := getattr(recipe, key)) is not None}
    for name in ("train", "optim", "ema", "sampler", "sample", "eval", "nll"):
        tree[name] = _plain(getattr(recipe, name))
    tree |= {"loggers": _plain(recipe.loggers), "device": recipe.device, "precision": recipe.precision}
    return tree


def resolved_yaml(recipe: Recipe) -> str:
    """Return `resolved` as YAML text."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, ComponentNode):
        return {k: _plain(v) for k, v in value.as_dict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value
