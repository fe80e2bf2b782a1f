"""The training of one run: the cycles, their log, checkpoints, looks and the evaluation at the end.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021, Algorithm 1.
    https://arxiv.org/abs/2003.05033
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gebm_kit.config.schema import Recipe
from gebm_kit.config.supplied_parts import InitialWeights
from gebm_kit.core.attribution import passes_through_component
from gebm_kit.core.errors import GebmKitError, Interrupted, RunFailed, UsageError
from gebm_kit.core.files import write_json
from gebm_kit.core.interfaces import Dataset, named_scalars
from gebm_kit.core.progress import OnProgress, Progress, ignore, warn
from gebm_kit.engine.datasets.contract import check_dataset
from gebm_kit.engine.datasets.open import open_dataset
from gebm_kit.engine.evaluation.contract import check_values
from gebm_kit.engine.evaluation.evaluation import Evaluation, score_recipe
from gebm_kit.engine.evaluation.evaluation_files import write_pictures, write_report
from gebm_kit.engine.evaluation.feature_maps import FeatureSettings
from gebm_kit.engine.evaluation.logged_tables import logged_tables
from gebm_kit.engine.evaluation.metrics import check_metrics
from gebm_kit.engine.likelihood.class_log_partitions import store_log_partition
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.process.memory import enough_memory
from gebm_kit.engine.process.signals import StopSignals
from gebm_kit.engine.run_directory.checkpoint import amend_checkpoint, newest_whole, save_checkpoint
from gebm_kit.engine.run_directory.create import create_run, keep_sources, tidy, write_resolved
from gebm_kit.engine.run_directory.facts import facts_for_checkpoint
from gebm_kit.engine.run_directory.lock import RunLock
from gebm_kit.engine.run_directory.run import Run, open_run
from gebm_kit.engine.training.best_checkpoint import BestCheckpoint
from gebm_kit.engine.training.checkpoint_state import counters_of, tensors_of
from gebm_kit.engine.training.loggers import Loggers, check_loggers, open_loggers
from gebm_kit.engine.training.phases import affordable_draws, samples_unseen_base
from gebm_kit.engine.training.resume import check_place, check_same, drop_rows_after, find_run, is_done, resume_command
from gebm_kit.engine.training.rollback import exceeded, failure, go_back
from gebm_kit.engine.training.starting_state import begin
from gebm_kit.engine.training.trainer import Trainer
from gebm_kit.engine.training.vital_signs import VitalSignWarnings

LOG_PARTITION_DRAWS = 20_000
"""Most base draws behind the log-partition that a checkpoint stores. Likelihoods don't use it: evaluation makes its own."""

PROGRESS_EVERY = 10
"""Cycles between two reports of progress."""


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """The arguments of `train`, with the recipe read.

    Attributes:
        recipe: the recipe to train.
        out: the run directory; None for one under ``runs/<recipe>/``.
        resume: whether to continue a run, if there is one.
        device: the device that the caller named, for the command that resumes the run; None for the recipe's.
        on_progress: called now and then with a `Progress`.
    """

    recipe: Recipe
    out: str | Path | None
    resume: bool
    device: str | None
    on_progress: OnProgress


