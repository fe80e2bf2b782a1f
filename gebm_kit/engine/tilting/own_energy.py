"""A trained energy that keeps its weight while a scorer's beta changes: the run's own model takes the generator's place.

The law is ``q(z) ∝ prior(z) exp(-E(G(z)) + beta r(G(z)))``. At beta 0 it is the run's model, whose draws are made and scored
in place of base draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gebm_kit.core.arguments import check_flag
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Energy, OnCodes
from gebm_kit.core.model import GEBM
from gebm_kit.core.priors import Prior
from gebm_kit.core.progress import warn
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.sampling.draw import draw
from gebm_kit.engine.sampling.settings import SampleSettings, resolve_sampler
from gebm_kit.engine.tilting.subjects import Subject


def own_energy(subject: Subject, keep: bool) -> Energy | None:
    """Return the generator's own energy if it acts, else None.

    Raises:
        UsageError: it is to act, and the generator has none; or it is an energy on codes.
    """
    check_flag("keep_energy", keep)
    if not keep:
        return None
    if subject.own is None:
        raise UsageError("keep_energy needs a generator with an energy of its own: a run or a model")
    if isinstance(subject.own, OnCodes):
        raise UsageError(f"keep_energy can't be used with {type(subject.own).__name__}, an energy on codes")
    return subject.own


def own_codes(model: GEBM, settings: SampleSettings, ranks: Ranks) -> Tensor:
    """Draw codes of the run's own model, (N, Z) in normal coordinates, on the model's device; warn about bad chains."""
    draws = draw(model, resolve_sampler(None, None, model), settings, ranks=ranks, warns=False)
    for problem in draws.diagnostics.problems:
        warn(f"draws of the run's own model, without the scorer: {problem}")
    order = torch.randperm(
        len(draws.z), generator=torch.Generator().manual_seed(settings.seed)
    )  # chains among each other
    return _to_normal(model.base.prior, draws.z[order].to(model.device, model.dtype))


def _to_normal(prior: Prior, z: Tensor) -> Tensor:
    """Return normal coordinates of codes in the base's own, (N, Z).

    Raises:
        UsageError: the prior has no known inverse.
    """
    if prior.name in (
        "normal",
        "sphere",
    ):  # on the sphere a code is its own normal coordinate: its length has no effect
        return z
    if prior.name == "uniform":
        edge = 1 - torch.finfo(z.dtype).eps
        return math.sqrt(2.0) * torch.erfinv(z.clamp(-edge, edge))
    raise UsageError(f"keep_energy serves the priors normal, uniform and sphere, and this base has {prior.name!r}")
