"""One model of the study: it chooses the number of steps, trains by the command's own code, draws and scores."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gebm_kit as gk
from benchmarks.fashion_mnist.settings import BASE_SHARE, BETAS, CHAINS, COMMON, MODELS, ON_BASE
from gebm_kit.config.load import load_recipe
from gebm_kit.core.interfaces import Dataset, HasFitting
from gebm_kit.core.progress import Progress
from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps
from gebm_kit.engine.evaluation.score_table import Scorer
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.metrics import frechet as fid

CPU = torch.device("cpu")

TIMED = 100
"""Cycles that measure the speed, after as many others; with 20, one seed got 40 % more steps than another."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings that all models of a study share."""

    path: Path
    minutes: float
    num_draws: int
    num_sets: int


def words(kind: str, seed: int, setting: Setting, folder: Path) -> list[str]:
    """Return the model's overrides of the recipe fashion_mnist, without its length."""
    found = [f"data.path={setting.path}", *COMMON, *MODELS[kind], f"train.seed={seed}"]
    return [*found, f"train.init_from={(folder / f'base-{seed}').resolve()}"] if kind in ON_BASE else found


def length(kind: str, seed: int, setting: Setting, folder: Path) -> int:
    """Return the cycles that fill the model's share of the time, at the present speed of this machine."""
    share = 1.0 - BASE_SHARE if kind in ON_BASE else BASE_SHARE if kind == "base" else 1.0
    recipe = load_recipe("fashion_mnist", [*words(kind, seed, setting, folder), "train.steps=1000000"])
    dataset = open_dataset(recipe)
    torch.manual_seed(seed)
    trainer = Trainer(recipe, dataset, CPU)
    left = 60.0 * share * setting.minutes
    energy = trainer.model.energy
    if isinstance(energy, HasFitting):
        brief = copy.deepcopy(energy)
        brief.steps = 2 * TIMED
        left -= energy.steps / TIMED * _seconds_of_the_second_half(brief.fit, dataset)
    trainer.initialise()
    for _ in range(TIMED):
        trainer.cycle()
    start = time.monotonic()
    for _ in range(TIMED):
        trainer.cycle()
    return max(int(left / (time.monotonic() - start) * TIMED), 1)


def _seconds_of_the_second_half(fit: Callable[..., None], dataset: Dataset) -> float:
    """Time the second half of a fit of 2 `TIMED` steps."""
    at: dict[int, float] = {}
    fit(dataset, CPU, 0, lambda step, total: at.update({step: time.monotonic()}))
    return at[2 * TIMED] - at[TIMED]


class Clock:
    """A clock of the wall-clock seconds from its creation to the last cycle, including fitting."""

    def __init__(self) -> None:
        self.start, self.seconds = time.monotonic(), 0.0

    def __call__(self, report: Progress) -> None:
        if report.stage == "train":
            self.seconds = time.monotonic() - self.start


def trained(kind: str, seed: int, setting: Setting, folder: Path) -> gk.Run:
    """Train, resume or find the run of a model; ``lengths.json`` beside it has its cycles and seconds."""
    if kind in ON_BASE:
        trained("base", seed, setting, folder)
    noted = folder / f"{kind}-{seed}.lengths.json"
    if not noted.exists():
        folder.mkdir(parents=True, exist_ok=True)
        noted.write_text(json.dumps({"steps": length(kind, seed, setting, folder), "seconds": 0.0}))
    known, clock = json.loads(noted.read_text()), Clock()
    steps = f"train.steps={known['steps']}"
    try:
        return gk.train(
            "fashion_mnist",
            [*words(kind, seed, setting, folder), steps],
            out=folder / f"{kind}-{seed}",
            resume=True,
            on_progress=clock,
        )
    finally:
        noted.write_text(json.dumps({**known, "seconds": known["seconds"] + clock.seconds}))


class Fid:
    """FID of draws against a part of the data, on features of the kit's classifier or on ``pixels``."""

    def __init__(self, run: gk.Run, part: str, seed: int, features: str = "auto") -> None:
        dataset = run.dataset
        rows = evenly_spaced_rows(dataset.split(part), part)  # type: ignore[arg-type]
        self.rows, self._metric = rows, fid.Fid(features)
        self._scorer = Scorer(run.model, dataset, rows, FeatureMaps(dataset, CPU), seed)

    def __call__(self, draws: Tensor) -> float:
        return self._metric(self._scorer.context("fid", draws, 0))["fid"]


@torch.no_grad()
def base_draws(run: gk.Run, num: int, seed: int) -> Tensor:
    base = run.model.base.eval()
    z = base.sample_prior(num, torch.Generator().manual_seed(seed))
    return torch.cat([base(part) for part in z.split(500)])


def gebm_draws(run: gk.Run, sampler: str, beta: float, num: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """Draw from the GEBM, and return the draws with their cost."""
    start = time.process_time()
    steps = CHAINS["thin"] * -(-num // CHAINS["num_chains"])
    draws = gk.sample(run, sampler, num_samples=num, inverse_temperature=beta, seed=seed, steps=steps, **CHAINS)
    seen = draws.diagnostics
    return draws.x, {
        "grad_evals_per_draw": seen.grad_evals / num,
        "forward_evals_per_draw": seen.forward_evals / num,
        "acceptance": seen.acceptance,
        "rhat": seen.rhat_max,
        "divergences": seen.divergences,
        "cpu_seconds": time.process_time() - start,
    }


def scores(kind: str, run: gk.Run, samplers: list[str], setting: Setting, seed: int) -> dict[str, Any]:
    """Compute the FID of base and GEBM for each set of draws; beta is chosen on the validation part, with separate draws."""
    test, pixels = Fid(run, "test", seed), Fid(run, "test", seed, "pixels")
    seeds = [1000 * seed + number for number in range(setting.num_sets)]
    sets = [base_draws(run, setting.num_draws, own) for own in seeds]
    found: dict[str, Any] = {
        "base": [test(draws) for draws in sets],
        "base_pixels": [pixels(draws) for draws in sets],
        "data": test(evenly_spaced_rows(run.dataset.split("valid"), "valid")[: setting.num_draws]),
    }
    if kind not in ON_BASE:
        return found
    valid = Fid(run, "valid", seed)
    few = max(setting.num_draws // 4, 100)
    found["valid"] = {"base": valid(base_draws(run, few, 1000 * seed + 500))}
    for sampler in samplers:
        for beta in BETAS:
            draws, cost = gebm_draws(run, sampler, beta, few, 1000 * seed + 500)
            found["valid"][f"{sampler} {beta:g}"] = {"fid": valid(draws), **cost}
    choices = {key: entry["fid"] for key, entry in found["valid"].items() if key != "base"}
    at_one = min((key for key in choices if key.endswith(" 1")), key=lambda key: choices[key])
    best = min(choices, key=lambda key: choices[key])
    found["chosen"], found["chosen_at_one"] = best, at_one
    found["gebm"] = {}
    for key in dict.fromkeys([at_one, best]):
        sampler, beta = key.rsplit(" ", 1)
        drawn = [gebm_draws(run, sampler, float(beta), setting.num_draws, own) for own in seeds]
        found["gebm"][key] = {
            "fid": [test(draws) for draws, _ in drawn],
            "pixels": [pixels(draws) for draws, _ in drawn],
            **drawn[0][1],
        }
    return found