def run_training(request: TrainingRequest, where: torch.device, ranks: Ranks, lock: RunLock) -> Run:
    """Train on this rank. The first rank's lock holds the run directory from here on."""
    recipe, on_progress = request.recipe, request.on_progress
    run = _hold_run(request, lock) if request.resume and ranks.rank == 0 else None
    done = run is not None and is_done(run, recipe)
    if found := ranks.from_first(str(run.path) if run is not None and done else ""):
        return Run(Path(found), parts=recipe.parts)
    if run is not None:  # whatever file the recipe is read from now
        recipe = replace(recipe, name=run.status.get("recipe") or recipe.name)
    check_loggers(recipe)
    _warn_of_unseen_base(recipe)
    dataset = open_dataset(recipe)
    check_dataset(dataset)
    metrics = check_metrics(recipe, dataset)
    best = BestCheckpoint(recipe, metrics)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), StopSignals() as stop:
        torch.manual_seed(recipe.train.seed)
        initial_weights = InitialWeights.of(recipe)
        trainer = Trainer(recipe, dataset, where, None if run is None else run.path)
        best.check(trainer.model)
        checkpoint = None
        if run is not None:
            checkpoint, complaints = newest_whole(run.checkpoints)
            for complaint in complaints:
                warn(f"{complaint}; resuming from {checkpoint.path.name if checkpoint else 'the start'}")
        best.restore(ranks.from_first(best.memory(checkpoint)))
        with stop.at_once():  # nothing has been changed on disk yet, so a signal may interrupt at once
            begin(trainer, checkpoint, ranks, dataset, on_progress)
            check_values(metrics, trainer.model, dataset, FeatureSettings.of(recipe), where)
        if run is not None:
            write_resolved(run.path, recipe)
        elif ranks.rank == 0:
            run = create_run(recipe, request.out, lock, resume=request.resume)
        if run is not None:
            final = None if trainer.final is None else trainer.final.energy
            keep_sources(run.path, trainer.model.base, trainer.model.energy, final)
        run = Run(Path(ranks.from_first(str(run.path) if run is not None else "")), parts=recipe.parts)
        job = TrainingRun(run, trainer, dataset, stop, on_progress, ranks, best, initial_weights)
        stop.hint = f"Resume with `{resume_command(recipe, run, request.device)}`."
        job.execute()
    return run


def _hold_run(request: TrainingRequest, lock: RunLock) -> Run | None:
    """Find the run to resume, lock its directory and remove what an interrupted write left; None: start a new one.

    Raises:
        UsageError: another process holds it, or it was trained with another recipe.
        CheckpointError: ``out`` holds something that is not a run.
    """
    run = find_run(request.recipe, request.out)
    if run is None:
        return None
    lock.hold(run.path)
    tidy(run, request.recipe.name)
    if request.out is not None:  # a run that was found by itself was chosen because its recipe is the same
        check_same(run.recipe, request.recipe)
    return run


