"""What the first of several ranks computes in an evaluation, and how the others get it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from gebm_kit.core.intervals import Estimate
from gebm_kit.engine.likelihood.log_partition import LogPartition
from gebm_kit.engine.likelihood.model_fit import ModelFit
from gebm_kit.engine.likelihood.nll import Likelihood
from gebm_kit.engine.process.distributed import Ranks


@dataclass(frozen=True)
class Scores:
    """The fields of `gebm_kit.engine.evaluate.Evaluation` by these names."""

    metrics: dict[str, dict[str, Estimate]]
    protocol: dict[str, dict[str, Any]]
    fit: ModelFit

    @classmethod
    def from_first(cls, scores: Scores | None, ranks: Ranks) -> Scores:
        """The first rank's scores, on every rank."""
        text = ranks.from_first("" if scores is None or ranks.size == 1 else json.dumps(asdict(scores)))
        if scores is not None:
            return scores
        found = json.loads(text)
        metrics = {
            column: {name: Estimate(**estimate) for name, estimate in values.items()}
            for column, values in found["metrics"].items()
        }
        fit = found["fit"]
        fit["log_partition"] = LogPartition(**fit["log_partition"])
        fit["nll"] = None if fit["nll"] is None else Likelihood.restored(fit["nll"])
        return cls(metrics, found["protocol"], ModelFit(**fit))
