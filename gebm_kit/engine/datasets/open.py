"""Opening a recipe's dataset, or the images prepared from it."""

from __future__ import annotations

import shlex
from typing import cast

import torch

from gebm_kit.config.build import build_dataset, how_to_label
from gebm_kit.config.class_keys import name_classes
from gebm_kit.config.load import shipped_recipes
from gebm_kit.config.schema import Recipe
from gebm_kit.config.supplied import SuppliedNode
from gebm_kit.core.interfaces import Dataset, HasReading, HasStoredRows
from gebm_kit.core.progress import note, warn
from gebm_kit.core.sources import HasSources
from gebm_kit.engine.datasets.batches import RESIDENT_BYTES
from gebm_kit.engine.datasets.prepared_cache import PreparedDataset, find_prepared


def open_dataset(recipe: Recipe) -> Dataset:
    """Open the recipe's dataset: the prepared one if there is one, otherwise the files. A note says what was read.

    Raises:
        DataError: its files are missing or malformed, and nothing is prepared.
    """
    dataset = _opened(recipe)
    if not isinstance(recipe.data, SuppliedNode):  # whoever supplied the rows has said what was done to them
        say_reading(dataset)
    return dataset


def say_reading(dataset: Dataset) -> None:
    """Note what a dataset read, if it says so."""
    if isinstance(dataset, HasReading):
        note(f"data: {_on_one_line(dataset.describe_reading())}")


def _opened(recipe: Recipe) -> Dataset:
    if isinstance(recipe.data, SuppliedNode):
        return cast(Dataset, build_dataset(recipe))
    found = find_prepared(recipe)
    command = prepare_command(recipe)
    if found.index is not None:
        if found.gone:
            warn(f"the files that {found.folder} was prepared from are gone; the prepared data are used instead")
        if skipped := found.index["skipped"]:
            names = ", ".join(entry["image"] for entry in skipped[:3])
            warn(
                f"{len(skipped)} image(s) that can't be decoded were skipped when the data were prepared: "
                f"{names}{' ...' if len(skipped) > 3 else ''}"
            )
        prepared = PreparedDataset(found.folder, found.index)
        name_classes(prepared, recipe.class_names, how_to_label(recipe))
        return prepared
    if found.problem:
        warn(f"the prepared data in {found.folder} are not used: {found.problem}. `{command}` prepares them again")
    dataset: Dataset = build_dataset(recipe)
    if not found.problem and isinstance(dataset, HasSources) and _is_large(dataset):
        warn(f"images are read from their files during training, which may slow it down; `{command}` decodes them once")
    return dataset


def _on_one_line(text: str) -> str:
    """Return ``text`` without line breaks, and with names from files stripped of what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def prepare_command(recipe: Recipe) -> str:
    """Return the shell command that prepares the recipe's data."""
    words = [word for word in recipe.overrides if word.partition("=")[0].partition(".")[0].strip() == "data"]
    shipped = recipe.path is None or shipped_recipes().get(recipe.name) == recipe.path
    return shlex.join(["gebm-kit", "data", "prepare", recipe.name if shipped else str(recipe.path), *words])


def _is_large(dataset: Dataset) -> bool:
    split = dataset.split("train")
    return isinstance(split, HasStoredRows) and split.stored(torch.arange(1)).numel() * len(split) > RESIDENT_BYTES
