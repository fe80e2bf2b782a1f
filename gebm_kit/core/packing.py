"""Tensors and plain data in one file: safetensors with JSON in their metadata. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from gebm_kit.core.errors import CheckpointError

Record = dict[str, Any]
"""Plain data by name, as JSON holds it."""


def packed(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> bytes:
    """Return the content of a file that holds tensors by name, and plain data whose floats JSON can express."""
    named = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(named, {"schema": "1", "record": json.dumps(record, allow_nan=False)})


def unpacked(content: bytes, origin: Path | str) -> tuple[dict[str, Tensor], Record]:
    """Read back what `packed` made.

    Raises:
        CheckpointError: the content is not what `packed` made; the message names ``origin``.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        record = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["record"])
        return safetensors.torch.load(content), record
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{origin} is damaged: {type(error).__name__}: {error}") from error


def read_packed(path: Path) -> tuple[dict[str, Tensor], Record]:
    """Read a file that `packed` made.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    return unpacked(content, path)
