"""Values of a recipe that a caller in Python gives: plain values, names, nodes and objects. Does not import torch.

Objects become nodes that stand for them (`gebm_kit.config.supplied`). Everything else becomes what a recipe's file could
hold, so that one check serves both.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from gebm_kit.config.optimizer import OptimizerSection
from gebm_kit.config.schema import COMPONENT_SECTIONS, SECTIONS, ComponentNode
from gebm_kit.config.supplied import class_of, node_for
from gebm_kit.config.tree import NODE_LISTS, NODES, dotted
from gebm_kit.config.yaml_values import Key
from gebm_kit.core.attribution import kind_of
from gebm_kit.core.errors import UsageError, nearest, shown

KINDS_AT: dict[tuple[str, ...], str] = {
    **{(name,): kind for name, kind in COMPONENT_SECTIONS.items()},
    **NODE_LISTS,
    **{tuple(map(str, key)): kind for key, kind in NODES.items()},
}
"""Kind of the components at each key that holds some."""

OPTIMIZERS = (
    ("optim", "energy"),
    ("optim", "base"),
    ("train", "pretrain", "optimizer"),
    ("train", "final", "optimizer"),
)
"""Keys that hold an optimiser."""

HEADER = "# Made by gk.fit. A node called python-object stands for an object of the caller's.\n"
"""First line of the text of a recipe that was made in Python."""


@dataclass
class Values:
    """Values of a recipe, as a file could hold them, and the objects among them by key."""

    plain: dict[str, Any] = field(default_factory=dict)
    parts: dict[Key, Any] = field(default_factory=dict)

    def set(self, name: str, value: Any) -> None:
        """Set a section.

        Raises:
            UsageError: it holds something that is no value of a recipe.
        """
        if name == "optim" and not isinstance(value, Mapping):  # one optimiser for both
            value = {"energy": value, "base": value}
        self.plain[name] = self._value((name,), value)

    def place(self, name: str, part: Any, **facts: Any) -> None:
        """Put an object in place of a section's component.

        Args:
            facts: what the recipe says about it.
        """
        self.plain[name] = node_for(part, **facts)
        self.parts[(name,)] = part

    @property
    def text(self) -> str:
        """The recipe as YAML."""
        return HEADER + yaml.safe_dump({"schema": 1, **self.plain}, sort_keys=False, allow_unicode=True)

    def _value(self, key: Key, value: Any) -> Any:
        names = tuple(part for part in key if isinstance(part, str))
        if names == key and names in NODE_LISTS and value is not None and not isinstance(value, list | tuple):
            return [self._value((*key, 0), value)]
        if names in OPTIMIZERS and names == key:
            value = _optimizer(key, value)
        if value is None or isinstance(value, bool):
            return value
        for plain in (int, float, str):
            if isinstance(value, plain):
                return plain(value)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, ComponentNode):
            value = value.as_dict()
        if isinstance(value, Mapping):
            return self._mapping(key, value)
        if isinstance(value, list | tuple):
            return [self._value((*key, index), item) for index, item in enumerate(value)]
        if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
            return self._value(key, value.item())
        return self._object(key, value, names)

    def _mapping(self, key: Key, value: Mapping[Any, Any]) -> dict[str, Any]:
        for name in value:
            if not isinstance(name, str):
                raise UsageError(f"{dotted(key)} has the key {shown(name)}; keys are texts")
        return {name: self._value((*key, name), item) for name, item in value.items()}

    def _object(self, key: Key, value: Any, names: tuple[str, ...]) -> Any:
        kind = KINDS_AT.get(names, "")
        if names[:2] == ("eval", "metrics") and names[2:] == ("features",) and kind_of(value) == "features":
            raise UsageError(
                f"{dotted(key)} is the object {type(value).__name__}, and a node holds the name of a feature map",
                hint=f"Give the metric as an object too: its class with features={type(value).__name__}(...).",
            )
        if isinstance(value, type):
            raise UsageError(
                f"{dotted(key)} is the class {value.__name__}, not an object of it",
                hint=f"Write {value.__name__}(...)" + (", or its registered name." if kind_of(value) else "."),
            )
        found = kind_of(value)
        if kind == "energy" and not found and _is_module(value):
            found = "energy"
        if not found or (kind and found != kind):
            wanted = (
                f"a {kind}: its name, a node {{name: ...}} or an object"
                if kind
                else "a number, text, a list or a mapping"
            )
            is_what = f"a {found} ({type(value).__name__})" if found else f"of type {type(value).__name__}"
            raise UsageError(f"{dotted(key)} must be {wanted}; this is {is_what}")
        self.parts[key] = value
        return node_for(value)


def unknown_argument(name: str, value: Any, allowed: list[str]) -> UsageError:
    """Return the error for an argument that `gebm_kit.fit` does not have; the hint names the section with such a key."""
    sections = {section: {f.name for f in dataclasses.fields(kind)} for section, kind in SECTIONS.items()}
    homes = [f"{section}={{{name!r}: {shown(value)}}}" for section, keys in sections.items() if name in keys]
    if name in {f.name for f in dataclasses.fields(OptimizerSection)}:
        homes = [f"optim={{'energy': {{{name!r}: {shown(value)}}}, 'base': {{...}}}}"]
    if homes:
        return UsageError(f"gk.fit has no argument {name!r}", hint=f"It is a key of a section: {' or '.join(homes)}.")
    return UsageError(f"gk.fit has no argument {name!r}; {nearest(name, allowed)}")


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _optimizer(key: Key, value: Any) -> Any:
    """Return the section of an optimiser: of a name, or of an object of torch, whose settings are taken.

    Raises:
        UsageError: the object is of another class, or has settings that a recipe's optimiser has not.
    """
    if isinstance(value, str):
        return {"name": value}
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.optim.Optimizer):
        return value
    names: dict[Any, str] = {torch.optim.Adam: "adam", torch.optim.AdamW: "adamw", torch.optim.SGD: "sgd"}
    name = names.get(type(value))
    if name is None:
        raise UsageError(f"{dotted(key)} is {class_of(value)}; optimisers are adam, adamw and sgd")
    groups = value.param_groups
    if any(
        {k: v for k, v in g.items() if k != "params"} != {k: v for k, v in groups[0].items() if k != "params"}
        for g in groups
    ):
        raise UsageError(
            f"{dotted(key)} has several groups of parameters with different settings; one setting is possible"
        )
    group = groups[0]
    usual: dict[str, Any] = {"amsgrad": False, "nesterov": False, "dampening": 0, "maximize": False}
    usual |= {} if name == "sgd" else {"eps": 1e-8}
    for setting, default in usual.items():
        if group.get(setting, default) != default:
            raise UsageError(f"{dotted(key)} has {setting}={group[setting]!r}; a recipe's optimiser has {default!r}")
    beta = {"beta1": group["momentum"]} if name == "sgd" else dict(zip(("beta1", "beta2"), group["betas"], strict=True))
    return {"name": name, "lr": group["lr"], "weight_decay": group["weight_decay"], **beta}
