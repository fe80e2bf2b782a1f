"""``gebm-kit recipes``: list, show and copy the recipes that come with the kit, and check any recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import Debug, Json, OverrideWords, Quiet, RecipeWord, place, split_words
from gebm_kit.cli.recipe_schema import MODELINE, SCHEMA_FILE, current_schema, schema, with_header, write_schema
from gebm_kit.core.errors import UsageError

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
    header: Annotated[
        bool,
        typer.Option(
            "--schema/--no-schema",
            help=f"Begin the copy with a line for editors, and write the schema it names, {SCHEMA_FILE}, beside it.",
        ),
    ] = True,
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
    _write_new(target, with_header(content) if header else content, header)
    if header:
        say.note(f"{target.parent / SCHEMA_FILE} is for your editor; --no-schema leaves it out")
    payload = {"name": source.stem, "path": str(target)} | ({} if reading is None else {"reading": reading})
    say.result(payload, lambda: ui.text("\n".join([str(target), *([reading] if reading else [])])))


def _write_new(target: Path, content: str, schema_too: bool) -> None:
    """Write a file that must not exist yet, and the schema beside it; when one fails, there is neither."""
    from gebm_kit.core.files import make_directory, remove_tree, write_error

    if os.path.lexists(target):
        raise UsageError(f"{target} exists already", hint="Name another file, or remove that one first.")
    found = current_schema() if schema_too else None
    folder = (target.parent / SCHEMA_FILE).parent
    opened, new_folder = False, not folder.exists()
    try:
        with open(target, "x", encoding="utf-8") as stream:
            opened = True
            stream.write(content)
        if found is not None:
            make_directory(folder)
            write_schema(target.parent / SCHEMA_FILE, found)
    except FileExistsError as error:
        raise UsageError(f"{target} exists already", hint="Name another file, or remove that one first.") from error
    except BaseException as error:
        if opened:
            target.unlink(missing_ok=True)
            if new_folder:
                remove_tree(folder)
        if isinstance(error, OSError):
            raise write_error(target, error) from error
        raise


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
