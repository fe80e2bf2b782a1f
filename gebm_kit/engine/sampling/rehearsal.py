"""The rehearsal of a streamed sampling: `auto` settles on a sampler and settings before the first shard is written.

What it settled on is part of the request, so a resumed sampling writes the same shards without another rehearsal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.interfaces import Sampler, SamplerDirective
from gebm_kit.core.model import GEBM
from gebm_kit.core.reading import read_json_file
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.sampling.auto import Settled, asked, built
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draws_on_disk import REQUEST, STATE
from gebm_kit.engine.sampling.forecasts import Forecast
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.sampling.shards import INDEX

REHEARSED = "auto"
"""Entry of a request that holds what a rehearsal settled on."""

DRAWS = 2000
"""Draws of a rehearsal, unless it has more chains than that."""

CHOSEN = ("warmup", "steps", "num_chains")
"""Settings that `auto` chooses."""


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal settled on.

    Attributes:
        asked: description of the request that led to it.
        forecast: the sampler and its settings.
        reason, unsettled: as in `Diagnostics`.
        grad_evals, forward_evals: evaluations that it took.
    """

    asked: Mapping[str, Any]
    forecast: Forecast
    reason: str | None
    unsettled: str | None
    grad_evals: int
    forward_evals: int

    @staticmethod
    def few(settings: SampleSettings) -> SampleSettings:
        """Return the settings of a rehearsal: as many chains, fewer draws, and a seed of its own."""
        seed = stream(settings.seed, "sample", "rehearsal").initial_seed()
        return replace(settings, num_samples=min(settings.num_samples, max(settings.num_chains, DRAWS)), seed=seed)

    @classmethod
    def of(cls, found: Settled[Any], directive: SamplerDirective, settings: SampleSettings) -> Rehearsed:
        """Keep what a search settled on."""
        d = found.diagnostics
        return cls(
            asked(directive, settings), found.forecast, d.sampler_reason, d.unsettled, d.grad_evals, d.forward_evals
        )

    def sampler(self, model: GEBM) -> Sampler:
        """Build the sampler to draw with."""
        return built(model, self.forecast)

    def settings(self, settings: SampleSettings) -> SampleSettings:
        """Return the settings to draw with."""
        return replace(settings, **{name: getattr(self.forecast.settings, name) for name in CHOSEN})

    def added_to(self, diagnostics: Diagnostics) -> Diagnostics:
        """Return the diagnostics of the draws with the reason, and with the rehearsal's evaluations."""
        return replace(
            diagnostics,
            sampler_reason=self.reason,
            unsettled=self.unsettled,
            grad_evals=diagnostics.grad_evals + self.grad_evals,
            forward_evals=diagnostics.forward_evals + self.forward_evals,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; numbers as text where JSON has none."""
        record = asdict(self) | {"forecast": self.forecast.as_dict()}
        found: dict[str, Any] = json.loads(json.dumps(_finite(record)))
        return found

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Rehearsed:
        """Read back `as_dict`."""
        return cls(**{**record, "forecast": Forecast.of(record["forecast"])})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else 0.0


def recorded(path: Path, directive: SamplerDirective, settings: SampleSettings, ranks: Ranks) -> Rehearsed | None:
    """Return what the sampling in ``path`` was begun with, on all ranks; None if there is none, or for other settings."""
    text = ranks.from_first(_request_text(path) if ranks.rank == 0 else "")
    try:
        found = Rehearsed.read(json.loads(text)) if text else None
    except (ValueError, TypeError, KeyError, GebmKitError):
        return None  # damaged; the comparison with what is asked for now says so
    return found if found is not None and dict(found.asked) == asked(directive, settings) else None


def _request_text(path: Path) -> str:
    """Return the entry `REHEARSED` of the request in a directory as JSON; "" when there is none."""
    for file in (path / STATE / REQUEST, path / INDEX):
        try:
            record = read_json_file(file) if file.exists() else None
        except GebmKitError:
            return ""  # reported where the request is read again
        if isinstance(record, dict) and isinstance(request := record.get("request"), dict) and REHEARSED in request:
            return json.dumps(request[REHEARSED])
    return ""
