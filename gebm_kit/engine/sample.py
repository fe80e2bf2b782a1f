"""Draws from the refined model: chains in latent space, warm-up, then draws with their diagnostics."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.core.seeds import stream
from gebm_kit.engine.chains import decode, placed, run_chains
from gebm_kit.engine.diagnostics import Diagnostics, equipartition, mean_acceptance, summarise, total_divergences
from gebm_kit.engine.draws import Draws, SampleSettings, check_output
from gebm_kit.engine.populations import draw_population
from gebm_kit.engine.progress import OnProgress, ignore, warn
from gebm_kit.engine.warmup import require_positive

if TYPE_CHECKING:
    from gebm_kit.engine.run import Run

__all__ = ["Diagnostics", "Draws", "SampleSettings", "check_output", "draw", "resolve_sampler", "sample", "settings_of"]

DEFAULT_SAMPLER = "hmc"


def sample(
    run_or_model: Run | GEBM | str | Path,
    sampler: str | Sampler | None = None,
    *,
    num_samples: int | None = None,
    num_chains: int | None = None,
    warmup: int | None = None,
    steps: int | None = None,
    thin: int | None = None,
    inverse_temperature: float | None = None,
    seed: int | None = None,
    block_size: int | None = None,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
) -> Draws:
    """Draw from a trained run, or from any GEBM built by hand.

    What is not given comes from the run's recipe, for a hand-built model from `SampleSettings`.

    Args:
        run_or_model: a run, the path of its directory, or a model.
        sampler: component name, or a sampler object; None: the recipe's sampler, else ``hmc``. The recipe's own name keeps
            the recipe's parameters, any other name means that sampler's defaults.
        device: a torch device or ``auto``; None: the recipe's device, for a hand-built model the one that it is on.

    Raises:
        UsageError: a value outside its range, an energy that is finite nowhere, a prior that the sampler does not serve.
        RecipeError, PluginError: no installed component is called ``sampler``.
        CheckpointError: the path is no run, or the run is damaged.
    """
    given: dict[str, Any] = {
        "num_samples": num_samples,
        "num_chains": num_chains,
        "warmup": warmup,
        "steps": steps,
        "thin": thin,
        "inverse_temperature": inverse_temperature,
        "seed": seed,
        "block_size": block_size,
    }
    run = _open(run_or_model)
    if run is None:
        assert isinstance(run_or_model, GEBM)
        model, settings, recipe_sampler = run_or_model, SampleSettings(), None
    else:
        model, settings, recipe_sampler = run.model, settings_of(run.recipe.sample), run.recipe.sampler
        device = run.recipe.device if device is None else device
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    kernel = resolve_sampler(sampler, recipe_sampler, model)
    return draw(model, kernel, settings, device=device, on_progress=on_progress)


def settings_of(section: Any) -> SampleSettings:
    """The recipe's ``sample`` section as settings."""
    return SampleSettings(**{field.name: getattr(section, field.name) for field in fields(SampleSettings)})


