"""One model of the study: count its steps, train it by the command's own code, evaluate it by the command's own code."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import torch

import gebm_kit as gk
from benchmarks.image_sets.settings import BRIEF, GAN, METRICS, ON_PIXELS, RECIPE, SETS
from gebm_kit.config.load import load_recipe
from gebm_kit.core.interfaces import HasFitting
from gebm_kit.core.progress import Progress
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.training.trainer import Trainer

TIMED = 100
"""Cycles that measure the speed of a phase, after half as many others."""


class Clock:
    """The wall-clock and CPU seconds from the creation of this object to the last cycle, and to the last report of all."""

    def __init__(self) -> None:
        self._start = (time.monotonic(), time.process_time())
        self.training = self.whole = (0.0, 0.0)

    def __call__(self, report: Progress) -> None:
        self.whole = (time.monotonic() - self._start[0], time.process_time() - self._start[1])
        if report.stage == "train":
            self.training = self.whole


def words(name: str, model: str, seed: int, folders: dict[str, Path]) -> list[str]:
    """Return the overrides of the recipe for a model, without its length."""
    data = SETS[name].format(**folders)
    metrics = METRICS[ON_PIXELS.get(name, "fid")]
    return [data, metrics, f"train.seed={seed}", f"eval.seed={seed}", *((*GAN, *BRIEF) if model == "gan" else ())]


def trainer_for(name: str, model: str, main_steps: int, folders: dict[str, Path]) -> Trainer:
    """Return a trainer that has ``main_steps`` cycles before the final phase."""
    recipe = load_recipe(RECIPE, [*words(name, model, 0, folders), f"train.steps={main_steps}"])
    torch.manual_seed(0)
    trainer = Trainer(recipe, open_dataset(recipe), torch.device("cpu"))
    trainer.initialise()
    return trainer


def seconds_a_cycle(trainer: Trainer) -> float:
    """Measure the CPU seconds of a cycle."""
    for _ in range(TIMED // 2):
        trainer.cycle()
    start = time.process_time()
    for _ in range(TIMED):
        trainer.cycle()
    return (time.process_time() - start) / TIMED


def fitting_seconds(trainer: Trainer) -> float:
    """Measure what it takes to learn the features of the final phase's energy, from a shorter fit."""
    energy = None if trainer.final is None else trainer.final.energy
    if not isinstance(energy, HasFitting):
        return 0.0
    brief, at = copy.deepcopy(energy), dict[int, float]()
    brief.steps = 2 * TIMED
    brief.fit(
        open_dataset(trainer.recipe), torch.device("cpu"), 0, lambda step, total: at.update({step: time.process_time()})
    )
    return energy.steps * (at[2 * TIMED] - at[TIMED]) / TIMED


def lengths(name: str, minutes: float, folders: dict[str, Path], cache: Path) -> dict[str, int]:
    """Return the cycles that fill the time, counted once for each set and kept in ``cache``.

    The final phase is as long as the recipe says; the main phase has the time that it and its features leave.
    """
    known = cache / f"{name}-lengths.json"
    if not known.exists():
        final = trainer_for(name, "gebm", 1, folders)
        after = fitting_seconds(final) + final.settings.final.steps * seconds_a_cycle(final)
        left = 60.0 * minutes - after
        found = {
            "main": int(left / seconds_a_cycle(trainer_for(name, "gebm", 10**6, folders))),
            "gan": int(60.0 * minutes / seconds_a_cycle(trainer_for(name, "gan", 10**6, folders))),
        }
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(found))
    counted: dict[str, int] = json.loads(known.read_text())
    return counted


def trained(name: str, model: str, seed: int, minutes: float, folders: dict[str, Path], cache: Path) -> dict[str, Any]:
    """Train a model and evaluate it as its recipe says; return its record, which is kept in ``cache``."""
    kept = cache / f"{name}-{model}-{seed}.json"
    if kept.exists():
        record: dict[str, Any] = json.loads(kept.read_text())
        return record
    count = lengths(name, minutes, folders, cache)
    length = f"train.steps={count['gan' if model == 'gan' else 'main']}"
    clock = Clock()
    run = gk.train(
        RECIPE,
        [*words(name, model, seed, folders), length],
        out=cache / f"{name}-{model}-{seed}",
        resume=True,
        on_progress=clock,
    )
    found = run.evaluation
    record = {
        "set": name,
        "model": model,
        "seed": seed,
        "steps": count,
        "training": clock.training,
        "whole": clock.whole,
        "eval": found,
    }
    kept.write_text(json.dumps(record, indent=1))
    return record
