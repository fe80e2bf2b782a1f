"""Classes: labels of a conditional model's rows, and a conditional model held at one class.

A conditional base has a law ``B(dx | y)`` for each class y, and a conditional energy scores ``E(x, y)``. The model of a
class is ``q(dx | y) = exp(-E(x, y) - A_y) B(dx | y)``, with a log-partition of its own,

    A_y = log E_z[exp(-E(G(z, y), y))].

For a fixed y that is a GEBM without classes (`gebm_kit.core.model.GEBM.given`), so every sampler serves it.

Shapes: B rows, C chains, K classes, Z latent size, ``*D`` data shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.core.errors import UsageError
from gebm_kit.core.networks import Base, Energy, HasDensity, HasEncoder, HasPretraining
from gebm_kit.core.priors import Prior


def is_conditional(part: object) -> bool:
    """Return whether a base or an energy takes labels."""
    return bool(getattr(part, "conditional", False))


def decoded(base: nn.Module, z: Tensor, labels: Tensor | None) -> Tensor:
    """Compute ``G(z)``, or ``G(z, y)`` where the base is conditional; (B, Z), (B,) -> (B, *D).

    Raises:
        UsageError: the base is conditional, and there are no labels, or not those of classes for as many rows.
    """
    return _called(base, "base", base, z, labels)


def scored(energy: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor:
    """Compute ``E(x)``, or ``E(x, y)`` where the energy is conditional; (B, *D), (B,) -> (B,).

    Raises:
        UsageError: the energy is conditional, and there are no labels, or not those of classes for as many rows.
    """
    return _called(energy, "energy", energy, x, labels)


def log_density(base: HasDensity, x: Tensor, labels: Tensor | None) -> Tensor:
    """Compute ``log b(x)`` in nats, or ``log b(x | y)`` where the base is conditional; (B, *D), (B,) -> (B,).

    Raises:
        UsageError: as for `decoded`.
    """
    return _called(base.log_prob, "base", base, x, labels)


def encoded(base: HasEncoder, x: Tensor, labels: Tensor | None) -> Tensor:
    """Compute the codes of points, as points of their classes where the base is conditional; (B, *D), (B,) -> (B, Z).

    Raises:
        UsageError: as for `decoded`.
    """
    return _called(base.encode, "base", base, x, labels)


def own_loss(base: HasPretraining, x: Tensor, labels: Tensor | None) -> Tensor:
    """Compute the base's own loss of a batch, with its labels where the base is conditional; (B, *D), (B,) -> ().

    Raises:
        UsageError: as for `decoded`.
    """
    return _called(base.pretraining_loss, "base", base, x, labels)


def _called(method: Callable[..., Tensor], kind: str, part: object, rows: Tensor, labels: Tensor | None) -> Tensor:
    """Call a part's method with rows, and with their labels where the part is conditional."""
    if not is_conditional(part):
        return method(rows)
    labels, num_classes = needed(labels, kind, part), getattr(part, "num_classes", None)
    if num_classes is not None:
        labels = checked_labels(labels, num_classes, rows.shape[0], values=False)
    try:
        return method(rows, labels)
    except IndexError:  # it looked a class up that it does not have
        if num_classes is not None:
            checked_labels(labels, num_classes)
        raise


def needed(labels: Tensor | None, kind: str, part: object) -> Tensor:
    """Return the labels.

    Raises:
        UsageError: there are none.
    """
    if labels is None:
        raise UsageError(
            f"the {kind} {type(part).__name__} is conditional: it needs the class of every row, and none was given",
            hint="Give labels, (B,) int64, as the second argument, or use the model of one class: model.given(label).",
        )
    return labels


def own_labels(kind: str, part: nn.Module, labels: Tensor | None) -> Tensor | None:
    """Return the labels that ``forward`` was given; they must be there where the component is conditional, and only there.

    Values are not read here, which would wait for a device; `gebm_kit.core.layers.ClassEmbedding` refuses those of no class.

    Raises:
        UsageError: they are missing, or of another type or shape; or the component is not conditional.
    """
    if is_conditional(part):
        given, num_classes = needed(labels, kind, part), getattr(part, "num_classes", None)
        return given if num_classes is None else checked_labels(given, num_classes, values=False)
    if labels is not None:
        raise UsageError(f"the {kind} {type(part).__name__} was given labels, and it is not conditional")
    return None


