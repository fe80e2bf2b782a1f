"""Time a training cycle against a plain hand-written PyTorch loop of the same model, as a ratio from one run.

    python benchmarks/training_cycle.py [--repeats 15] [--threads 2] [--json]

A cycle is 5 energy updates with a gradient penalty, then one base update and the base's moving average. The plain loop
is what a careful author writes from the paper's Algorithm 1. It has base draws without gradient in the energy step, two
calls of the energy (data, base draws), the same penalty at the same steps, and Adam. Both are timed in alternation, so
that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.config.check import check
from gebm_kit.config.tree import parse
from gebm_kit.core.interfaces import Dataset, Split
from gebm_kit.engine.training.trainer import Trainer

RECIPES = {
    "mlp on 8x8, batch 128": """
schema: 1
data: {name: digits}
base: {name: mlp, latent_dim: 16, hidden: [256, 256]}
energy: {name: mlp, hidden: [256, 256]}
loss: {name: kale}
train: {penalty: {name: gradient, every: EVERY}, start_steps: 0}
""",
    "dcgan + conv on 1x28x28, batch 64": """
schema: 1
data: {name: digits}
base: {name: dcgan, latent_dim: 64, width: 32}
energy: {name: conv, width: 32, spectral_norm: true}
loss: {name: kale}
train: {penalty: {name: gradient, every: EVERY}, batch_size: 64, start_steps: 0}
""",
}


class _Noise(Split):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rows = torch.rand(2000, *shape) * 2 - 1

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self.rows[indices]


class Images(Dataset):
    """Random images of a given shape; the time of a cycle does not depend on their content."""

    value_range = (-1.0, 1.0)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.data_shape = shape
        self._split = _Noise(shape)

    def split(self, name: str) -> Split:
        return self._split


def plain_loop(trainer: Trainer, data: Tensor, every: int, batch: int) -> Callable[[], None]:
    """Return the hand-written cycle, on copies of the trainer's own modules, with its learned A."""

    base, energy = copy.deepcopy(trainer.model.base), copy.deepcopy(trainer.model.energy)
    log_partition = nn.Parameter(torch.zeros(()))
    energy_optimizer = torch.optim.Adam([*energy.parameters(), log_partition], 2e-4, betas=(0.5, 0.999))
    base_optimizer = torch.optim.Adam(base.parameters(), 2e-4, betas=(0.5, 0.999))
    average = [p.detach().clone() for p in base.parameters()]
    update = 0

    def cycle() -> None:
        nonlocal update
        for _ in range(5):
            x = data[torch.randint(len(data), (batch,))]
            z = torch.randn(batch, base.latent_dim)
            with torch.no_grad():
                fake = base(z)
            loss = energy(x).mean() + log_partition + torch.exp(-(energy(fake) + log_partition)).mean() - 1
            if update % every == 0:
                share = torch.rand(batch, *[1] * (x.dim() - 1))
                between = (share * x + (1 - share) * fake).requires_grad_()
                (grad,) = torch.autograd.grad(energy(between).sum(), between, create_graph=True)
                loss = loss + every * 0.1 * grad.flatten(1).square().sum(1).mean()
            energy_optimizer.zero_grad()
            loss.backward()
            energy_optimizer.step()
            update += 1
        fake_energy = energy(base(torch.randn(batch, base.latent_dim)))
        base_optimizer.zero_grad()
        (-torch.logsumexp(-fake_energy, 0)).backward()
        base_optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average, base.parameters(), strict=True):
                mean.lerp_(parameter, 1e-3)

    return cycle


def measure(name: str, text: str, every: int, repeats: int, cycles: int) -> dict[str, Any]:
    """Measure the median seconds a cycle of both, and the median of the paired ratios."""
    recipe = check(parse(text.replace("EVERY", str(every)), name="benchmark"), directory=Path())
    dataset = Images((1, 28, 28) if "28x28" in name else (1, 8, 8))
    torch.manual_seed(0)
    trainer = Trainer(recipe, dataset, torch.device("cpu"))
    trainer.initialise()
    plain = plain_loop(trainer, dataset.split("train").first(2000), every, recipe.train.batch_size)
    kit_times, plain_times = [], []
    for repeat in range(repeats + 1):
        for times, cycle in ((kit_times, trainer.cycle), (plain_times, plain)):
            start = time.perf_counter()
            for _ in range(cycles):
                cycle()
            if repeat:  # the first round warms up
                times.append((time.perf_counter() - start) / cycles)
    ratios = [p / k for k, p in zip(kit_times, plain_times, strict=True)]
    return {
        "model": name,
        "penalty_every": every,
        "kit_ms": 1e3 * statistics.median(kit_times),
        "plain_ms": 1e3 * statistics.median(plain_times),
        "speed_ratio": statistics.median(ratios),
        "low": sorted(ratios)[len(ratios) // 10],
        "high": sorted(ratios)[-1 - len(ratios) // 10],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        measure(name, text, every, options.repeats, cycles=20 if "mlp" in name else 3)
        for name, text in RECIPES.items()
        for every in (1, 4)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| model | penalty every | kit, ms a cycle | plain loop, ms | kit's speed over plain (10-90 %) |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['penalty_every']} | {row['kit_ms']:.2f} | {row['plain_ms']:.2f} "
            f"| {row['speed_ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f}) |"
        )


if __name__ == "__main__":
    main()
