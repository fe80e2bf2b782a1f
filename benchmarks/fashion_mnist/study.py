"""One model of the study: steps that fill the time, training by the command's own code, draws, scores."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gebm_kit as gk
from benchmarks.fashion_mnist.settings import BETAS, CHAINS, COMMON, FINAL_SHARE, MODELS
from gebm_kit.config.load import load_recipe
from gebm_kit.engine.evaluate import build_metrics
from gebm_kit.engine.features import FeatureMaps
from gebm_kit.engine.held_out import every_row
from gebm_kit.engine.prepared import open_dataset
from gebm_kit.engine.score_table import Scorer
from gebm_kit.engine.trainer import Trainer

CPU = torch.device("cpu")

TIMED = 20
"""Cycles by which the speed is measured, after as many others."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Of all models of a study."""

    path: Path
    minutes: float
    num_draws: int
    num_sets: int


def words(kind: str, seed: int, setting: Setting) -> list[str]:
    """The model's overrides of the recipe fashion_mnist, without its lengths."""
    return [f"data.path={setting.path}", *COMMON, *MODELS[kind], f"train.seed={seed}"]


def lengths(kind: str, seed: int, setting: Setting) -> dict[str, int]:
    """Cycles of the phases that fill the time, by the speed of this machine at this moment."""
    shares = (
        {"train.steps": 1.0 - FINAL_SHARE, "train.final.steps": FINAL_SHARE} if kind == "gebm" else {"train.steps": 1.0}
    )
    found = {}
    for key, share in shares.items():
        timed = ["train.steps=1000000", "train.final.steps=0"] if key == "train.steps" else ["train.steps=1"]
        timed += ["train.final.steps=1000000"] if key != "train.steps" else []
        recipe = load_recipe("fashion_mnist", [*words(kind, seed, setting), *timed])
        torch.manual_seed(seed)
        trainer = Trainer(recipe, open_dataset(recipe), CPU)
        trainer.initialise()
        for _ in range(TIMED):
            trainer.cycle()
        start = time.monotonic()
        for _ in range(TIMED):
            trainer.cycle()
        seconds = (time.monotonic() - start) / TIMED
        found[key] = max(int(60.0 * setting.minutes * share / seconds), 1)
    return found


def trained(kind: str, seed: int, setting: Setting, folder: Path) -> gk.Run:
    """The run of that model, trained, gone on with, or found."""
    place = folder / f"{kind}-{seed}"
    noted = folder / f"{kind}-{seed}.lengths.json"
    if not noted.exists():
        folder.mkdir(parents=True, exist_ok=True)
        noted.write_text(json.dumps(lengths(kind, seed, setting)))
    more = [f"{key}={value}" for key, value in json.loads(noted.read_text()).items()]
    return gk.train("fashion_mnist", [*words(kind, seed, setting), *more], out=place, resume=True)


class Fid:
    """FID on classifier features of draws against a part of the data."""

    def __init__(self, run: gk.Run, part: str, seed: int) -> None:
        dataset = run.dataset
        rows = every_row(dataset.split(part), part)  # type: ignore[arg-type]
        self.rows, self._metric = rows, build_metrics(["fid"])["fid"]
        self._scorer = Scorer(run.model, dataset, rows, FeatureMaps(dataset, CPU), seed)

    def __call__(self, draws: Tensor) -> float:
        return self._metric(self._scorer.context("fid", draws, 0))["fid"]


@torch.no_grad()
def base_draws(run: gk.Run, num: int, seed: int) -> Tensor:
    base = run.model.base.eval()
    z = base.sample_prior(num, torch.Generator().manual_seed(seed))
    return torch.cat([base(part) for part in z.split(500)])


def gebm_draws(run: gk.Run, sampler: str, beta: float, num: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """Draws, and what they cost."""
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
    """FID of base and GEBM, one value a set of draws; beta is chosen on the validation part by draws of their own."""
    test = Fid(run, "test", seed)
    found: dict[str, Any] = {
        "base": [test(base_draws(run, setting.num_draws, 1000 * seed + number)) for number in range(setting.num_sets)],
        "data": test(every_row(run.dataset.split("valid"), "valid")[: setting.num_draws]),
    }
    if kind != "gebm":
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
        sets = [
            gebm_draws(run, sampler, float(beta), setting.num_draws, 1000 * seed + number)
            for number in range(setting.num_sets)
        ]
        found["gebm"][key] = {"fid": [test(draws) for draws, _ in sets], **sets[0][1]}
    return found
