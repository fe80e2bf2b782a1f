"""Checks of what every sampler must do, which plugin authors run on their own: ``check_sampler(MySampler())``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Info, Potential, Sampler, SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.engine.sampling.contract import check_sampler as check_steps
from gebm_kit.engine.sampling.warmup import warm_up
from gebm_kit.testing.conformance import conformance
from gebm_kit.testing.host_sync import forbid_host_sync
from gebm_kit.testing.statistics import ALPHA, confirmed, disagreement, holm, t_p_value
from gebm_kit.testing.targets import IdentityBase, PlainPotential, Target, WalledEnergy, linear_gaussian, two_modes

CHECK_CHAINS = 12
"""Chains of the checks without statistics: enough for the samplers that need at least 8, few enough to be quick."""

CHECKED_LATENT_DIM = 2
"""Latent size of the five steps that the engine checks."""

INVARIANCE_CHAINS = 4000
"""Chains of `invariance`. Errors that it sees shrink with the root of this number, and time grows with it."""

INVARIANCE_STEPS = 20
"""Steps of `invariance`. A wrong kernel's error builds up over some steps and then stays."""

MOVEMENT_CHAINS = 1000
"""Chains of `movement`. A chain that has not arrived is far off, so fewer are needed than for `invariance`."""

MOVEMENT_STEPS = 75
"""Steps before the first look of `movement`."""

MOVEMENT_LOOKS = 6
"""Looks of `movement`, each after twice as many steps: the last comes after 2,400 steps."""

WARMUP_STEPS = 150
"""Warm-up steps before the statistical checks, enough for dual averaging to settle."""

FINISH_STEPS = 5000
"""Steps within which a population or refiner must finish; the default settings of the kit's own need at most 1,000."""

ESTIMATE_ISLANDS = 40
"""Independent runs of `estimates`, each of which counts as one observation of its t-tests."""

ESTIMATE_CHAINS = 400
"""Chains of each run of `estimates`. The O(1 / chains) bias of a correct method must stay below the noise of the runs."""


@conformance("sampler")
def check_sampler(sampler: Sampler, targets: tuple[Target, ...] | None = None) -> None:
    """Run every check of `SAMPLER_CHECKS` and, for exact kernels and populations, the statistical checks on ``targets``.

    The signature is checked first, then five steps as the engine checks them before it draws. An exact kernel must leave
    ``exp(-U(z))`` unchanged and reach it from one point; a population's estimates must be right on average.

    Args:
        targets: targets of the statistical checks; None: the linear-Gaussian and the two-mode target.

    Raises:
        AssertionError: a check failed, or the signature is not valid; the message names sampler, package, file and line.

    Example:
        >>> from gebm_kit.samplers.mala import Mala
        >>> check_sampler(Mala(), targets=())
    """
    if isinstance(sampler, SamplerDirective):
        return  # it has no steps: the engine puts another sampler in its place
    check_steps(sampler, CHECKED_LATENT_DIM, torch.device("cpu"), torch.float64)
    for check in SAMPLER_CHECKS.values():
        check(sampler)
    if sampler.family == "kernel" and sampler.exact:
        for target in (linear_gaussian(), two_modes()) if targets is None else targets:
            failures = confirmed(functools.partial(invariance, sampler, target))
            assert not failures, f"{target.name}: draws from an exact start are no longer exact: {failures}"
            failures = confirmed(functools.partial(movement, sampler, target))
            assert not failures, f"{target.name}: chains from one point do not reach the target: {failures}"
    if sampler.family == "population":
        for target in (linear_gaussian(), two_modes()) if targets is None else targets:
            failures = confirmed(functools.partial(estimates, sampler, target))
            assert not failures, f"{target.name}: the estimates of many populations are wrong: {failures}"


def check_state(sampler: Sampler) -> None:
    """Check that states are NamedTuples of tensors, Infos have one entry for each chain, and types are the chains' own."""
    for dtype in (torch.float32, torch.float64):
        potential, z, generator = _setting(dtype)
        with potential:
            before = sampler.init(z, potential, generator)
            state, info = sampler.step(before, potential, generator)
        for name in ("position", "value"):
            assert name in getattr(state, "_fields", ()), f"the state must be a NamedTuple with a field {name!r}"
        assert type(state) is type(before), "init and step must return the same type of state"
        for name, old, new in zip(state._fields, before, state, strict=True):
            assert isinstance(new, Tensor), f"state.{name} must be a tensor, but it is {type(new).__name__}"
            assert old.shape == new.shape, f"state.{name} changes shape from {tuple(old.shape)} to {tuple(new.shape)}"
            assert old.dtype == new.dtype, f"state.{name} changes type from {old.dtype} to {new.dtype}"
            assert not new.requires_grad, f"state.{name} carries an autograd graph"
        assert state.position.shape == z.shape, "state.position must be (C, Z)"
        assert state.position.dtype == dtype, f"{dtype} chains must stay {dtype}"
        assert state.value.shape == z.shape[:1], "state.value must be (C,)"
        _check_info(info, len(z))