def resolve_sampler(sampler: str | Sampler | None, node: Any, model: GEBM) -> Sampler:
    """A sampler from a name or an object; ``node`` is the recipe's own, or None.

    Raises:
        UsageError: it is neither.
        RecipeError, PluginError: no installed sampler is called so.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if sampler is not None and not isinstance(sampler, str):
        raise UsageError(f"sampler must be a name or a Sampler, got {type(sampler).__name__}")
    from gebm_kit.config.build import build
    from gebm_kit.config.schema import ComponentNode

    if node is None or sampler not in (None, node.name):
        node = ComponentNode(sampler or DEFAULT_SAMPLER)
    _check_model(model)
    facts = {"latent_dim": model.latent_dim, "data_shape": tuple(model.data_shape)}
    built: Sampler = build("sampler", node, facts)
    return built


def _open(run_or_model: Run | GEBM | str | Path) -> Run | None:
    if isinstance(run_or_model, GEBM):
        return None
    from gebm_kit.engine.run import Run, load_run

    if isinstance(run_or_model, str | Path):
        return load_run(run_or_model)
    if isinstance(run_or_model, Run):
        return run_or_model
    raise UsageError(f"a run, its path or a GEBM is needed, got {type(run_or_model).__name__}")


def draw(
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    *,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
) -> Draws:
    """Run chains on the latent posterior ``nu(z) ∝ eta(z) exp(-beta E(G(z)))`` and keep their last states.

    Chains start from the prior. Warm-up tunes the sampler on all of them and freezes it; then every chain runs
    ``settings.total_steps`` steps, over which the diagnostics are computed. Populations and refiners go another way, see
    `gebm_kit.engine.populations`. The same seed gives the same draws, whatever the state of torch's default generators, and
    the model is given back as it was: device, training mode, gradients.

    Args:
        device: None: the one that the model is on.

    Raises:
        UsageError: the energy is finite at no starting point or has the wrong shape, the sampler does not serve the base's
            prior or its step size is no positive number.
        RunFailed: the device is out of memory.

    Warns:
        GebmKitWarning: chains that have not mixed, divergences, a model whose energy is no log density ratio.
    """
    began = time.perf_counter()
    _check(model, sampler)
    if sampler.family != "kernel":
        return draw_population(
            model, sampler, component_name(sampler), settings, device=device, on_progress=on_progress
        )
    beta = settings.inverse_temperature
    block = settings.block_size and min(
        settings.block_size, settings.chains
    )  # a block is never padded beyond the chains
    with placed(model, device) as (where, dtype), LatentPotential(model, beta, block_size=block) as potential:
        generator = torch.Generator(where).manual_seed(stream(settings.seed, "sample").initial_seed())
        try:
            run = run_chains(potential, sampler, settings, generator, dtype, on_progress)
            decoded = decode(potential, run.z, settings.chains)
        except torch.cuda.OutOfMemoryError as error:
            text = f"{where} is out of memory with {settings.chains} chains"
            raise RunFailed(text, hint="Set block_size, or run fewer chains.") from error
        found = summarise(run.records, settings.chains)
        balance = equipartition(decoded.equipartition, found.ess_min)
        diagnostics = Diagnostics(
            sampler=component_name(sampler),
            num_samples=settings.num_samples,
            num_chains=settings.chains,
            warmup_steps=settings.warmup,
            steps=settings.total_steps,
            acceptance=mean_acceptance(run.records),
            divergences=total_divergences(run.records),
            rhat_max=found.rhat_max,
            nested_rhat_max=found.nested_rhat_max,
            ess_min=found.ess_min,
            ess_tail_min=found.ess_tail_min,
            ess_per_grad=found.ess_min / run.grad_evals if run.grad_evals else float("nan"),
            mcse_max=found.mcse_max,
            stuck_chains=found.stuck_chains,
            grad_evals=potential.grad_evals,
            forward_evals=potential.forward_evals,
            seconds=time.perf_counter() - began,
            inverse_temperature=float(beta),
            seed=settings.seed,
            step_size=run.step_size,
            warmup_divergences=run.warmup_divergences,
            equipartition=balance.mean,
            equipartition_se=balance.se,
            family=sampler.family,
        )
    diagnostics.warn()
    return Draws(decoded.x, decoded.z, run.chain, diagnostics, run.records)


def component_name(sampler: Sampler) -> str:
    """The name under which the sampler's class is registered, or the name of the class."""
    target = f"{type(sampler).__module__}:{type(sampler).__qualname__}"
    registry = installed().registry
    names = [registry.short_name(r) for r in registry.of_kind("sampler") if r.component.target == target]
    return names[0] if names else type(sampler).__name__


def _check(model: GEBM, sampler: Sampler) -> None:
    """Refuse what can't be sampled before anything is computed, and say what should not be."""
    _check_model(model)
    name, prior = component_name(sampler), model.base.prior.name
    if prior not in sampler.priors:
        raise UsageError(f"sampler {name!r} serves {', '.join(sorted(sampler.priors))} priors, the base's is {prior!r}")
    if sampler.tunable is not None:
        require_positive(sampler, sampler.tunable)
    if not model.log_ratio:
        warn(
            "this model's loss does not make its energy a log density ratio, so exp(-E) re-weights the base by nothing in "
            "particular: the draws follow the energy, but they are no estimate of the data's distribution."
        )


def _check_model(model: GEBM) -> None:
    base = model.base
    if not (
        isinstance(getattr(base, "latent_dim", None), int) and hasattr(base, "data_shape") and hasattr(base, "prior")
    ):
        raise UsageError(
            f"the base {type(base).__name__} must state latent_dim, data_shape and prior",
            hint="Derive it from gebm_kit.core.interfaces.Base, or wrap it in a class that does.",
        )
