"""Loading a recipe by path or short name: finding, reading, overriding and checking it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gebm_kit.config.check import check
from gebm_kit.config.schema import Parts, Recipe
from gebm_kit.config.tree import MAX_BYTES, Tree, parse
from gebm_kit.core.errors import RecipeError, UsageError, nearest, shown
from gebm_kit.core.paths import user_path
from gebm_kit.core.reading import read_file


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the kit: short name to file."""
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.rglob("*.yaml"))}
    return {}


def find_recipe(source: str | Path) -> Path:
    """Return the file that ``source`` names: a path, or the short name of a shipped recipe.

    Raises:
        UsageError: there is no such file and no such recipe.
    """
    path = user_path(source)
    if os.path.isfile(path):
        return path
    shipped = shipped_recipes()
    if str(source) in shipped:  # even if a folder has that name: data often lie in a folder named like their recipe
        return shipped[str(source)]
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory, not a recipe file")
    if os.path.lexists(path):  # a named pipe, a device, a broken link: the reader says which
        return path
    raise UsageError(
        f"there is no recipe {shown(str(source))}: no file of that path, and no shipped recipe of that name; "
        f"{nearest(path.stem, shipped)}",
        hint="`gebm-kit recipes ls` lists the shipped ones.",
    )


def load_recipe(
    source: str | Path, overrides: Sequence[str] = (), *, directory: Path | None = None, parts: Parts | None = None
) -> Recipe:
    """Read, override, resolve and check a recipe.

    Args:
        source: a path, or the short name of a shipped recipe.
        overrides: words ``key=value``.
        directory: start of relative paths; None: the current directory.
        parts: objects for the recipe's nodes of Python objects, as for `check`.

    Raises:
        UsageError: the file can't be found or read, or names Python objects.
        RecipeError: the recipe has problems; the message lists all of them.
        PluginError: the recipe needs a plugin that is missing or broken.
    """
    if isinstance(overrides, str):
        raise UsageError(f"overrides are a list of words, for example [{overrides!r}], not one text")
    return check(read_tree(source, overrides), directory=directory or Path.cwd(), parts=parts)


def read_tree(source: str | Path, overrides: Sequence[str] = ()) -> Tree:
    """Read a recipe file and apply overrides and interpolation, without checking the values."""
    path = find_recipe(source)
    return parse(read_recipe(path), name=path.stem, path=path, overrides=overrides)


def read_recipe(path: Path) -> str:
    """Return the text of a recipe file.

    Raises:
        UsageError: the file can't be read, is not a regular file, or is larger than any recipe.
        RecipeError: it is not UTF-8 text.
    """
    raw = read_file(path, limit=MAX_BYTES, error=UsageError)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not a text file in UTF-8: {error.reason}") from error
