"""The settings of a sampling call, its sampler by name or object, and the checks that both fit the model."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gebm_kit.config.given_node import given_node
from gebm_kit.config.schema import CALIBRATED, SampleSection
from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import warn
from gebm_kit.engine.sampling.warmup import require_positive


def settings_of(section: SampleSection) -> SampleSettings:
    """Turn the recipe's ``sample`` section into settings.

    The word ``calibrated`` stands for 1 here: whoever samples at the calibrated beta puts it in its place first.
    """
    values = {field.name: getattr(section, field.name) for field in fields(SampleSettings)}
    if values["inverse_temperature"] == CALIBRATED:
        values["inverse_temperature"] = 1.0
    return SampleSettings(**values)


def resolve_sampler(sampler: Any, node: Any, model: GEBM) -> Sampler:
    """Return the sampler for a name, a node or an object; ``node`` is the recipe's sampler, or None.

    Raises:
        UsageError: ``sampler`` is neither.
        RecipeError, PluginError: no installed sampler has that name.
    """
    if isinstance(sampler, Sampler):
        return sampler
    from gebm_kit.config.build import build
    from gebm_kit.config.schema import DEFAULT_COMPONENTS, ComponentNode

    if sampler is not None and not isinstance(sampler, str | Mapping | ComponentNode):
        what = f"the class {sampler.__name__}" if isinstance(sampler, type) else type(sampler).__name__
        raise UsageError(f"sampler must be a name, a node {{name: ...}} or a Sampler, got {what}")
    if isinstance(sampler, Mapping | ComponentNode):
        node, sampler = given_node("sampler", sampler, "sampler"), None
    if node is None or sampler not in (None, node.name):
        node = ComponentNode(sampler or DEFAULT_COMPONENTS["sampler"])
    _check_model(model)
    facts = {"latent_dim": model.latent_dim, "data_shape": tuple(model.data_shape)}
    built: Sampler = build("sampler", node, facts)
    return built


def check_sampling(model: GEBM, sampler: Sampler, settings: SampleSettings) -> None:
    """Raise when the model can't be sampled so, before anything is computed; warn when it should not be.

    Raises:
        UsageError: as for `check_fits`.
    """
    check_fits(model, sampler, settings)
    if not model.log_ratio:
        warn(
            "this model's loss does not make its energy a log density ratio, so exp(-E) has no meaning as a weight of the "
            "base: the draws follow the energy, but they are no estimate of the data's distribution."
        )


def check_fits(model: GEBM, sampler: Sampler, settings: SampleSettings) -> None:
    """Raise when the sampler can't draw from the model with these settings.

    Raises:
        UsageError: the sampler does not serve the prior or needs more chains; its step size is not a positive number.
    """
    _check_model(model)
    if model.conditional:
        raise UsageError(
            f"the model has {model.num_classes} classes, and this works on a model without classes",
            hint="gk.sample and `gebm-kit sample --class` draw from it; model.given(label) is the model of one class.",
        )
    name, prior = component_name("sampler", sampler), model.base.prior.name
    if prior not in sampler.priors:
        raise UsageError(f"sampler {name!r} serves {', '.join(sorted(sampler.priors))} priors, the base's is {prior!r}")
    if sampler.tunable is not None:
        require_positive(sampler, sampler.tunable)
    if settings.num_chains < sampler.min_chains:
        raise UsageError(
            f"sampler {name!r} needs at least {sampler.min_chains} chains, num_chains is {settings.num_chains}",
            hint="num_samples may be smaller: it says how many draws are kept.",
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


MOST = 10**12
"""Most draws, and most of whatever else is counted: more would take longer than anyone can wait for."""

MOST_CHAINS = 10**8
"""Most chains, each of which has a state in memory."""

_BOUNDS = {
    "num_samples": (1, MOST),
    "num_chains": (1, MOST_CHAINS),
    "warmup": (0, 10**8),
    "steps": (1, 10**9),
    "thin": (1, 10**9),
    "seed": (0, 2**64 - 1),
    "block_size": (1, MOST_CHAINS),
}


@dataclass(frozen=True, slots=True)
class SampleSettings(SampleSection):
    """How to sample: the fields and defaults of a recipe's ``sample`` section, checked.

    Attributes:
        num_samples: draws to keep.
        num_chains: chains to run; never more than ``num_samples``, unless the sampler needs more.
        warmup: steps that tune the sampler before it is frozen; their states are not kept.
        steps: steps of each chain after warm-up, at least; more are run when the draws asked for need them.
        thin: steps from one kept state of a chain to the next.
        inverse_temperature: beta; 1 is the model itself, 0 the base.
        seed: seed of starting points and sampler.
        block_size: most chains in a block, the unit on which the model is evaluated; None: chosen to suit the model and
            the kind of device. Another block size means other random numbers.

    Raises:
        UsageError: a value outside its range. Numbers of numpy count as Python's.
    """

    inverse_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            if (value := getattr(self, name)) is not None or name != "block_size":
                object.__setattr__(self, name, require_whole(name, value, least, most))
        beta = self.inverse_temperature
        is_number = isinstance(beta, int | float | np.integer | np.floating) and not isinstance(beta, bool)
        if not (is_number and math.isfinite(beta) and beta >= 0):
            raise UsageError(f"inverse_temperature (beta) must be a finite number >= 0, got {shown(beta)}")
        object.__setattr__(self, "inverse_temperature", beta if type(beta) in (int, float) else float(beta))

    @property
    def chains(self) -> int:
        """Chains to run, at most one for each draw to keep; a sampler may need more."""
        return min(self.num_chains, self.num_samples)

    @property
    def kept(self) -> int:
        """Number of states that are kept of each chain."""
        return -(-self.num_samples // self.chains)

    @property
    def total_steps(self) -> int:
        """Number of steps of each chain after warm-up."""
        return max(self.steps, (self.kept - 1) * self.thin + 1)


def require_whole(name: str, value: object, least: int, most: int) -> int:
    """Return ``value``, a whole number of Python or numpy, as an int.

    Raises:
        UsageError: it is something else, or outside ``least`` to ``most``.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)
    if not whole or int(value) < least:  # type: ignore[call-overload]
        raise UsageError(f"{name} must be a whole number >= {least}, got {shown(value)}")
    found = int(value)  # type: ignore[call-overload]
    if found > most:
        raise UsageError(f"{name} must be at most {most:,}, got {shown(value)}")
    return found
