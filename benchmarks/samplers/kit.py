"""One process of the kit's side.

python -m benchmarks.samplers.kit --target NAME --seed S --samplers hmc ... --exports DIR --out DIR
python -m benchmarks.samplers.kit --target NAME --exports DIR --prepare
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.samplers.records import Outcome, save_failure, save_outcome
from benchmarks.samplers.targets import TARGETS, Target
from gebm_kit.core.interfaces import Potential, Sampler, ValueAndGrad
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.engine.process.devices import keep_freed_memory
from gebm_kit.engine.sampling.blocks import activation_bytes, automatic_block_size, lay_out, thread_piece
from gebm_kit.engine.sampling.warmup import warm_up_blocks
from gebm_kit.samplers.hmc import Hmc

NUM_CHECKED = 64
GRADIENTS = {"ula": 1, "mala": 1, "klmc": 1, "meads": 1, "mclmc": 2}
"""Samplers whose step costs a gradient or two, with that number; they keep a state every ``thin`` gradients."""

LONG_HMC = "hmc-long"
"""Settings of hmc with trajectories of up to half a turn, as the peers' uncapped HMC makes on such targets."""

SAMPLERS = ("hmc", LONG_HMC, "mala", "chees", "meads", "mams", "klmc", "ula", "mclmc")


class FunctionPotential:
    """The potential U of a target, differentiated by autograd."""

    def __init__(self, target: Target) -> None:
        assert target.function is not None
        self._function = target.function

    def value(self, z: Tensor) -> Tensor:
        """Evaluate U, (C, Z) -> (C,)."""
        return self._function(z, torch)

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Evaluate U and its gradient, (C, Z) -> (C,), (C, Z)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self._function(z, torch)
            (grad,) = torch.autograd.grad(value.sum(), z)
        return ValueAndGrad(value.detach(), grad)


def potential_of(target: Target, exports: Path) -> Potential:
    """Return the potential of a target; train a network if it is missing."""
    if target.function is not None:
        return FunctionPotential(target)
    from benchmarks.samplers.networks import trained

    return LatentPotential(trained(target.name, exports))


def prepare(target: Target, exports: Path) -> None:
    """Train and export a network, and save values and gradients in float64 for the other side to compare with."""
    exports.mkdir(parents=True, exist_ok=True)
    potential = potential_of(target, exports)
    if isinstance(potential, LatentPotential):
        from benchmarks.samplers.networks import export

        export(target.name, potential.model, exports)
        potential.close()  # until then normalised weights are float32 constants
        potential = LatentPotential(potential.model.double())
    points = torch.from_numpy(target.start(0)[:NUM_CHECKED]).double()
    value, grad = potential.value_and_grad(points)
    arrays = {"points": points.numpy(), "value": value.numpy(), "grad": grad.numpy()}
    np.savez(exports / f"{target.name}.reference.npz", **arrays)


def sampler_named(name: str, target: Target) -> Sampler | None:
    """Build a registered sampler with its defaults (and the target's L where L is fixed); None if it does not exist."""
    if name == LONG_HMC:
        return Hmc(num_leapfrog=target.leapfrog, max_angle=math.pi)
    registry = installed().registry
    if name not in {record.component.name for record in registry.of_kind("sampler")}:
        return None
    sampler: Sampler = registry.get("sampler", name).load()()
    return sampler.tuned(num_leapfrog=target.leapfrog) if name == "hmc" else sampler


def blocks_of(sampler: Sampler, target: Target, potential: Potential) -> list[slice]:
    """Cut the chains into blocks and set the potential's pieces of an evaluation, as the engine chooses them."""
    if not isinstance(potential, LatentPotential):
        return [slice(0, target.chains)]
    device, dtype = torch.device("cpu"), torch.float32
    row_bytes = activation_bytes(potential, device, dtype)
    size = automatic_block_size(potential, sampler, device, dtype, row_bytes)
    layout = lay_out(target.chains, size, coupled=sampler.coupled)
    potential.block_size = thread_piece(layout, device, row_bytes)
    return [slice(layout.first(k), layout.first(k) + layout.kept(k)) for k in range(layout.num_blocks)]


def run(name: str, sampler: Sampler, target: Target, potential: Potential, seed: int) -> Outcome:
    """Warm up all chains, freeze the sampler, and draw."""
    begun = torch.from_numpy(target.start(seed))
    blocks = blocks_of(sampler, target, potential)
    generators = [torch.Generator().manual_seed(1000 * seed + k) for k in range(len(blocks))]
    began = time.perf_counter()
    states = [sampler.init(begun[rows], potential, g) for rows, g in zip(blocks, generators, strict=True)]
    warm = warm_up_blocks(sampler, states, potential, generators, target.warmup)
    warmup_seconds = time.perf_counter() - began

    thin = max(1, target.thin // GRADIENTS[name]) if name in GRADIENTS else 1
    draws = torch.empty(target.chains, target.draws, target.dim)
    acceptance, divergences, grad_evals = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
    began, began_cpu = time.perf_counter(), time.process_time()
    for rows, state, generator in zip(blocks, warm.states, generators, strict=True):
        for draw in range(target.draws):
            for _ in range(thin):
                state, info = warm.sampler.step(state, potential, generator)
                acceptance += info.acceptance.sum()
                divergences += info.diverged.sum()
                grad_evals += info.grad_evals * (rows.stop - rows.start)
            draws[rows, draw] = state.position
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    names = ("step_size", "trajectory_length", "decoherence_length", "damping")
    return Outcome(
        draws=draws.numpy(),
        grad_evals=float(grad_evals),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        warmup_seconds=warmup_seconds,
        acceptance=float(acceptance) / (target.draws * thin * target.chains),
        divergences=int(divergences),
        tuned={name: float(getattr(warm.sampler, name)) for name in names if hasattr(warm.sampler, name)},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--exports", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of runs")
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    target = TARGETS[options.target].scaled(options.scale)
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(options.threads)
    if options.prepare:
        prepare(target, options.exports)
        return 0
    potential = potential_of(target, options.exports)
    for name in options.samplers:
        sampler = sampler_named(name, target)
        record = f"kit-{name}"
        if sampler is None:
            continue
        try:
            outcome = run(name, sampler, target, potential, options.seed)
        except Exception as error:
            traceback.print_exc()
            save_failure(options.out, record, target, options.seed, f"{type(error).__name__}: {error}")
        else:
            save_outcome(options.out, record, target, options.seed, outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
