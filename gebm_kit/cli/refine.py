"""``gebm-kit refine``: train an energy on top of a generator that was trained elsewhere, and measure the gain."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    Debug,
    Device,
    DryRun,
    Json,
    Quiet,
    ResumeRun,
    RunDirectory,
    Threads,
    TrustPaths,
    TrustProgram,
    set_trust,
    split_words,
)
from gebm_kit.cli.run_options import set_up_cpu
from gebm_kit.core.errors import GebmKitError, Interrupted, UsageError
from gebm_kit.core.progress_lines import duration

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.run_directory.run import Run


Generator = Annotated[
    str,
    typer.Argument(
        metavar="GENERATOR", help="A .safetensors file of weights, or a program (TorchScript, torch.export)."
    ),
]


DataWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA [KEY=VALUE ...]",
        help="A dataset's name, a folder of images or in MNIST's format, or a file of arrays; then values that replace "
        "those of the recipe `refine`.",
    ),
]


LatentShape = Annotated[
    str | None,
    typer.Option(
        "--latent",
        metavar="SHAPE",
        help="Shape of one latent code of a program: 100, or 100x1x1. torch.export programs state it.",
    ),
]


def refine(
    generator: Generator,
    words: DataWords = None,
    latent: LatentShape = None,
    out: RunDirectory = None,
    resume: ResumeRun = False,
    dry_run: DryRun = False,
    trust_program: TrustProgram = False,
    trust_paths: TrustPaths = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an energy on top of your own GENERATOR, and compare its draws before and after.

    The generator is not changed. The recipe is the shipped `refine`.
    """
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(trust_program, trust_paths)
    recipe = _recipe(generator, words, latent)
    set_up_cpu(threads)
    from gebm_kit.cli.train import show_plan, train_payload
    from gebm_kit.engine.process.torchrun import first_rank
    from gebm_kit.engine.refine import refine as engine_refine, refined
    from gebm_kit.engine.train import train as engine_train
    from gebm_kit.engine.training.dry_run import plan

    if dry_run:
        with _in_own_words(words or []):
            planned = plan(recipe, device=device)
        if first_rank():
            say.result(planned, lambda: show_plan(planned))
        return
    try:
        with say.progress() as on_progress, _in_own_words(words or []):
            run = engine_train(recipe, out=out, resume=resume, device=device, on_progress=on_progress)
            if not first_rank():
                return
            found = refined(run) or engine_refine(run, device=device or recipe.device, on_progress=on_progress)
    except Interrupted as stopped:
        stopped.hint = f"Resume with `{_resuming(generator, words or [], latent, out, device)}`."
        raise
    payload = {**train_payload(run), "refined": found}
    say.result(payload, lambda: _show(run, found, payload["figures"]))


def _recipe(generator: str, words: Sequence[str] | None, latent: str | None) -> Recipe:
    given = split_words(words, "DATA")
    if given.target is None and not any(word.startswith("data") for word in given.overrides):
        raise UsageError(
            "no DATA given", hint="For example `gebm-kit refine generator.pt photos/ --latent 100 --trust-program`."
        )
    from gebm_kit.config.load import load_recipe
    from gebm_kit.engine.refine import RECIPE, recipe_words

    return load_recipe(RECIPE, [*recipe_words(generator, given.target, latent), *given.overrides])


OWN_WORDS = {"base.latent_shape": "--latent", "base.path": "GENERATOR", "data.path": "DATA"}
"""Keys of the recipe that words of this command set."""


@contextlib.contextmanager
def _in_own_words(words: Sequence[str]) -> Iterator[None]:
    """Name this command's words in errors, in place of the keys that they set, unless ``words`` set a key themselves."""
    try:
        yield
    except GebmKitError as error:
        message, hint = error.message, error.hint
        given = {
            key: own for key, own in OWN_WORDS.items() if not any(w.startswith((f"{key}=", "base=")) for w in words)
        }
        if "base.latent_shape" in given and "base.latent_shape" in message + hint:
            message = re.sub(rf"(base\.latent_shape is ){SHAPE}", lambda m: m[1] + "x".join(m[2].split(", ")), message)
            hint = re.sub(SHAPE, lambda m: "x".join(m[1].split(", ")), hint)
        for key, own in given.items():
            message, hint = message.replace(key, own), hint.replace(key, own)
        error.message, error.hint, error.args = message, hint, (message,)
        raise


SHAPE = r"\[(\d+(?:, \d+)*)\]"
"""A shape as messages write it."""


def _resuming(generator: str, words: Sequence[str], latent: str | None, out: Path | None, device: str | None) -> str:
    """Return the command that resumes the interrupted work."""
    import torch

    from gebm_kit.core.trust import trust_words
    from gebm_kit.engine.process.torchrun import launcher

    options = [*(["--latent", latent] if latent else []), *(["--out", str(out)] if out else []), "--resume"]
    options += [*(["--device", device] if device else []), *trust_words(), "--threads", str(torch.get_num_threads())]
    return shlex.join([*launcher(), "refine", generator, *words, *options])


def _show(run: Run, found: Mapping[str, Any], figures: Sequence[str]) -> None:
    from gebm_kit.cli.results import interval, show_figures, show_protocols

    first, last = run.evaluation or {}, found["evaluation"] or {}
    ui.text(f"{run.recipe.name}: {run.step} steps in {duration(float(run.status.get('seconds') or 0))}")
    beta = found["inverse_temperature"]
    betas = {first.get("inverse_temperature", 1.0): first, beta: last}
    headings = ["metric", "held-out data", "before"]
    for at in betas:
        headings += [f"after, beta {at:g}", "after / before"]
    columns = first.get("metrics") or {}
    names = list(columns.get("base") or {})
    rows = []
    for name in names:
        row = [name, interval((columns.get("data") or {}).get(name)), interval((columns.get("base") or {}).get(name))]
        for evaluation in betas.values():
            metrics = evaluation.get("metrics") or {}
            row += [interval((metrics.get(part) or {}).get(name)) for part in ("gebm", "ratio")]
        rows.append(row)
    ui.table("", headings, rows)
    ui.text("[95 % intervals over independent draw sets, against the test part]")
    show_protocols(last.get("protocol") or {})
    if found["chosen_by"]:
        tried = ", ".join(f"{ui.number(t['value'])} at {t['inverse_temperature']:g}" for t in found["tried"])
        ui.text(f"beta {beta:g} was chosen by {found['chosen_by']} on the validation part: {tried}")
    if found["generator"]:
        ui.text(f"generator: {found['generator']['path']}, unchanged, sha256 {found['generator']['sha256']}")
    show_figures(list(figures))
    ui.text(f"run: {run.path}")
