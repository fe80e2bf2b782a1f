"""The best checkpoint by a named metric of the evaluations during training (``train.keep_best``)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gebm_kit.core.errors import UsageError
from gebm_kit.core.estimators import PARETO_K_LIMIT
from gebm_kit.core.interfaces import HasDensity, Metric
from gebm_kit.core.progress import warn
from gebm_kit.engine.evaluation.score_table import AGAINST_TRAIN

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe
    from gebm_kit.core.interfaces import Metric
    from gebm_kit.core.model import GEBM
    from gebm_kit.engine.evaluation.evaluation import Evaluation
    from gebm_kit.engine.run_directory.checkpoint import Checkpoint


NLL = "nll"
"""Metric name for the GEBM's negative log-likelihood, which is not a component; it needs a base with a density."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far: ``metric`` had the value ``value`` for the GEBM's draws at ``step``."""

    metric: str
    value: float
    step: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class BestCheckpoint:
    """The schedule of evaluations during training, and a record of the best step.

    Args:
        recipe: names the metric; the metric's component says whether lower is better.
        metrics: the recipe's metrics by name, as `check_metrics` built them.

    Attributes:
        best: best evaluation so far; None before the first one, and without ``train.keep_best.metric``.
        looked: step of the last evaluation.

    Raises:
        UsageError: the metric is not one of ``eval.metrics``, or has no direction (neither lower nor higher is better).
    """

    def __init__(self, recipe: Recipe, metrics: Mapping[str, Metric]) -> None:
        self.name = recipe.train.keep_best.metric
        self.best: Best | None = None
        self.looked = 0
        self._every, self._last = recipe.train.eval_every, recipe.train.total_steps
        self._lower = self.name is None or _lower_is_better(self.name, metrics)

    def check(self, model: GEBM) -> None:
        """Raise before training if the metric is ``nll`` but the base has no density.

        Raises:
            UsageError: the metric is ``nll``, and the base has no density.
        """
        if self.name == NLL and not isinstance(model.base, HasDensity):
            raise UsageError(
                f"train.keep_best.metric: nll needs a base with a density, and {type(model.base).__name__} has none",
                hint="Use a normalizing flow as the base, or name one of eval.metrics.",
            )

    @property
    def best_step(self) -> int | None:
        return None if self.best is None else self.best.step

    def due(self, step: int) -> bool:
        """Return whether an evaluation follows cycle ``step``.

        Evaluations follow every ``train.eval_every`` cycles, and the last cycle if the best checkpoint is kept. Otherwise
        the last cycle needs none here, because the finished run is evaluated anyway.
        """
        if step == self._last:
            return self.name is not None
        return bool(self._every) and step > 0 and step % self._every == 0

    def missed(self, step: int) -> bool:
        """Return whether training was stopped after it saved ``step`` but before it evaluated that step."""
        return self.due(step) and self.looked < step

    def saves(self, step: int) -> bool:
        """Return whether the evaluation after ``step`` needs a checkpoint, because that step may become the best."""
        return self.name is not None and self.due(step)

    def look(self, step: int, evaluation: Evaluation) -> None:
        """Record the evaluation at ``step``. A non-finite value is never the best; the earliest of equal values stays."""
        self.looked = step
        if self.name is None:
            return
        found = {name: estimate.value for name, estimate in evaluation.metrics["gebm"].items()}
        if self.name == NLL and evaluation.fit.nll is not None:
            found[NLL] = evaluation.fit.nll.gebm.value
            if evaluation.fit.log_partition.pareto_k >= PARETO_K_LIMIT:
                # the estimate of A is then too low, and more so for a worse model: the worst model would look best
                warn(f"train.keep_best.metric: step {step} is skipped, because its log-partition is unreliable")
                found[NLL] = math.nan
        if self.name not in found:
            warn(f"train.keep_best.metric: there is no value {self.name!r}; available: {', '.join(found)}")
            return
        value = found[self.name]
        better = self.best is None or (value < self.best.value if self._lower else value > self.best.value)
        if better and math.isfinite(value):
            self.best = Best(self.name, value, step)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint's state stores: the last evaluated step and the best evaluation."""
        return {"looked": self.looked, "best": self.best.as_dict() if self.best else None}

    def memory(self, checkpoint: Checkpoint | None) -> str:
        """Return the `record` stored in a checkpoint, as JSON.

        A state without a ``looked`` entry counts as evaluated at its own step.
        """
        state = {} if checkpoint is None else {"looked": checkpoint.step, **checkpoint.state}
        return json.dumps({key: state[key] for key in ("looked", "best") if key in state})

    def restore(self, memory: str) -> None:
        """Resume from `memory`; ignore a best evaluation by another metric."""
        found = json.loads(memory)
        self.looked = found.get("looked", 0)
        best = found.get("best")
        self.best = Best(**best) if best and best["metric"] == self.name else None

    def go_back(self, step: int) -> None:
        """Forget evaluations after ``step``; the checkpoints after it are gone."""
        self.looked = min(self.looked, step)
        if self.best is not None and self.best.step > step:
            self.best = None


def _lower_is_better(name: str, metrics: Mapping[str, Metric]) -> bool:
    if name == NLL:
        return True
    owners = [metric for metric in metrics if name == metric or name.startswith(f"{metric}.")]
    if not owners:
        raise UsageError(
            f"train.keep_best.metric: {name!r} is not one of the recipe's metrics: {', '.join(metrics)}",
            hint="Name one of eval.metrics, or one of its values as METRIC.VALUE; or nll, where the base has a density.",
        )
    if name.endswith(f".{AGAINST_TRAIN}"):
        raise UsageError(
            f"train.keep_best.metric: {name!r} is scored against training data, which evaluations during training leave out",
            hint=f"Name {name.removesuffix(f'.{AGAINST_TRAIN}')!r}, the value against held-out data.",
        )
    lower = metrics[max(owners, key=len)].lower_is_better
    if lower is None:
        raise UsageError(f"train.keep_best.metric: {name!r} has no direction: neither lower nor higher is better")
    return lower
