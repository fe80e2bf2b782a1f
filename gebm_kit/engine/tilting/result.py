"""What a tilt found: draws at each beta, best-of-N and gradient ascent beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gebm_kit.core.files import plain
from gebm_kit.core.html import Shown, cell, heading, interval, picture, table
from gebm_kit.core.mosaic import are_images, image_of, png_of
from gebm_kit.engine.likelihood.log_partition import LogPartition
from gebm_kit.engine.sampling.draws import Draws

SHOWN_IMAGES = 16
"""Draws of each level that a notebook shows."""

NORMAL_975 = 1.959964
"""97.5 % quantile of the standard normal."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error."""

    value: float
    se: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.value - NORMAL_975 * self.se, self.value + NORMAL_975 * self.se

    def as_dict(self) -> dict[str, float]:
        low, high = self.interval
        return {"value": self.value, "se": self.se, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Level:
    """Draws from the posterior ``prior(z) exp(beta r(G(z)))``.

    Attributes:
        beta: inverse temperature.
        score: mean score of the draws, E_q[r] with ``r = -E``.
        kl: ``KL(q || base) = -A - beta E_q[E]``, in nats.
        log_partition: ``A = log E_base[exp(beta r)]``.
        diversity: mean distance between two draws, on the feature map.
        prdc: precision, recall, density and coverage against held-out data; {} without data.
        evaluations: evaluations of generator and scorer for each draw, all warm-up and tests included; a gradient counts
            three.
        draws: the draws, with R-hat, effective sizes and the sampler in ``draws.diagnostics``.
    """

    beta: float
    score: Estimate
    kl: Estimate
    log_partition: LogPartition
    diversity: Estimate
    prdc: Mapping[str, float]
    evaluations: float
    draws: Draws

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        found = self.draws.diagnostics.as_dict()
        names = ("rhat_max", "nested_rhat_max", "ess_min", "acceptance", "divergences", "converged", "problems")
        return {
            "beta": self.beta,
            "sampler": found["sampler"],
            "sampler_reason": found["sampler_reason"],
            **{name: found[name] for name in names},
            "log_partition": self.log_partition.as_dict(),
            "score": self.score.as_dict(),
            "kl": self.kl.as_dict(),
            "diversity": self.diversity.as_dict(),
            "prdc": dict(self.prdc),
            "evaluations": self.evaluations,
            "seconds": found["seconds"],
        }


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best of N base draws. Its KL, ``log N - (N - 1) / N``, is exact where scores have no ties, else an upper bound.

    Attributes:
        n: N; 1 is the base.
        kl: nats.
        score, diversity: as in `Level`; N is also the number of evaluations for each draw.
    """

    n: int
    kl: float
    score: Estimate
    diversity: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "n": self.n,
            "kl": self.kl,
            "score": self.score.as_dict(),
            "diversity": self.diversity.as_dict(),
            "evaluations": self.n,
        }


@dataclass(frozen=True, slots=True)
class Ascent:
    """Codes after some steps of plain gradient ascent on the score, from prior draws.

    Attributes:
        steps: number of steps.
        kl_at_least: lower bound of the latent codes' KL from the prior: by their means and covariance and, with few latent
            dimensions, by the volume that the steps lose.
        score, diversity, evaluations: as in `Level`.
    """

    steps: int
    kl_at_least: float
    score: Estimate
    diversity: Estimate
    evaluations: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "steps": self.steps,
            "kl_at_least": self.kl_at_least,
            "score": self.score.as_dict(),
            "diversity": self.diversity.as_dict(),
            "evaluations": self.evaluations,
        }


@dataclass(frozen=True, slots=True, repr=False)
class Tilt(Shown):
    """A generator tilted by a scorer.

    Attributes:
        generator, scorer: what they are: a path with its sha256, or a name.
        levels: one for each beta, in ascending order.
        best_of: best-of-N for N = 1 (the base), 4, 16, 64.
        ascent: gradient ascent, after more and more steps, up to the evaluations of the costliest level; () for a scorer
            without gradient.
        features: the feature map of ``diversity`` (and of PRDC).
        num_base: base draws that were scored.
        not_finite: how many of their scores are not finite; such points have no mass under any level.
        seed: the seed.
        value_range: (low, high) of the data, or None.
        base_draws: some base draws, for pictures, (N, *D).
        figures: pictures that were written.
        out: the directory that was written, or None.
    """

    generator: Mapping[str, Any]
    scorer: Mapping[str, Any]
    levels: tuple[Level, ...]
    best_of: tuple[BestOf, ...]
    ascent: tuple[Ascent, ...]
    features: str
    num_base: int
    not_finite: int
    seed: int
    value_range: tuple[float, float] | None = None
    base_draws: Tensor | None = field(default=None, repr=False)
    figures: tuple[Path, ...] = ()
    out: Path | None = None

    def _summary(self) -> str:
        scores = ", ".join(f"beta {v.beta:g} score {cell(v.score.value)} KL {cell(v.kl.value)}" for v in self.levels)
        return f"Tilt({scores}; base {cell(self.base.score.value)})"

    def _sections(self) -> Iterator[str]:
        headers = ("", "score", "KL, nats", "log Z", "diversity", "R-hat", "evaluations a draw")
        rows: list[tuple[object, ...]] = [
            (
                f"beta {v.beta:g}", _shown(v.score), _shown(v.kl),
                interval(v.log_partition.value, *v.log_partition.interval), _shown(v.diversity),
                v.draws.diagnostics.rhat_max, v.evaluations,
            )
            for v in self.levels
        ]  # fmt: skip
        rows += [(f"best of {b.n}", _shown(b.score), b.kl, None, _shown(b.diversity), None, b.n) for b in self.best_of]
        yield table(headers, rows, "value [95 % interval]")
        shown = {"base": self.base_draws} | {f"beta {level.beta:g}": level.draws.x for level in self.levels}
        for name, x in shown.items():
            if x is not None and len(x) and are_images(tuple(x.shape[1:])):
                yield heading(name) + picture(png_of(image_of(x[:SHOWN_IMAGES], self.value_range)), name)

    @property
    def base(self) -> BestOf:
        """The generator itself."""
        return self.best_of[0]

    def draws(self, beta: float) -> Draws:
        """Return the draws at one of the betas.

        Raises:
            KeyError: there is no such level.
        """
        for level in self.levels:
            if level.beta == beta:
                return level.draws
        raise KeyError(beta)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON; a value that is not finite is null."""
        found: dict[str, Any] = plain(
            {
                "generator": dict(self.generator),
                "scorer": dict(self.scorer),
                "base": self.base.as_dict(),
                "levels": [level.as_dict() for level in self.levels],
                "best_of": [best.as_dict() for best in self.best_of],
                "ascent": [ascent.as_dict() for ascent in self.ascent],
                "features": self.features,
                "num_base": self.num_base,
                "not_finite": self.not_finite,
                "seed": self.seed,
                "figures": [str(path) for path in self.figures],
                "out": None if self.out is None else str(self.out),
            }
        )
        return found


def _shown(estimate: Estimate) -> str:
    return interval(estimate.value, *estimate.interval)