def _check_info(info: Info, num_chains: int) -> None:
    for name in ("acceptance", "accepted", "diverged"):
        entry = getattr(info, name)
        assert entry.shape == (num_chains,), f"info.{name} must be (C,), but it is {tuple(entry.shape)}"
    assert info.acceptance.is_floating_point(), "info.acceptance must be floating point"
    assert info.accepted.dtype == info.diverged.dtype == torch.bool, "info.accepted and info.diverged must be bool"
    assert bool(((info.acceptance >= 0) & (info.acceptance <= 1)).all()), "info.acceptance must lie in [0, 1]"
    assert not bool((info.accepted & info.diverged).any()), "a divergence must be rejected"
    for name in ("grad_evals", "forward_evals"):
        assert type(getattr(info, name)) is int, f"info.{name} must be a Python int"


def check_pure(sampler: Sampler) -> None:
    """Check that ``step`` changes neither the state that it gets nor the sampler."""
    potential, z, generator = _setting()
    with potential:
        state = sampler.init(z, potential, generator)
        kept, attributes = [t.clone() for t in state], dict(vars(sampler))
        start = z.clone()
        sampler.step(state, potential, generator)
    assert torch.equal(z, start), "the starting points were changed in place"
    for name, old, new in zip(state._fields, kept, state, strict=True):
        assert torch.equal(old, new), f"step changed state.{name} in place"
    changed = [name for name, value in vars(sampler).items() if value is not attributes.get(name)]
    assert not changed, f"step changed the sampler's own {', '.join(changed)}"


def check_deterministic(sampler: Sampler) -> None:
    """Check that the same seed gives the same states, and that torch's default generator is not used."""
    runs = []
    for default_seed in (1, 2):
        potential, z, generator = _setting()
        with torch.random.fork_rng(devices=[]), potential:
            torch.manual_seed(default_seed)
            untouched = torch.random.get_rng_state()
            state = sampler.init(z, potential, generator)
            for _ in range(3):
                state, _ = sampler.step(state, potential, generator)
            same = torch.equal(untouched, torch.random.get_rng_state())
        assert same, "random numbers were drawn from torch's default generator instead of the one handed in"
        runs.append(state)
    for name, first, second in zip(runs[0]._fields, *runs, strict=True):
        assert torch.equal(first, second), f"the same seed gave two different values of state.{name}"


def check_no_host_sync(sampler: Sampler) -> None:
    """Check that ``step`` never waits for the device (see `forbid_host_sync`)."""
    potential, z, generator = _setting()
    with potential:
        state = sampler.init(z, potential, generator)
        with forbid_host_sync():
            for _ in range(2):
                state, _ = sampler.step(state, potential, generator)


def check_counts(sampler: Sampler) -> None:
    """Check that Info reports as many evaluations as the potential counted."""
    potential, z, generator = _setting()
    with potential:
        state = sampler.init(z, potential, generator)
        grads, forwards = potential.grad_evals, potential.forward_evals
        _, info = sampler.step(state, potential, generator)
        spent = (potential.grad_evals - grads, potential.forward_evals - forwards)
    reported = (info.grad_evals * len(z), info.forward_evals * len(z))
    assert spent == reported, f"{len(z)} chains spent (gradients, values) {spent}, but Info reports {reported}"


def check_divergence(sampler: Sampler) -> None:
    """Check that chains near a region without a finite energy never enter it and stay finite, and that attempts count.

    A refiner may have no noise and only go downhill. Its chains start where downhill leads into the region.
    """
    for bad_value in (math.nan, math.inf, -math.inf):
        generator = torch.Generator().manual_seed(0)
        z = torch.full((64, 2), 0.9, dtype=torch.float64)
        energy = WalledEnergy(bad_value, curvature=-1.0 if sampler.family == "refiner" else 1.0)
        if sampler.family == "refiner":
            z[:, 1] = 10.0
        potential = LatentPotential(GEBM(IdentityBase(2), energy))
        state, diverged = sampler.init(z, potential, generator), 0
        for _ in range(30):
            state, info = sampler.step(state, potential, generator)
            diverged += int(info.diverged.sum())
            for name, field in zip(state._fields, state, strict=True):
                of_nothing = (
                    field == -math.inf if name.startswith("log_") else torch.zeros_like(field, dtype=torch.bool)
                )
                assert not field.is_floating_point() or bool((torch.isfinite(field) | of_nothing).all()), (
                    f"state.{name} is not finite after a step beside a region where the energy is {bad_value}"
                )
            assert bool((state.position[:, 0] <= 1).all()), f"a chain entered a region where the energy is {bad_value}"
        assert diverged > 0, f"proposals into a region where the energy is {bad_value} were not counted as divergences"


