"""A recipe's text for other data: its own settings, with a data section for what the user's word means."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Dataset, HasReading
from gebm_kit.engine.datasets.guess import data_node

LOOKED_AT = 256
"""Number of images that must all be grey for a folder to be read as grey."""


class Retargeted(NamedTuple):
    """A recipe's new text, and a line about the data that it now names."""

    text: str
    reading: str


def retarget(text: str, data: str) -> Retargeted:
    """Replace the data section of a recipe.

    A folder of images keeps the size of its images if they all have the same, so that nothing is resized, and has one
    channel if they are all grey. Images of several sizes are cut and resized to the dataset's default size.

    Args:
        text: the recipe.
        data: a word as `data_node` takes it.

    Raises:
        UsageError: the word means no data, or the recipe has no data section.
        DataError: the data can't be read.
    """
    node = data_node(data)
    node, dataset = _image_folder(node) if node.name == "image-folder" else (node, _opened(node))
    line = dataset.describe_reading() if isinstance(dataset, HasReading) else f"data of shape {dataset.data_shape}"
    return Retargeted(_with_data(text, node), line)


def _opened(node: ComponentNode) -> Dataset:
    opened: Dataset = build("dataset", node, {"directory": Path()})
    return opened


def _image_folder(node: ComponentNode) -> tuple[ComponentNode, Dataset]:
    """Return the node with the size and the channels of its images, and the dataset."""
    own: dict[str, Any] = {"size": None}
    try:
        dataset = _opened(_and(node, **own))
    except DataError:  # of several sizes: what is wrong otherwise shows again
        own = {}
        dataset = _opened(node)
        own = {"size": dataset.data_shape[1]}
    rows = dataset.split("train").first(min(LOOKED_AT, len(dataset.split("train"))))
    if bool((rows == rows[:, :1]).all()):
        own["channels"] = 1
        dataset = _opened(_and(node, **own))
    return _and(node, **own), dataset


def _and(node: ComponentNode, **own: Any) -> ComponentNode:
    return dataclasses.replace(node, parameters={**node.parameters, **own})


def _with_data(text: str, node: ComponentNode) -> str:
    lines = text.splitlines(keepends=True)
    starts = [index for index, line in enumerate(lines) if line.startswith("data:")]
    if not starts:
        raise UsageError("the recipe has no line `data:` to replace", hint="Copy it without --data and edit the copy.")
    first = starts[0]
    end = first + 1
    while end < len(lines) and lines[end][:1] in (" ", "\t"):
        end += 1
    words = [f"name: {json.dumps(node.name) if ':' in node.name else node.name}"]
    words += [f"{key}: {json.dumps(value)}" for key, value in node.parameters.items()]
    return "".join([*lines[:first], f"data: {{{', '.join(words)}}}\n", *lines[end:]])
