"""Train the same flow by maximum likelihood with zuko and torch alone, and compare NLL and speed with the kit.

    python -m benchmarks.density.zuko_alone [--cache DIR] [--data NAME ...] [--flows NAME ...] [--seeds N ...] [--steps N]

`train_alone` is what one writes without the kit: zuko's flow, AdamW with a cosine schedule, torch's own moving average
and early stopping on the validation part. The kit's side is the first phase of a recipe, with the same settings.
Seconds are processor time of the training steps, without evaluations. The two take turns, and the order changes from
seed to seed. The data are those that `python -m benchmarks.density` has prepared.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
import zuko
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

BATCH, RATE, DECAY, AVERAGE, EVERY = 256, 1e-3, 1e-2, 0.99, 50


class Parts(NamedTuple):
    """Standardised rows of the three parts, (N, D) each."""

    train: Tensor
    valid: Tensor
    test: Tensor


class Result(NamedTuple):
    """Test NLL in nats of the weights with the lowest validation NLL, their step, and the seconds of training."""

    nll: float
    step: int
    seconds: float


def make_flow(name: str, dim: int) -> Any:
    """Build a flow of `benchmarks.density.settings` with zuko directly."""
    if name == "realnvp":
        return zuko.flows.RealNVP(dim, transforms=6, hidden_features=[64, 64], activation=nn.Tanh)
    if name == "nsf":
        return zuko.flows.NSF(dim, transforms=3, hidden_features=[64, 64], bins=8, passes=2)
    return zuko.flows.MAF(dim, transforms=5, hidden_features=[64, 64], activation=nn.Tanh)


@torch.no_grad()
def moving_average(averages: Any, now: Any, num: Tensor) -> None:
    """Average the weights with the kit's warm-up of the decay, which decides how early a brief training is best."""
    n = float(num)
    torch._foreach_lerp_(averages, now, 1.0 - min(AVERAGE, (1.0 + n) / (10.0 + n)))


def train_alone(name: str, parts: Parts, steps: int, seed: int) -> Result:
    """Train by maximum likelihood without the kit."""
    torch.manual_seed(seed)
    flow = make_flow(name, parts.train.shape[1])
    optimizer = torch.optim.AdamW(flow.parameters(), RATE, betas=(0.9, 0.999), weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = AveragedModel(flow, multi_avg_fn=moving_average)
    order, best, seconds = torch.empty(0, dtype=torch.int64), (float("inf"), 0), 0.0
    weights = copy.deepcopy(flow.state_dict())
    for step in range(1, steps + 1):
        start = time.process_time()
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(parts.train))])
        rows, order = parts.train[order[:BATCH]], order[BATCH:]
        loss = -flow().log_prob(rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(flow)
        seconds += time.process_time() - start
        if step % EVERY == 0:
            with torch.no_grad():
                seen = float(-average.module().log_prob(parts.valid).mean())
            if seen < best[0]:
                best, weights = (seen, step), copy.deepcopy(average.module.state_dict())
    flow.load_state_dict(weights)
    with torch.no_grad():
        return Result(float(-flow().log_prob(parts.test).mean()), best[1], seconds)


def train_with_the_kit(name: str, words: list[str], steps: int, seed: int) -> Result:
    """Train the first phase of a recipe by the kit's engine."""
    from benchmarks.density.settings import overrides
    from gebm_kit.config.build import build_dataset
    from gebm_kit.config.load import load_recipe
    from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
    from gebm_kit.engine.training.trainer import Trainer

    recipe = load_recipe(
        "redwine", [*words, *overrides("redwine", name, "energy", seed), f"train.pretrain.steps={steps}"]
    )
    dataset = build_dataset(recipe)
    torch.manual_seed(seed)
    trainer = Trainer(recipe, dataset, torch.device("cpu"))
    assert trainer.best_base is not None
    look, looking = trainer.best_base.look, [0.0]

    def timed(*arguments: object) -> object:
        start = time.process_time()
        found = look(*arguments)  # type: ignore[arg-type]
        looking[0] += time.process_time() - start
        return found

    trainer.best_base.look = timed  # type: ignore[assignment, method-assign]
    start = time.process_time()
    while trainer.step < steps:
        trainer.cycle()
    seconds = time.process_time() - start - looking[0]
    base = trainer.model.base
    base.load_state_dict(trainer.best_base.tensors)
    rows = evenly_spaced_rows(dataset.split("test"), "test part")
    with torch.no_grad():
        nll = float(base.eval().pretraining_loss(rows))  # type: ignore[operator]
    return Result(nll, trainer.best_base.step, seconds)


def parts_of(words: list[str]) -> Parts:
    """Return the rows as the kit's dataset makes them, so that both sides see the same."""
    from gebm_kit.config.build import build_dataset
    from gebm_kit.config.load import load_recipe
    from gebm_kit.engine.datasets.held_out import evenly_spaced_rows

    dataset = build_dataset(load_recipe("redwine", words))
    train = dataset.split("train")
    return Parts(
        train.first(len(train)).float(),
        evenly_spaced_rows(dataset.split("valid"), "validation part").float(),
        evenly_spaced_rows(dataset.split("test"), "test part").float(),
    )


def main() -> int:
    from benchmarks.density.sets import SETS, node
    from benchmarks.density.settings import FLOWS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark-density"))
    parser.add_argument("--data", nargs="+", default=["redwine", "phoneme"], choices=SETS)
    parser.add_argument("--flows", nargs="+", default=["realnvp", "nsf"], choices=FLOWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    print(
        "| data | flow | NLL, kit | NLL, zuko alone | difference, paired | speed, kit over zuko alone (lowest-highest) |"
    )
    print("|---|---|---|---|---|---|")
    for name in options.data:
        words = [node(name, options.cache / "data")]
        parts = parts_of(words)
        for flow in options.flows:
            kit, alone = [], []
            for seed in options.seeds:
                for first in (seed % 2 == 0, seed % 2 == 1):
                    if first:
                        kit.append(train_with_the_kit(flow, words, options.steps, seed))
                    else:
                        alone.append(train_alone(flow, parts, options.steps, seed))
                print(f"{name} {flow} {seed}: {kit[-1]} {alone[-1]}", file=sys.stderr, flush=True)
            ratios = sorted(b.seconds / a.seconds for a, b in zip(kit, alone, strict=True))
            differences = [a.nll - b.nll for a, b in zip(kit, alone, strict=True)]
            cells = [_mean([r.nll for r in kit]), _mean([r.nll for r in alone]), _mean(differences)]
            middle = ratios[len(ratios) // 2]
            print(f"| {name} | {flow} | {' | '.join(cells)} | {middle:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |")
    return 0


def _mean(values: list[float]) -> str:
    spread = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
