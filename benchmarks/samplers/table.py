"""The table of the records: medians over seeds, paired ratios with bootstrap intervals, biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.samplers.targets import TARGETS

BIASED = {"kit-ula", "kit-klmc", "kit-mclmc", "blackjax-mclmc"}
RHAT = 1.1
"""A sampler with a larger median R-hat has no meaningful effective sample size, and is left out of the comparison."""

SAME_KERNEL = {
    "hmc": ("kit-hmc", ("blackjax-hmc", "numpyro-hmc")),
    "hmc, long trajectories": ("kit-hmc-long", ("blackjax-hmc", "numpyro-hmc")),
    "mala": ("kit-mala", ("blackjax-mala",)),
    "chees": ("kit-chees", ("blackjax-chees", "blackjax-chees-diagonal")),
    "meads": ("kit-meads", ("blackjax-meads",)),
    "mams": ("kit-mams", ("blackjax-mams",)),
    "mclmc": ("kit-mclmc", ("blackjax-mclmc",)),
}
RESAMPLES = 10_000
MEASURES = {
    "ess_per_grad": "ESS per gradient",
    "squares_per_grad": "ESS of squares per gradient",
    "ess_per_second": "ESS per second",
}
"""Measures of the comparison, each the smallest over dimensions."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A sampler on a target: medians over seeds."""

    target: str
    sampler: str
    seeds: int
    failed: int
    error: str | None
    ess_per_grad: float | None
    squares_per_grad: float | None
    ess_per_second: float | None
    grads_per_second: float | None
    rhat: float | None
    acceptance: float | None
    divergences: int
    warmup_seconds: float | None
    second_moment_error: float | None
    converged: bool


