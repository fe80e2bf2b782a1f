"""The objects that a caller supplied for a recipe, as components; their initial weights, and copies of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.config.schema import Recipe
from gebm_kit.config.supplied import ABSENT, SuppliedNode
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.own_modules import ModuleBase, ModuleEnergy


def component_of(kind: str, node: SuppliedNode, injected: Mapping[str, Any]) -> Any:
    """Return the object of a node, as a component of its kind: a plain module becomes a base or an energy.

    Raises:
        UsageError: the object was not supplied.
    """
    part, facts = node.given, node.parameters
    if kind not in ("base", "energy") or isinstance(part, Base | Energy):
        return part
    classes = (bool(facts.get("conditional", False)), facts.get("num_classes"))
    if kind == "energy":
        return ModuleEnergy(part, *classes)
    return ModuleBase(part, facts["latent_dim"], tuple(injected["data_shape"]), *classes)


@dataclass(frozen=True)
class InitialWeights:
    """The weights that the caller's modules had before training, on the CPU.

    A run that goes back to its start builds its parts anew; these get the weights that they came with.
    """

    kept: tuple[tuple[nn.Module, Mapping[str, Tensor]], ...]

    @classmethod
    def of(cls, recipe: Recipe) -> InitialWeights:
        """Copy the weights of all modules among the recipe's parts."""
        modules = [part for part in recipe.parts.values() if isinstance(part, nn.Module)]
        return cls(tuple((module, _copied(module.state_dict())) for module in modules))

    def restore(self) -> None:
        """Put the weights back."""
        for module, state in self.kept:
            module.load_state_dict(state)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()}


def with_copies(recipe: Recipe) -> Recipe | None:
    """Return the recipe with copies of the caller's base and energies in place of them; None if they can't be copied."""
    final = recipe.train.final
    try:
        base, energy = _with_copy(recipe.base), _with_copy(recipe.energy)
        last = None if final.energy is None else _with_copy(final.energy)
    except Exception:  # a module may hold what can't be copied: a lock, a file, a tensor of a graph
        return None
    train = dataclasses.replace(recipe.train, final=dataclasses.replace(final, energy=last))
    return dataclasses.replace(recipe, base=base, energy=energy, train=train)


def _with_copy(node: Any) -> Any:
    if not isinstance(node, SuppliedNode) or node.part is ABSENT:
        return node
    with torch.no_grad():
        return dataclasses.replace(node, part=copy.deepcopy(node.part))
