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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import estimators
from gebm_kit.core.estimators import PARETO_K_LIMIT, pareto_k
from gebm_kit.core.files import plain
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import warn
from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
from gebm_kit.engine.likelihood.model_fit import energies
from gebm_kit.engine.process.distributed import Ranks

LARGEST_BETA = 100.0
"""Largest inverse temperature that is looked for. Beyond it, draws of the model are the base draws of lowest energy."""

MAX_DRAWS = 20_000
"""Most base draws, and most validation rows, behind a calibration."""

BISECTIONS = 100
"""Halvings of the interval in which the root lies: all digits of float64."""


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
    """

    inverse_temperature: float | None
    stderr: float | None
    kale_at_1: float
    kale: float
    pareto_k: float
    rows: int
    draws: int
    reason: str = ""

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
    data, base = data.detach().double().cpu(), base.detach().double().cpu()
    sizes: dict[str, Any] = {"rows": len(data), "draws": len(base)}
    if not len(data) or not bool(data.isfinite().all()) or not bool((base > -math.inf).all()) or not len(base):
        return Calibration(None, None, math.nan, math.nan, math.nan, reason="energies are not finite", **sizes)
    target, finite = data.mean(), base[base.isfinite()]
    at_1 = _kale(target, base, 1.0)
    if not len(finite) or (bool((finite == finite[0]).all()) and bool((data == finite[0]).all())):
        reason = "the energy is constant, so every inverse temperature fits alike"
        return Calibration(None, None, at_1, at_1, math.nan, reason=reason, **sizes)
    if _slope(target, finite, 0.0) <= 0:
        reason = "held-out data have higher energies than base draws: the base alone fits better at every beta"
        return Calibration(None, None, at_1, 0.0, math.nan, reason=reason, **sizes)
    low, high = 0.0, LARGEST_BETA
    bounded = _slope(target, finite, high) > 0
    for _ in range(0 if bounded else BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _slope(target, finite, middle) > 0 else (low, middle)
    tail = pareto_k(-high * base)
    best: dict[str, Any] = {"kale_at_1": at_1, "kale": _kale(target, base, high), "pareto_k": tail, **sizes}
    if bounded:
        reason = f"held-out data have lower energies than nearly all base draws: KALE still grows at {LARGEST_BETA:g}"
        return Calibration(high, None, reason=reason, **best)
    reason = ""
    if tail >= PARETO_K_LIMIT:
        reason = (
            f"a few base draws carry most of the weight at this beta (Pareto k {tail:.2f}): it is not to be trusted"
        )
    return Calibration(high, _stderr(data, finite, high), reason=reason, **best)


def calibration_of(
    model: GEBM, dataset: Dataset, base: Tensor, device: torch.device, limit: int = MAX_DRAWS
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
        on_data = energies(model, rows, device, model.dtype)
    return calibrate(on_data, base[:limit])


def shared_calibration(
    model: GEBM, dataset: Dataset, base: Callable[[], Tensor], device: torch.device, ranks: Ranks
) -> Calibration | None:
    """Return the first rank's `calibration_of`, on every rank: all of them sample at the same beta.

    Args:
        base: returns E on base draws, (N,); the first rank calls it.
    """
    with ranks.together():
        found = calibration_of(model, dataset, base(), device) if ranks.rank == 0 else None
        if ranks.size == 1:
            return found
        text = ranks.from_first(json.dumps(None if found is None else asdict(found)))
    known = json.loads(text)
    return None if known is None else Calibration(**known)


def found_beta(calibration: Calibration | None) -> float:
    """Return the calibrated beta; where there is none, warn and return 1."""
    if calibration is None or calibration.inverse_temperature is None:
        why = "the data have no validation part" if calibration is None else calibration.reason
        warn(f"there is no calibrated inverse temperature ({why}); the model is evaluated at 1")
        return 1.0
    if calibration.reason:
        warn(
            f"the calibrated inverse temperature, {calibration.inverse_temperature:g}, is doubtful: {calibration.reason}"
        )
    return calibration.inverse_temperature


def _weights(base: Tensor, beta: float) -> Tensor:
    return torch.softmax(-beta * base, 0)


def _slope(target: Tensor, base: Tensor, beta: float) -> float:
    """Return KALE's derivative at beta: the mean energy of the model minus that of the data."""
    return float((_weights(base, beta) * base).sum() - target)


def _kale(target: Tensor, base: Tensor, beta: float) -> float:
    return float(-beta * target - estimators.log_partition(beta * base))


def _stderr(data: Tensor, base: Tensor, beta: float) -> float | None:
    """Return the standard error of the root by the sandwich formula; None where the energies do not vary."""
    weights = _weights(base, beta)
    mean = (weights * base).sum()
    variance = (weights * (base - mean).square()).sum()
    of_data = data.var() / len(data) if len(data) > 1 else torch.zeros((), dtype=torch.float64)
    of_base = (weights * (base - mean)).square().sum()
    found = float((of_data + of_base).sqrt() / variance)
    return found if math.isfinite(found) else None