def check_finish(sampler: Sampler) -> None:
    """Check that populations and refiners finish, stay finished and report scalars, and that kernels never finish."""
    potential, z, generator = _setting()
    with potential:
        state = sampler.init(z, potential, generator)
        if sampler.family == "kernel":
            assert sampler.finished(state) is None, "a kernel never finishes: finished() must return None"
            return
        steps = 0
        while not _flag(sampler.finished(state)):
            assert steps < FINISH_STEPS, f"not finished after {FINISH_STEPS} steps"
            state, _ = sampler.step(state, potential, generator)
            steps += 1
        for name, entry in sampler.summary(state).items():
            assert entry.shape == (), f"{name!r} of the summary must be (), but it is {tuple(entry.shape)}"
        estimate, log_weights = sampler.log_partition(state), sampler.log_weights(state)
        assert estimate is None or estimate.shape == (), "log_partition must be ()"
        assert log_weights is None or log_weights.dim() == 1, "log_weights must be (N,)"
        state, _ = sampler.step(state, potential, generator)
        assert _flag(sampler.finished(state)), "another step makes it unfinished again"


def _flag(finished: Tensor | None) -> bool:
    assert finished is not None, "a population or refiner must say when it is finished"
    assert finished.dtype == torch.bool, "finished() must return a bool tensor"
    assert finished.shape == (), "finished() must be ()"
    return bool(finished)


def check_coupling(sampler: Sampler) -> None:
    """Check that one chain's start has no effect on the others, unless the sampler declares ``coupled``."""
    if sampler.coupled:
        return
    runs = []
    for shift in (0.0, 5.0):
        potential, z, generator = _setting()
        z[0] += shift
        with potential:
            state = sampler.init(z, potential, generator)
            for _ in range(3):
                state, _ = sampler.step(state, potential, generator)
        runs.append(state.position[1:])
    assert torch.allclose(runs[0], runs[1], rtol=1e-10, atol=1e-12), (
        "moving one chain moved others, but `coupled` is False"
    )


def check_tuning(sampler: Sampler) -> None:
    """Check that the tunable parameter exists and is within its bounds after warm-up, and that `tuned` makes a copy."""
    tunable = sampler.tunable
    if tunable is None:
        return
    before = getattr(sampler, tunable.name)
    twin = sampler.tuned(**{tunable.name: before / 2})
    assert getattr(twin, tunable.name) == before / 2, f"tuned() must set {tunable.name}"
    assert getattr(sampler, tunable.name) == before, "tuned() must not change the original"
    target = two_modes()
    generator = torch.Generator().manual_seed(0)
    with target.potential() as potential:
        state = sampler.init(target.exact(200, generator), potential, generator)
        tuned = warm_up(sampler, state, potential, generator, 60).sampler
    value = getattr(tuned, tunable.name)
    assert tunable.low * (1 - 1e-9) <= value <= tunable.high * (1 + 1e-9), (
        f"warm-up left {tunable.name} at {value}, outside [{tunable.low}, {tunable.high}]"
    )


SAMPLER_CHECKS: dict[str, Callable[[Sampler], None]] = {
    "state": check_state,
    "pure": check_pure,
    "deterministic": check_deterministic,
    "no_host_sync": check_no_host_sync,
    "counts": check_counts,
    "divergence": check_divergence,
    "finish": check_finish,
    "coupling": check_coupling,
    "tuning": check_tuning,
}
"""The checks of every sampler, by name, in the order of `check_sampler`."""
"""Checks without statistics, by name. Each takes a sampler and raises AssertionError if the check fails."""


