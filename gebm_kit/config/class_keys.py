"""The keys of ``data`` that say how often each class is drawn and what the classes are called.

They belong to data of any kind, so they are read here and not by the datasets. This file does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gebm_kit.core.errors import RecipeError, nearest, shown

CLASS_KEYS = ("class_weights", "class_names")
"""Keys of ``data`` that no dataset reads."""

UNIFORM: Literal["uniform"] = "uniform"
"""The word for equal weights."""

ClassWeights = tuple[float, ...] | Mapping[str, float] | Literal["uniform"]
"""Weights of the classes: one for each in their order, or by name, or all equal."""


def checked_weights(value: Any) -> ClassWeights | None:
    """Return the value of ``data.class_weights``, once it is known to be of its form.

    Raises:
        ValueError: it is something else, or a weight is negative or not finite, or all are zero.
    """
    if value is None or value == UNIFORM:
        return UNIFORM if value == UNIFORM else None
    weights: ClassWeights
    if isinstance(value, Mapping):
        named = {str(name): _weight(item, f"the weight of {str(name)!r}") for name, item in value.items()}
        weights, numbers = named, list(named.values())
    elif isinstance(value, list | tuple):
        listed = tuple(_weight(item, f"weight {place}") for place, item in enumerate(value))
        weights, numbers = listed, list(listed)
    else:
        raise ValueError(f"{shown(value)} is not allowed; allowed: [2, 1, 1], {{name: 2, other: 1}} or {UNIFORM}")
    if not any(numbers):
        raise ValueError("all weights are zero" if numbers else "there are no weights; give one for each class")
    if not math.isfinite(sum(numbers)):
        raise ValueError("the weights are too large to be added up; only their ratios count")
    return weights


def _weight(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is {shown(value)}, which is not a number")
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} is {shown(value)}; weights are finite numbers >= 0")
    return float(value)


def checked_names(value: Any) -> tuple[str, ...] | None:
    """Return the value of ``data.class_names``, once it is known to be a list of different texts.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{shown(value)} is not a list of names such as [shirt, trouser]")
    for place, name in enumerate(value):
        if not isinstance(name, str):
            raise ValueError(f"name {place} is {shown(name)}, which is not text; put it in quotes")
        if name != name.strip() or not name.isprintable() or not name:
            raise ValueError(f"name {place} is {shown(name)}: names have letters, and no spaces around them")
        if name in value[:place]:
            raise ValueError(f"{shown(name)} is there twice")
    return tuple(value)


def name_classes(dataset: Any, names: Sequence[str] | None, how_to_label: str = "") -> None:
    """Call the classes of a dataset by ``data.class_names``, if the recipe has them.

    Args:
        how_to_label: hint for data without labels.

    Raises:
        RecipeError: the data have no labels, or another number of classes.
    """
    if names is None:
        return
    count = getattr(dataset, "num_classes", None)
    if count is None:
        raise RecipeError(
            f"data.class_names names {len(names)} classes, and the data have no labels",
            hint=how_to_label,
        )
    if count != len(names):
        raise RecipeError(
            f"data.class_names names {len(names)} classes, and the data have {count}",
            hint="data.class_names=null calls them as the data do.",
        )
    dataset.class_names = tuple(names)


def shares(weights: ClassWeights, num_classes: int, names: Sequence[str] | None) -> tuple[float, ...]:
    """Return the share of each class, (K,); they add up to 1.

    Raises:
        RecipeError: there is not one weight for each class, or a name is not that of a class.
    """
    if isinstance(weights, str):
        return (1.0 / num_classes,) * num_classes
    if isinstance(weights, Mapping):
        found = _by_name(weights, num_classes, names)
    elif len(weights) != num_classes:
        raise RecipeError(f"data.class_weights has {len(weights)} weights, and the data have {num_classes} classes")
    else:
        found = weights
    total = sum(found)
    return tuple(weight / total for weight in found)


def _by_name(weights: Mapping[str, float], num_classes: int, names: Sequence[str] | None) -> tuple[float, ...]:
    known = list(names or map(str, range(num_classes)))
    for name in weights:
        if name not in known:
            raise RecipeError(f"data.class_weights: there is no class {name!r}; {nearest(name, known)}")
    if missing := [name for name in known if name not in weights]:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise RecipeError(
            f"data.class_weights has no weight for {', '.join(map(repr, missing[:10]))}{more}",
            hint="Each class needs one; 0 leaves a class out.",
        )
    return tuple(weights[name] for name in known)
