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
from gebm_kit.core.reading import Error, parse_json, read_file

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

    def error(text: str) -> CheckpointError:
        return CheckpointError(f"{origin} is damaged: {text}")

    tensors = load_tensors(content, origin, CheckpointError)
    length = int.from_bytes(content[:8], "little")
    header = parse_json(content[8 : 8 + length], name="its header", error=error)
    text = (header.get("__metadata__") or {}).get("record")
    record = parse_json(text, name="its record", error=error) if isinstance(text, str) else None
    if not isinstance(record, dict):
        raise error("it holds no record")
    return tensors, record


def load_tensors(content: bytes, origin: Path | str, error: Error) -> dict[str, Tensor]:
    """Return the tensors in the content of a safetensors file.

    Raises:
        the class ``error``: the header is malformed, or claims more than the content holds, or overlapping tensors.
    """
    try:
        return safetensors.torch.load(content)
    except MemoryError:
        raise
    except Exception as reason:  # also types that torch does not have, and shapes that it can't make
        raise error(f"{origin} is not a safetensors file: {type(reason).__name__}: {reason}") from reason


def read_packed(path: Path) -> tuple[dict[str, Tensor], Record]:
    """Read a file that `packed` made.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return unpacked(read_file(path, error=CheckpointError), path)