@dataclass(frozen=True)
class Ratio:
    """Kit over peer, paired by seed: the median with a 95 % bootstrap interval over seeds."""

    target: str
    what: str
    kit: str
    peer: str
    measure: str
    ratio: float
    low: float
    high: float
    seeds: int


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Make a row for each target and sampler, in the order of targets, exact samplers first."""
    found = []
    for target in TARGETS:
        here = [r for r in records if r["target"] == target]
        reference = reference_moments(here)
        names = sorted({r["sampler"] for r in here}, key=lambda n: (n in BIASED, not n.startswith("kit"), n))
        found += [_row(target, n, [r for r in here if r["sampler"] == n], reference) for n in names]
    return found


def reference_moments(records: Sequence[Record]) -> np.ndarray | None:
    """Compute E[x_i²] over the draws of all exact samplers that converged, weighted by effective sample size."""
    good = [r for r in records if "error" not in r and r["sampler"] not in BIASED and r["rhat"] <= RHAT]
    if not good:
        return None
    weights = np.asarray([r["ess"] for r in good])
    return np.average([r["second_moments"] for r in good], axis=0, weights=weights)


def _row(target: str, sampler: str, records: Sequence[Record], reference: np.ndarray | None) -> Row:
    good = [r for r in records if "error" not in r]
    errors = [r["error"] for r in records if "error" in r]

    def median(key: str | Callable[[Record], float]) -> float | None:
        values = [r[key] if isinstance(key, str) else key(r) for r in good]
        return float(np.median(values)) if values else None

    moments = np.mean([r["second_moments"] for r in good], axis=0) if good else None
    off = None if reference is None or moments is None else float(np.abs(moments / reference - 1).mean())
    rhat = median("rhat")
    return Row(
        target, sampler, len(good), len(errors), errors[0] if errors else None,
        median("ess_per_grad"), median("squares_per_grad"), median("ess_per_second"),
        median(lambda r: r["grad_evals"] / r["seconds"]),
        rhat, median("acceptance"), sum(r["divergences"] for r in good), median("warmup_seconds"), off,
        rhat is not None and rhat <= RHAT and not errors,
    )  # fmt: skip


def ratios_of(records: Sequence[Record], rows: Sequence[Row]) -> list[Ratio]:
    """Compare the best exact sampler of the kit with the best of the peers, and the same kernels with each other."""
    found = []
    for target in TARGETS:
        usable = {r.sampler: r for r in rows if r.target == target and r.converged}
        for measure in MEASURES:
            best = [
                _best([n for n in usable if n.startswith("kit") == ours and n not in BIASED], usable, measure)
                for ours in (True, False)
            ]
            pairs = [("best", *best)]
            for kernel, (kit, peers) in SAME_KERNEL.items():
                peer = _best([p for p in peers if p in usable], usable, measure)
                pairs.append((kernel, kit if kit in usable else None, peer))
            for what, kit, peer in pairs:
                if kit is not None and peer is not None:
                    found.append(_ratio(target, what, kit, peer, measure, records))
    return found


def _best(names: Sequence[str], rows: Mapping[str, Row], measure: str) -> str | None:
    return max(names, key=lambda n: getattr(rows[n], measure), default=None)


def _ratio(target: str, what: str, kit: str, peer: str, measure: str, records: Sequence[Record]) -> Ratio:
    values: dict[str, dict[int, float]] = {kit: {}, peer: {}}
    for record in records:
        if record["target"] == target and record["sampler"] in values and "error" not in record:
            values[record["sampler"]][record["seed"]] = record[measure]
    seeds = sorted(values[kit].keys() & values[peer].keys())
    ratios = np.asarray([values[kit][s] / values[peer][s] for s in seeds])
    picks = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return Ratio(target, what, kit, peer, measure, float(np.median(ratios)), float(low), float(high), len(seeds))


def as_json(rows: Sequence[Row], ratios: Sequence[Ratio]) -> dict[str, Any]:
    return {"schema": 1, "rows": [asdict(r) for r in rows], "ratios": [asdict(r) for r in ratios]}


def markdown(rows: Sequence[Row], ratios: Sequence[Ratio]) -> str:
    """Return the tables of docs/benchmarks/samplers.md."""
    heads = ["target", "kernel", "kit", "peer", *(f"{name}, kit / peer" for name in MEASURES.values())]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    by_pair: dict[tuple[str, str], dict[str, Ratio]] = {}
    for ratio in ratios:
        by_pair.setdefault((ratio.target, ratio.what), {})[ratio.measure] = ratio
    for (target, what), pair in by_pair.items():
        kits = list(dict.fromkeys(pair[m].kit.removeprefix("kit-") for m in MEASURES))
        peers = list(dict.fromkeys(pair[m].peer for m in MEASURES))
        cells = [target, what, "; ".join(kits), "; ".join(peers), *(_shown(pair[m]) for m in MEASURES)]
        lines.append(f"| {' | '.join(cells)} |")
    heads = ["target", "sampler", "ESS / gradient", "of squares", "ESS / s", "gradients / s", "R-hat", "acceptance"]
    heads += ["divergences", "error of E x²", "warm-up s"]
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _shown(ratio: Ratio) -> str:
    return f"{ratio.ratio:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _line(row: Row) -> str:
    name = f"{row.sampler} (biased)" if row.sampler in BIASED else row.sampler
    if row.ess_per_grad is None:
        return f"| {row.target} | {name} | failed: {row.error} |" + " |" * 8
    note = f", failed on {row.failed} of {row.failed + row.seeds} seeds" if row.failed else ""
    note += "" if row.converged or row.failed else ", not converged"
    error = "" if row.second_moment_error is None else f"{100 * row.second_moment_error:.1f} %"
    return (
        f"| {row.target} | {name}{note} | {row.ess_per_grad:.3g} | {row.squares_per_grad:.3g} | {row.ess_per_second:.3g} "
        f"| {row.grads_per_second:.3g} "
        f"| {row.rhat:.3f} | {row.acceptance:.3f} | {row.divergences} | {error} | {row.warmup_seconds:.1f} |"
    )
