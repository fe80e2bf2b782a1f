"""Calibration of a model's energy: the inverse temperature at which it fits held-out data best.

The model at inverse temperature beta is ``q_beta(dx) = exp(-beta E(x) - A(beta)) B(dx)``. Its fit to held-out data is

    KALE(beta) = -beta E_P[E] - log E_B[exp(-beta E)].

It is concave in beta: its derivative ``-E_P[E] + E_{q_beta}[E]`` falls, with slope ``-Var_{q_beta}[E]``. So the best beta is
where the mean energy of the model is that of held-out data. It is 1 at KALE's optimum. Below 1 the energy is overconfident:
the model weights its own draws by differences that held-out data do not bear out. Above 1 the energy is too timid.

E_P is a mean over n held-out rows, and E_B one over N base draws with weights ``w_j = exp(-beta E_j) / mean(exp(-beta E))``.
The standard error is that of the root of an estimating equation (the sandwich formula), with both samples random:

    se^2 = (Var_P[E] / n + mean_j(w_j (E_j - E_{q_beta}[E]))^2 / N) / Var_{q_beta}[E]^2.

References:
    On Calibration of Modern Neural Networks. C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, ICML 2017.
    https://arxiv.org/abs/1706.04599 (one temperature, fitted to held-out data)
    Maximum Likelihood Estimation of Misspecified Models. H. White, Econometrica 1982. https://doi.org/10.2307/1912526
    (the sandwich formula)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import estimators
from gebm_kit.core.estimators import PARETO_K_LIMIT, pareto_k
from gebm_kit.core.files import plain
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, Progress, counted, ignore, warn
from gebm_kit.engine.datasets.class_rows import labels_of
from gebm_kit.engine.datasets.held_out import evenly_spaced, evenly_spaced_rows
from gebm_kit.engine.likelihood.model_fit import energies
from gebm_kit.engine.process.distributed import Ranks

LARGEST_BETA = 100.0
"""Largest inverse temperature that is looked for. Beyond it, draws of the model are the base draws of lowest energy."""

MAX_DRAWS = 20_000
"""Most base draws, and most validation rows, behind a calibration."""

BISECTIONS = 100
"""Halvings of the interval in which the root lies: all digits of float64."""

TRIALS = 16
"""Halvings of the interval in which the largest trusted beta lies; each fits a tail."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The inverse temperature that fits held-out data best.

    Attributes:
        inverse_temperature: beta*, in (0, `LARGEST_BETA`]; None where there is none (``reason`` says why).
        stderr: its standard error; None at a bound.
        kale_at_1: KALE on the same held-out data at beta = 1.
        kale: KALE at beta*.
        pareto_k: shape of the tail of the base draws' weights at beta*; from 0.7 on the estimate is not to be trusted.
        rows, draws: held-out rows and base draws behind it.
        reason: what is special about it, in words; else empty.
        applied: what ``inverse_temperature: calibrated`` draws at: beta*, or less where the weights of base draws have too
            heavy a tail there (Pareto k) to tell anything about the model. Not below 1 for that.
    """

    inverse_temperature: float | None
    stderr: float | None
    kale_at_1: float
    kale: float
    pareto_k: float
    rows: int
    draws: int
    reason: str = ""
    applied: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON; a value that is not finite is null."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def calibrate(data: Tensor, base: Tensor) -> Calibration:
    """Find the beta that maximises held-out KALE.

    Args:
        data: E on held-out rows, (n,).
        base: E on base draws, (N,); inf where the energy excludes a draw.
    """
    return calibrate_parts([Part(data, base)])


@dataclass(frozen=True)
class Part:
    """Energies E of held-out rows of one class, (n,), and of its base draws, (N,).

    Attributes:
        weight: the class's share among others; None: its number of rows.
    """

    data: Tensor
    base: Tensor
    weight: float | None = None


def calibrate_parts(parts: Sequence[Part]) -> Calibration:
    """Find the one beta that maximises the mean of the classes' KALE, by default each by its share of the held-out rows.

    Sums over classes take the place of every term above, ``sum_y w_y KALE_y(beta)`` with ``w_y = n_y / n``. Classes without
    held-out rows say nothing.
    """
    parts = [replace(p, data=p.data.detach().double().cpu(), base=p.base.detach().double().cpu()) for p in parts]
    parts = [p for p in parts if len(p.data)]
    sizes: dict[str, Any] = {"rows": sum(len(p.data) for p in parts), "draws": sum(len(p.base) for p in parts)}
    if not parts or not all(
        bool(p.data.isfinite().all()) and bool((p.base > -math.inf).all()) and len(p.base) for p in parts
    ):
        return Calibration(None, None, math.nan, math.nan, math.nan, reason="energies are not finite", **sizes)
    found = _Parts([replace(p, base=p.base[p.base.isfinite()]) for p in parts], [p.base for p in parts])
    at_1 = found.kale(1.0)
    if not found.constant and not all(len(p.base) for p in found.parts):
        return Calibration(None, None, math.nan, math.nan, math.nan, reason="energies are not finite", **sizes)
    if found.constant:
        reason = "the energy is constant, so every inverse temperature fits alike"
        return Calibration(None, None, at_1, at_1, math.nan, reason=reason, **sizes)
    if found.slope(0.0) <= 0:
        reason = "held-out data have higher energies than base draws: the base alone fits better at every beta"
        return Calibration(None, None, at_1, 0.0, math.nan, reason=reason, **sizes)
    low, high = 0.0, LARGEST_BETA
    bounded = found.slope(high) > 0
    for _ in range(0 if bounded else BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if found.slope(middle) > 0 else (low, middle)
    tail = found.tail(high)
    best: dict[str, Any] = {"kale_at_1": at_1, "kale": found.kale(high), "pareto_k": tail, **sizes}
    reason, applied = "", high
    if bounded:
        reason = f"held-out data have lower energies than nearly all base draws: KALE still grows at {LARGEST_BETA:g}"
    elif tail >= PARETO_K_LIMIT:
        reason = (
            f"a few base draws carry most of the weight at this beta (Pareto k {tail:.2f}): it is not to be trusted"
        )
    if reason:
        applied = min(high, max(1.0, found.largest_trusted(high)))
    if applied < high:
        reason += f"; {applied:.3g} is applied, as far as the base draws reach"
    return Calibration(high, None if bounded else found.stderr(high), reason=reason, applied=applied, **best)


@dataclass(frozen=True)
class _Parts:
    """Energies by class: those of base draws that are finite, and all of them."""

    parts: list[Part]
    every: list[Tensor]

    @property
    def weights(self) -> list[float]:
        each = [len(p.data) if p.weight is None else p.weight for p in self.parts]
        return [one / sum(each) for one in each]

    @property
    def constant(self) -> bool:
        """Whether the energy is the same everywhere in every class, or no base draw has a finite one."""
        return all(
            not len(p.base) or bool((p.base == p.base[0]).all() and (p.data == p.base[0]).all()) for p in self.parts
        )

    def slope(self, beta: float) -> float:
        """Return KALE's derivative at beta: the mean energy of the model minus that of the data."""
        means = [(_weights(p.base, beta) * p.base).sum() - p.data.mean() for p in self.parts]
        return sum(w * float(mean) for w, mean in zip(self.weights, means, strict=True))

    def kale(self, beta: float) -> float:
        each = [
            float(-beta * p.data.mean() - estimators.log_partition(beta * base))
            for p, base in zip(self.parts, self.every, strict=True)
        ]
        return sum(w * value for w, value in zip(self.weights, each, strict=True))

    def tail(self, beta: float) -> float:
        """Return Pareto k of the weights at beta, the largest of all classes; NaN: not known of any."""
        known = [k for base in self.every if not math.isnan(k := pareto_k(-beta * base))]
        return max(known, default=math.nan)

    def largest_trusted(self, high: float) -> float:
        """Return the largest beta up to ``high`` at which the tail of the weights is light enough, to three digits."""
        low = 0.0
        for _ in range(TRIALS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.tail(middle) < PARETO_K_LIMIT else (low, middle)
        return low

    def stderr(self, beta: float) -> float | None:
        """Return the standard error of the root by the sandwich formula; None where the energies do not vary."""
        spread, curvature = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for share, part in zip(self.weights, self.parts, strict=True):
            weights = _weights(part.base, beta)
            mean = (weights * part.base).sum()
            curvature += share * (weights * (part.base - mean).square()).sum()
            of_data = part.data.var() / len(part.data) if len(part.data) > 1 else torch.zeros((), dtype=torch.float64)
            spread += share**2 * (of_data + (weights * (part.base - mean)).square().sum())
        found = float(spread.sqrt() / curvature)
        return found if math.isfinite(found) else None


def calibration_of(
    model: GEBM,
    dataset: Dataset,
    base: Tensor,
    device: torch.device,
    limit: int = MAX_DRAWS,
    on_progress: OnProgress = ignore,
) -> Calibration | None:
    """Calibrate a model on the validation part of its data; None where that part is empty.

    Args:
        base: E on base draws, (N,).
        limit: most validation rows and most base draws that are used.
    """
    split = dataset.split("valid")
    if not len(split):
        return None
    rows = evenly_spaced_rows(split, "validation data", limit)
    with LatentPotential(model):  # keeps the model frozen and in eval mode
        report = counted(on_progress, "calibrate", len(rows))
        on_data = energies(model, rows, device, model.dtype, report)
    return calibrate(on_data, base[:limit])


def calibration_of_classes(
    model: GEBM,
    dataset: Dataset,
    base: Sequence[Tensor],
    device: torch.device,
    limit: int = MAX_DRAWS,
    *,
    weighted: bool = False,
    on_progress: OnProgress = ignore,
) -> Calibration | None:
    """Calibrate a model with classes on the validation part, by the labels of its rows; None where that part is empty.

    Args:
        base: base draws of each class, (M, *D), in the order of the classes.
        limit: as for `calibration_of`.
        weighted: whether classes count by the model's class weights, and not by their validation rows.
    """
    split = dataset.split("valid")
    if not len(split):
        return None
    rows = evenly_spaced_rows(split, "validation data", limit)
    labels = labels_of(dataset, "valid", len(base))[evenly_spaced(len(split), limit)]
    parts = []
    for label, drawn in enumerate(base):
        on_progress(Progress("calibrate", label, len(base)))
        its = rows[labels == label]
        if len(its) and len(drawn):
            given = model.given(label)
            with LatentPotential(given):
                on_data, on_base = (energies(given, part, device, model.dtype) for part in (its, drawn))
            parts.append(Part(on_data, on_base, float(model.class_weights[label]) if weighted else None))
    return calibrate_parts(parts)


def shared_calibration(find: Callable[[], Calibration | None], ranks: Ranks) -> Calibration | None:
    """Return what the first rank finds, on every rank: all of them sample at the same beta.

    Args:
        find: returns a calibration; the first rank calls it.
    """
    with ranks.together():
        found = find() if ranks.rank == 0 else None
        if ranks.size == 1:
            return found
        text = ranks.from_first(json.dumps(None if found is None else asdict(found)))
    known = json.loads(text)
    return None if known is None else Calibration(**known)


def found_beta(calibration: Calibration | None) -> float:
    """Return the calibrated beta that is applied; where there is none, warn and return 1."""
    if calibration is None or calibration.applied is None:
        why = "the data have no validation part" if calibration is None else calibration.reason
        warn(f"there is no calibrated inverse temperature ({why}); the model is evaluated at 1")
        return 1.0
    if calibration.reason:
        warn(f"the calibrated inverse temperature, {calibration.applied:.4g}, is doubtful: {calibration.reason}")
    return calibration.applied


def _weights(base: Tensor, beta: float) -> Tensor:
    return torch.softmax(-beta * base, 0)
