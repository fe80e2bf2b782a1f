"""Parts of a recipe that a caller in Python supplies as objects, in place of a component's name. Does not import torch.

A recipe made by `gebm_kit.fit` may hold modules, datasets, losses and other objects of the caller. Each stands in the
recipe as the node ``{name: python-object, class: MODULE.CLASS, ...}``, and the objects themselves lie beside the recipe's
values, by key (`Recipe.parts`). Whoever reads the recipe from a file alone sees the nodes, and can't build them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gebm_kit.config.class_keys import CLASS_KEYS
from gebm_kit.config.schema import ComponentNode, Parts
from gebm_kit.config.yaml_values import Key
from gebm_kit.core.errors import UsageError

PYTHON_OBJECT = "python-object"
"""Name of a node that stands for an object of the caller's."""

WAY_OUT = (
    "Open the run in Python with the same objects: gk.load_run(path, base=..., energy=..., data=...). "
    "gk.fit(..., out=path, resume=True) with them resumes it."
)
"""Hint for whoever reads a recipe without its objects."""


class _Absent:
    """The value of a part that was not supplied."""

    def __repr__(self) -> str:
        return "not supplied"


ABSENT = _Absent()
"""Stands for an object that nobody supplied."""


@dataclass(frozen=True, slots=True)
class SuppliedNode(ComponentNode):
    """A component that is an object of the caller's.

    Attributes:
        part: the object, or `ABSENT`.
        key: where it stands in the recipe.
    """

    part: Any = field(default=ABSENT, compare=False, repr=False)
    key: str = field(default="", compare=False)

    @property
    def title(self) -> str:
        """The class of the object."""
        return str(self.parameters.get("class", self.name)).rpartition(".")[2]

    @property
    def given(self) -> Any:
        """The object.

        Raises:
            UsageError: it was not supplied.
        """
        if self.part is ABSENT:
            raise not_supplied({self.key: str(self.parameters.get("class", "an object"))})
        return self.part


def class_of(part: object) -> str:
    """Return the class of an object as ``module.Class``."""
    cls = part if isinstance(part, type) else type(part)
    return f"{cls.__module__}.{cls.__qualname__}"


def node_for(part: object, **facts: Any) -> dict[str, Any]:
    """Return the node that stands for an object in a recipe's values."""
    return {"name": PYTHON_OBJECT, "class": class_of(part), **facts}


def supplied_node(key: Key, place: str, value: Mapping[str, Any], parts: Parts | None) -> SuppliedNode:
    """Return the node of an object, with the object if it is among ``parts``."""
    facts = {name: item for name, item in value.items() if name != "name" and name not in CLASS_KEYS}
    return SuppliedNode(PYTHON_OBJECT, facts, (parts or {}).get(key, ABSENT), place)


def not_supplied(found: Mapping[str, str], label: str = "this run") -> UsageError:
    """Return the error for objects that nobody supplied: their keys and classes."""
    listed = ", ".join(f"{key} ({cls})" for key, cls in found.items())
    return UsageError(
        f"{label} was trained on Python objects, which its recipe names and can't rebuild: {listed}", hint=WAY_OUT
    )
