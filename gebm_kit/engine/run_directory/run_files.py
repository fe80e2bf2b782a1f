"""Reading the files of a run directory, which may come from somebody else: bounded, and checked entry by entry.

Every reader raises `CheckpointError` with the file's name, whatever the file holds, and none imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gebm_kit.core.errors import CheckpointError
from gebm_kit.core.reading import Error, parse_yaml, read_json_file, read_text
from gebm_kit.engine.run_directory.values import (
    is_best,
    is_count,
    is_duration,
    is_name,
    is_number,
    is_optional_number,
    is_plain,
)

STATUS, ENVIRONMENT, RESOLVED, EVALUATION = "status.json", "env.json", "resolved.yaml", "evaluation.json"
"""Names of the files."""

CONFIG = "config.json"
"""Name of the file that describes an exported folder."""

FORMAT, SCHEMA = "gebm-kit", 1
"""What ``format`` and ``schema`` are in that file. A later schema is not read."""

MAX_SMALL = 2**20
"""Largest status, environment or recipe that is read, in bytes; they take some kilobytes."""

MAX_EVALUATION = 32 * 2**20
"""Largest evaluation that is read, in bytes."""

Check = Callable[[Any], bool]
"""What says whether a value can be used."""


def read_status(run: Path) -> dict[str, Any]:
    """Read ``status.json``: recipe, state, step, seconds, best. Older runs lack some.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return _checked(run / STATUS, MAX_SMALL, _STATUS)


def read_environment(run: Path) -> dict[str, Any]:
    """Read ``env.json``.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return _checked(
        run / ENVIRONMENT, MAX_SMALL, {"directory": lambda value: isinstance(value, str) and "\0" not in value}
    )


def read_evaluation(run: Path) -> dict[str, Any]:
    """Read ``evaluation.json``, the JSON of ``gebm-kit eval``.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return _checked(run / EVALUATION, MAX_EVALUATION, _EVALUATION)


def is_exported(folder: Path) -> bool:
    """Return whether a folder is one that `gebm_kit.export` wrote, whatever the state of its files."""
    if os.path.lexists(folder / RESOLVED) or not os.path.isfile(folder / CONFIG):
        return False
    try:
        found = read_json_file(folder / CONFIG, limit=MAX_EVALUATION, error=CheckpointError)
    except CheckpointError:
        return os.path.isfile(folder / "model.safetensors") and os.path.isfile(folder / "recipe.yaml")
    return isinstance(found, dict) and found.get("format") == FORMAT


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory or an exported folder."""
    return os.path.isfile(folder / RESOLVED) or is_exported(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of an exported folder.

    Raises:
        CheckpointError: it is missing or damaged, or of a later version of the format.
    """
    path = folder / CONFIG
    value = read_json_file(path, limit=MAX_EVALUATION, error=_damaged(path))
    schema = value.get("schema") if isinstance(value, dict) else None
    if is_count(schema) and schema > SCHEMA:
        raise CheckpointError(
            f"{path} has format version {schema}; this version of gebm-kit reads up to {SCHEMA}",
            hint="Upgrade gebm-kit: pip install --upgrade gebm-kit.",
        )
    lacking = [name for name in _CONFIG if not isinstance(value, dict) or name not in value]
    if lacking:
        raise CheckpointError(f"{path} is damaged: it has no {lacking[0]}")
    return _checked(path, MAX_EVALUATION, _CONFIG)


