"""``gebm-kit tilt``: draw from a generator tilted by a scorer, without training."""

from __future__ import annotations

import datetime
import json as jsonlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import Debug, Device, Json, Quiet, Threads, TrustPaths, TrustProgram, place, set_trust
from gebm_kit.cli.refine import LatentShape
from gebm_kit.cli.run_options import set_up_cpu
from gebm_kit.core.class_names import labels_of_word
from gebm_kit.core.errors import UsageError
from gebm_kit.core.paths import user_path
from gebm_kit.core.progress_lines import duration
from gebm_kit.engine.run_directory.run_files import is_run

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.tilting.result import Tilt

TILTS = Path("tilts")
"""Folder of results for which no place is given."""

SECTIONS = ("base", "energy", "data", "sampler", "sample", "eval")
"""Sections of a recipe whose keys can be set."""


Generator = Annotated[
    str,
    typer.Argument(
        metavar="GENERATOR",
        help="A run, a .safetensors file of weights, or a program (TorchScript, torch.export); - with base={name: ...}.",
    ),
]


Scorer = Annotated[
    str,
    typer.Argument(
        metavar="SCORER",
        help="A program that returns a score for each row, a run, or an energy's name such as classifier.",
    ),
]


MoreWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DATA] [KEY=VALUE ...]",
        help="A dataset's name, a folder of images or a file of arrays, for PRDC and for energies that learn from data; "
        "then values such as energy.target=7 or sample.num_samples=500.",
    ),
]


Betas = Annotated[
    str, typer.Option("--beta", metavar="LIST", help="Inverse temperatures, each above 0, separated by commas.")
]


ValueRange = Annotated[
    str | None,
    typer.Option(
        "--range", metavar="LOW,HIGH", help="Range of the generator's values, such as -1,1; default: the data's."
    ),
]


Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", parser=place("--out"), help="A new directory; default: one under tilts/."),
]


KeepEnergy = Annotated[
    bool,
    typer.Option(
        "--keep-energy",
        help="Of a run that is the GENERATOR, keep the trained energy at its weight: beta acts on the scorer alone.",
    ),
]


OneClass = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="CLASS",
        help="Class at which a generator with classes and a scorer with classes are held, by number or by the run's name.",
    ),
]


DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, measure memory and seconds of a gradient, and write nothing."),
]


