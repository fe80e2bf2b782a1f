"""The record ``state.json`` of a checkpoint: signed when written, checked entry by entry when read.

A signature tells damage, not malice: whoever crafts a checkpoint can sign it too. So the names of files must stay inside
the checkpoint, and every entry must have its type.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gebm_kit.core.errors import CheckpointError
from gebm_kit.core.reading import read_json_file
from gebm_kit.engine.run_directory.values import is_best, is_count, is_number

RECORD = "state.json"
"""Name of the record in the checkpoint's folder."""

MAX_RECORD = 16 * 2**20
"""Largest record that is read, in bytes. It takes some kilobytes."""

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\.safetensors")
"""Names of a checkpoint's files of tensors; none can lead out of its folder."""


def read_record(path: Path, step: int) -> dict[str, Any]:
    """Return the record of the checkpoint ``path``, without its signature.

    Args:
        step: the step in the checkpoint's name.

    Raises:
        CheckpointError: the record is missing or damaged, or an entry isn't what it must be.
    """
    file = path / RECORD
    record = read_json_file(
        file,
        limit=MAX_RECORD,
        error=lambda text: CheckpointError(f"{file} is missing or damaged: {text.removeprefix(f'{file}').lstrip()}"),
    )
    try:
        _check(isinstance(record, dict), "it does not hold a JSON object")
        expected = record.pop("sha256_of_the_rest", None)
        _check(_digest(record) == expected, "its content is not what was written")
        _check(record.get("step") == step, f"it is of step {str(record.get('step'))[:40]}, not {step}")
        sums, state = record.get("sha256"), record.get("state")
        _check(isinstance(sums, dict) and "model.safetensors" in sums, "it lists no model.safetensors")
        for name, digest in sums.items():
            _check(_FILE.fullmatch(name) is not None, f"it names a file outside the checkpoint, {name[:80]!r}")
            _check(isinstance(digest, str), f"the sha256 of {name} is not a text")
        _check(isinstance(state, dict), "its state is not a JSON object")
        for name, allowed in _ENTRIES.items():
            _check(name not in state or allowed(state[name]), f"the entry {name!r} of its state can't be used")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is missing or damaged: {error}") from error
    return dict(record)


def signed(record: Mapping[str, Any]) -> bytes:
    """Return the content of the file: the record with the sha256 of the rest."""
    return json.dumps({**record, "sha256_of_the_rest": _digest(record)}, indent=2).encode()


def _digest(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a JSON object's content, whatever its layout."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


# --- what entries of the state must be -------------------------------------------------------------------------------
def _is_best_base(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return not value or (is_number(value.get("loss")) and is_count(value.get("step")))


def _are_skips(value: Any) -> bool:
    """Counts of updates that were not finite, by part; each with the ``value`` seen, as text."""

    def is_skip(part: Any) -> bool:
        return isinstance(part, dict) and all(
            is_count(entry) or (name == "value" and isinstance(entry, str) and _is_float(entry))
            for name, entry in part.items()
        )

    return isinstance(value, dict) and all(is_skip(part) for part in value.values())


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _are_facts(value: Any) -> bool:
    """Facts about data and recipe, see `gebm_kit.config.build.data_facts`."""
    if not isinstance(value, dict):
        return False
    shape, span = value.get("data_shape"), value.get("value_range")
    return (
        (shape is None or (isinstance(shape, list) and all(is_count(size) and size < 2**31 for size in shape)))
        and (span is None or (isinstance(span, list) and len(span) == 2 and all(is_number(end) for end in span)))
        and all(
            value.get(name) is None or (is_count(value[name]) and value[name] < 2**31)
            for name in ("num_classes", "latent_dim")
        )
        and isinstance(value.get("log_ratio", True), bool)
    )


_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "energy_updates": is_count,
    "feed_position": is_count,
    "restores": is_count,
    "looked": is_count,
    "ranks": is_count,
    "went_back": lambda value: isinstance(value, bool),
    "non_finite": _are_skips,
    "best": is_best,
    "best_base": _is_best_base,
    "facts": _are_facts,
}
"""Entries of the state and whether a value can be used; older checkpoints lack some."""
