"""Compare the kit with the plain overdamped Langevin loop of the published GEBM.

    python -m benchmarks.langevin [--threads 2] [--repetitions 15] [--steps 4096] [--kit-steps 256] [--run DIR ...] [--json]
                                  [--loop-beta 100] [--beta 100 ...] [--gain best]

The plain loop has step size 1e-4 and inverse temperature 100. It calls ``energy(base(z)).sum().backward()`` on a model
in eval mode whose parameters require gradients, so every backward pass fills their gradients too. Spectrally normalised
weights are divided again at every evaluation.

**Speed**: the time of a step of the loop over one of the kit's ``ula``, which makes the same moves. The model is the
paper's SNGAN for 32x32 images with fresh weights and 64 chains: latent 128, a generator with 512, 256, 128 and 64
channels, and seven spectrally normalised convolutions of 64 to 512 channels. Both are timed in alternation. The figure
is the median of the ratios, with quartiles. Goal: 1.7.

**Quality**: the gradients that each chain needs for 95 % of the loop's gain in the recipe's Fréchet distance, on a
trained model (``--run``, or the dcgan of ``benchmarks.samplers``). The loop's gain is taken at its best step or, with
``--gain last``, at its last one, since the distance may rise again at inverse temperature 100. The kit's samplers run
at ``--beta``, tuned by their own warm-up, whose cost is in the table too. Goal: a tenth.

An energy trained for inverse temperature 1 is a hundred times one that is right at 100. ``--loop-beta 1`` takes the
same steps, 1e-4, towards the law it was trained for.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033 (Appendix E)
    Spectral Normalization for Generative Adversarial Networks. T. Miyato et al., ICLR 2018.
    https://arxiv.org/abs/1802.05957 (Table 3, the networks)
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.bases.sngan import SnganBase
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.energies.sngan import SnganEnergy
from gebm_kit.engine.evaluation.trace_result import Curve, evals_to_reach
from gebm_kit.engine.sampling.blocks import activation_bytes, lay_out, thread_piece
from gebm_kit.samplers.ula import Ula

STEP_SIZE, BETA = 1e-4, 100.0
CHAINS = 64
GOAL_SPEED, GOAL_EVALS = 1.7, 0.1
SAMPLERS = ("ula", "mala", "hmc", "klmc", "chees", "meads", "mclmc", "mams")
WARMUP_CHAINS = 64


def sngan() -> GEBM:
    """Build the paper's networks for 32x32 images with fresh weights, in training mode."""
    torch.manual_seed(0)
    base = SnganBase(128, data_shape=(3, 32, 32), value_range=(-1.0, 1.0))
    return GEBM(base, SnganEnergy(data_shape=(3, 32, 32)))


def plain_loop(model: GEBM, z: Tensor, generator: torch.Generator) -> Callable[[], None]:
    """Make one step of the published loop, on the model as training left it."""

    def step() -> None:
        nonlocal z
        z = z.detach().requires_grad_()
        potential = 0.5 * z.square().sum() + BETA * model.energy(model.base(z)).sum()
        potential.backward()
        with torch.no_grad():
            noise = torch.randn(z.shape, generator=generator)
            z = z - STEP_SIZE * z.grad + math.sqrt(2 * STEP_SIZE) * noise

    return step


