"""Target densities, whose code serves both torch and jax, and how long every sampler runs on each.

Both sides import this module, the kit's and the peers', so it needs only numpy. ``xp`` is torch or jax.numpy; x is
(..., d).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Function = Callable[[Any, Any], Any]  # U(x, xp): (..., d) -> (...)

SCHOOLS_EFFECT = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
SCHOOLS_ERROR = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
SCALES = np.logspace(0, -2, 100).astype(np.float32)
WIDTH, BEND, THICKNESS = 0.9, 0.6, 0.3


def gaussian(x: Any, xp: Any) -> Any:
    """Evaluate U of independent coordinates, standard deviations log-spaced from 1 to 0.01: axis-aligned, condition 1e4."""
    return 0.5 * ((x / xp.asarray(SCALES.astype(_float(x)))) ** 2).sum(-1)


def banana(x: Any, xp: Any) -> Any:
    """Evaluate U of x_0 = 0.9 a, x_1 = 0.6 (a² - 1) + 0.3 c, with a, c standard normal: the bend is two thicknesses."""
    a = x[..., 0] / WIDTH
    return 0.5 * (a**2 + ((x[..., 1] - BEND * (a**2 - 1)) / THICKNESS) ** 2)


def funnel(x: Any, xp: Any) -> Any:
    """Evaluate U of v = x_0 ~ N(0, 1) and nine x_i ~ N(0, e^v).

    The standard deviation of x_i goes from 0.3 to 3.2 over the central 98 % of v.
    """
    v, rest = x[..., 0], x[..., 1:]
    return 0.5 * v**2 + 0.5 * xp.exp(-v) * (rest**2).sum(-1) + 0.5 * rest.shape[-1] * v


def schools(x: Any, xp: Any) -> Any:
    """Evaluate U of the eight schools, non-centred (posteriordb).

    x has eight raw effects ~ N(0, 1), mu ~ N(0, 5²), and log tau with tau ~ half-Cauchy(5).
    """
    raw, mean, log_tau = x[..., :8], x[..., 8:9], x[..., 9:10]
    effect, error = (xp.asarray(np.asarray(v, _float(x))) for v in (SCHOOLS_EFFECT, SCHOOLS_ERROR))
    tau = xp.exp(log_tau)
    misfit = ((effect - mean - tau * raw) / error) ** 2
    prior = 0.5 * (mean / 5.0) ** 2 + xp.log1p((tau / 5.0) ** 2) - log_tau
    return 0.5 * misfit.sum(-1) + 0.5 * (raw**2).sum(-1) + prior[..., 0]


def _float(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Target:
    """A density, and the length of a run on it.

    Attributes:
        function: U(x, xp), or None for a trained network, which each side loads from the exported weights.
        chains, draws: number of chains, and of states kept from each.
        leapfrog: L of the samplers with a fixed trajectory, on both sides.
        thin: gradients between two kept states, on both sides, for samplers that spend one or two gradients a step. It
            makes autocorrelations longer than a few steps visible.
        warmup: steps of the kit's warm-up. The kit's default is 200.
        peer_warmup: steps of the peers' warm-ups. Their documentation uses 1,000.
    """

    name: str
    dim: int
    function: Function | None
    chains: int
    draws: int
    leapfrog: int = 6
    thin: int = 6
    warmup: int = 200
    peer_warmup: int = 1000

    @property
    def is_network(self) -> bool:
        return self.function is None

    def scaled(self, factor: float) -> Target:
        """Return the same target with fewer draws and shorter warm-ups."""
        lengths = {name: max(4, round(factor * getattr(self, name))) for name in ("draws", "warmup", "peer_warmup")}
        return self if factor == 1 else dataclasses.replace(self, **lengths)

    def start(self, seed: int) -> np.ndarray:
        """Return the starting points, the same for every sampler: standard normal, (chains, dim) float32."""
        return np.random.default_rng(seed).standard_normal((self.chains, self.dim)).astype(np.float32)


TARGETS = {
    t.name: t
    for t in (
        Target("gaussian", 100, gaussian, chains=128, draws=250, warmup=400),
        Target("banana", 2, banana, chains=256, draws=400, warmup=400),
        Target("funnel", 10, funnel, chains=256, draws=400, warmup=400),
        Target("schools", 10, schools, chains=256, draws=250, warmup=400),
        Target("mlp", 16, None, chains=512, draws=120, warmup=200, peer_warmup=400),
        Target("dcgan", 64, None, chains=64, draws=60, warmup=100, peer_warmup=150),
    )
}