def invariance(
    sampler: Sampler,
    target: Target,
    seed: int = 0,
    *,
    num_chains: int = INVARIANCE_CHAINS,
    steps: int = INVARIANCE_STEPS,
    tune: bool = True,
    plain: bool = False,
    dtype: torch.dtype = torch.float64,
) -> dict[str, float]:
    """Run chains that start from exact draws, test whether they are still exact draws, and return the failed tests.

    Args:
        sampler: the kernel.
        target: the target.
        seed: seed of the draws.
        num_chains: number of chains.
        steps: steps of each chain.
        tune: whether to warm up on other chains first, so that the acceptance is that of real use.
        plain: whether to hide the split into prior and tilt from the sampler.
        dtype: type of the chains.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    with target.potential(dtype) as split:
        potential = PlainPotential(split) if plain else split
        if tune:
            sampler = _tuned(sampler, target, potential, generator, dtype)
        state = sampler.init(target.exact(num_chains, generator).to(dtype), potential, generator)
        for _ in range(steps):
            state, _ = sampler.step(state, potential, generator)
    return disagreement(state.position, target)


def movement(
    sampler: Sampler,
    target: Target,
    seed: int = 0,
    *,
    num_chains: int = MOVEMENT_CHAINS,
    steps: int = MOVEMENT_STEPS,
    looks: int = MOVEMENT_LOOKS,
    tune: bool = True,
    plain: bool = False,
    dtype: torch.dtype = torch.float64,
) -> dict[str, float]:
    """Run chains that all start at one point, test whether they become draws of the target, and return the failed tests.

    The chains are tested after ``steps`` steps and, while tests fail, again after twice as many steps, ``looks`` times in
    all. A kernel with small or rare moves thus gets the time that it needs, and a fast kernel finishes early. The other
    arguments are those of `invariance`.
    """
    generator = torch.Generator().manual_seed(2000 + seed)
    with target.potential(dtype) as split:
        potential = PlainPotential(split) if plain else split
        if tune:
            sampler = _tuned(sampler, target, potential, generator, dtype)
        z = target.point.expand(num_chains, -1).to(dtype, copy=True)
        state, done, failed = sampler.init(z, potential, generator), 0, {}
        for look in range(looks):
            while done < steps * 2**look:
                state, _ = sampler.step(state, potential, generator)
                done += 1
            failed = disagreement(state.position, target)
            if not failed:
                break
    return failed


def estimates(
    sampler: Sampler,
    target: Target,
    seed: int = 0,
    *,
    num_islands: int = ESTIMATE_ISLANDS,
    num_chains: int = ESTIMATE_CHAINS,
    alpha: float = ALPHA,
    dtype: torch.dtype = torch.float64,
) -> dict[str, float]:
    """Run a population method many times, test whether its estimates are right on average, and return the failed tests.

    The positions of one run depend on each other, so each run counts as one observation. The t-tests over the runs are
    of the mean and the mean square of every projection's probability transform, and of ``exp(A_hat - A)`` where both are
    known. They do not detect a bias of 1 / num_chains standard deviations, but do detect one that does not shrink as the
    population grows.
    """
    rows, shares = [], []
    with target.potential(dtype) as potential:
        for index in range(num_islands):
            generator = torch.Generator().manual_seed((3000 + seed) * num_islands + index)
            z = torch.randn(num_chains, target.point.shape[0], generator=generator, dtype=dtype)
            state = sampler.init(z, potential, generator)
            while not _flag(sampler.finished(state)):
                state, _ = sampler.step(state, potential, generator)
            uniform = [torch.as_tensor(p.cdf(p.function(state.position).numpy())) - 0.5 for p in target.projections]
            rows.append(torch.stack([torch.stack([u.mean(), u.square().mean()]) for u in uniform]))
            estimate = sampler.log_partition(state)
            if estimate is not None and math.isfinite(target.log_partition):
                shares.append(math.exp(float(estimate) - target.log_partition))
    p_values = {"partition": t_p_value(torch.tensor(shares, dtype=torch.float64), 1.0)} if shares else {}
    for projection, values in zip(target.projections, torch.stack(rows, dim=1), strict=True):
        p_values[f"{projection.name}: mean"] = t_p_value(values[:, 0], 0.0)
        p_values[f"{projection.name}: mean square"] = t_p_value(values[:, 1], 1 / 12)
    return holm(p_values, alpha)


def _tuned(
    sampler: Sampler, target: Target, potential: Potential, generator: torch.Generator, dtype: torch.dtype
) -> Sampler:
    state = sampler.init(target.exact(200, generator).to(dtype), potential, generator)
    return warm_up(sampler, state, potential, generator, WARMUP_STEPS).sampler


def _setting(dtype: torch.dtype = torch.float64) -> tuple[LatentPotential, Tensor, torch.Generator]:
    target, generator = linear_gaussian(), torch.Generator().manual_seed(0)
    return target.potential(dtype), target.exact(CHECK_CHAINS, generator).to(dtype), generator
