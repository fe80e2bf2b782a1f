"""Rows under each class of a model, and the probabilities of the classes by Bayes' rule.

    log q(x | y) = log b(x | y) - beta E(x, y) - A_y(beta),      p(y | x) = pi_y q(x | y) / sum_y' pi_y' q(x | y')

with the model's class weights pi. Bayes' rule needs ratios between classes alone:

- The base has a density: everything above is known, up to the error of A_y.
- The base has no classes: b(x) is the same for every class and cancels, whether it is known or not.
- The base has classes and no density, as a conditional GAN: b(x | y) / b(x | y') is not known, so there are no class
  probabilities. What is known is the energy's part, ``log q(x | y) / b(x | y) = -beta E(x, y) - A_y``. At KALE's optimum
  it is ``log p(x | y) / b(x | y)``: how much the base of class y misses x, and not how likely x is of class y. With a base
  that is right it is zero for every class. Besides, training never shows E a data point with the label of another class.

Shapes: N rows, K classes, ``*D`` data shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.class_names import label_of_name
from gebm_kit.core.classes import checked_labels, is_conditional
from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.frames import plain_values
from gebm_kit.core.interfaces import HasDensity
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, Progress, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.likelihood.class_log_partitions import draws_of_class
from gebm_kit.engine.likelihood.estimate_log_partition import Method, estimate_log_partition
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE, LogPartition
from gebm_kit.engine.likelihood.model_fit import NUM_DRAWS, base_energies, energies
from gebm_kit.engine.likelihood.nll import log_base_density
from gebm_kit.engine.process.devices import placed

Law = Literal["bayes", "energy-part"]
"""What tells classes apart: Bayes' rule, or the energy's part alone, which gives no probabilities."""

ENERGY_PART = (
    "the base has classes and no density, so b(x | y) / b(x | y') is not known and there are no class probabilities; "
    "E(x, y) + A_y is the energy's part alone, which says how much the base of a class misses a point"
)
"""Why a model has no class probabilities, for users."""


@dataclass(frozen=True)
class ClassLogPartition:
    """How A_y is estimated.

    Attributes:
        inverse_temperature: beta.
        method: as the recipe key ``eval.log_partition``.
        seed: seed of the base draws and populations behind every A_y.
        block_size: rows evaluated at once; None: `ROWS_AT_ONCE`.
    """

    inverse_temperature: float = 1.0
    method: Method = "auto"
    seed: int = 0
    block_size: int | None = None
    num_draws: int | None = None

    def estimate(
        self, model: GEBM, label: int, device: torch.device, dtype: torch.dtype, on_progress: OnProgress = ignore
    ) -> LogPartition:
        """Estimate A_y of one class; the same whatever other classes are estimated.

        As in an evaluation, ``auto`` anneals only where the base has a density.
        """
        assert model.num_classes is not None
        given, of_class = model.given(label), stream(self.seed, "class", label).initial_seed() % 2**63
        generator = torch.Generator(device).manual_seed(stream(of_class, "model fit").initial_seed())
        with LatentPotential(given, self.inverse_temperature, block_size=self.block_size or ROWS_AT_ONCE) as potential:
            num = draws_of_class(model.num_classes, self.num_draws or NUM_DRAWS)
            found = base_energies(potential, None, generator, dtype, on_progress, num)
            first, second = (self.inverse_temperature * found).chunk(2)
            return estimate_log_partition(
                potential, first, second, generator, dtype,
                method=self.method, may_anneal=isinstance(given.base, HasDensity), on_progress=on_progress,
            )  # fmt: skip


@dataclass(frozen=True)
class ClassRows:
    """N rows under each of K classes.

    Attributes:
        tilt: ``beta E(x, y)``, (N, K) float64.
        log_base: ``log b(x | y)``, (N, K); None where the base has no density.
        log_partition: A_y, (K,).
        weights: the model's class weights pi, (K,), which sum to 1.
        law: what tells the classes apart.
    """

    tilt: Tensor
    log_base: Tensor | None
    log_partition: Tensor
    weights: Tensor
    law: Law

    @property
    def energy(self) -> Tensor:
        """``beta E(x, y) + A_y``, (N, K): minus the log-density of class y against its base."""
        return self.tilt + self.log_partition

    @property
    def log_density(self) -> Tensor | None:
        """``log q(x | y)``, (N, K), or None."""
        return None if self.log_base is None else self.log_base - self.energy

    def log_probabilities(self) -> Tensor:
        """Return ``log p(y | x)``, (N, K); NaN in rows that no class can have made.

        Raises:
            UsageError: the law is not Bayes' rule.
        """
        if self.law != "bayes":
            raise UsageError(f"there are no class probabilities: {ENERGY_PART}")
        scores = -self.energy if self.log_base is None else self.log_base - self.energy
        return torch.log_softmax(self.weights.log() + scores, 1)

    def most_likely(self) -> Tensor:
        """Return the most probable class of each row, (N,); by `energy-part` the class of the lowest energy."""
        scores = self.log_probabilities() if self.law == "bayes" else -self.energy
        return scores.nan_to_num(nan=-torch.inf).argmax(1)

    def marginal(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return energy, log-density and log-density of the base of rows whose class is not known, (N,) each.

        The law of such rows is the mixture ``sum_y pi_y q(x | y)``, that of the base ``sum_y pi_y b(x | y)``. The energy is
        minus the logarithm of their ratio, so that it includes the log-partitions. What is not known is None.
        """
        weights = self.weights.log()
        if self.log_base is None:
            known = self.law == "bayes"
            return (-torch.logsumexp(weights - self.energy, 1) if known else None), None, None
        mixture = torch.logsumexp(weights + self.log_base - self.energy, 1)
        base = torch.logsumexp(weights + self.log_base, 1)
        return torch.where(mixture == -torch.inf, torch.inf, base - mixture), mixture, base