def checked_classes(name: str, num_classes: int | None, conditional: bool) -> int | None:
    """Return the number of classes that a component is built for, None where it is not conditional.

    Args:
        name: the component, for the message.
        num_classes: what the dataset has, as it is injected.
        conditional: what the recipe asks for.

    Raises:
        UsageError: ``conditional`` is set, and the data have no labels or fewer than two classes.
    """
    if not conditional:
        return None
    if num_classes is None or num_classes < 2:
        found = "the dataset has no labels" if num_classes is None else f"the dataset has {num_classes} class"
        raise UsageError(
            f"{name}: conditional is true, and {found}; at least two classes are needed",
            hint="Use a dataset with labels, such as digits, idx or cifar10, or leave conditional out.",
        )
    return num_classes


def joined(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the labels of two sets of rows, one after the other; None without labels."""
    return None if first is None or second is None else torch.cat([first, second])


CAPABILITIES = ("log_prob", "encode", "pretraining_loss")
"""Methods of a base beyond ``G(z)``, on a batch of points; a base held at one class has those of the whole base."""


class ClassBase(Base):
    """A conditional base held at one class: ``G_y(z) = G(z, y)``. Weights are shared with the whole base.

    It has the density ``b(x | y)``, the encoder and the loss of the whole base where that has them.
    """

    def __init__(self, base: Base, label: int) -> None:
        super().__init__()
        self.whole, self.label = base, label
        self.latent_dim, self.data_shape = base.latent_dim, tuple(base.data_shape)
        for name in CAPABILITIES:
            if hasattr(base, name):
                self.__dict__[name] = functools.partial(self._of_class, name)

    @property
    def prior(self) -> Prior:
        return self.whole.prior

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.whole(z, _constant(self.label, z))
        return x

    def _of_class(self, name: str, x: Tensor) -> Tensor:
        value: Tensor = getattr(self.whole, name)(x, _constant(self.label, x))
        return value


class ClassEnergy(Energy):
    """A conditional energy held at one class: ``E_y(x) = E(x, y)``. Weights are shared with the whole energy."""

    def __init__(self, energy: Energy, label: int) -> None:
        super().__init__()
        self.whole, self.label = energy, label

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.whole(x, _constant(self.label, x))
        return values


def held_base(base: Base, label: int) -> Base:
    """Return a base at one class; one without classes serves every class.

    Raises:
        UsageError: it is conditional, and there is no such class.
    """
    return ClassBase(base, _one_of(base, label)) if is_conditional(base) else base


def held_energy(energy: Energy, label: int) -> Energy:
    """Return an energy at one class; one without classes serves every class.

    Raises:
        UsageError: it is conditional, and there is no such class.
    """
    return ClassEnergy(energy, _one_of(energy, label)) if is_conditional(energy) else energy


def _one_of(part: nn.Module, label: int) -> int:
    return int(checked_labels(torch.as_tensor([label]), int(part.num_classes))[0])  # type: ignore[arg-type]


def _constant(label: int, rows: Tensor) -> Tensor:
    return torch.full((rows.shape[0],), label, dtype=torch.int64, device=rows.device)


def classes_of(base: nn.Module, energy: nn.Module) -> int | None:
    """Return the number of classes of a model with these parts; None where neither is conditional.

    Raises:
        UsageError: a conditional part does not say how many classes it has, or the two parts have different numbers.
    """
    found: dict[str, Any] = {}
    for kind, part in (("base", base), ("energy", energy)):
        if is_conditional(part):
            found[kind] = count = getattr(part, "num_classes", None)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise UsageError(
                    f"the {kind} {type(part).__name__} is conditional and must set num_classes to a whole number >= 1, "
                    f"and it is {count!r}"
                )
    if len(set(found.values())) > 1:
        raise UsageError(f"the base has {found['base']} classes and the energy {found['energy']}; they must agree")
    return next(iter(found.values()), None)


def checked_labels(labels: Tensor, num_classes: int, rows: int | None = None, *, values: bool = True) -> Tensor:
    """Return labels as int64, once they are known to be (N,) whole numbers from 0 to ``num_classes - 1``.

    Args:
        rows: how many there must be; None: any number.
        values: whether the values are read too, which waits for a device; otherwise only type and shape are.

    Raises:
        UsageError: they are something else.
    """
    allowed = f"whole numbers from 0 to {num_classes - 1}"
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.ndim != 1 or labels.dtype == torch.bool:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UsageError(f"labels must be a tensor of {allowed}, shape (N,), got {got.removeprefix('torch.')}")
    if rows is not None and labels.shape[0] != rows:  # `len` would fix the number of rows of a traced program
        raise UsageError(f"there are {len(labels)} labels for {rows} rows; each row needs one")
    if not values:
        return labels.to(torch.int64)
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        wrong = int(labels[(labels < 0) | (labels >= num_classes)][0])
        raise UsageError(f"there is no class {wrong}; allowed are {allowed}")
    return labels.to(torch.int64)
