"""``gebm-kit recipes schema``: a JSON Schema of recipes, by which an editor completes and checks them."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import Debug, Json, Quiet, place

SCHEMA_FILE = "recipe.schema.json"
"""Name of the schema in the cache, which copied recipes name to editors."""

MODELINE = "# yaml-language-server:"
"""Beginning of the comment that names the schema to an editor."""


def schema(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", parser=place("--out"), help="Write the schema there; an older one is replaced."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print a JSON Schema (draft 2020-12) of recipes with all installed components, for editors."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    found = current_schema()
    if out is None:
        say.result(found, lambda: ui.text(jsonlib.dumps(found, indent=2)))
        return
    write_schema(out, found)
    say.result({"path": str(out)}, lambda: ui.text(str(out)))


def current_schema() -> dict[str, Any]:
    """Return the schema with the components that are installed now."""
    from gebm_kit.config.json_schema import json_schema
    from gebm_kit.core.plugins import installed

    return json_schema(installed().registry)


def write_schema(path: Path, found: dict[str, Any]) -> None:
    """Write a schema, whole or not at all."""
    from gebm_kit.core.files import write_atomic

    write_atomic(path, (jsonlib.dumps(found, indent=1) + "\n").encode())


def write_for_editors(recipe: Path, chosen: Path | None) -> str:
    """Write the schema for the editor of a recipe, and return how the recipe names it.

    Args:
        recipe: where the recipe will be.
        chosen: where the schema goes, named by its path from there; None: to the cache.
    """
    from gebm_kit.core.cache import cache_directory
    from gebm_kit.core.files import make_directory

    path = cache_directory() / SCHEMA_FILE if chosen is None else chosen
    make_directory(path.parent)
    write_schema(path, current_schema())
    if chosen is None:
        return path.resolve().as_uri()
    return quote(Path(os.path.relpath(path, recipe.parent)).as_posix())


def with_header(content: str, schema_name: str) -> str:
    """Return a recipe's text whose first line names the schema to editors, instead of any line that did so before."""
    kept = [line for line in content.splitlines(keepends=True) if not line.startswith(MODELINE)]
    return f"{MODELINE} $schema={schema_name}\n{''.join(kept)}"
