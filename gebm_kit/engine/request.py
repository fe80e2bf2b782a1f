"""What is asked for: the sampler by name or object, settings, and whether they fit the model."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import warn
from gebm_kit.engine.draws import SampleSettings
from gebm_kit.engine.job import Job
from gebm_kit.engine.saved_state import model_digest, parameters
from gebm_kit.engine.shards import most_rows, row_bytes
from gebm_kit.engine.warmup import require_positive


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
    from gebm_kit.config.schema import DEFAULT_COMPONENTS, ComponentNode

    if node is None or sampler not in (None, node.name):
        node = ComponentNode(sampler or DEFAULT_COMPONENTS["sampler"])
    _check_model(model)
    facts = {"latent_dim": model.latent_dim, "data_shape": tuple(model.data_shape)}
    built: Sampler = build("sampler", node, facts)
    return built


def check_sampling(model: GEBM, sampler: Sampler, settings: SampleSettings) -> None:
    """Refuse what can't be sampled before anything is computed, and say what should not be."""
    _check_model(model)
    name, prior = component_name("sampler", sampler), model.base.prior.name
    if prior not in sampler.priors:
        raise UsageError(f"sampler {name!r} serves {', '.join(sorted(sampler.priors))} priors, the base's is {prior!r}")
    if sampler.tunable is not None:
        require_positive(sampler, sampler.tunable)
    if settings.num_chains < sampler.min_chains:
        raise UsageError(
            f"sampler {name!r} needs at least {sampler.min_chains} chains, num_chains is {settings.num_chains}",
            hint="Fewer draws than that are fine; num_samples is what says how many are kept.",
        )
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


def requested(job: Job) -> dict[str, Any]:
    """What the draws of a job follow from, as plain data; two jobs with the same give the same draws."""
    settings, model = job.settings, job.potential.model
    return {
        "model": model_digest(model),
        "sampler": {"name": component_name("sampler", job.sampler), **parameters(job.sampler)},
        **asdict(settings),
        "block_size": job.layout.rows,
        "evaluated_at_once": job.layout.piece or job.layout.rows,
        "device": job.device.type,
        "dtype": str(job.dtype).removeprefix("torch."),
        "shard_rows": most_rows(row_bytes(model.data_shape, model.latent_dim, job.dtype)),
        **({} if job.starts is None else {"start": job.starts.digest}),
    }
