"""The same latent codes before and after refinement: short chains from draws of the prior, for a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.schema import CALIBRATED, Recipe
from gebm_kit.core.errors import GebmKitError, RunFailed
from gebm_kit.core.interfaces import Sampler, SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.plugins import component_name
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.sampling.settings import resolve_sampler
from gebm_kit.engine.sampling.starting_points import start_counted
from gebm_kit.engine.sampling.warmup import warm_up

NUM_CODES, NUM_POINTS = 32, 500
"""Codes of images, and of other data."""

WARMUP, STEPS = 20, 40
"""Steps that tune the sampler, and most steps after them."""

SECONDS = 3.0
"""Seconds after which the chains end with the steps that they have made."""

SLOW, QUICK, FEWEST = 0.1, 0.03, 8
"""Seconds for two codes from which a model is too slow for this picture, as it would hold up every report; seconds for all
codes from which fewer are moved; and the fewest."""

JUMPING = ("imh", "isir", "auto")
"""Samplers whose steps go to fresh draws of the prior, so that before and after have nothing in common."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Points of the same codes before and after.

    Attributes:
        before, after: ``G(z)`` at the prior draw and at the end of its chain, (N, *D).
        energy_before, energy_after: energies, (N,).
        labels: classes, (N,), of a model with classes; else None.
        how: how the codes moved, in a sentence.
    """

    before: Tensor
    after: Tensor
    energy_before: Tensor
    energy_after: Tensor
    labels: Tensor | None
    how: str


def move_codes(model: GEBM, recipe: Recipe, evaluation: dict[str, Any] | None, device: torch.device) -> Moved:
    """Run a chain from each of a few prior draws.

    The sampler is that of the last evaluation if it moves codes by small steps, and HMC otherwise. beta is that of the last
    evaluation.

    Raises:
        RunFailed: the model is too slow for a picture.
        GebmKitError: the model can't be sampled.
    """
    beta = _beta(recipe, evaluation)
    with placed(model, device) as (where, dtype):
        generator = torch.Generator(where).manual_seed(0)
        num = NUM_CODES if len(model.data_shape) == 3 else NUM_POINTS
        num = _affordable(model, num, where, dtype)
        labels = _labels(model, num, where)
        z = torch.randn((num, model.latent_dim), generator=generator, device=where, dtype=dtype)
        with LatentPotential(model, beta, labels=labels) as potential:
            kernels = [_kernel(model, recipe, evaluation), resolve_sampler("pcn", None, model)]
            for kernel in kernels:
                try:
                    state, _ = start_counted(potential, kernel, num, generator, dtype, z)
                    start = state.position
                    end, steps = _run(kernel, potential, state, generator)
                    break
                except Exception:  # an energy without a gradient may raise anything; pcn needs none
                    if kernel is kernels[-1]:
                        raise
            before, after = (potential.data(codes).float().cpu() for codes in (start, end))
            energies = [potential.energy(codes).float().cpu() for codes in (start, end)]
    name = component_name("sampler", kernel)
    how = (
        f"{num:,} codes moved by {steps} steps of {name} at inverse temperature {beta:.4g}, after {WARMUP} of warm-up."
    )
    return Moved(before, after, energies[0], energies[1], None if labels is None else labels.cpu(), how)


def _run(kernel: Sampler, potential: LatentPotential, state: Any, generator: torch.Generator) -> tuple[Tensor, int]:
    """Tune the kernel, then make its steps; return the last positions and the number of steps after warm-up."""
    began = time.monotonic()
    warm = warm_up(kernel, state, potential, generator, WARMUP)
    state, steps = warm.state, 0
    while steps < STEPS and (steps < 5 or time.monotonic() - began < SECONDS):
        state, _ = warm.sampler.step(state, potential, generator)
        steps += 1
    return state.position, steps


def _affordable(model: GEBM, num: int, where: torch.device, dtype: torch.dtype) -> int:
    """Return how many codes to move, by the time that a few take.

    Raises:
        RunFailed: they take too long.
    """
    cost = _seconds(model, 2, where, dtype)
    if cost > SLOW:
        raise RunFailed(
            f"the model takes {cost:.2g} s for two codes on this machine, so the picture was left out",
            hint="A machine with a GPU draws it.",
        )
    while num > FEWEST and _seconds(model, num, where, dtype) > QUICK:
        num = max(num // 2, FEWEST)
    return num


def _seconds(model: GEBM, num: int, where: torch.device, dtype: torch.dtype) -> float:
    """Return how long the energies of some codes take, after a first call."""
    z = torch.zeros((num, model.latent_dim), device=where, dtype=dtype)
    with LatentPotential(model, labels=_labels(model, num, where)) as potential:
        potential.energy(z[:2] if potential.labels is None else z)
        began = time.monotonic()
        potential.energy(z)
        return time.monotonic() - began


def _labels(model: GEBM, num: int, where: torch.device) -> Tensor | None:
    """Return a class for each code, the classes in turn; None for a model without classes."""
    if model.num_classes is None:
        return None
    known = (model.class_weights > 0).nonzero().squeeze(1).to(where)
    return known[torch.arange(num, device=where) % len(known)]


def _beta(recipe: Recipe, evaluation: dict[str, Any] | None) -> float:
    if evaluation is not None and isinstance(evaluation.get("inverse_temperature"), int | float):
        return float(evaluation["inverse_temperature"])
    beta = recipe.sample.inverse_temperature
    return 1.0 if beta == CALIBRATED else float(beta)


def _kernel(model: GEBM, recipe: Recipe, evaluation: dict[str, Any] | None) -> Sampler:
    """Return the sampler of the last evaluation if it moves codes by small steps; else HMC."""
    name = str(((evaluation or {}).get("diagnostics") or {}).get("sampler") or recipe.sampler.name)
    if name not in JUMPING:
        try:
            node = recipe.sampler if name == recipe.sampler.name else None
            found = resolve_sampler(name, node, model)
        except GebmKitError:
            found = None
        serves = found is not None and not isinstance(found, SamplerDirective) and found.family == "kernel"
        if found is not None and serves and found.min_chains <= NUM_CODES and not found.coupled:
            return found
    return resolve_sampler("hmc", None, model)