def tilt(
    generator: Generator,
    scorer: Scorer,
    words: MoreWords = None,
    beta: Betas = "0.5,1,2,4",
    latent: LatentShape = None,
    value_range: ValueRange = None,
    keep_energy: KeepEnergy = False,
    class_word: OneClass = None,
    out: Out = None,
    dry_run: DryRun = False,
    trust_program: TrustProgram = False,
    trust_paths: TrustPaths = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw from GENERATOR tilted by SCORER, prior(z) exp(beta score(G(z))), without training.

    Each beta's draws come with R-hat, log Z, mean score, KL and diversity, beside best-of-N and gradient ascent.
    """
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(trust_program, trust_paths)
    betas = _numbers("--beta", beta)
    span = None if value_range is None else _range(value_range)
    given, node_words, data = _split(generator, scorer, words or [])
    folder = out or _new_folder(generator, scorer)
    set_up_cpu(threads)
    from gebm_kit.engine.process.torchrun import first_rank
    from gebm_kit.engine.tilt import plan_tilt, tilt as engine_tilt

    recipe = _recipe(node_words)
    options = _options(recipe, node_words) | {
        "data": _data(recipe, data, node_words),
        "device": device,
        "value_range": span,
        "keep_energy": keep_energy,
        "label": None if class_word is None else _label(class_word, generator if given["generator"] else None),
    }
    subjects: list[Any] = [
        generator if given["generator"] else recipe.base,
        scorer if given["scorer"] else recipe.energy,
    ]
    if latent is not None:
        options["latent_shape"] = _shape(latent)
    if dry_run:
        planned = plan_tilt(*subjects, **options)
        if first_rank():
            say.result(planned, lambda: _show_plan(planned))
        return
    with say.progress() as on_progress:
        found = engine_tilt(*subjects, betas=betas, out=folder, on_progress=on_progress, **options)
    if not first_rank():
        return
    say.result(found.as_dict(), lambda: _show(found))


# --- words -----------------------------------------------------------------------------------------------------------


def _split(generator: str, scorer: str, words: Sequence[str]) -> tuple[dict[str, bool], list[str], str | None]:
    """Return which of the two are runs (not nodes of a recipe), the words of the recipe, and DATA.

    Raises:
        UsageError: there are two words without ``=``; a word sets a section that plays no part here.
    """
    plain = [word for word in words if "=" not in word]
    if len(plain) > 1:
        raise UsageError(f"expected one DATA, got {len(plain)}: {', '.join(plain)}")
    overrides = [word for word in words if "=" in word]
    for word in overrides:
        section = word.partition("=")[0].partition(".")[0].strip()
        if section not in SECTIONS:
            raise UsageError(f"`gebm-kit tilt` can't set {section!r}; it can set {', '.join(SECTIONS)}")
    runs = {"generator": _is_run(generator), "scorer": _is_run(scorer)}
    nodes = []
    if generator != "-" and not runs["generator"]:
        nodes.append(f"base={{name: pretrained, path: {jsonlib.dumps(generator)}}}")
    if not runs["scorer"]:
        nodes += _scorer_words(scorer, overrides)
    for name, key in (("generator", "base"), ("scorer", "energy")):
        own = next((word for word in overrides if re.match(rf"\s*{key}\s*[.=]", word)), None)
        if runs[name] and own is not None:
            raise UsageError(f"{own!r} has no meaning: the {name} is that of a run")
    return runs, [*nodes, *overrides], plain[0] if plain else None


def _is_run(word: str) -> bool:
    return is_run(user_path(word))


def _scorer_words(scorer: str, overrides: Sequence[str]) -> list[str]:
    """Return the word that sets the energy; keys of the energy that the user sets belong to it."""
    if scorer == "-":
        return []
    path = user_path(scorer)
    if os.path.lexists(path) or path.suffix or os.sep in scorer:
        return [f"energy={{name: pretrained, path: {jsonlib.dumps(scorer)}}}"]
    return [f"energy={{name: {jsonlib.dumps(scorer)}}}"]


RECIPE = """\
schema: 1
data: {name: digits}
base: {name: mlp, latent_dim: 1}
energy: {name: mlp}
sample: {num_samples: 1000}
"""
"""What the words are checked as. Parts that no word sets are not used."""


def _recipe(words: Sequence[str]) -> Recipe:
    from gebm_kit.config.check import check
    from gebm_kit.config.tree import parse

    return check(parse(RECIPE, name="tilt", path=None, overrides=list(words)), directory=Path.cwd())


def _options(recipe: Recipe, words: Sequence[str]) -> dict[str, Any]:
    """Return the options of `gebm_kit.tilt` that the words set."""
    keys = {word.partition("=")[0].strip() for word in words}
    sample = recipe.sample
    found: dict[str, Any] = {"num_samples": sample.num_samples, "seed": sample.seed, "sampler": recipe.sampler}
    for name in ("num_chains", "warmup", "steps", "thin"):
        if f"sample.{name}" in keys or "sample" in keys:
            found[name] = getattr(sample, name)
    if "sample.inverse_temperature" in keys:
        raise UsageError("sample.inverse_temperature has no meaning here: --beta lists them")
    if "eval.log_partition" in keys:
        found["log_partition"] = recipe.eval.log_partition
    return found


def _data(recipe: Recipe, data: str | None, words: Sequence[str]) -> Any:
    if data is not None:
        return data
    sets_data = any(word.partition("=")[0].partition(".")[0].strip() == "data" for word in words)
    return recipe.data if sets_data else None


def _label(word: str, run: str | None) -> int:
    """Read the word of --class, with the names of the run's classes.

    Raises:
        UsageError: it is not one class.
    """
    from gebm_kit.engine.run_directory.run import load_run

    found = labels_of_word(word, None if run is None else load_run(run).model.class_names)
    if isinstance(found, str) or len(found) != 1:
        raise UsageError(f"--class is {word!r}; allowed: one class, such as 7", hint="A tilt serves one law at a time.")
    return found[0]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} is a list of numbers such as 0.5,1,2, got {text!r}") from None


def _range(text: str) -> tuple[float, float]:
    values = _numbers("--range", text)
    if len(values) != 2 or not values[0] < values[1]:
        raise UsageError(f"--range is LOW,HIGH with LOW < HIGH, such as --range=-1,1, got {text!r}")
    return values[0], values[1]


def _shape(text: str) -> list[int]:
    sizes = text.replace(",", "x").split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"--latent is a shape such as 100 or 100x1x1, got {text!r}")
    return [int(size) for size in sizes]


def _new_folder(generator: str, scorer: str) -> Path:
    """Return a folder under tilts/, named after generator, scorer and the time."""
    names = [re.sub(r"[^\w.-]", "_", Path(word).stem) or "tilt" for word in (generator, scorer)]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return TILTS / f"{names[0]}-{names[1]}-{now}"


# --- the result ------------------------------------------------------------------------------------------------------


def _show_plan(planned: Mapping[str, Any]) -> None:
    from gebm_kit.cli.train import gradient_line

    ui.text(f"device      {planned['device']}")
    ui.text(f"codes       {planned['latent_dim']:,} numbers, data of shape {tuple(planned['data_shape'])}")
    ui.text(f"memory      {planned['gradient']['weights_bytes'] / 2**20:,.1f} MiB of weights")
    ui.text(f"gradient    {gradient_line(planned['gradient'])}")
    scoring = planned["num_base"] * planned["gradient"]["forward_seconds"]
    ui.text(f"time        {duration(scoring)} at most to score {planned['num_base']:,} base draws, before the chains")


def _show(found: Tilt) -> None:
    payload = found.as_dict()
    headings = ["", "KL (nats)", "mean score", "log Z", "R-hat", "ESS", "diversity", "evaluations a draw", "sampler"]
    base = payload["base"]
    rows = [["generator", "0", _pm(base["score"]), "0", "", "", _pm(base["diversity"]), "1", ""]]
    for level in payload["levels"]:
        rows.append(
            [
                f"beta {level['beta']:g}",
                _pm(level["kl"]),
                _pm(level["score"]),
                _pm(level["log_partition"]),
                ui.number(level["rhat_max"] if level["nested_rhat_max"] is None else level["nested_rhat_max"]),
                ui.number(level["ess_min"]),
                _pm(level["diversity"]),
                ui.number(level["evaluations"]),
                str(level["sampler"]),
            ]
        )
    for best in payload["best_of"][1:]:
        row = [f"best of {best['n']}", ui.number(best["kl"]), _pm(best["score"]), "", "", "", _pm(best["diversity"])]
        rows.append([*row, str(best["n"]), ""])
    for climb in payload["ascent"][-1:]:
        row = [
            f"ascent, {climb['steps']} step{'' if climb['steps'] == 1 else 's'}",
            f">= {ui.number(climb['kl_at_least'])}",
            _pm(climb["score"]),
            "",
            "",
            "",
        ]
        rows.append([*row, _pm(climb["diversity"]), ui.number(climb["evaluations"]), ""])
    ui.table("", headings, rows)
    ui.text(f"[value ± standard error; diversity: mean distance on features {found.features}]")
    _show_prdc(payload["levels"])
    if found.not_finite:
        ui.text(f"the score is not finite at {found.not_finite:,} of {found.num_base:,} base draws")
    for figure in payload["figures"]:
        ui.text(f"figure: {figure}")
    if found.out is not None:
        ui.text(f"tilt: {found.out}")


def _show_prdc(levels: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for level in levels for name in level["prdc"]))
    if names:
        rows = [[f"beta {v['beta']:g}", *(ui.number(v["prdc"].get(name)) for name in names)] for v in levels]
        ui.table("", ["", *names], rows)


def _pm(value: Mapping[str, Any]) -> str:
    return f"{ui.number(value['value'])} ± {ui.number(value['se'])}"
