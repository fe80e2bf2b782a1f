"""Estimate KALE of a trained energy between Gaussians of known divergence, as a markdown table.

    python benchmarks/kale_known_kl.py [--loss NAME ...] [--seed S]

The data are P = N(m, I) or N(0, s^2 I) with s < 1, the base is B = N(0, I), and KL(P || B) is 0.5, 1 or 2, in 2 and 10
dimensions. (With s > 1 the weights exp(-E) would have no second moment.) The energy is a quadratic form, which contains
the answer -log p/b. KALE is estimated on 200,000 held-out draws of P and of B, and A on as many more draws of B.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core import estimators
from gebm_kit.core.interfaces import Base, Batch, Energy, Loss
from gebm_kit.core.model import GEBM
from gebm_kit.engine.training.negatives import NegativeChains

STEPS, BATCH, RATE = 1500, 2048, 0.1
HELD_OUT = 200_000

LOSSES: dict[str, tuple[str, dict[str, object]]] = {
    "kale": ("kale", {}),
    "kale, A by Adam": ("kale", {"update": "adam"}),
    "kale-dv": ("kale-dv", {}),
    "kale-dv, moving average 0.99": ("kale-dv", {"moving_average": 0.99}),
    "logistic": ("logistic", {}),
    "relativistic": ("relativistic", {}),
    "smile": ("smile", {}),
    "smile, clipped gradient": ("smile", {"gradient": "clipped"}),
    "flo": ("flo", {}),
    "cd": ("cd", {"step_size": 0.4, "steps": 6}),
    "pcd": ("pcd", {"step_size": 0.4, "steps": 3, "buffer_size": 4096}),
}


class Identity(Base):
    """G(z) = z: the base is the prior itself, N(0, I)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = dim, (dim,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class Quadratic(Energy):
    """``E(x) = x' L x / 2 + c' x``, flat at first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.form, self.slope = nn.Parameter(torch.zeros(dim, dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.form) * x).sum(1) + x @ self.slope


@dataclass(frozen=True)
class Case:
    """P = N(m, s^2 I) and its divergence; ``differs`` says whether its mean or its variance is not the base's."""

    differs: str
    dim: int
    divergence: float

    @property
    def mean(self) -> Tensor:
        """Compute ``m = sqrt(2 KL / d)`` for every coordinate, since KL = |m|^2 / 2."""
        size = math.sqrt(2 * self.divergence / self.dim) if self.differs == "mean" else 0.0
        return torch.full((self.dim,), size)

    @property
    def std(self) -> float:
        """Find the root in (0, 1) of ``KL = d (s^2 - 1 - log s^2) / 2`` by bisection."""
        if self.differs == "mean":
            return 1.0
        low, high = 1e-9, 1.0
        for _ in range(100):
            middle = 0.5 * (low + high)
            above = 0.5 * self.dim * (middle - 1 - math.log(middle)) > self.divergence
            low, high = (middle, high) if above else (low, middle)
        return math.sqrt(low)

    def data(self, num: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.std * torch.randn(num, self.dim, generator=generator)


CASES = [Case(differs, dim, kl) for differs in ("mean", "variance") for dim in (2, 10) for kl in (0.5, 1.0, 2.0)]


def train(case: Case, loss: Loss, generator: torch.Generator, steps: int = STEPS) -> GEBM:
    """Run energy steps only, in the engine's order, by Adam with a cosine schedule."""
    model = GEBM(Identity(case.dim), Quadratic(case.dim))
    optimizer = torch.optim.Adam([*model.energy.parameters(), *loss.parameters()], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        loss.initialise(model(torch.randn(4096, case.dim, generator=generator)))
    chains = None
    if loss.negatives is not None:
        chains = NegativeChains(loss.negatives, BATCH, None, 0, torch.device("cpu"), torch.float32)
        chains.fill(model)
    for _ in range(steps):
        z = torch.randn(BATCH, case.dim, generator=generator)
        x = case.data(BATCH, generator)
        negatives = chains.draw(model, x, z, generator) if chains is not None else None
        terms = loss.energy_loss(model, Batch(x, z, z, negatives))
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        loss.after_energy_step(terms.metrics)
        schedule.step()
    return model


def held_out_kale(case: Case, model: GEBM, generator: torch.Generator) -> float:
    """Estimate KALE on fresh draws: 200,000 of P and of B, and as many of B for A."""
    with torch.no_grad():
        data = model.energy(case.data(HELD_OUT, generator)).double()
        base, others = model(torch.randn(2 * HELD_OUT, case.dim, generator=generator)).double().chunk(2)
    return estimators.kale(data, base, estimators.log_partition(others)).item()


def measured(case: Case, name: str, seed: int = 0, steps: int = STEPS) -> float:
    """Estimate KALE of an energy trained by one of `LOSSES`."""
    component, parameters = LOSSES[name]
    generator = torch.Generator().manual_seed(seed)
    loss: Loss = build("loss", ComponentNode(component, parameters), {"data_shape": (case.dim,)})
    return held_out_kale(case, train(case, loss, generator, steps), generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"KALE / KL on {HELD_OUT:,} held-out draws (seed {options.seed})\n")
    print("| differs in | dimensions | KL | " + " | ".join(options.loss) + " |")
    print("|---|---|---|" + "---|" * len(options.loss))
    worst = 0.0
    for case in CASES:
        ratios = [measured(case, name, options.seed) / case.divergence for name in options.loss]
        worst = max(worst, *(abs(ratio - 1) for ratio in ratios))
        row = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"| {case.differs} | {case.dim} | {case.divergence:g} | {row} |", flush=True)
    print(f"\nlargest relative error {worst:.1%}")


if __name__ == "__main__":
    main()