def read_resolved(run: Path) -> dict[str, Any]:
    """Read ``resolved.yaml`` as plain data, without checking it as a recipe.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = run / RESOLVED
    text = read_text(path, limit=MAX_SMALL, error=_damaged(path))
    value = parse_yaml(text, name=str(path), error=_damaged(path))
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it does not hold a mapping")
    if not is_plain(value):
        raise CheckpointError(f"{path} is damaged: it holds values that no recipe has")
    return value


def is_evaluation(value: Any) -> bool:
    """Return whether a value has the form of an evaluation, as far as it is shown."""
    return isinstance(value, dict) and all(check(value[name]) for name, check in _EVALUATION.items() if name in value)


def _checked(path: Path, limit: int, checks: Mapping[str, Check]) -> dict[str, Any]:
    value = read_json_file(path, limit=limit, error=_damaged(path))
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it does not hold a JSON object")
    for name, check in checks.items():
        if name in value and not check(value[name]):
            raise CheckpointError(f"{path} is damaged: {name} can't be {_short(value[name])}")
    return value


def _damaged(path: Path) -> Error:
    return lambda text: CheckpointError(f"{path} is missing or damaged: {text.removeprefix(f'{path}').lstrip(' :')}")


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = (
        ascii(value)
        if isinstance(value, str) or (not is_count(value) and is_optional_number(value))
        else str(type(value).__name__)
    )
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- what entries must be --------------------------------------------------------------------------------------------
_STATUS: dict[str, Check] = {
    "recipe": is_name,
    "state": lambda value: isinstance(value, str) and value.isascii() and value.replace("-", "").isalpha(),
    "step": is_count,
    "seconds": is_duration,
    "training_seconds": is_duration,
    "best": is_best,
}


def _are_columns(value: Any) -> bool:
    def is_estimate(cell: Any) -> bool:
        if not isinstance(cell, dict):
            return False
        return all(is_optional_number(cell.get(name)) for name in ("value", "low", "high", "n"))

    def is_column(cells: Any) -> bool:
        return cells is None or (isinstance(cells, dict) and all(is_estimate(cell) for cell in cells.values()))

    return isinstance(value, dict) and all(is_column(cells) for cells in value.values())


def _are_protocols(value: Any) -> bool:
    def is_protocol(entry: Any) -> bool:
        return isinstance(entry, dict) and is_plain(entry) and isinstance(entry.get("train", {}), dict)

    return value is None or (isinstance(value, dict) and all(is_protocol(entry) for entry in value.values()))


def _is_log_partition(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not all(
        isinstance(v, str | bool) or is_optional_number(v) for v in value.values()
    ):
        return False
    numbers = ("value", "se", "low", "high", "gap", "bridge", "bridge_se", "forward", "reverse")
    if not all(is_optional_number(value.get(name)) for name in numbers):
        return False
    return value.get("gap") is None or {"bridge_se", "forward", "reverse"} <= value.keys()


def _is_likelihood(value: Any) -> bool:
    def is_mean(cell: Any) -> bool:
        return isinstance(cell, dict) and all(is_optional_number(number) for number in cell.values())

    if not isinstance(value, dict):
        return value is None
    if not value:
        return True
    means = all(is_mean(value.get(name)) for name in ("gebm", "base", "difference"))
    return means and isinstance(value.get("space"), str) and is_count(value.get("num_rows"))


def _are_diagnostics(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    problems = value.get("problems")
    numbers = all(is_optional_number(value.get(name)) for name in ("acceptance", "divergences"))
    return numbers and (problems is None or (isinstance(problems, list) and all(isinstance(p, str) for p in problems)))


def _is_calibration(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    names = ("inverse_temperature", "applied", "stderr", "kale", "kale_at_1")
    numbers = all(is_optional_number(value.get(name)) for name in names)
    return numbers and isinstance(value.get("reason", ""), str)


def _is_equilibrium(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None

    def has_numbers(cell: Any) -> bool:
        return cell is None or (
            isinstance(cell, dict) and all(is_optional_number(n) for n in cell.values() if not isinstance(n, dict))
        )

    cells = [cell for name, cell in value.items() if name.startswith(("energy_", "metric_at_")) or name in _OF_CHAINS]
    return is_plain(value) and all(has_numbers(cell) for cell in cells)


_OF_CHAINS = ("gap", "ratio", "difference")


def _is_verdict(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(isinstance(text, str) for text in value.values()))


def _are_components(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("kind", "name", "distribution"))
        for entry in value
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(text is None or isinstance(text, str) for text in value.values())


_CONFIG: dict[str, Check] = {
    "format": lambda value: value == FORMAT,
    "schema": lambda value: value == SCHEMA,
    "name": is_name,
    "step": is_count,
    "versions": _are_texts,
    "components": _are_components,
    "facts": lambda value: isinstance(value, dict) and is_plain(value),
    "sampler": lambda value: isinstance(value, dict) and is_plain(value),
    "files": lambda value: _are_texts(value) and all(is_name(name) and "\\" not in name for name in value),
    "training_seconds": lambda value: value is None or is_duration(value),
}


_EVALUATION: dict[str, Check] = {
    "checkpoint": lambda value: isinstance(value, str),
    "metrics": _are_columns,
    "protocol": _are_protocols,
    "kale_train": is_optional_number,
    "kale_test": is_optional_number,
    "inverse_temperature": is_number,
    "log_partition": _is_log_partition,
    "nll": _is_likelihood,
    "calibration": _is_calibration,
    "diagnostics": _are_diagnostics,
    "equilibrium": _is_equilibrium,
    "verdict": _is_verdict,
    "budget": lambda value: value is None or (isinstance(value, dict) and is_plain(value)),
}
