"""Reading arrays from files, within bounds of memory and without running code from the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gebm_kit.core.archives import NpzArchive, read_npy_file
from gebm_kit.core.errors import DataError, nearest
from gebm_kit.core.reading import amount, available_memory, open_regular
from gebm_kit.data.class_texts import class_indices

ARRAY_SUFFIXES = (".npz", ".npy", ".safetensors")
"""Suffixes of the files that `load` reads."""

TABLE_SUFFIXES = (".csv", ".parquet")
"""Suffixes of the files of columns, which `gebm_kit.data.columns` reads."""

SHOWN_NAMES = 40
"""Most names of arrays in one message."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows (N, ...) as the file holds them, labels (N,) if requested, and what the classes are called if labels are text."""

    rows: Tensor
    labels: Tensor | None
    classes: tuple[str, ...] = ()


def load(path: Path, key: str | None, labels: str | None) -> Loaded:
    """Read ``path``; its suffix says how.

    Args:
        path: a .npz, .npy or .safetensors file.
        key: name of the array in an archive; None: the only one, or ``x``.
        labels: name of the labels: in an archive an array, for .npy another .npy file beside it.

    Raises:
        DataError: anything that keeps the file from being read as rows of numbers.
    """
    check_key(path, key)
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            rows = _numbers(_npy(path), path)
            return Loaded(rows, None) if labels is None else Loaded(rows, *_npy_labels(path, labels))
        return _npz(path, key, labels) if suffix == ".npz" else _safetensors(path, key, labels)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} can't be read as {suffix}: {error}") from error


def check_key(path: Path, key: str | None) -> None:
    """Raise if the file is missing, of an unknown type, or has no arrays to choose from by ``key``.

    Raises:
        DataError: see above.
    """
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise DataError(f"data file {path} {found}")
    suffix = path.suffix.lower()
    if suffix not in (*ARRAY_SUFFIXES, *TABLE_SUFFIXES):
        allowed = ", ".join((*ARRAY_SUFFIXES, *TABLE_SUFFIXES))
        raise DataError(f"{path}: files of type {suffix or '(none)'} can't be read; allowed: {allowed}")
    if key is not None and suffix in (".npy", *TABLE_SUFFIXES):
        raise DataError(f"{path}: a {suffix} file holds one array, so key={key!r} has no meaning; leave it out")


# --- archives --------------------------------------------------------------------------------------------------------


def _pick(names: list[str], key: str | None, path: Path, what: str) -> str:
    if key is None:
        if len(names) == 1:
            return names[0]
        if "x" in names:
            return _pick(names, "x", path, what)
        listed = ", ".join(names[:SHOWN_NAMES]) or "none"
        listed += f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
        raise DataError(f"{path} holds {len(names)} arrays ({listed}); name the one with the data: key=...")
    if key not in names:
        raise DataError(f"{path} has no {what} {key!r}; {nearest(key, names)}")
    if names.count(key) > 1:
        raise DataError(f"{path} holds {names.count(key)} arrays that are called {key!r}, so it is damaged")
    return key


def _npz(path: Path, key: str | None, labels: str | None) -> Loaded:
    with NpzArchive(path) as archive:
        names = [name for name in archive.names if name != labels]
        rows = _numbers(archive.read(_pick(names, key, path, "array")), path)
        if labels is None:
            return Loaded(rows, None)
        found = archive.read(_pick(archive.names, labels, path, "labels"))
        return Loaded(rows, *_label_array(found, f"{path}, array {labels!r}", path))


def _npy(path: Path) -> np.ndarray:
    with open_regular(path) as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        raise DataError(f"{path} holds pickled Python objects and is not read: unpickling runs code from the file")
    if start == b"PK":
        raise DataError(f"{path} is not a .npy file but an archive; rename it to .npz")
    return read_npy_file(path)


def _npy_labels(path: Path, labels: str) -> tuple[Tensor, tuple[str, ...]]:
    other = path.parent / labels
    if other.suffix.lower() != ".npy" or not other.is_file():
        raise DataError(
            f"labels={labels!r}: for a .npy file this names another .npy file beside it, and {other} is not one"
        )
    return _label_array(_npy(other), str(other), other)


def _label_array(array: np.ndarray, source: str, path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as numbers, and what they stand for if they are text."""
    if array.dtype.kind != "U" or array.ndim != 1:
        return _numbers(array, path), ()
    return class_indices(array.tolist(), source)


def _safetensors(path: Path, key: str | None, labels: str | None) -> Loaded:
    open_regular(path).close()  # safe_open would wait for a named pipe
    if path.stat().st_size > available_memory():
        raise DataError(f"{path} has {amount(path.stat().st_size)}, more than the memory that is available")
    with safe_open(path, framework="pt") as archive:
        names = list(archive.keys())
        rows = archive.get_tensor(_pick([n for n in names if n != labels], key, path, "tensor"))
        chosen = None if labels is None else archive.get_tensor(_pick(names, labels, path, "labels"))
    for tensor in (rows, chosen):
        if tensor is not None and tensor.is_complex():
            raise DataError(f"{path} holds complex numbers; real ones are needed")
    return Loaded(_common(rows, path), None if chosen is None else _common(chosen, path))


def _common(rows: Tensor, path: Path) -> Tensor:
    """Return numbers of a safetensors file in a type that torch and numpy can compute with."""
    if rows.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return _numbers(rows.numpy(), path)
    if rows.is_floating_point() and rows.dtype.itemsize < 2:
        try:
            return rows.float()
        except (RuntimeError, NotImplementedError) as error:  # two numbers in each byte
            kind = str(rows.dtype).removeprefix("torch.")
            raise DataError(f"{path} holds numbers of type {kind}, which can't be read; float16 can") from error
    return rows


def _numbers(array: np.ndarray, path: Path) -> Tensor:
    """Return an array of numbers as a tensor, in a type that holds its values."""
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path} holds values of type {array.dtype}; numbers are needed")
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if array.dtype in (np.uint8, np.float32, np.float64, np.int64):
        return torch.from_numpy(array)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return torch.from_numpy(array.astype(np.float64))
    if array.dtype == np.uint64 and array.size and int(array.max()) >= 2**63:
        raise DataError(f"{path} holds {int(array.max())}, which no type of whole numbers here holds (below 2**63)")
    return torch.from_numpy(array.astype(np.int64))
