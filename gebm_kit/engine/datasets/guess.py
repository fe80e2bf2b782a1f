"""Guessing what kind of data a user's word means: a dataset's name, a folder of images, or a file of arrays."""

from __future__ import annotations

import json
import re

from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.errors import UsageError, nearest
from gebm_kit.core.paths import user_path
from gebm_kit.core.plugins import installed

IDX_NAME = re.compile(r"train[-_.]images?[-_.]?idx3", re.IGNORECASE)
"""Part of the names of files in MNIST's format, as several sources write them; the dataset ``idx`` reads them."""

TABLES = (".npz", ".npy", ".safetensors", ".csv", ".parquet")
"""Endings of files of arrays, which the dataset ``arrays`` reads."""


def data_word(data: str) -> str:
    """Return the override that names the dataset which ``data`` means.

    Args:
        data: name of a registered dataset, a folder in MNIST's format, any other folder (of images), or a file of arrays.

    Raises:
        UsageError: the kind of data can't be guessed.
    """
    node = data_node(data)
    inside = ", ".join([f"name: {_word(node.name)}", *(f"{k}: {json.dumps(v)}" for k, v in node.parameters.items())])
    return f"data={{{inside}}}"


def data_node(data: str) -> ComponentNode:
    """Return the dataset which ``data`` means; see `data_word`.

    Raises:
        UsageError: the kind of data can't be guessed.
    """
    registry = installed().registry
    names = {registry.short_name(record) for record in registry.of_kind("dataset")}
    if data in names or ":" in data:
        return ComponentNode(data)
    path = user_path(data)
    if path.is_dir():
        try:
            idx = any(IDX_NAME.search(file.name) and file.is_file() for file in path.iterdir())
        except OSError:  # the dataset says why it can't be read
            idx = False
        name = "idx" if idx else "image-folder"
    elif path.suffix.lower() in TABLES and path.is_file():
        name = "arrays"
    else:
        what = "is not a file of a known kind" if path.exists() else "is neither a dataset, a folder nor a file"
        raise UsageError(
            f"DATA {data!r} {what}; {nearest(data, names)}",
            hint=f"DATA is a dataset's name, a folder of images, a folder in MNIST's format, or a file {', '.join(TABLES)}; "
            "for anything else, write an override instead: data='{name: celeba, path: celeba, size: 64}'.",
        )
    return ComponentNode(name, {"path": data})


def _word(name: str) -> str:
    return name if name in ("idx", "image-folder", "arrays") else json.dumps(name)
