"""The tensors of a TorchScript archive, read without its code.

CLIP's weights are published as TorchScript archives: programs whose modules hold the weights as attributes. An archive is
a zip file with a pickle of its modules (``data.pkl``), a record for each tensor (``data/0``, ...) and code. Here the pickle
and the tensors are copied to a file of plain data, which torch reads with ``weights_only=True``: modules become empty
containers, and the code is left behind.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MARK = "constants.pkl"
"""The member by which torch itself tells a TorchScript archive from a file of `torch.save`."""

KEPT = ("data.pkl", "byteorder", "version")
"""Members that are copied, besides the tensors."""


class _Module:
    """A module of the program, reduced to its attributes."""


def _listed(values: list[Any]) -> list[Any]:
    """Return a list of numbers as it is; TorchScript wraps lists in calls that say their type."""
    return values


def _untagged(value: Any, kind: str) -> Any:
    """Return a value without the note about its type."""
    return value


NOTES: dict[str, Callable[..., Any]] = {
    "torch.jit._pickle.build_intlist": _listed, "torch.jit._pickle.build_doublelist": _listed,
    "torch.jit._pickle.build_boollist": _listed, "torch.jit._pickle.build_tensorlist": _listed,
    "torch.jit._pickle.restore_type_tag": _untagged,
}  # fmt: skip
"""What stands in for TorchScript's notes about types."""


def is_torchscript(content: bytes) -> bool:
    """Return whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.partition("/")[2] == MARK for name in archive.namelist())


def without_code(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a TorchScript archive by name, as its ``state_dict`` has them; no code is run.

    Raises:
        ValueError: the archive is compressed, or holds two members of one name.
        Exception: what torch raises for a file that holds anything but modules and tensors.
    """
    plain = _plain(content)
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(plain)
    plain.seek(0)
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    allowed += [(_Module, name) for name in unsafe if name.startswith("__torch__.")]
    allowed += [(NOTES[name], name) for name in unsafe if name in NOTES]
    with torch.serialization.safe_globals(allowed):
        root = torch.load(plain, map_location="cpu", weights_only=True)
    if not isinstance(root, _Module):
        raise ValueError("the archive holds no module")
    return dict(_tensors(root))


def _plain(content: bytes) -> io.BytesIO:
    """Copy the pickle and the tensors to a file such as `torch.save` writes."""
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as copy:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("the archive holds two members of one name")
        for member in members:
            name = member.filename.partition("/")[2]
            if name in KEPT or name.startswith("data/"):
                if member.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing but code
                    raise ValueError(f"the archive's member {name} is compressed")
                copy.writestr(f"archive/{name}", archive.read(member))
    plain.seek(0)
    return plain


def _tensors(module: _Module, prefix: str = "") -> list[tuple[str, Tensor]]:
    """Return the tensors among a module's attributes and those of its submodules, by dotted name."""
    found: list[tuple[str, Tensor]] = []
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _Module):
            found += _tensors(value, f"{prefix}{name}.")
    return found
