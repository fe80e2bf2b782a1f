"""Training: a recipe becomes a run directory with a trained model, an evaluation and pictures.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021, Algorithm 1.
    https://arxiv.org/abs/2003.05033
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import build_dataset
from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import Recipe
from gebm_kit.core import estimators
from gebm_kit.core.errors import CheckpointError, GebmKitError, Interrupted, RunFailed, UsageError
from gebm_kit.core.interfaces import Dataset, named_scalars
from gebm_kit.core.model import GEBM
from gebm_kit.engine.checkpoint import newest_whole, save_checkpoint
from gebm_kit.engine.devices import resolve_device
from gebm_kit.engine.distributed import first_rank
from gebm_kit.engine.ema import EMA
from gebm_kit.engine.evaluate import Evaluation, check_metrics, score_recipe
from gebm_kit.engine.files import write_json
from gebm_kit.engine.lock import RunLock
from gebm_kit.engine.log_partition import prior_energies
from gebm_kit.engine.loggers import check_loggers, open_loggers
from gebm_kit.engine.progress import GebmKitWarning, OnProgress, Progress, ignore, warn
from gebm_kit.engine.recovery import exceeded, failure, go_back
from gebm_kit.engine.report import write_pictures, write_report
from gebm_kit.engine.resume import check_place, check_same, drop_rows_after, find_run, is_done, resume_command
from gebm_kit.engine.run import Run, create_run, facts_for_checkpoint, load_run, tidy, write_resolved
from gebm_kit.engine.stop import StopSignals
from gebm_kit.engine.trainer import Trainer
from gebm_kit.engine.watch import Watch

LOG_PARTITION_DRAWS = 20_000
"""Base draws behind the log-partition that a checkpoint stores."""

PROGRESS_EVERY = 10
"""Cycles between two reports of progress."""


def train(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    on_progress: OnProgress = ignore,
) -> Run:
    """Train a recipe and evaluate the result.

    Args:
        recipe: path, short name of a shipped recipe, or a checked Recipe.
        overrides: words ``key=value`` on top of it.
        out: the run directory; one under ``runs/<recipe>/`` when None.
        resume: continue the run in ``out`` (without ``out``: the newest unfinished run of the recipe), or start one.
        device: overrides the recipe's.
        on_progress: called now and then with a `Progress`.

    Returns:
        The finished run.

    Raises:
        UsageError, RecipeError, DataError, PluginError, CheckpointError: nothing was started.
        RunFailed: the loss is no longer finite, or the disk is full; earlier checkpoints are whole.
        Interrupted: Ctrl-C or SIGTERM; the state is saved and the hint says how to go on.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    elif overrides:
        raise UsageError("overrides apply to a recipe's file; this recipe is built already")
    where = resolve_device(device or recipe.device)
    with RunLock(active=first_rank()) as lock:
        return _train(recipe, where, lock, out, resume, device, on_progress)


def _train(
    recipe: Recipe,
    where: torch.device,
    lock: RunLock,
    out: str | Path | None,
    resume: bool,
    device: str | None,
    on_progress: OnProgress,
) -> Run:
    """`train`, with a lock that holds the run directory from here on."""
    run = find_run(recipe, out) if resume else None
    if run is not None:
        lock.hold(run.path)
        tidy(run)
        check_same(run.recipe, recipe)
        if is_done(run, recipe):
            return run
    check_loggers(recipe)
    _warn_of_unseen_base(recipe)
    dataset = build_dataset(recipe)
    check_metrics(recipe, dataset)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), StopSignals() as stop:
        torch.manual_seed(recipe.train.seed)
        trainer = Trainer(recipe, dataset, where)
        checkpoint = None
        if run is not None:
            checkpoint, complaints = newest_whole(run.checkpoints)
            for complaint in complaints:
                back = f"checkpoint {checkpoint.path.name}" if checkpoint else "the start"
                warnings.warn(f"{complaint}; going on from {back}", GebmKitWarning, stacklevel=2)
        if checkpoint is None:
            _start_from(trainer, recipe)
            trainer.initialise()
        else:
            trainer.restore(checkpoint)
        if run is None:
            run = create_run(recipe, out, lock)
        else:
            write_resolved(run.path, recipe)
        job = _Job(run, trainer, dataset, stop, on_progress)
        stop.hint = f"Go on with `{resume_command(recipe, run, device)}`."
        job.execute()
    return load_run(run.path)


