"""The kernel of an exported run: chosen, tuned on the run's model, and read back from the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.config.supplied import SuppliedNode
from gebm_kit.core.errors import CheckpointError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, Progress, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.run_directory.calibrated import beta_for
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.engine.sampling.saved_state import changes, reading_state, with_changes
from gebm_kit.engine.sampling.settings import settings_of
from gebm_kit.engine.sampling.starting_points import start
from gebm_kit.engine.sampling.warmup import warm_up

MOST_STEPS = 200
"""Steps of an exported chain where nobody says how many, at most: the recipe's warm-up and steps, if these are fewer."""

MOST_CHAINS = 100
"""Chains that tune the kernel, at most."""

STAND_IN = "hmc"
"""Kernel that stands in for a sampler that is not one kernel of independent chains, such as `auto` or `smc`."""


@dataclass(frozen=True)
class TunedKernel:
    """A kernel with the settings that warm-up gave it, and what chains of it did.

    Attributes:
        sampler: the kernel, on the CPU.
        node: its name and parameters before warm-up.
        changed: what warm-up changed, as `saved_state.changes` returns it without the tensors.
        tensors: the tensors among the changes.
        inverse_temperature: beta that it was tuned at.
        steps: steps of a chain.
        stands_in_for: the recipe's sampler, if this kernel stands in for it.
        acceptance: mean acceptance of the chains after warm-up.
        energy: mean of E at the ends of chains of ``steps`` steps from the prior, with its standard error.
        settled_energy: the same of chains that went on after warm-up.
    """

    sampler: Sampler
    node: ComponentNode
    changed: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    inverse_temperature: float
    steps: int
    stands_in_for: str | None
    acceptance: float
    energy: tuple[float, float]
    settled_energy: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` says of the kernel."""
        tunable = self.sampler.tunable
        return {
            "name": self.node.name,
            "parameters": dict(self.node.parameters),
            "tuned": dict(self.changed),
            "step_size": None if tunable is None else float(getattr(self.sampler, tunable.name)),
            "inverse_temperature": self.inverse_temperature,
            "steps": self.steps,
            "stands_in_for": self.stands_in_for,
            "exact": self.sampler.exact,
            "acceptance": self.acceptance,
            "energy": {"value": self.energy[0], "se": self.energy[1]},
            "settled_energy": {"value": self.settled_energy[0], "se": self.settled_energy[1]},
        }


def tune_kernel(
    run: Run,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
) -> TunedKernel:
    """Choose the kernel of a run, tune it on the run's model, and run chains of it from the prior.

    Args:
        steps: steps of a chain; None: those of the recipe's chains, at most `MOST_STEPS`.

    Raises:
        UsageError: the energy is finite nowhere; the run has no calibrated inverse temperature, and its recipe wants it.
    """
    model, recipe = run.model, run.recipe
    node, original = _chosen(run, model)
    settings = settings_of(recipe.sample)
    beta = beta_for(run, recipe.sample.inverse_temperature)
    total = steps or min(settings.warmup + settings.total_steps, MOST_STEPS)
    chains = max(min(settings.chains, MOST_CHAINS), original.min_chains)
    with placed(model, device) as (where, dtype):
        generator = torch.Generator(where).manual_seed(stream(seed, "export").initial_seed())
        labels = _labels(model, chains, generator)
        with LatentPotential(model, beta, labels=labels) as potential:
            state = start(potential, original, chains, generator, dtype)
            warm = warm_up(original, state, potential, generator, settings.warmup, on_progress=on_progress)
            fresh = start(potential, warm.sampler, chains, generator, dtype)
            ends, rates = [], []
            for number, begun in enumerate((warm.state, fresh)):
                now = begun
                for step in range(total):
                    now, info = warm.sampler.step(now, potential, generator)
                    if number == 0:
                        rates.append(info.acceptance.double().mean())
                    if (step + 1) % 10 == 0:
                        on_progress(Progress("sample", number * total + step + 1, 2 * total, {}))
                ends.append(potential.energy(now.position).double().cpu())
        tensors, changed = changes(warm.sampler, original)
        kernel = with_changes(original, {n: t.cpu() for n, t in tensors.items()}, _on_cpu(changed), torch.device("cpu"))
    settled, reached = ((float(e.mean()), float(e.std() / len(e) ** 0.5)) for e in ends)
    return TunedKernel(
        kernel,
        node,
        _on_cpu(changed),
        {name: tensor.cpu() for name, tensor in tensors.items()},
        beta,
        total,
        None if node.name == recipe.sampler.name else recipe.sampler.title,
        float(torch.stack(rates).mean()),
        reached,
        settled,
    )


def _chosen(run: Run, model: GEBM) -> tuple[ComponentNode, Sampler]:
    """Return the recipe's sampler if it is a kernel of independent chains, else the stand-in."""
    facts = {"latent_dim": model.latent_dim, "data_shape": tuple(model.data_shape)}
    node = run.recipe.sampler
    if not isinstance(node, SuppliedNode):
        sampler: Sampler = build("sampler", node, facts)
        if sampler.family == "kernel" and not sampler.coupled and model.base.prior.name in sampler.priors:
            return node, sampler
    from gebm_kit.config.given_node import given_node

    node = given_node("sampler", {"name": STAND_IN}, "sampler")
    stand_in: Sampler = build("sampler", node, facts)
    return node, stand_in


def _labels(model: GEBM, chains: int, generator: torch.Generator) -> Tensor | None:
    """Return a class for each chain, by the model's weights of the classes; None for a model without classes."""
    if model.num_classes is None:
        return None
    return torch.multinomial(model.class_weights.float(), chains, replacement=True, generator=generator)


def _on_cpu(changed: Any) -> Any:
    """Return the record of changes with every tensor on the CPU."""
    if isinstance(changed, dict):
        if set(changed) == {"tensor"}:
            return {"tensor": [changed["tensor"][0], "cpu"]}
        return {name: _on_cpu(value) for name, value in changed.items()}
    return [_on_cpu(value) for value in changed] if isinstance(changed, list) else changed


def exported_kernel(run: Run) -> tuple[Sampler, float, int]:
    """Return the tuned kernel of an exported folder, its inverse temperature, and the steps of a chain.

    Raises:
        CheckpointError: ``config.json`` or the sampler's tensors are damaged.
        PluginError, RecipeError: no installed sampler has the kernel's name.
    """
    assert run.exported is not None
    told, model = run.exported.config["sampler"], run.model
    facts = {"latent_dim": model.latent_dim, "data_shape": tuple(model.data_shape)}
    with reading_state():
        name, parameters, changed = str(told["name"]), dict(told["parameters"]), dict(told["tuned"])
        beta, steps = float(told["inverse_temperature"]), int(told["steps"])
    from gebm_kit.config.given_node import given_node

    node = given_node("sampler", {"name": name, **parameters}, "sampler")
    original: Sampler = build("sampler", node, facts)
    with reading_state():
        kernel = with_changes(original, run.exported.sampler_tensors(), changed, torch.device("cpu"))
    if not 1 <= steps <= 10**6 or not 0 <= beta < 1e9:
        raise CheckpointError(f"{run.path} is damaged: a chain of {steps} steps at inverse temperature {beta}")
    return kernel, beta, steps
