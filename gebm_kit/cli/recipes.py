"""``gebm-kit recipes``: list, show and copy the recipes that come with the kit, and check any recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import Debug, Json, OverrideWords, Quiet, RecipeWord, place, split_words
from gebm_kit.cli.recipe_schema import MODELINE, schema, with_header, write_for_editors
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress import warn

app = typer.Typer(help="List, show, copy and check recipes.")
app.command("schema")(schema)


@app.command("ls")
def ls(json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the recipes that come with the kit."""
    from gebm_kit.config.load import shipped_recipes

    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    found = [
        {"name": name, "summary": summary(path.read_text(encoding="utf-8")), "path": str(path)}
        for name, path in shipped_recipes().items()
    ]
    say.result(
        {"recipes": found}, lambda: ui.table("", ["name", "summary"], [[r["name"], r["summary"]] for r in found])
    )


@app.command("show")
def show(name: RecipeWord, json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Print a recipe."""
    from gebm_kit.config.load import find_recipe, read_recipe

    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    path = find_recipe(name)
    content = read_recipe(path)
    say.result({"name": path.stem, "path": str(path), "text": content}, lambda: ui.text(content.rstrip("\n")))


@app.command("cp")
def cp(
    name: RecipeWord,
    destination: Annotated[
        Path, typer.Argument(metavar="FILE", parser=place("FILE"), help="The target, a directory or a file name.")
    ] = Path(),
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Your data: a folder of images, an idx folder, a file of arrays, a dataset."),
    ] = None,
    schema_file: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            parser=place("--schema"),
            help="Where the schema for your editor goes; default: the cache. An older one is replaced.",
        ),
    ] = None,
    no_schema: Annotated[bool, typer.Option("--no-schema", help="Copy the recipe without a line for editors.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy a recipe so that you can change it, for other data if you like. An existing file is never overwritten.

    The copy begins with a line by which an editor completes and checks it.
    """
    from gebm_kit.config.load import find_recipe, read_recipe

    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    source = find_recipe(name)
    target = destination / source.name if destination.is_dir() else destination
    content, reading = read_recipe(source), None
    if data is not None:
        from gebm_kit.engine.datasets.retarget import retarget

        content, reading = retarget(content, data)
    if no_schema and schema_file is not None:
        raise UsageError("--schema and --no-schema exclude each other")
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already", hint="Name another file, or remove that one first.")
    if not target.parent.is_dir():
        raise UsageError(f"{target} can't be written: {target.parent} is not a directory", hint="Choose another place.")
    if not no_schema:
        content = _for_editors(content, target, schema_file)
    _write_new(target, content)
    payload = {"name": source.stem, "path": str(target)} | ({} if reading is None else {"reading": reading})
    say.result(payload, lambda: ui.text("\n".join([str(target), *([reading] if reading else [])])))


def _for_editors(content: str, target: Path, schema_file: Path | None) -> str:
    """Write the schema, and return the recipe with the line that names it; without one if the cache can't be written."""
    try:
        return with_header(content, write_for_editors(target, schema_file))
    except UsageError as error:
        if schema_file is not None:
            raise
        warn(f"the copy has no line for your editor: {error.message}")
        return content


def _write_new(target: Path, content: str) -> None:
    """Write a file that must not exist yet."""
    opened = False
    try:
        with open(target, "x", encoding="utf-8") as stream:
            opened = True
            stream.write(content)
    except FileExistsError as error:
        raise UsageError(f"{target} exists already", hint="Name another file, or remove that one first.") from error
    except OSError as error:
        from gebm_kit.core.files import write_error

        if opened:
            target.unlink(missing_ok=True)
        raise write_error(target, error) from error


@app.command("check")
def check(
    recipe_word: RecipeWord,
    override_words: OverrideWords = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check a recipe without building anything; all problems are reported at once."""
    from gebm_kit.config.load import load_recipe

    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    given = split_words([recipe_word, *(override_words or ())], "RECIPE")
    if given.target is None:
        raise UsageError("no RECIPE given, only overrides")
    recipe = load_recipe(given.target, given.overrides)
    payload = {"name": recipe.name, "path": str(recipe.path), "ok": True}
    say.result(payload, lambda: ui.text(f"{recipe.path}: no problems"))


def summary(content: str) -> str:
    """Return the recipe's first comment line."""
    for line in content.splitlines():
        if line.startswith("#") and line.strip("# ") and not line.startswith(MODELINE):
            return line.strip("# ").strip()
        if line.strip() and not line.startswith("#"):
            break
    return ""
