"""Python objects for a run that was trained on some: its recipe names them, and whoever opens the run gives them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gebm_kit.config.schema import COMPONENT_SECTIONS, Recipe
from gebm_kit.config.supplied import PYTHON_OBJECT, SuppliedNode, not_supplied
from gebm_kit.config.tree import MAX_BYTES
from gebm_kit.core.attribution import kind_of
from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.reading import read_file
from gebm_kit.engine.datasets.given import source_of

NEEDED = ("base", "energy")
"""Parts without which a run has no model."""


def names_objects(resolved: Path) -> bool:
    """Return whether a resolved recipe names Python objects, without reading it as a recipe.

    What can't be read is an error where the recipe is needed.
    """
    try:
        return f"name: {PYTHON_OBJECT}".encode() in read_file(resolved, limit=MAX_BYTES, error=CheckpointError)
    except CheckpointError:
        return False


def parts_for(recipe: Recipe, given: Mapping[str, Any], valid: Any, test: Any) -> dict[tuple[str | int, ...], Any]:
    """Return the objects for a run's recipe, by key.

    Args:
        recipe: the recipe as it was read, without objects.
        given: objects by the name of their section.
        valid, test: held-out data, where the run was given some.

    Raises:
        UsageError: one is missing, is given for a part that the run builds itself, or is of another kind.
        DataError: the data can't be used.
    """
    nodes = {name: getattr(recipe, name) for name in COMPONENT_SECTIONS}
    for name, part in given.items():
        if not isinstance(nodes[name], SuppliedNode):
            raise UsageError(f"the run's {name} is {nodes[name].name!r}, which it builds itself; leave {name} out")
        _check(name, part)
    missing = [name for name in NEEDED if isinstance(nodes[name], SuppliedNode) and name not in given]
    if missing:
        raise not_supplied({name: str(nodes[name].parameters.get("class", "an object")) for name in missing})
    found: dict[tuple[str | int, ...], Any] = {(name,): part for name, part in given.items()}
    if "data" in given:
        found["data",] = _dataset(recipe.data.parameters, given["data"], valid, test)
    return found


def _check(name: str, part: Any) -> None:
    fits = isinstance(part, nn.Module) if name in NEEDED else kind_of(part) == name
    if name != "data" and not fits:
        wanted = "a torch.nn.Module" if name in NEEDED else f"a {name}"
        raise UsageError(
            f"{name} must be {wanted}, the object that the run was trained with; got {type(part).__name__}"
        )


def _dataset(facts: Mapping[str, Any], data: Any, valid: Any, test: Any) -> Dataset:
    """Return the data as the run read them.

    Raises:
        UsageError: they are other data.
    """
    reading, labels = facts.get("reading"), facts.get("labels")
    source = source_of(data, valid, test, labels=labels, reading=reading)
    if source.dataset is None or any(
        dict(source.facts or {}).get(key) != facts.get(key) for key in ("rows", "shape", "sha256")
    ):
        sizes = dict(source.facts or {}).get("rows", "other")
        raise UsageError(
            f"these are not the data that the run was trained on: it had {facts.get('rows')} rows in train, valid and test, "
            f"and these have {sizes}" + (", with other values" if sizes == facts.get("rows") else "")
        )
    return source.dataset
