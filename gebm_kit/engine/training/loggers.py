"""A run's loggers behind a guard: a failing logger is reported but never stops training.

Every run writes metrics.jsonl; a recipe's ``loggers`` adds others. A logger that fails before training (its package is
missing, its constructor raises) is an error. A later failure is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gebm_kit.config.build import build, resolved
from gebm_kit.config.schema import ComponentNode, Recipe
from gebm_kit.config.supplied import SuppliedNode
from gebm_kit.core.attribution import is_interruption
from gebm_kit.core.errors import GebmKitError, PluginError
from gebm_kit.core.interfaces import Logger
from gebm_kit.core.plugins import component_name, installed
from gebm_kit.core.progress import warn
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.engine.training.resume import drop_rows_after

JSONL = "jsonl"
"""Name of the logger that writes metrics.jsonl, which every run has."""


MAX_FAILURES = 3
"""Failures in a row after which a logger is no longer called: waiting for a lost server would slow down every step."""


def check_loggers(recipe: Recipe) -> None:
    """Check that every logger of the recipe can be used; called before anything is trained or written.

    Raises:
        PluginError: a logger's package is not installed.
    """
    for node in _nodes(recipe):
        target: type[Logger] | Logger = (
            node.given if isinstance(node, SuppliedNode) else installed().registry.get("logger", node.name).load()
        )
        target.check()


def open_loggers(recipe: Recipe, run_directory: Path, start_step: int) -> Loggers:
    """Open the loggers of a run that trains from ``start_step`` on, and log the resolved recipe to each.

    Raises:
        PluginError, RecipeError, RunFailed: a logger can't be started.
    """
    loggers = Loggers(recipe, run_directory)
    for node in _nodes(recipe):
        try:
            loggers.open(node, start_step)
        except BaseException as error:
            loggers.close()
            if isinstance(error, GebmKitError) or is_interruption(error):
                raise
            raise PluginError(
                f"logger {node.name!r} can't be started: {_words(error)}",
                hint="Take it out of the recipe's loggers (loggers=[]) to train without it.",
            ) from error
    loggers.log_config(resolved(recipe))
    return loggers


class Loggers(Logger):
    """Several loggers combined into one that never raises.

    A logger's first failure is a warning that names the logger and the error. The logger is called again next time; after
    `MAX_FAILURES` failures in a row it is only closed. The writer of metrics.jsonl is called every time. When the loggers
    are closed, a warning says how many records each one missed.

    Args:
        recipe, run_directory: the run's recipe and directory; without them, the only loggers are those passed to `add`.
    """

    def __init__(self, recipe: Recipe | None = None, run_directory: Path | None = None) -> None:
        self.recipe, self.run_directory = recipe, run_directory
        self._guarded: list[_Guarded] = []

    def open(self, node: ComponentNode, start_step: int) -> None:
        """Build and add one of the recipe's loggers; errors of its constructor are not caught."""
        assert self.recipe is not None
        facts = {"run_directory": self.run_directory, "directory": self.recipe.directory, "start_step": start_step}
        logger = build("logger", node, facts)
        self.add(component_name("logger", logger) if isinstance(node, SuppliedNode) else node.name, logger)

    def add(self, name: str, logger: Logger) -> None:
        self._guarded.append(_Guarded(name, logger))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for one in self._guarded:
            one.call(f"at step {step}", lambda logger: logger.log(step, dict(scalars)))

    def log_config(self, config: Mapping[str, Any]) -> None:
        for one in self._guarded:
            one.call("with the recipe", lambda logger: logger.log_config(dict(config)))

    def log_image(self, step: int, name: str, path: Path) -> None:
        for one in self._guarded:
            one.call(f"with picture {name}", lambda logger: logger.log_image(step, name, path))

    def log_table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]
    ) -> None:
        def record(logger: Logger) -> None:
            logger.log_table(step, name, list(columns), [list(row) for row in rows])

        for one in self._guarded:
            if getattr(type(one.logger), "log_table", Logger.log_table) is not Logger.log_table:  # it takes tables
                one.call(f"with table {name}", record)

    def go_back(self, step: int) -> None:
        """Rebuild all loggers for training that resumes from an earlier ``step``, and drop the rows logged after it."""
        if self.recipe is None or self.run_directory is None:
            return
        self.close()
        try:
            drop_rows_after(Run(self.run_directory), step)
        except GebmKitError as error:
            warn(f"rows after step {step} stay in metrics.jsonl: {error.message}")
        for node in _nodes(self.recipe):
            try:
                self.open(node, step)
            except BaseException as error:
                if is_interruption(error):
                    raise
                warn(f"logger {node.name!r} can't be started again: {_words(error)}; training continues without it")
        self.log_config(resolved(self.recipe))

    def close(self) -> None:
        while self._guarded:
            self._guarded.pop(0).close()


@dataclass
class _Guarded:
    name: str
    logger: Logger
    calls: int = 0
    missed: int = 0
    in_a_row: int = 0

    def call(self, where: str, what: Callable[[Logger], None]) -> None:
        self.calls += 1
        if self.in_a_row >= MAX_FAILURES and self.name != JSONL:
            self.missed += 1
            return
        error = self._attempt(what)
        if error is None:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.missed += 1
        if self.missed == 1:
            warn(f"logger {self.name!r} failed {where}: {_words(error)}; training continues without that record")

    def close(self) -> None:
        error = self._attempt(lambda logger: logger.close())
        if error is not None:
            warn(f"logger {self.name!r} failed when it was closed: {_words(error)}")
        if self.missed:
            warn(f"logger {self.name!r} missed {self.missed} of {self.calls} records")

    def _attempt(self, what: Callable[[Logger], None]) -> BaseException | None:
        """Return the error of the call, or None if it succeeded.

        `Interrupted`, which a signal such as Ctrl-C can raise at any point, is not a logger's error and is raised again.
        """
        try:
            what(self.logger)
        except BaseException as error:  # some client libraries exit the program
            if is_interruption(error):
                raise
            return error
        return None


def _nodes(recipe: Recipe) -> list[ComponentNode]:
    return [ComponentNode(JSONL), *(node for node in recipe.loggers if node.name != JSONL)]


def _words(error: BaseException) -> str:
    if isinstance(error, GebmKitError):
        return error.message
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