def law_of(model: GEBM) -> Law:
    """Return what tells the classes of a model apart."""
    base: object = model.base
    return "bayes" if isinstance(base, HasDensity) or not is_conditional(base) else "energy-part"


def class_rows(
    model: GEBM,
    x: Tensor,
    log_partition: Tensor,
    inverse_temperature: float,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: OnProgress = ignore,
) -> ClassRows:
    """Score rows as points of each class.

    Args:
        x: rows as the model sees them, (N, *D).
        log_partition: A_y at beta, (K,).
    """
    assert model.num_classes is not None
    tilts: list[Tensor] = []
    bases: list[Tensor | None] = []
    for label in range(model.num_classes):
        same_energy = bool(tilts) and not is_conditional(model.energy)
        same_base = bool(tilts) and not is_conditional(model.base)
        tilt, log_base = of_class(
            model, label, x, inverse_temperature, device, dtype, without_base=same_base, without_energy=same_energy
        )
        on_progress(Progress("rows", label + 1, model.num_classes))
        tilts.append(tilts[0] if tilt is None else tilt)
        bases.append(bases[0] if same_base else log_base)
    known = [found for found in bases if found is not None]
    weights = model.class_weights.detach().double().cpu()
    return ClassRows(
        tilt=torch.stack(tilts, 1),
        log_base=torch.stack(known, 1) if len(known) == len(bases) else None,
        log_partition=log_partition.double().cpu(),
        weights=weights / weights.sum(),
        law=law_of(model),
    )


