"""gebm-kit: train, sample and evaluate Generalized Energy-Based Models.

The public names are imported on first use, so that ``import gebm_kit`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gebm_kit.core.version import __version__ as __version__

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe
    from gebm_kit.core.components import Component, Hub
    from gebm_kit.core.hookspecs import hookimpl
    from gebm_kit.core.model import GEBM
    from gebm_kit.core.trust import trust_paths, trust_programs
    from gebm_kit.engine.density import log_density
    from gebm_kit.engine.evaluate import evaluate
    from gebm_kit.engine.export import draws_from_noise, export, load, push
    from gebm_kit.engine.fit import fit
    from gebm_kit.engine.process.devices import keep_freed_memory
    from gebm_kit.engine.report import report
    from gebm_kit.engine.run_directory.run import load_run
    from gebm_kit.engine.sample import sample
    from gebm_kit.engine.sampling.class_shards import load_draws
    from gebm_kit.engine.score import score
    from gebm_kit.engine.tilt import tilt
    from gebm_kit.engine.trace import trace_quality
    from gebm_kit.engine.train import train

_HOME = {
    "GEBM": "gebm_kit.core.model",
    "Recipe": "gebm_kit.config.schema",
    "train": "gebm_kit.engine.train",
    "fit": "gebm_kit.engine.fit",
    "sample": "gebm_kit.engine.sample",
    "evaluate": "gebm_kit.engine.evaluate",
    "log_density": "gebm_kit.engine.density",
    "score": "gebm_kit.engine.score",
    "tilt": "gebm_kit.engine.tilt",
    "trace_quality": "gebm_kit.engine.trace",
    "report": "gebm_kit.engine.report",
    "export": "gebm_kit.engine.export",
    "push": "gebm_kit.engine.export",
    "load": "gebm_kit.engine.export",
    "draws_from_noise": "gebm_kit.engine.export",
    "load_run": "gebm_kit.engine.run_directory.run",
    "load_draws": "gebm_kit.engine.sampling.class_shards",
    "keep_freed_memory": "gebm_kit.engine.process.devices",
    "trust_paths": "gebm_kit.core.trust",
    "trust_programs": "gebm_kit.core.trust",
    "Component": "gebm_kit.core.components",
    "Hub": "gebm_kit.core.components",
    "hookimpl": "gebm_kit.core.hookspecs",
}

__all__ = [
    "GEBM",
    "Component",
    "Hub",
    "Recipe",
    "draws_from_noise",
    "evaluate",
    "export",
    "fit",
    "hookimpl",
    "keep_freed_memory",
    "load",
    "load_draws",
    "load_run",
    "log_density",
    "push",
    "report",
    "sample",
    "score",
    "tilt",
    "trace_quality",
    "train",
    "trust_paths",
    "trust_programs",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "testing":
        return importlib.import_module("gebm_kit.testing")
    if name not in _HOME:
        raise AttributeError(f"module 'gebm_kit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