class TrainingRun:
    """One execution of a run: its cycles, log, checkpoints, looks and final evaluation."""

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        dataset: Dataset,
        stop: StopSignals,
        on_progress: OnProgress,
        ranks: Ranks,
        best: BestCheckpoint,
        initial_weights: InitialWeights,
    ) -> None:
        self.run, self.trainer, self.dataset, self.stop, self.best = run, trainer, dataset, stop, best
        self.ranks, self.writes = ranks, ranks.rank == 0
        self.recipe = trainer.recipe
        self.initial_weights = initial_weights
        self.settings = trainer.recipe.train
        self.on_progress = on_progress if self.writes else ignore
        self._clock = time.monotonic()
        self.skipping, self.skipped = False, 0
        self.training_seconds: float | None = None
        self.vital_sign_warnings = VitalSignWarnings(self.settings.pretrain_steps + self.settings.start_steps)
        if not self.writes:
            self.logger, self.seconds = Loggers(), 0.0
            return
        self.seconds = float(run.status.get("seconds", 0.0))
        if run.state == "trained":
            self.training_seconds = run.training_seconds
        drop_rows_after(run, trainer.step)
        try:
            self.logger = open_loggers(self.recipe, run.path, trainer.step)
        except GebmKitError:
            self._try_status("failed")
            raise

    def execute(self) -> None:
        """Train to the end, then evaluate, and write to the status file how it ended."""
        try:
            with self.ranks.together():
                self._execute()
        except Interrupted:
            if self.writes and self.run.state == "running":
                self._status("interrupted")
            raise
        except BaseException:  # a plugin may raise one that is no Exception
            self._try_status("failed")
            raise
        finally:
            self.logger.close()

    def _execute(self) -> None:
        smaller = "Lower train.batch_size, or the width of base and energy; earlier checkpoints are whole."
        try:
            with enough_memory(self.trainer.device, lambda: f"at step {self.trainer.step}", smaller):
                self.loop()
                if self.writes and self.run.state != "trained":
                    self._status("trained")
                self.stop.immediate = True
                if self.stop.received:
                    raise self.stop.interrupted(f"stopped after training, before the evaluation, in {self.run.path}")
                self.evaluate()
                self._status("finished")
        except UsageError as error:  # the run directory could be written when the run began
            if passes_through_component(error):  # resuming would end there again
                raise
            hint = f"What is saved is whole. {self.stop.hint}"
            if self.run.state == "trained":  # the evaluation would end there again
                hint = (
                    f"The model is trained and saved; `gebm-kit eval {self.run.path}` can score it with other settings."
                )
            raise RunFailed(error.message, hint=hint) from error

    def loop(self) -> None:
        """Run the cycles, log every ``log_every`` of them and save a checkpoint every ``checkpoint_every``."""
        settings, trainer = self.settings, self.trainer
        if self.best.missed(trainer.step):
            with self.stop.at_once():
                self.look()
        while trainer.step < settings.total_steps:
            metrics = trainer.cycle()
            last = trainer.step == settings.total_steps
            log = trainer.step % settings.log_every == 0 or last or trainer.step == 1 or trainer.looks
            if (log or trainer.step % settings.checkpoint_every == 0) and self._handle_skipped_updates():
                trainer = self.trainer
                continue
            if log:
                self._log(metrics)
            elif trainer.step % PROGRESS_EVERY == 0:
                self.on_progress(Progress("train", trainer.step, settings.total_steps))
            # no checkpoint while updates are being skipped: it would replace a good one
            regular = trainer.step % settings.checkpoint_every == 0
            due = (regular or self.best.saves(trainer.step)) and not self.skipping
            stopping = self._agree_to_stop()
            if due or last or stopping:
                self.save("interrupted" if stopping and not last else "running")
            if stopping and not last:
                raise self.stop.interrupted(
                    f"stopped at step {trainer.step} of {settings.total_steps}; saved in {self.run.path}"
                )
            if self.best.due(trainer.step):
                with self.stop.at_once(due):
                    self.look()

    def _agree_to_stop(self) -> bool:
        """Agree among the ranks whether to stop: True once a signal has come to any rank, on all after the same cycle."""
        number = self.ranks.agreed(self.stop.received or 0)
        self.stop.received = number or self.stop.received
        return bool(number)

    def save(self, state: str) -> None:
        """Save a checkpoint of everything, with A estimated for the base that sampling uses."""
        trainer = self.trainer
        if trainer.settings.part != "base":
            generator = torch.Generator(trainer.device).manual_seed(trainer.step)
            with trainer.averaged():
                num = affordable_draws(self.settings, trainer.energy_updates, LOG_PARTITION_DRAWS)
                store_log_partition(trainer.model, num, generator, self.on_progress)
        if not self.writes:
            return
        final = trainer.step > self.settings.main_end
        facts = facts_for_checkpoint(self.recipe, self.dataset, trainer.model.log_ratio, final=final)
        check_place(self.run)
        save_checkpoint(
            self.run.checkpoints,
            trainer.step,
            tensors_of(trainer),
            {**counters_of(trainer), **self.best.record(), "facts": facts, "ranks": self.ranks.size},
            keep=self.settings.keep_checkpoints,
            best=self.best.best_step,
        )
        self._status(state)

    def evaluate(self) -> None:
        """Score base and GEBM as ``gebm-kit eval`` would, and draw the pictures."""
        # Other ranks may be on machines without the run directory. They hold the weights of the last checkpoint.
        several = self.ranks.size > 1
        with self.trainer.averaged() if several else contextlib.nullcontext():
            evaluation = score_recipe(
                self.trainer.model if several else self._saved().model,
                self.dataset,
                self.recipe,
                device=self.trainer.device,
                training_seconds=self.training_seconds,
                checked=True,
                on_progress=self.on_progress,
                ranks=self.ranks,
            )
        if self.writes:
            self._log_evaluation(evaluation, write_report(self._saved(), evaluation))

    def _saved(self) -> Run:
        """Return the run as it is on disk now."""
        return open_run(self.run.path, parts=self.recipe.parts)

    def look(self) -> None:
        """Evaluate briefly in the middle of training, without touching its random streams."""
        trainer = self.trainer
        with trainer.averaged():
            evaluation = score_recipe(
                trainer.model,
                self.dataset,
                self.recipe,
                device=trainer.device,
                brief=True,
                checked=True,
                on_progress=self.on_progress,
                ranks=self.ranks,
            )
            self.best.look(trainer.step, evaluation)
            if not self.writes:
                return
            pictures = write_pictures(
                self.run.figures / f"step-{trainer.step:07d}",
                trainer.model,
                self.dataset,
                evaluation,
                self.run.rows_to_draw(),
            )
        self._log_evaluation(evaluation, pictures)
        amend_checkpoint(self.run.checkpoints, trainer.step, self.best.record())
        self._status(self.run.state)

    def _log_evaluation(self, evaluation: Evaluation, pictures: Sequence[Path]) -> None:
        self.logger.log(self.trainer.step, evaluation.scalars())
        for picture in pictures:
            self.logger.log_image(self.trainer.step, picture.stem, picture)
        for table in logged_tables(evaluation):
            self.logger.log_table(self.trainer.step, *table)

    def _log(self, metrics: Mapping[str, Tensor]) -> None:
        scalars = dict(named_scalars({**self.trainer.vital_signs(), **metrics}))
        if self.skipped:
            scalars["skipped_updates"] = self.skipped
        for text in self.vital_sign_warnings.say(self.trainer.step, scalars, self.trainer.feed.batch_size):
            warn(text)
        self.logger.log(self.trainer.step, scalars)
        self.on_progress(Progress("train", self.trainer.step, self.settings.total_steps, scalars))

    def _handle_skipped_updates(self) -> bool:
        """Warn of skipped updates. After too many in a row, go back to the last good state and return True, or fail."""
        trainer, settings = self.trainer, self.settings.on_non_finite
        seen = trainer.guard.read()
        self.skipping = any(part.still_skipping for part in seen)
        self.skipped = sum(part.total for part in seen)
        for part in seen:
            if part.recent:
                warn(str(part))
        diverged = exceeded(seen, settings.limit)
        if diverged is None:
            return False
        if trainer.restores >= settings.restores:
            raise failure(trainer, diverged)
        torch.manual_seed(self.settings.seed)
        self.trainer = go_back(
            trainer,
            self.run.checkpoints,
            self._fresh,
            lambda made, checkpoint: begin(made, checkpoint, self.ranks, self.dataset, self.on_progress, check=False),
        )
        warn(
            f"{diverged.longest} {diverged.part} updates in a row were skipped: training goes back from step "
            f"{trainer.step} to step {self.trainer.step}, with other random numbers ({self.trainer.restores} of at most "
            f"{settings.restores} times)"
        )
        self.logger.go_back(self.trainer.step)
        self.best.go_back(self.trainer.step)
        self.save("running")
        return True

    def _fresh(self) -> Trainer:
        """Return a trainer with the weights that training started from, before it begins."""
        self.initial_weights.restore()
        return Trainer(self.recipe, self.dataset, self.trainer.device, self.run.path)

    def _status(self, state: str) -> None:
        if not self.writes:
            return
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        if state == "trained":
            self.training_seconds = self.seconds
        status = {"recipe": self.recipe.name, "state": state, "step": self.trainer.step, "seconds": self.seconds}
        status |= {} if self.training_seconds is None else {"training_seconds": self.training_seconds}
        status |= {"best": self.best.best.as_dict()} if self.best.best else {}
        write_json(self.run.path / "status.json", status)

    def _try_status(self, state: str) -> None:
        try:
            self._status(state)
        except GebmKitError:
            return  # the disk is full: the first error is the one to report


def _warn_of_unseen_base(recipe: Recipe) -> None:
    if samples_unseen_base(recipe):
        warn(
            "the energy is trained against the running base, but sampling uses the averaged one: set train.final.steps for "
            "a last phase against the averaged base, or ema.decay=0 to sample from the running one."
        )
