"""One run of the study: it trains, scores base and GEBM along the way, and scores both at the end."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import kale_known_kl as known
from benchmarks.losses.problems import (
    GAUSSIAN_CHAINS,
    GAUSSIAN_SEEDS,
    GAUSSIANS,
    LOSSES,
    PROBLEMS,
    VARIANTS,
    WITHOUT_RATIO,
    Problem,
)
from benchmarks.records import Recorded
from gebm_kit.config.build import build, build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import ComponentNode, Recipe
from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.interfaces import Loss, named_scalars
from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
from gebm_kit.engine.evaluation.evaluation import Evaluation, score_recipe
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps
from gebm_kit.engine.evaluation.metrics import build_metrics
from gebm_kit.engine.evaluation.score_table import Scorer
from gebm_kit.engine.training.trainer import Trainer

VERSION = 1
"""Version of a record; raise it when its meaning changes, so that older ones in a cache are made again."""

LOOKS, FINAL_LOOKS = 8, 2
"""Numbers of scores along the way: of the base in the main phase, and of the GEBM in the final phase.

Only in the final phase does the energy belong to that base.
"""


@dataclasses.dataclass(frozen=True)
class Job(Recorded):
    """One record of the study."""

    problem: str
    loss: str
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        if self.problem == "gaussians":
            return {"version": VERSION, "loss": _gaussian_node(self.loss), "steps": known.STEPS}
        return {"version": VERSION, "overrides": PROBLEMS[self.problem].overrides(self.loss, self.seed)}

    def path(self, folder: Path) -> Path:
        return folder / f"{self.problem}--{self.loss.replace(', ', '-').replace(' ', '-')}--{self.seed}.json"

    def run(self) -> dict[str, Any]:
        """Do the work; an error becomes part of the record."""
        began = time.process_time()
        try:
            found = gaussians(self) if self.problem == "gaussians" else trained(self)
        except (GebmKitError, RuntimeError, ValueError) as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        return {
            **dataclasses.asdict(self),
            "settings": self.settings,
            "cpu_seconds": time.process_time() - began,
            **found,
        }


def jobs(losses: list[str], problems: list[str]) -> Iterator[Job]:
    """List all jobs: the first seed of every loss and problem, then variants, then the other seeds.

    An interrupted study is then still informative.
    """
    for seed in range(max(p.seeds for p in PROBLEMS.values())):
        for variants in (False, True):
            for problem in problems:
                seeds = GAUSSIAN_SEEDS if problem == "gaussians" else PROBLEMS[problem].seeds
                for loss in losses:
                    wanted = not (problem == "gaussians" and loss in WITHOUT_RATIO) and (loss in VARIANTS) == variants
                    if wanted and seed < (1 if variants else seeds):
                        yield Job(problem, loss, seed)


def trained(job: Job) -> dict[str, Any]:
    """Train a recipe with the engine's own steps, and score base and GEBM along the way and at the end."""
    problem = PROBLEMS[job.problem]
    recipe = load_recipe(problem.recipe, problem.overrides(job.loss, job.seed))
    dataset = build_dataset(recipe)
    torch.manual_seed(recipe.train.seed)
    trainer = Trainer(recipe, dataset, torch.device("cpu"))
    trainer.initialise()
    looks: list[dict[str, float]] = []
    last: dict[str, float] = {}
    while trainer.step < recipe.train.total_steps:
        metrics = trainer.cycle()
        if trainer.step <= problem.steps and trainer.step % (problem.steps // LOOKS) == 0:
            looks.append({"step": trainer.step, "base": _base_metric(trainer, recipe, dataset, problem)})
        elif (trainer.step - problem.steps) % (problem.final_steps // FINAL_LOOKS) == 0 < trainer.step - problem.steps:
            found = _score(trainer, recipe, dataset, brief=True)
            looks.append({"step": trainer.step, **_values(found, problem)})
    last = dict(named_scalars(metrics))
    skipped = sum(seen.total for seen in trainer.guard.look())
    found = _score(trainer, recipe, dataset, brief=False)
    return {
        "looks": looks,
        "final": _values(found, problem),
        "data": found.metrics["data"][problem.metric].value,
        "kale_test": found.fit.scalars().get("kale_test"),
        "weight_ess": last.get("weight_ess"),
        "acceptance": last.get("negatives_acceptance"),
        "skipped": skipped,
        "divergences": found.diagnostics.divergences,
        "rhat": found.diagnostics.rhat_max,
    }


def _base_metric(trainer: Trainer, recipe: Recipe, dataset: Any, problem: Problem) -> float:
    """Compute the problem's metric of draws of the averaged base."""
    device = torch.device("cpu")
    reference = evenly_spaced_rows(dataset.split("test"), "test data")
    with torch.random.fork_rng(devices=[]), trainer.averaged(), torch.no_grad():
        base = trainer.model.base
        draws = base(base.sample_prior(recipe.eval.num_samples, torch.Generator().manual_seed(trainer.step)))
        scorer = Scorer(trainer.model, dataset, reference, FeatureMaps(dataset, device), recipe.eval.seed)
        metric = build_metrics([problem.metric])[problem.metric]
        return metric(scorer.context(problem.metric, draws, 0))[problem.metric]


def _score(trainer: Trainer, recipe: Recipe, dataset: Any, *, brief: bool) -> Evaluation:
    """Score base and GEBM as sampling uses them; ``brief``: two sets by shorter chains. Training's random state stays."""
    if brief:
        sample = dataclasses.replace(recipe.sample, warmup=20, steps=15)
        recipe = dataclasses.replace(
            recipe, sample=sample, eval=dataclasses.replace(recipe.eval, num_sets=2, num_samples=1250)
        )
    with torch.random.fork_rng(devices=[]), trainer.averaged():
        return score_recipe(trainer.model, dataset, recipe, device="cpu")


def _values(found: Evaluation, problem: Problem) -> dict[str, float]:
    columns = {column: found.metrics[column][problem.metric].value for column in ("base", "gebm")}
    if problem.also is not None:
        columns |= {f"{column} also": found.metrics[column][problem.also].value for column in ("base", "gebm")}
    return columns


def gaussians(job: Job) -> dict[str, Any]:
    """Compute KALE on held-out draws over the known divergence, for every pair."""
    node = _gaussian_node(job.loss)
    name = str(node.pop("name"))
    ratios = {}
    for case in GAUSSIANS:
        generator = torch.Generator().manual_seed(job.seed)
        torch.manual_seed(job.seed)
        loss: Loss = build("loss", ComponentNode(name, node), {"data_shape": (case.dim,)})
        value = known.held_out_kale(case, known.train(case, loss, generator), generator)
        ratios[f"{case.differs} {case.dim}d {case.divergence:g}"] = value / case.divergence
    return {"ratios": ratios}


def _gaussian_node(loss: str) -> dict[str, Any]:
    node = dict(LOSSES[loss])
    return node | GAUSSIAN_CHAINS if "step_size" in node else node
