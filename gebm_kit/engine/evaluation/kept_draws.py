"""A few draws and energies of the last evaluation, kept beside its pictures, so that a report need not draw again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, GebmKitError
from gebm_kit.core.files import write_atomic
from gebm_kit.core.reading import read_file

if TYPE_CHECKING:
    from gebm_kit.engine.evaluation.evaluation import Evaluation

FILE = "draws.safetensors"
"""Name of the file in the run's folder ``figures``."""

SETS = ("data", "base", "GEBM")
"""What is kept: held-out data, draws of the base, draws of the GEBM."""

MOST_IMAGES, MOST_ROWS, MOST_ENERGIES = 64, 2000, 4000
"""Most images, most rows of other data, and most energies of each set."""

MOST_BYTES = 2**23
"""Most bytes of one set; of large images fewer are kept."""

LARGEST_FILE = 4 * MOST_BYTES
"""Largest file that is read, in bytes."""


@dataclass(frozen=True, slots=True)
class KeptDraws:
    """Draws by set (see `SETS`).

    Attributes:
        x: rows, (N, *D) float32.
        energies: energies, (M,) with M >= N; the first N are those of the rows. Empty where they were not kept.
        labels: classes of the rows, (N,) int64, of a model with classes; else empty.
    """

    x: dict[str, Tensor]
    energies: dict[str, Tensor]
    labels: dict[str, Tensor]


def keep_draws(
    folder: Path, evaluation: Evaluation, mixed: Tensor, checkpoint: str, value_range: tuple[float, float] | None
) -> Path:
    """Write a few draws of the evaluation of a checkpoint into ``folder``.

    Args:
        mixed: an order of the evaluation's data in which the classes are mixed.
        value_range: range of images, which are kept as bytes; None: rows are kept as they are.

    Raises:
        UsageError, RunFailed: the file can't be written.
    """
    sets = {"data": evaluation.data, "base": evaluation.base_draws, "GEBM": evaluation.gebm_draws}
    tensors: dict[str, Tensor] = {}
    for name, rows in sets.items():
        order = mixed if name == "data" else torch.arange(len(rows))
        few = order[: _most(rows)]
        tensors[name] = _packed(rows[few], value_range)
        energies = (evaluation.energies or {}).get(name)
        if energies is not None and len(energies) == len(rows):
            tensors[f"{name}.energy"] = energies[order[:MOST_ENERGIES]].float().cpu().contiguous()
        if evaluation.labels is not None:
            tensors[f"{name}.labels"] = evaluation.labels[name][few].long().cpu().contiguous()
    about = {"schema": "1", "checkpoint": checkpoint, "value_range": json.dumps(value_range)}
    path = folder / FILE
    write_atomic(path, safetensors.torch.save(tensors, metadata=about))
    return path


def read_kept_draws(folder: Path, checkpoint: str, data_shape: tuple[int, ...]) -> KeptDraws | None:
    """Read what `keep_draws` wrote for a checkpoint; None if there is nothing, or it is damaged or of another checkpoint."""
    try:
        content = read_file(folder / FILE, limit=LARGEST_FILE, error=DataError)
        size = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        if about.get("checkpoint") != checkpoint:
            return None
        return _read(safetensors.torch.load(content), json.loads(about["value_range"]), data_shape)
    except (GebmKitError, safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _read(tensors: Mapping[str, Tensor], value_range: Any, data_shape: tuple[int, ...]) -> KeptDraws | None:
    x = {name: _unpacked(tensors[name], value_range) for name in SETS}
    if any(tuple(rows.shape[1:]) != data_shape or not len(rows) for rows in x.values()):
        return None
    energies = {name: tensors[f"{name}.energy"].float() for name in SETS if f"{name}.energy" in tensors}
    labels = {name: tensors[f"{name}.labels"].long() for name in SETS if f"{name}.labels" in tensors}
    whole = all(len(energies[name]) >= len(x[name]) for name in energies)
    return KeptDraws(x, energies, labels) if whole and all(len(labels[n]) == len(x[n]) for n in labels) else None


def _most(rows: Tensor) -> int:
    """Return how many rows of a set are kept."""
    most = MOST_IMAGES if rows.ndim == 4 else MOST_ROWS
    return max(min(most, MOST_BYTES // max(rows[0].numel() * 4, 1)), 1)


def _packed(rows: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    rows = rows.detach().float().cpu()
    if value_range is None or rows.ndim != 4:
        return rows.contiguous()
    low, high = value_range
    share = rows.sub(low).div(max(high - low, 1e-12)).nan_to_num(0.5).clamp(0, 1)
    return share.mul(255).round().to(torch.uint8).contiguous()  # draws may lie in channels-last order


def _unpacked(rows: Tensor, value_range: Any) -> Tensor:
    if rows.dtype != torch.uint8:
        return rows.float()
    low, high = (float(end) for end in value_range)
    return rows.float().div(255).mul(high - low).add(low)