def measure_speed(repetitions: int, calls: int) -> dict[str, Any]:
    """Measure the steps a second of both, and the median of the paired ratios."""
    model = sngan().eval()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(CHAINS, model.latent_dim, generator=generator)
    plain = plain_loop(model, z, generator)
    with LatentPotential(model, BETA) as potential:  # evaluated in pieces as `gebm-kit sample` does
        row_bytes = activation_bytes(potential, z.device, z.dtype)
        piece = thread_piece(lay_out(CHAINS, CHAINS), z.device, row_bytes)
    times: dict[str, list[float]] = {"kit": [], "plain": []}
    for repetition in range(repetitions + 1):
        began = time.perf_counter()
        for _ in range(calls):
            plain()
        between = time.perf_counter()
        with LatentPotential(model, BETA) as potential:
            sampler = Ula(STEP_SIZE)
            potential.block_size = piece
            state = sampler.init(z, potential, generator)
            started = time.perf_counter()
            for _ in range(calls):
                state, _ = sampler.step(state, potential, generator)
            ended = time.perf_counter()
        if repetition:  # the first round warms up
            times["plain"].append((between - began) / calls)
            times["kit"].append((ended - started) / calls)
    ratios = [p / k for p, k in zip(times["plain"], times["kit"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "chains": CHAINS,
        "plain_steps_per_second": 1 / seconds["plain"],
        "kit_steps_per_second": 1 / seconds["kit"],
        "ratio": middle,
        "quartiles": [low, high],
        "goal": GOAL_SPEED,
        "met": middle >= GOAL_SPEED,
    }


def measure_quality(run: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the gradients for 95 % of the loop's gain, sampler by sampler, the loop first."""
    common: dict[str, Any] = {"num_samples": options.chains, "num_sets": options.sets, "seed": 0}
    loop = gk.trace_quality(
        run,
        sampler=Ula(STEP_SIZE),
        warmup=0,
        at_steps=marks(options.steps),
        inverse_temperature=options.loop_beta,
        **common,
    )
    (curve,) = loop.curves
    goal = {"best": min, "last": lambda values: values[-1]}[options.gain](_plotted(curve)[1])
    rows = [row_of(run.name, "Langevin loop", options.loop_beta, curve, curve, goal)]
    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    registered = {record.component.name for record in installed().registry.of_kind("sampler")}
    for beta in options.beta:
        for name in (name for name in options.samplers if name in registered):
            trace = gk.trace_quality(
                run,
                sampler=name,
                warmup=options.warmup,
                at_steps=marks(options.kit_steps),
                num_chains=WARMUP_CHAINS,
                inverse_temperature=beta,
                **common,
            )
            rows.append(row_of(run.name, name, beta, trace.curves[0], curve, goal))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def marks(last: int) -> list[int]:
    """List the steps to measure at: 1, 2, 3, 4, 6, 8, 12, 16, ..., and ``last``."""
    doubling = [2**k for k in range(last.bit_length())]
    return sorted({s for k in doubling for s in (k, k + k // 2) if s < last} | {last})


def row_of(run: str, name: str, beta: float, curve: Curve, loop: Curve, goal: float) -> dict[str, Any]:
    """Return what a curve needs for 95 % of the way to ``goal``, a value of the loop's, and where its own best value is."""
    evals, values = _plotted(curve)
    loop_evals, loop_values = _plotted(loop)
    own = evals_to_reach(loop_evals, loop_values, final=goal)
    reached = evals_to_reach(evals, values, final=goal)
    return {
        "run": run,
        "sampler": name,
        "beta": beta,
        "base": values[0],
        "best": min(values),
        "best_at": evals[values.index(min(values))],
        "end": values[-1],
        "evals": reached,
        "ratio": reached / own if reached is not None and own else None,
        "warmup_evals": curve.tuning.grad_evals,
        "step_size": curve.tuning.step_size,
        "acceptance": curve.acceptance,
        "curve": list(zip(evals, values, strict=True)),
    }


def _plotted(curve: Curve) -> tuple[list[int], list[float]]:
    return [p.grad_evals for p in curve.points], [p.values["frechet"].value for p in curve.points]


def trained_run(folder: Path) -> Path:
    """Return the dcgan of ``benchmarks.samplers``, and train it there if it is not trained yet."""
    from benchmarks.samplers.networks import trained

    trained("dcgan", folder)
    return folder / "dcgan"


def markdown(speed: dict[str, Any] | None, quality: list[dict[str, Any]]) -> str:
    """Return the tables of docs/benchmarks/langevin.md."""
    lines = []
    if speed is not None:
        low, high = speed["quartiles"]
        rates = f"{speed['plain_steps_per_second']:.2f} | {speed['kit_steps_per_second']:.2f}"
        lines += [
            "| model | chains | loop, steps / s | kit's ula, steps / s | kit over loop (quartiles) | goal |",
            "|---|---|---|---|---|---|",
            f"| SNGAN 3x32x32 | {CHAINS} | {rates} | {speed['ratio']:.2f} ({low:.2f}-{high:.2f}) | >= {GOAL_SPEED} |",
            "",
        ]
    if quality:
        lines += [
            "| run | sampler | beta | Fréchet, base | best, after gradients | at the end "
            "| gradients for 95 % of the loop's gain | over the loop's | warm-up, gradients a chain |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
    for row in quality:
        evals = "not reached" if row["evals"] is None else str(row["evals"])
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        ends = f"{row['base']:.1f} | {row['best']:.1f}, {row['best_at']} | {row['end']:.1f}"
        lines.append(
            f"| {row['run']} | {row['sampler']} | {row['beta']:g} | {ends} | {evals} | {ratio} | {row['warmup_evals']} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15, help="of the timing; 0 leaves it out")
    parser.add_argument("--calls", type=int, default=3, help="steps in each timing")
    parser.add_argument("--steps", type=int, default=4096, help="of the loop in the second part; 0 leaves it out")
    parser.add_argument("--kit-steps", type=int, default=256, help="of the kit's samplers in the second part")
    parser.add_argument("--chains", type=int, default=250, help="of the second part, in each of its groups")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--sets", type=int, default=2, help="groups of chains")
    parser.add_argument("--beta", type=float, nargs="+", default=[BETA], help="of the kit's samplers")
    parser.add_argument(
        "--warmup", type=int, help="steps of the kit's samplers; those of the run's recipe unless given"
    )
    parser.add_argument("--loop-beta", type=float, default=BETA, help="of the loop in the second part")
    parser.add_argument("--gain", choices=["best", "last"], default="best", help="of the loop, that counts")
    parser.add_argument("--run", type=Path, nargs="+", help="trained runs in place of the benchmark's own")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmark-samplers/exports"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speed = measure_speed(options.repetitions, options.calls) if options.repetitions else None
    quality = []
    if options.steps:
        runs = options.run or [trained_run(options.cache.resolve())]  # the name that benchmarks.samplers uses
        quality = [row for run in runs for row in measure_quality(run, options)]
    if options.json:
        print(json.dumps({"schema": 1, "threads": options.threads, "speed": speed, "quality": quality}, indent=2))
    else:
        print(markdown(speed, quality))
    return 0


if __name__ == "__main__":
    sys.exit(main())