class _Job:
    """One execution of a run: the loop, its log, its checkpoints, its evaluation."""

    def __init__(
        self, run: Run, trainer: Trainer, dataset: Dataset, stop: StopSignals, on_progress: OnProgress
    ) -> None:
        self.run, self.trainer, self.dataset, self.stop = run, trainer, dataset, stop
        self.recipe = trainer.recipe
        self.settings = trainer.recipe.train
        self.on_progress = on_progress
        self.seconds = float(run.status.get("seconds", 0.0))
        self._clock = time.monotonic()
        self.skipping, self.skipped = False, 0
        self.watch = Watch(self.settings.start_steps)
        drop_rows_after(run, trainer.step)
        try:
            self.logger = open_loggers(self.recipe, run.path, trainer.step)
        except GebmKitError:
            self._try_status("failed")
            raise

    def execute(self) -> None:
        """Train to the end, then evaluate; the status file says how it ended."""
        try:
            self.loop()
            if self.run.state != "trained":
                self._status("trained")
            self.stop.immediate = True
            if self.stop.received:
                raise self.stop.interrupted(f"stopped after training, before the evaluation, in {self.run.path}")
            self.evaluate()
            self._status("finished")
        except Interrupted:
            if self.run.state == "running":
                self._status("interrupted")
            raise
        except torch.OutOfMemoryError as error:
            self._try_status("failed")
            raise RunFailed(
                f"{self.trainer.device} is out of memory at step {self.trainer.step}",
                hint="Lower train.batch_size, or the width of base and energy; earlier checkpoints are whole.",
            ) from error
        except UsageError as error:  # of a place that could be written when the run began
            self._try_status("failed")
            raise RunFailed(error.message, hint=f"What is saved is whole. {self.stop.hint}") from error
        except Exception:
            self._try_status("failed")
            raise
        finally:
            self.logger.close()

    def loop(self) -> None:
        """Cycles, with a line every ``log_every``, a checkpoint every ``checkpoint_every``."""
        settings, trainer = self.settings, self.trainer
        while trainer.step < settings.total_steps:
            metrics = trainer.cycle()
            last = trainer.step == settings.total_steps
            log = trainer.step % settings.log_every == 0 or last or trainer.step == 1
            if (log or trainer.step % settings.checkpoint_every == 0) and self._went_back():
                trainer = self.trainer
                continue
            if log:
                self._log(metrics)
            elif trainer.step % PROGRESS_EVERY == 0:
                self.on_progress(Progress("train", trainer.step, settings.total_steps))
            # none while updates are being skipped: it would take the place of a good one
            due = trainer.step % settings.checkpoint_every == 0 and not self.skipping
            if due or last or self.stop.received:
                self.save("interrupted" if self.stop.received and not last else "running")
            if self.stop.received and not last:
                raise self.stop.interrupted(
                    f"stopped at step {trainer.step} of {settings.total_steps}; saved in {self.run.path}"
                )
            if settings.eval_every and trainer.step % settings.eval_every == 0 and not last:
                self.look()

    def save(self, state: str) -> None:
        """A checkpoint of everything, with A estimated for the base that sampling uses."""
        trainer = self.trainer
        if trainer.settings.part != "base":
            generator = torch.Generator(trainer.device).manual_seed(trainer.step)
            with trainer.averaged():
                energies = prior_energies(trainer.model, LOG_PARTITION_DRAWS, generator)
            trainer.model.log_partition.copy_(estimators.log_partition(energies))
        facts = facts_for_checkpoint(self.recipe, self.dataset)
        check_place(self.run)
        save_checkpoint(
            self.run.checkpoints,
            trainer.step,
            trainer.tensors(),
            {**trainer.counters(), "facts": facts},
            keep=self.settings.keep_checkpoints,
        )
        self._status(state)

    def evaluate(self) -> None:
        """Score base and GEBM as ``gebm-kit eval`` would, and draw the pictures."""
        run = load_run(self.run.path)
        evaluation = score_recipe(
            run.model, self.dataset, self.recipe, device=self.trainer.device, on_progress=self.on_progress
        )
        pictures = write_report(run, evaluation)
        self._log_evaluation(evaluation, pictures)

    def look(self) -> None:
        """A brief evaluation in the middle of training; training's own random streams are not touched."""
        trainer = self.trainer
        with trainer.averaged():
            evaluation = score_recipe(
                trainer.model,
                self.dataset,
                self.recipe,
                device=trainer.device,
                brief=True,
                on_progress=self.on_progress,
            )
            pictures = write_pictures(
                self.run.figures / f"step-{trainer.step:07d}",
                trainer.model,
                self.dataset,
                evaluation,
                self.run.metrics(),
            )
        self._log_evaluation(evaluation, pictures)

    def _log_evaluation(self, evaluation: Evaluation, pictures: Sequence[Path]) -> None:
        self.logger.log(self.trainer.step, evaluation.scalars())
        for picture in pictures:
            self.logger.log_image(self.trainer.step, picture.stem, picture)

    def _log(self, metrics: Mapping[str, Tensor]) -> None:
        scalars = dict(named_scalars({**self.trainer.vital_signs(), **metrics}))
        if self.skipped:
            scalars["skipped_updates"] = self.skipped
        for text in self.watch.say(self.trainer.step, scalars, self.trainer.feed.batch_size):
            warn(text)
        self.logger.log(self.trainer.step, scalars)
        self.on_progress(Progress("train", self.trainer.step, self.settings.total_steps, scalars))

    def _went_back(self) -> bool:
        """Say how many updates were skipped; after too many in a row go back to the last good state, or fail."""
        trainer, settings = self.trainer, self.settings.on_non_finite
        seen = trainer.guard.read()
        self.skipping = any(part.going_on for part in seen)
        self.skipped = sum(part.total for part in seen)
        for part in seen:
            if part.recent:
                warn(str(part))
        part_of_it = exceeded(seen, settings.limit)
        if part_of_it is None:
            return False
        if trainer.restores >= settings.restores:
            raise failure(trainer, part_of_it)

        def start(made: Trainer) -> None:
            _start_from(made, self.recipe)
            made.initialise()

        torch.manual_seed(self.settings.seed)
        self.trainer = go_back(
            trainer, self.run.checkpoints, lambda: Trainer(self.recipe, self.dataset, trainer.device), start
        )
        warn(
            f"{part_of_it.longest} {part_of_it.part} updates in a row were skipped: training goes back from step "
            f"{trainer.step} to step {self.trainer.step}, with other random numbers ({self.trainer.restores} of at most "
            f"{settings.restores} times)"
        )
        self.logger.go_back(self.trainer.step)
        self.save("running")
        return True

    def _status(self, state: str) -> None:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        status = {"recipe": self.recipe.name, "state": state, "step": self.trainer.step, "seconds": self.seconds}
        write_json(self.run.path / "status.json", status)

    def _try_status(self, state: str) -> None:
        try:
            self._status(state)
        except GebmKitError:
            return  # the disk is full: the first error is the one to report


