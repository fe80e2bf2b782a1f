"""Checks of registered components, as far as they can be built without a recipe: ``gebm-kit plugins check``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.components import Registered, parameters
from gebm_kit.core.errors import GebmKitError, PluginError
from gebm_kit.core.interfaces import Metric
from gebm_kit.core.isolation import isolated
from gebm_kit.core.plugins import installed
from gebm_kit.testing.conformance import check_signature
from gebm_kit.testing.data_checks import check_dataset
from gebm_kit.testing.logger_checks import check_logger
from gebm_kit.testing.model_checks import check_base, check_energy
from gebm_kit.testing.objective_checks import check_loss, check_penalty
from gebm_kit.testing.sampler_checks import check_sampler
from gebm_kit.testing.scoring_checks import check_features, check_metric

CHECKS: dict[str, Callable[..., None]] = {
    "base": check_base,
    "energy": check_energy,
    "loss": check_loss,
    "penalty": check_penalty,
    "sampler": check_sampler,
    "dataset": check_dataset,
    "features": check_features,
    "metric": check_metric,
    "logger": check_logger,
}
"""The check of each kind of component."""

SHAPES = ((2,), (1, 8, 8), (3, 32, 32))
"""Shapes of data that a component is tried on in turn, until it accepts one: points, small grey images, colour images."""

NOT_RUN_HINT = "run its check in a test of your own"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of checking one registered component.

    Attributes:
        kind, name, distribution: the component.
        state: ``ok``; ``failed``; or ``not run``: only its signature was checked.
        detail: what is wrong, or why it was not run; "" if it is ok.
        checks: names of the checks that were run, the one that failed among them.
    """

    kind: str
    name: str
    distribution: str
    state: Literal["ok", "failed", "not run"]
    detail: str = ""
    checks: tuple[str, ...] = ()


def check_registered(record: Registered) -> Outcome:
    """Import a registered component, check its signature, build it with its defaults, and run the check of its kind.

    A component that needs parameters, files or packages that are not there is ``not run``. What it prints goes to stderr.
    """

    component, checks = record.component, list[str]()

    def outcome(state: Literal["ok", "failed", "not run"], detail: str = "") -> Outcome:
        words = " ".join(detail.split())
        return Outcome(component.kind, component.name, record.distribution, state, words, tuple(checks))

    try:
        with isolated(""):  # nothing is forgotten if it fails: other components may come from the same module
            target = record.load()
            checks.append(check_signature.__name__)
            check_signature(target, component.kind)
            needed = [p.name for p in parameters(target).values() if p.required]
            if needed:
                return outcome("not run", f"needs {', '.join(needed)}; {NOT_RUN_HINT}")
            problem = _run(record, target, checks)
    except (AssertionError, PluginError) as error:
        return outcome("failed", str(error))
    except Exception as error:  # whatever its constructor does
        return outcome("failed", f"can't be built with its defaults: {type(error).__name__}: {error}")
    return outcome("not run", f"{problem}; {NOT_RUN_HINT}") if problem else outcome("ok")


def _run(record: Registered, target: Any, checks: list[str]) -> str:
    """Build and check a component on the first shape of data that it accepts; return why none was, or "".

    The name of the check is added to ``checks`` once the component is built.
    """
    kind, problem = record.component.kind, ""
    if kind == "logger":
        try:
            target.check()
        except PluginError as error:
            return error.message
    with tempfile.TemporaryDirectory(prefix="gebm-kit-check-") as folder:
        for shape in SHAPES:
            try:
                component = build(kind, ComponentNode(record.address), _injected(shape, Path(folder)))
                if missing := _missing_features(component):
                    return missing
                options: dict[str, Any] = {"data_shape": shape} if kind == "energy" else {}
                checks[1:] = [CHECKS[kind].__name__]
                CHECKS[kind](component, **options)
                return ""
            except PluginError:
                raise
            except GebmKitError as error:  # another shape, data or model may be what it needs
                if isinstance(error.__cause__, TypeError):
                    raise error.__cause__ from error
                problem = error.message
            if not _depends_on_shape(target):
                break
    return problem


def _missing_features(component: Any) -> str:
    """Return why the feature map that a metric names by default is not there; "" if it is, or none is named."""
    name = getattr(component, "features", None)
    if not isinstance(component, Metric) or not isinstance(name, str) or name == "auto":
        return ""
    try:
        installed().registry.get("features", name)
    except GebmKitError as error:
        return error.message
    return ""


def _depends_on_shape(target: type) -> bool:
    return any(p.name in ("data_shape", "value_range") for p in parameters(target).values() if p.injected)


def _injected(shape: tuple[int, ...], folder: Path) -> dict[str, Any]:
    return {
        "data_shape": shape,
        "value_range": None if len(shape) == 1 else (-1.0, 1.0),
        "latent_dim": 4,
        "num_classes": None,
        "device": torch.device("cpu"),
        "directory": folder,
        "run_directory": folder,
        "start_step": 0,
    }
