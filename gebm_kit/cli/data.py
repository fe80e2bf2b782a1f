"""``gebm-kit data``: decoding images once, so that training never waits for them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    MOST_THREADS,
    Debug,
    Json,
    OverrideWords,
    Quiet,
    RecipeWord,
    TrustPaths,
    set_trust,
    split_words,
)
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress_lines import duration

app = typer.Typer(help="Prepare a recipe's images.")


@app.callback()
def data() -> None:
    """Prepare a recipe's images."""


@app.command("prepare")
def prepare(
    recipe_word: RecipeWord,
    override_words: OverrideWords = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check images that are already prepared against their checksums.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Prepare them again even if they are up to date.")] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=MOST_THREADS, metavar="N", help="Decoding threads; default: one per CPU."),
    ] = None,
    trust_paths: TrustPaths = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Decode all images of a RECIPE once, into a cache of bytes that training maps into memory.

    Training on the same data uses the cache automatically. Nothing happens if it exists and the files have not changed.
    """
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(False, trust_paths)
    given = split_words([recipe_word, *(override_words or ())], "RECIPE")
    if given.target is None:
        raise UsageError("no RECIPE given, only overrides")
    from gebm_kit.config.load import load_recipe

    recipe = load_recipe(given.target, given.overrides)
    from gebm_kit.engine.datasets.prepare import prepare as engine_prepare

    with say.progress() as on_progress:
        prepared = engine_prepare(recipe, threads=threads, force=force, check=verify, on_progress=on_progress)
    index = prepared.index
    payload = {
        "recipe": recipe.name,
        "path": str(prepared.path),
        "made": prepared.made,
        "verified": verify and not prepared.made,
        "shape": index["shape"],
        "counts": index["counts"],
        "num_classes": index["num_classes"],
        **({"class_names": index["class_names"]} if index.get("class_names") else {}),
        "bytes": sum(facts["bytes"] for facts in index["files"].values()),
        "checksum": index["checksum"],
        "skipped": index["skipped"],
    }
    say.result(payload, lambda: _show(payload, float(index["seconds"])))


def _show(payload: dict[str, Any], seconds: float) -> None:
    counts = ", ".join(f"{count:,} {part}" for part, count in payload["counts"].items())
    state = f"prepared in {duration(seconds)}" if payload["made"] else "up to date"
    state += ", checksums hold" if payload["verified"] else ""
    labels = f", {payload['num_classes']} classes" if payload["num_classes"] else ""
    ui.text(f"recipe    {payload['recipe']}: {state}")
    ui.text(f"images    {counts}; {'x'.join(map(str, payload['shape']))}{labels}")
    ui.text(f"size      {payload['bytes'] / 2**20:,.1f} MiB")
    ui.text(f"checksum  sha256 {payload['checksum']}")
    for entry in payload["skipped"]:
        ui.text(f"skipped   {entry['image']}: {entry['reason']}")
    ui.text(f"path      {payload['path']}")