def of_class(
    model: GEBM,
    label: int,
    x: Tensor,
    inverse_temperature: float,
    device: torch.device,
    dtype: torch.dtype,
    *,
    without_base: bool = False,
    without_energy: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute ``beta E(x, y)`` and, where the base has a density, ``log b(x | y)`` of rows of one class, (N,) each."""
    given = model.given(label)
    with LatentPotential(given, inverse_temperature):  # keeps the model frozen and in eval mode
        tilt = None if without_energy else inverse_temperature * energies(given, x, device, dtype)
        return tilt, None if without_base else log_base_density(given, x, device, dtype)


def labels_of_rows(model: GEBM, asked: object, num_rows: int) -> Tensor | None:
    """Return the class of each of a user's rows, (N,) int64; None where none is given.

    Args:
        asked: one class, which all rows have; the class of each row; or None. A class may be named where classes have names.

    Raises:
        UsageError: the model has no classes, or not this one; or not one class a row.
    """
    asked = plain_values(asked)
    if asked is None:
        return None
    if model.num_classes is None:
        raise UsageError(
            f"the class {shown(asked)} was given, and the model has no classes",
            hint="Train one with conditional: true in base or energy, as in the recipe digits_conditional.",
        )
    allowed = f"whole numbers from 0 to {model.num_classes - 1}"
    if isinstance(asked, str):
        asked = label_of_name(asked, model.class_names, allowed)
    elif isinstance(asked, Sequence):
        asked = [label_of_name(a, model.class_names, allowed) if isinstance(a, str) else a for a in asked]
        whole_items = all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in asked)
        asked = torch.tensor([int(item) for item in asked], dtype=torch.int64) if whole_items else asked
    whole = isinstance(asked, int | np.integer) and not isinstance(asked, bool)
    found = torch.tensor([int(asked)]) if whole else asked  # type: ignore[call-overload]
    found = torch.from_numpy(found.copy()) if isinstance(found, np.ndarray) and found.dtype.kind in "iu" else found
    if not isinstance(found, Tensor) or found.dtype == torch.bool:
        raise UsageError(f"labels must be a class or the class of each row, {allowed}, got {shown(asked)}")
    if found.ndim == 0 or whole:
        return checked_labels(found.reshape(1).cpu(), model.num_classes).expand(num_rows)
    return checked_labels(found.cpu(), model.num_classes, num_rows)


@dataclass(frozen=True)
class ByClass:
    """What each class of a model says of N rows whose class is not given.

    Attributes:
        energy: ``beta E(x, y) + A_y``, (N, K) float64: minus the log-density of class y against its base.
        log_density: ``log q(x | y)`` in nats, (N, K); None where the base has no density.
        probabilities: ``p(y | x)`` by Bayes' rule, (N, K); None where they are not known, see `reason`.
        labels: the most probable class of each row, (N,) int64; without probabilities the one of the lowest energy.
        weights: shares of the classes in Bayes' rule, (K,).
        log_partitions: A_y with its error, by label.
        law: ``bayes`` or ``energy-part``.
        names: names of the classes, or None.
    """

    energy: Tensor
    log_density: Tensor | None
    probabilities: Tensor | None
    labels: Tensor
    weights: Tensor
    log_partitions: Mapping[int, LogPartition]
    law: Law
    names: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        rows: ClassRows,
        partitions: Mapping[int, LogPartition],
        shift: float = 0.0,
        names: tuple[str, ...] | None = None,
    ) -> ByClass:
        """Build it from rows under each class; ``shift`` is added to log-densities."""
        density = rows.log_density
        return cls(
            energy=rows.energy,
            log_density=None if density is None else density + shift,
            probabilities=rows.log_probabilities().exp() if rows.law == "bayes" else None,
            labels=rows.most_likely(),
            weights=rows.weights,
            log_partitions=partitions,
            law=rows.law,
            names=names,
        )

    @property
    def reason(self) -> str | None:
        """Why there are no class probabilities, in words; None where there are some."""
        return ENERGY_PART if self.law == "energy-part" else None

    def columns(self) -> dict[str, Tensor]:
        """Return columns by name: ``log_density_0``, ... or ``energy_0``, ...; then ``probability_0``, ... and ``class``."""
        name, values = ("energy", self.energy) if self.log_density is None else ("log_density", self.log_density)
        found = {f"{name}_{label}": values[:, label] for label in range(len(self.weights))}
        if self.probabilities is None:
            return found
        found |= {f"probability_{label}": self.probabilities[:, label] for label in range(len(self.weights))}
        return found | {"class": self.labels}

    def as_dict(self) -> dict[str, Any]:
        """Return what all rows share, and the rows of each most probable class, as plain JSON."""
        counts = torch.bincount(self.labels, minlength=len(self.weights)).tolist()
        return {
            "law": self.law,
            "reason": self.reason,
            "names": None if self.names is None else list(self.names),
            "weights": self.weights.tolist(),
            "rows": {str(label): count for label, count in enumerate(counts)} if self.law == "bayes" else None,
            "log_partition": described(self.log_partitions),
        }


@dataclass(frozen=True)
class UserRows:
    """A user's N rows under a model with classes, (N,) each; what is not known is None.

    Attributes:
        energy: ``beta E(x, y)`` of rows whose class is given; else as in `ClassRows.marginal`.
        log_density, log_base: of the model and of its base.
        log_partition: A_y where all rows have one class that is given, else None.
        classes: the rows under every class, where none is given.
        log_partitions: every A_y that was needed, by label.
    """

    energy: Tensor | None
    log_density: Tensor | None
    log_base: Tensor | None
    log_partition: LogPartition | None
    classes: ByClass | None
    log_partitions: Mapping[int, LogPartition]


def scores_by_class(
    model: GEBM,
    x: Tensor,
    labels: Tensor | None,
    estimate: ClassLogPartition,
    device: torch.device | str | None,
    shift: float = 0.0,
    on_progress: OnProgress = ignore,
) -> UserRows:
    """Score a user's rows, (N, *D), under a model with classes.

    Args:
        labels: the class of each row, (N,); None: not known.
        estimate: how A_y is estimated. Rows whose class is given need none where the base has no density.
        shift: what is added to log-densities.
    """
    assert model.num_classes is not None
    beta = estimate.inverse_temperature
    with placed(model, device) as (where, dtype):
        if labels is None:
            every = {
                label: estimate.estimate(model, label, where, dtype, on_progress) for label in range(model.num_classes)
            }
            rows = class_rows(model, x, stacked(every, model.num_classes), beta, where, dtype, on_progress)
            energy, density, base = rows.marginal()
            by_class = ByClass.of(rows, every, shift, model.class_names)
            if density is None or base is None:
                return UserRows(energy, None, None, None, by_class, every)
            return UserRows(energy, density + shift, base + shift, None, by_class, every)
        found: dict[int, LogPartition] = {}
        energy, base = torch.empty(len(x), dtype=torch.float64), torch.empty(len(x), dtype=torch.float64)
        partitions, has_density = torch.zeros(len(x), dtype=torch.float64), isinstance(model.base, HasDensity)
        for done, label in enumerate(wanted := labels.unique().tolist()):
            its = labels == label
            tilt, log_base = of_class(model, label, x[its], beta, where, dtype)
            on_progress(Progress("rows", done + 1, len(wanted)))
            assert tilt is not None
            energy[its] = tilt
            if log_base is not None:
                found[label] = estimate.estimate(model, label, where, dtype, on_progress)
                base[its], partitions[its] = log_base + shift, found[label].value
        one = next(iter(found.values())) if len(found) == 1 else None
        if not has_density:
            return UserRows(energy, None, None, None, None, found)
        return UserRows(energy, base - energy - partitions, base, one, None, found)


def stacked(found: Mapping[int, LogPartition], num_classes: int) -> Tensor:
    """Return the log-partitions of all classes, (K,)."""
    return torch.tensor([found[label].value for label in range(num_classes)], dtype=torch.float64)


def described(found: Mapping[int, LogPartition]) -> dict[str, Any]:
    """Return log-partitions by label as plain JSON."""
    return {str(label): partition.as_dict() for label, partition in found.items()}


def class_fields(classes: ByClass | None, partitions: Mapping[int, LogPartition] | None) -> dict[str, Any]:
    """Return the keys of the JSON of rows that only models with classes have."""
    if classes is not None:
        return {"classes": classes.as_dict()}
    return {} if not partitions else {"class_log_partition": described(partitions)}