def plan(recipe: Recipe, *, device: str | None = None, cycles: int = 5) -> dict[str, Any]:
    """What a run would cost, without making one: parameters, memory, measured cycles per second, time in all.

    Raises:
        DataError: as `train`.
    """
    where = resolve_device(device or recipe.device)
    check_loggers(recipe)
    dataset = build_dataset(recipe)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(recipe.train.seed)
        trainer = Trainer(recipe, dataset, where)
        trainer.initialise()
        usual = min(recipe.train.start_steps, recipe.train.steps - 1)  # past the longer cycles of the start
        start = time.monotonic()
        for cycle in range(cycles + 1):
            trainer.step = usual
            metrics = trainer.cycle()
            if cycle == 0:  # the first one allocates
                start = time.monotonic()
        dict(named_scalars(metrics))
        rate = cycles / (time.monotonic() - start)
    counts = {
        "base": sum(p.numel() for p in trainer.model.base.parameters()),
        "energy": sum(p.numel() for p in trainer.model.energy.parameters()),
    }
    return {
        "recipe": recipe.name,
        "parameters": counts,
        "memory_bytes": memory_estimate(trainer),
        "device": str(where),
        "steps": recipe.train.total_steps,
        "steps_per_second": rate,
        "seconds": recipe.train.total_steps / rate,
        "data": {"shape": list(dataset.data_shape), "train": len(dataset.split("train"))},
    }


def memory_estimate(trainer: Trainer) -> int:
    """Bytes of parameters, gradients, optimiser states, moving average and resident data; activations are not counted."""
    states = [
        value
        for optimizer in (trainer.energy_optimizer, trainer.base_optimizer)
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, Tensor)
    ]
    tensors = [*trainer.model.state_dict().values(), *states, *trainer.model.parameters()]
    if trainer.ema is not None:
        tensors += list(trainer.ema.state_dict().values())
    return sum(t.numel() * t.element_size() for t in tensors) + trainer.feed.resident_bytes


def _warn_of_unseen_base(recipe: Recipe) -> None:
    """An energy that never met the base that sampling uses refines it by accident."""
    if recipe.train.part == "both" and recipe.ema.decay > 0 and not recipe.train.final.steps:
        warn(
            "the energy is trained against the running base, but sampling uses the averaged one: set train.final.steps for "
            "a last phase against the averaged base, or ema.decay=0 to sample from the running one."
        )


def _start_from(trainer: Trainer, recipe: Recipe) -> None:
    if recipe.train.init_from is None:
        return
    other = load_run(recipe.directory / recipe.train.init_from)
    model: GEBM = other.model
    for part in ("base", "energy"):
        try:
            getattr(trainer.model, part).load_state_dict(getattr(model, part).state_dict())
        except RuntimeError as error:
            if part == "base":
                raise CheckpointError(
                    f"train.init_from: the base of {other.path} does not fit the recipe's: {error}"
                ) from error
            warnings.warn(f"train.init_from: the energy of {other.path} does not fit; it starts afresh", stacklevel=3)
    if trainer.ema is not None:
        trainer.ema = EMA(trainer.model.base, recipe.ema.decay)
