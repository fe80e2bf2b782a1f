"""The page about a tilt: a generator whose draws a scorer re-weighted, as ``gebm-kit tilt`` wrote it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gebm_kit.core.errors import CheckpointError, GebmKitError
from gebm_kit.core.reading import read_file, read_json_file
from gebm_kit.core.version import __version__
from gebm_kit.engine.reporting.images import picture_of
from gebm_kit.engine.reporting.page import FOOT, Block, Code, Facts, Figure, Missing, Page, Section, Table, Text
from gebm_kit.engine.reporting.words import interval, listed, number, plain

FILE = "tilt.json"
"""Name of the file that a tilt's directory holds."""

LARGEST, LARGEST_PICTURE = 2**24, 2**22
"""Largest file of results, and largest picture, in bytes."""

CHECKS = {
    "sampler": "sampler", "nested_rhat_max": "nested R-hat", "rhat_max": "R-hat", "ess_min": "effective sample size",
    "acceptance": "acceptance", "divergences": "divergent steps",
}  # fmt: skip
"""Diagnostics of a level, and what they are called."""

WANTED = "Wanted: nested R-hat at most 1.05, an effective sample size of 100 or more, and no divergent step."

PICTURES = {
    "grid.png": "Draws of the generator, and of the tilted generator at each beta",
    "frontier.png": "Score against KL from the generator: the posterior, best of N, and gradient ascent",
}
"""Pictures in a tilt's directory, and what they show."""


def is_tilt(path: Path) -> bool:
    """Return whether a directory is a tilt's."""
    return (path / FILE).is_file()


def tilt_page(path: Path) -> Page:
    """Return the page about a tilt.

    Raises:
        CheckpointError: its results can't be read.
    """
    found = read_json_file(path / FILE, limit=LARGEST, error=CheckpointError)
    levels = found.get("levels") if isinstance(found, dict) else None
    if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
        raise CheckpointError(f"{path / FILE} is damaged: it lists no levels")
    problems = [f"at beta {number(v.get('beta'))}: {plain(text, 600)}" for v in levels for text in _problems(v)]
    trusted = (
        Text(" ".join(problems), "bad", "Not as they are")
        if problems
        else Text("The chains have converged.", "good", "Yes")
    )
    return Page(
        title=f"Report of a tilt: {plain(path.name, 80)}",
        subtitle=f"{plain(path)} · a generator tilted by a scorer, without training",
        answers=[("How far does the score rise?", _rise(found, levels)), ("Can the draws be trusted?", trusted)],
        sections=[_scores(found, levels), _pictures(path), _parts(found), _again(found, path)],
        foot=FOOT.format(version=__version__),
    )


def _problems(level: Mapping[str, Any]) -> list[Any]:
    """Return the problems of a level's chains, as sentences."""
    diagnostics = level.get("diagnostics")
    found = diagnostics if isinstance(diagnostics, Mapping) else level
    problems = found.get("problems")
    return problems if isinstance(problems, list) else []


def _rise(found: Mapping[str, Any], levels: list[dict[str, Any]]) -> Text:
    base = found.get("base")
    first = interval(base.get("score")) if isinstance(base, Mapping) else ""
    words = [
        f"{interval(v.get('score'))} at beta {number(v.get('beta'))} (KL {interval(v.get('kl'))} nats)" for v in levels
    ]
    return Text(f"From {first} of the generator to {listed(words)}.")


def _scores(found: Mapping[str, Any], levels: list[dict[str, Any]]) -> Section:
    base = found.get("base") if isinstance(found.get("base"), Mapping) else {}
    rows = [_row("the generator", base or {})]
    rows += [_row(f"beta {number(level.get('beta'))}", level) for level in levels]
    rows += [_row(f"best of {number(one.get('n'))}", one) for one in _dicts(found.get("best_of"))]
    rows += [_row(f"gradient ascent, {number(one.get('steps'))} steps", one) for one in _dicts(found.get("ascent"))]
    headers = ["draws", "score", "KL (nats)", "log Z", "diversity", "evaluations a draw"]
    note = (
        "95 % intervals in brackets. At the same KL a higher score is better; gradient ascent has no law, so its KL is a "
        "bound."
    )
    lead = "A larger beta gives more weight to the score, and takes draws further from the generator."
    checks = [
        [f"beta {number(level.get('beta'))}", *(plain(number(level.get(name))) for name in CHECKS)] for level in levels
    ]
    blocks = [Table("Score, KL and diversity", headers, rows, note)]
    blocks.append(Table("Chains of each beta", ["draws", *CHECKS.values()], checks, WANTED))
    return Section("scores", "Scores, and what they cost", lead, blocks)


def _row(name: str, values: Mapping[str, Any]) -> list[str | Text]:
    kl = values.get("kl", values.get("kl_at_least"))
    cells = [values.get("score"), kl, values.get("log_partition"), values.get("diversity"), values.get("evaluations")]
    return [name, *(interval(cell) if isinstance(cell, Mapping) else number(cell) for cell in cells)]


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _pictures(path: Path) -> Section:
    blocks: list[Block] = []
    for name, words in PICTURES.items():
        try:
            png = read_file(path / name, limit=LARGEST_PICTURE, error=CheckpointError)
        except GebmKitError:
            continue
        if png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) > 24:
            picture = picture_of(png, f"{words}. The table above has the numbers.")
            blocks.append(Figure(picture, f"{words}.", wide=name == "grid.png"))
    return Section("pictures", "Draws and the frontier", "", blocks or [Missing("The directory holds no pictures.")])


def _parts(found: Mapping[str, Any]) -> Section:
    pairs = []
    for part in ("generator", "scorer"):
        node = found.get(part)
        if isinstance(node, Mapping):
            pairs += [(f"{part}: {plain(key, 60)}", plain(value)) for key, value in node.items()]
    rest = {
        "features": "features",
        "num_base": "base draws",
        "not_finite": "draws without a finite score",
        "seed": "seed",
    }
    pairs += [(label, plain(number(found[name]))) for name, label in rest.items() if found.get(name) is not None]
    return Section("parts", "Generator and scorer", "", [Facts(pairs)])


def _again(found: Mapping[str, Any], path: Path) -> Section:
    words = []
    for part in ("generator", "scorer"):
        node = found.get(part)
        named = node.get("path") or node.get("name") if isinstance(node, Mapping) else None
        words.append(shlex.quote(str(named)) if named else part.upper())
    betas = ",".join(number(level.get("beta")) for level in found["levels"])
    command = f"gebm-kit tilt {' '.join(words)} --beta {betas} --out {shlex.quote(path.name + '-again')}"
    lead = "The options that were given besides are not kept with a tilt; those of the draws are in the files of draws."
    return Section("again", "How to make it again", lead, [Code("Tilt again", command.replace("\n", " "))])
