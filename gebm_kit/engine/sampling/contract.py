"""The check of a model and a sampler on a few rows, before anything long is begun with them.

It costs some evaluations of the model on a handful of rows, and five steps of the sampler on a potential of the run's
dimensions whose values cost nothing. Nothing that it does leaves a trace: see `gebm_kit.core.preserved`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import contracts, sampler_contracts
from gebm_kit.core.attribution import attributed, is_foreign
from gebm_kit.core.interfaces import Base, Energy, Info, OnCodes, Sampler, SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.preserved import preserved
from gebm_kit.core.priors import prior_sample
from gebm_kit.engine.sampling.warmup import warm_up

ROWS = 4
"""Rows on which base and energy are checked: more than one, so that rows can depend on each other, and few."""

CHAINS = 8
"""Chains of the sampler's check, unless it needs more."""

STEPS = 5
"""Steps of the sampler's check, and of its warm-up."""

SEED = 20_011
"""Seed of the sampler's check: no author's favourite, so that a generator that is seeded anew shows."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""Largest difference between one row's results in two batches, relative to the largest value, by the model's type.

Convolutions of other sizes round differently. Rows that truly depend on each other differ by far more."""

COARSE = 3e-2
"""The same for half precision, and on a GPU, whose matrix products may keep ten bits."""


def check_model(model: GEBM, device: torch.device, *, gradient: bool = False) -> None:
    """Check base and energy on a few rows in eval mode; the model, on its device, stays as it was.

    The base must return finite rows of its ``data_shape`` and the energy one number for each. A row's result must not depend
    on other rows or on chance, and the input must be left alone.

    Args:
        gradient: also check that gradients reach z and x, as samplers need them that follow the gradient.

    Raises:
        PluginError, UsageError: a check failed; the message names the component, its package, file and line.
    """
    if model.num_classes is not None:  # the model of a class has none
        for label in sorted({0, model.num_classes - 1}):
            check_model(model.given(label), device, gradient=gradient)
        return
    contracts.check_base_facts(model.base)
    dtype = model.dtype
    tolerance = COARSE if device.type != "cpu" else TOLERANCE.get(dtype, COARSE)
    generator = torch.Generator(device).manual_seed(0)
    with preserved(model, device=device):
        model.eval()
        with torch.no_grad():
            z = prior_sample(model.base.prior, ROWS, generator, dtype)
            x = _checked_base(model.base, z, tolerance)
            values = _checked_energy(model.energy, x, tolerance)
            if isinstance(model.energy, OnCodes):
                contracts.check_energy_output(model.energy, model.energy.of_codes(z.clone()), ROWS)
        if gradient:
            _check_gradients(model, z, x, values)


def check_contract(model: GEBM, sampler: Sampler, device: torch.device) -> None:
    """Check a sampler, and the model on its device that it is to draw from: `check_sampler`, then `check_model`.

    A directive has no steps; the sampler that takes its place is checked once it is chosen.

    Raises:
        PluginError, UsageError: a check failed.
    """
    with attributed():
        contracts.check_base_facts(model.base)
        directive = isinstance(sampler, SamplerDirective)
        follows = not directive and check_sampler(sampler, model.latent_dim, device, model.dtype)
        check_model(model, device, gradient=follows)


def _checked_base(base: Base, z: Tensor, tolerance: float) -> Tensor:
    """Return ``G(z)`` once it is checked."""
    given = z.clone()
    x: Any = base(given)
    if not contracts.same(given, z):
        contracts.refuse_changed("base", base, "its codes z")
    contracts.check_base_output(base, x, len(z), tuple(base.data_shape))
    if x.dtype != z.dtype and is_foreign(base):
        raise contracts.broken(
            "base", base, f"returns {x.dtype} for codes of {z.dtype}; it must keep the type of its codes"
        )
    found: Tensor = x.clone()
    contracts.check_repeatable("base", base, found, base(z.clone()), tolerance)
    contracts.check_rows_independent("base", base, found[:2], _one_by_one(base, z[:2]), tolerance)
    return found


def _checked_energy(energy: Energy, x: Tensor, tolerance: float) -> Tensor:
    """Return ``E(x)`` once it is checked; infinite values are allowed, since samplers can avoid them."""
    given = x.clone()
    values: Any = energy(given)
    contracts.check_energy_output(energy, values, len(x))
    found: Tensor = values.clone()
    if not contracts.same(given, x):
        contracts.refuse_changed("energy", energy, "its input x")
    contracts.check_repeatable("energy", energy, found, energy(x.clone()), tolerance)
    contracts.check_rows_independent("energy", energy, found[:2], _one_by_one(energy, x[:2]), tolerance)
    return found


def _one_by_one(part: Base | Energy, rows: Tensor) -> Tensor:
    return torch.cat([part(row.clone()) for row in rows.split(1)])


