"""Records of a sampler's run with its effective sample sizes, as JSON. Both sides use this module."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.samplers.targets import Target

VERSION = 2
"""Version of a record; raise it when its meaning changes, so that older ones in a cache are made again."""


@dataclass(frozen=True)
class Outcome:
    """Draws and their cost.

    Attributes:
        draws: kept states, (C, N, d).
        grad_evals: gradients of all chains in the steps between the first and the last draw; a chain of NUTS counts its own.
        seconds, cpu_seconds: time of the same steps, without compilation.
        warmup_seconds: time of tuning and burn-in, without compilation.
    """

    draws: np.ndarray
    grad_evals: float
    seconds: float
    cpu_seconds: float
    warmup_seconds: float
    acceptance: float
    divergences: int
    tuned: dict[str, float]


def fingerprint(target: Target) -> dict[str, Any]:
    """Return what a cached record must agree with to be reused."""
    names = ("chains", "draws", "leapfrog", "thin", "warmup", "peer_warmup")
    return {"version": VERSION, **{name: getattr(target, name) for name in names}}


def record_path(folder: Path, sampler: str, target: Target, seed: int) -> Path:
    return folder / f"{target.name}--{sampler}--{seed}.json"


def load_record(folder: Path, sampler: str, target: Target, seed: int) -> dict[str, Any] | None:
    """Load a record made with the same lengths, or None."""
    path = record_path(folder, sampler, target, seed)
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record if record["lengths"] == fingerprint(target) else None


def save_failure(folder: Path, sampler: str, target: Target, seed: int, error: str) -> None:
    _write(folder, sampler, target, seed, {"error": error[:500]})


def save_outcome(folder: Path, sampler: str, target: Target, seed: int, outcome: Outcome) -> None:
    """Save effective sample sizes by arviz-stats: bulk, over all chains, the smallest and the median over dimensions.

    There are two kinds: of the coordinates, and of their squared deviations from the mean. Trajectories of nearly half a
    turn make the first large, because every draw is on the other side of the centre, while the second hardly changes.
    """
    if not np.isfinite(outcome.draws).all():
        save_failure(folder, sampler, target, seed, "draws that are not finite")
        return
    ess, rhat = effective_sizes(outcome.draws)
    squares, _ = effective_sizes((outcome.draws - outcome.draws.mean((0, 1))) ** 2)
    rows = outcome.draws.astype(np.float64).reshape(-1, outcome.draws.shape[-1])
    _write(folder, sampler, target, seed, {
        "ess": float(ess.min()),
        "ess_median": float(np.median(ess)),
        "rhat": float(rhat.max()),
        "grad_evals": outcome.grad_evals,
        "ess_per_grad": float(ess.min()) / outcome.grad_evals,
        "squares_per_grad": float(squares.min()) / outcome.grad_evals,
        "ess_per_second": float(ess.min()) / outcome.seconds,
        "seconds": outcome.seconds,
        "cpu_seconds": outcome.cpu_seconds,
        "warmup_seconds": outcome.warmup_seconds,
        "acceptance": outcome.acceptance,
        "divergences": outcome.divergences,
        "tuned": outcome.tuned,
        "second_moments": (rows**2).mean(0).tolist(),
    })  # fmt: skip


def effective_sizes(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute bulk effective sample size and rank-normalised split R-hat of every dimension; (C, N, d) -> (d,), (d,)."""
    from arviz_stats.base import array_stats

    columns = np.moveaxis(draws.astype(np.float64), -1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ess = np.asarray([array_stats.ess(c, chain_axis=0, draw_axis=1, method="bulk") for c in columns])
        rhat = np.asarray([array_stats.rhat(c, chain_axis=0, draw_axis=1, method="rank") for c in columns])
    return ess, rhat


def _write(folder: Path, sampler: str, target: Target, seed: int, values: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"target": target.name, "sampler": sampler, "seed": seed, "lengths": fingerprint(target), **values}
    path = record_path(folder, sampler, target, seed)
    path.with_suffix(".partial").write_text(json.dumps(record))
    path.with_suffix(".partial").replace(path)
