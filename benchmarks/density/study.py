"""One run of the study: it trains, chooses the weights by the validation part, and scores the test part once."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.density.sets import node
from benchmarks.density.settings import LOOK_EVERY, ML_STEPS, overrides
from benchmarks.records import Recorded
from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.core.estimators import PARETO_K_LIMIT
from gebm_kit.core.interfaces import Dataset, HasDensity, OnCodes
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
from gebm_kit.engine.likelihood import annealing
from gebm_kit.engine.likelihood.estimate_log_partition import Method
from gebm_kit.engine.likelihood.log_partition import LogPartition, from_tilt
from gebm_kit.engine.likelihood.model_fit import model_fit
from gebm_kit.engine.likelihood.nll import likelihood, log_base_density
from gebm_kit.engine.sampling.settings import settings_of
from gebm_kit.engine.training.trainer import Trainer

VERSION = 2
"""Version of a record; raise it when its meaning changes."""

CPU = torch.device("cpu")

TEST_DRAWS = 200_000
"""Number of base draws behind A for the test part, where importance sampling is used."""

LOOK_DRAWS = 10_000
"""Number of base draws behind A at an evaluation during training; every evaluation uses the same draws."""


@dataclasses.dataclass(frozen=True)
class Job(Recorded):
    """One record of the study."""

    data: str
    flow: str
    method: str
    seed: int
    limit: float
    """Seconds of processor time after which training stops."""
    ml_steps: int = ML_STEPS

    @property
    def settings(self) -> dict[str, Any]:
        words = overrides(self.data, self.flow, self.method, self.seed, self.ml_steps)
        looks = [LOOK_EVERY["pretrain"], LOOK_EVERY[self.method]]
        return {"version": VERSION, "overrides": words, "looks": looks, "limit": self.limit}

    def path(self, folder: Path) -> Path:
        return folder / f"{self.data}--{self.flow}--{self.method}--{self.seed}.json"


def jobs(
    data: list[str], flows: list[str], methods: list[str], seeds: list[int], limit: float, ml_steps: int
) -> Iterator[Job]:
    """List all jobs, a whole table of each seed before the next seed."""
    for seed in seeds:
        for name in data:
            for flow in flows:
                for method in methods:
                    yield Job(name, flow, method, seed, limit, ml_steps)


def run(job: Job, folder: Path) -> dict[str, Any]:
    """Train by the engine's own steps; ``folder`` has the data.

    The weights of the main phase are those with the lowest NLL on the validation part. The engine chooses the flow of the
    first phase in the same way. The test part is scored once, at the end.
    """
    recipe = load_recipe(
        "redwine", [node(job.data, folder), *overrides(job.data, job.flow, job.method, job.seed, job.ml_steps)]
    )
    dataset = build_dataset(recipe)
    torch.manual_seed(recipe.train.seed)
    trainer = Trainer(recipe, dataset, CPU)
    trainer.initialise()
    annealing.MAX_EVALS = 0  # one attempt: more particles would take minutes, and its spread is in the error
    rows = evenly_spaced_rows(dataset.split("valid"), "validation part")
    looks: list[tuple[int, float]] = []
    best: dict[str, Tensor] = {}
    first, every = recipe.train.pretrain_steps, LOOK_EVERY[job.method]
    began, looking = time.process_time(), 0.0
    while trainer.step < recipe.train.total_steps and time.process_time() - began - looking < job.limit:
        trainer.cycle()
        since = trainer.step - first
        if since < 0 or since % every:
            continue
        start = time.process_time()
        with trainer.averaged():
            if since == 0:  # the chosen weights of the first phase, which the next cycle will load
                trainer.model.base.load_state_dict(_best_of_first(trainer))
            value = _nll(trainer.model, rows, with_energy=since > 0)
            if not best or value < min((seen for _, seen in looks), default=math.inf):
                best = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        looks.append((since, value))
        looking += time.process_time() - start
    seconds = time.process_time() - began - looking
    trainer.model.load_state_dict(best)
    trainer.model.eval()
    return {
        **{field.name: getattr(job, field.name) for field in dataclasses.fields(job)},
        "settings": job.settings,
        "dimensions": trainer.model.latent_dim,
        "parameters": sum(p.numel() for p in trainer.model.base.parameters()),
        "steps": trainer.step,
        "cpu_seconds": seconds,
        "first": None if trainer.best_base is None else [trainer.best_base.step, trainer.best_base.loss],
        "looks": looks,
        **_test(trainer.model, dataset, recipe, chosen=min(looks, key=lambda look: look[1])[0], first=first),
    }


def _best_of_first(trainer: Trainer) -> dict[str, Tensor]:
    assert trainer.best_base is not None
    return trainer.best_base.tensors


@torch.no_grad()
def _nll(model: GEBM, rows: Tensor, *, with_energy: bool) -> float:
    """Compute the mean ``-log b(x) + E(x) + A`` in nats, or ``-log b(x)`` while the energy has not learned anything.

    For an energy on codes A comes from annealed populations, which take a second. For others it comes from importance
    sampling. If the weights are too heavy-tailed, the result is infinite: A would be too low and the worst model would win.
    """
    base = model.base
    assert isinstance(base, HasDensity)
    found = -base.log_prob(rows).double()
    if with_energy:
        log_partition = _annealed(model) if isinstance(model.energy, OnCodes) else _weighed(model)
        found += model.energy(rows).double() + log_partition
    return float(found.mean())


def _weighed(model: GEBM) -> float:
    z = model.base.sample_prior(LOOK_DRAWS, torch.Generator().manual_seed(0))
    estimate = from_tilt(torch.cat([model(part).double() for part in z.split(2000)]))
    return estimate.value if estimate.pareto_k < PARETO_K_LIMIT else math.inf


def _annealed(model: GEBM) -> float:
    with LatentPotential(model) as potential:
        return annealing.anneal(potential, torch.Generator().manual_seed(2), torch.float32).value


def _test(model: GEBM, dataset: Dataset, recipe: Any, *, chosen: int, first: int) -> dict[str, Any]:
    """Score the test part, by importance sampling if the tail of the weights allows it, else by ten annealed populations.

    An energy on codes is always annealed, which finds narrow dips that no base draw meets. If the flow alone was best, its
    energy is left out.
    """
    rows = evenly_spaced_rows(dataset.split("test"), "test part")
    start = time.process_time()
    on_codes = isinstance(model.energy, OnCodes)
    weighed = None if on_codes else _importance(model)
    if weighed is not None and weighed.pareto_k < PARETO_K_LIMIT:
        estimate = weighed
        log_base = log_base_density(model, rows, CPU, torch.float32)
        assert log_base is not None
        with torch.no_grad():
            tilt = model.energy(rows).double()
        nll = likelihood(log_base, tilt, estimate, None, "standardised")
    else:
        method: Method = "smc" if on_codes else "auto"
        fit, _ = model_fit(model, None, rows, settings_of(recipe.sample), CPU, method=method)
        assert fit.nll is not None
        nll, estimate = fit.nll, fit.log_partition
    alone = chosen == 0 and first > 0
    return {
        "chosen": chosen,
        "base": nll.base.value,
        "gebm": nll.base.value if alone else nll.gebm.value,
        "se": nll.base.se if alone else nll.gebm.se,
        "difference_se": 0.0 if alone else nll.difference.se,
        "log_partition": estimate.as_dict(),
        "num_test": nll.num_rows,
        "test_seconds": time.process_time() - start,
    }


@torch.no_grad()
def _importance(model: GEBM) -> LogPartition:
    generator = torch.Generator().manual_seed(1)
    z = model.base.sample_prior(TEST_DRAWS, generator)
    return from_tilt(torch.cat([model.energy(model.base(part)).double() for part in z.split(2000)]))