def _check_gradients(model: GEBM, z: Tensor, x: Tensor, values: Tensor) -> None:
    """Check that the gradient of the energy reaches x, and through the base z."""
    with torch.enable_grad():
        if not isinstance(model.energy, OnCodes):  # it is differentiated with respect to codes
            given = x.clone().requires_grad_()
            contracts.check_gradient("energy", model.energy, model.energy(given), given, "x")
            codes = z.clone().requires_grad_()
            contracts.check_gradient("base", model.base, model.base(codes), codes, "z")
            return
        codes = z.clone().requires_grad_()
        contracts.check_gradient("energy", model.energy, model.energy.of_codes(codes), codes, "z")


# --- the sampler -----------------------------------------------------------------------------------------------------


def check_sampler(sampler: Sampler, latent_dim: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Check five steps of a sampler on a few chains, and of a kernel also its warm-up; a copy of the sampler makes them.

    States must keep their type, shapes and dtypes and stay finite, a step must not change the state that it gets, and the
    same seed must give the same states whatever torch's default generator is.

    Returns:
        Whether the sampler asked for gradients.

    Raises:
        PluginError: a check failed; the message names the sampler, its package, file and line.
    """
    contracts.check_kind("sampler", sampler)
    toy = GEBM(_Identity(latent_dim, dtype), _Bowl()).to(device).eval()
    ends, gradients, tried = [], False, copy.copy(sampler)
    with preserved(toy, device=device), LatentPotential(toy) as potential:
        for default_seed in (1, 2):
            torch.manual_seed(default_seed)
            ends.append(_stepped(tried, potential, device, dtype))
        gradients = potential.grad_evals > 0
        for name, first, second in zip(ends[0]._fields, *ends, strict=True):
            if not contracts.same(first, second):
                raise contracts.broken(
                    "sampler",
                    sampler,
                    f"gives another state.{name} for the same seed; every random number must come from the generator "
                    "handed in, and nothing may be kept in the sampler from one step to the next",
                )
        if sampler.family == "kernel":
            generator = torch.Generator(device).manual_seed(0)
            z = torch.randn(len(ends[0].position), latent_dim, generator=generator, device=device, dtype=dtype)
            twin = copy.copy(sampler)
            tuned = warm_up(twin, twin.init(z, potential, generator), potential, generator, STEPS).sampler
            contracts.check_kind("sampler", tuned)
    return gradients


def _stepped(sampler: Sampler, potential: LatentPotential, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the sampler's state after `STEPS` steps, each of which is checked."""
    chains, latent_dim = max(CHAINS, sampler.min_chains), potential.model.latent_dim
    generator = torch.Generator(device).manual_seed(SEED)
    z = torch.randn(chains, latent_dim, generator=generator, device=device, dtype=dtype)
    start, mode = z.clone(), torch.is_grad_enabled()
    state = sampler.init(z, potential, generator)
    sampler_contracts.check_sampler_state(sampler, state, chains, latent_dim)
    for _ in range(STEPS):
        before = [entry.clone() for entry in state]
        after: Any = sampler.step(state, potential, generator)
        if not isinstance(after, tuple) or len(after) != 2 or not isinstance(after[1], Info):
            what = f"returns {type(after).__name__} from step; it must return the pair of a state and an Info"
            raise contracts.broken("sampler", sampler, what)
        sampler_contracts.check_sampler_state(sampler, after[0], chains, latent_dim)
        sampler_contracts.check_sampler_step(sampler, state, after[0])
        sampler_contracts.check_sampler_info(sampler, after[1], chains)
        for name, old, now in zip(state._fields, before, state, strict=True):
            if not contracts.same(old, now):
                contracts.refuse_changed("sampler", sampler, f"state.{name} in a step")
        state = after[0]
        if torch.is_grad_enabled() != mode:
            torch.set_grad_enabled(mode)
            what = "changes torch's gradient mode in a step; use torch.no_grad() as a context instead"
            raise contracts.broken("sampler", sampler, what)
    if generator.initial_seed() != SEED:
        raise contracts.broken(
            "sampler", sampler, "seeds the generator handed in anew, so its steps repeat their noise"
        )
    if not torch.equal(z, start):
        contracts.refuse_changed("sampler", sampler, "the chains' starting points")
    contracts.check_finite(
        "sampler", sampler, f"state.position after {STEPS} steps on a smooth potential", state.position
    )
    sampler_contracts.check_sampler_results(sampler, state)
    return state


class _Identity(Base):
    """The base ``G(z) = z``."""

    one: Tensor

    def __init__(self, latent_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = latent_dim, (latent_dim,)
        self.register_buffer("one", torch.ones((), dtype=dtype))

    def forward(self, z: Tensor) -> Tensor:
        return self.one * z


class _Bowl(Energy):
    """The energy ``|x - 1|^2 / (2 Z)``: smooth, different at every point, and flat enough for any step size."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x - 1.0).square().mean(1)
