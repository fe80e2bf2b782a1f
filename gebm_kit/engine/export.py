"""Passing a trained run on: a folder that needs no run directory, and hubs to push it to and load it from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.arguments import check_flag, check_path
from gebm_kit.core.errors import CheckpointError, DataError, GebmKitError, UsageError, shown
from gebm_kit.core.hubs import fetched, hub_of, is_place, place_of
from gebm_kit.core.paths import user_path
from gebm_kit.core.progress import OnProgress, warn
from gebm_kit.engine.exporting.card import CardFacts, model_card
from gebm_kit.engine.exporting.folder import (
    CARD,
    PROGRAM,
    PROGRAM_FACTS,
    as_json,
    as_yaml,
    check_target,
    config_of,
    new_folder,
    program_facts,
    shared_recipe,
    weights_of,
    write_files,
)
from gebm_kit.engine.exporting.kernel import TunedKernel, exported_kernel, tune_kernel
from gebm_kit.engine.exporting.noise import plan_noise
from gebm_kit.engine.exporting.paths import rename_copies, without_paths
from gebm_kit.engine.exporting.pictures import small_pictures
from gebm_kit.engine.exporting.program import MadeProgram, TracedPotential, draws_on_noise, make_program
from gebm_kit.engine.process.progress_bar import check_progress, progress_shown
from gebm_kit.engine.run_directory.create import SCORER_FOLDER, SOURCE_FOLDER, keep_sources
from gebm_kit.engine.run_directory.exported import RECIPE, WEIGHTS
from gebm_kit.engine.run_directory.run import Run, load_run
from gebm_kit.engine.run_directory.run_files import CONFIG, EVALUATION, is_exported
from gebm_kit.engine.sampling.settings import require_whole

LONGEST_LICENCE = 100
"""Longest licence that a card takes, in characters."""

MOST_PROGRAM_STEPS = 100_000
"""Most steps of a program's chain."""

CODE = (".pt", ".pt2", ".pth", ".bin", ".pkl", ".ckpt")
"""Suffixes of files that hold code or pickles; they never pass through a hub, except for the program, if asked for."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: the folder.
        files: names of its files with their sizes in bytes.
        sampler: the kernel as ``config.json`` describes it.
        program: content of ``program.json``; None without a program.
        no_program: why there is no program; "" if nobody asked for one.
    """

    path: Path
    files: dict[str, int]
    sampler: dict[str, Any]
    program: dict[str, Any] | None
    no_program: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as ``gebm-kit export --json`` prints it."""
        return {
            "out": str(self.path),
            "files": self.files,
            "bytes": sum(self.files.values()),
            "sampler": self.sampler,
            "program": self.program,
            "no_program": self.no_program or None,
        }


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    program: bool = True,
    program_steps: int | None = None,
    license: str | None = None,
    force: bool = False,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Exported:
    """Write a folder from which a run's model can be drawn without its run directory.

    It holds weights (safetensors), the resolved recipe without paths of this machine, a description (JSON), the last
    evaluation, a model card with pictures, and a torch.export program that maps noise to refined draws. If the program can't
    be made, a warning says why and everything else is written.

        >>> gk.export("runs/quickstart/20260101T000000Z-abcdef", "digits-gebm", license="mit")  # doctest: +SKIP
        >>> gk.sample(gk.load("digits-gebm"), num_samples=64).x.shape  # doctest: +SKIP
        torch.Size([64, 1, 8, 8])

    Args:
        run: a run, or the path of its directory.
        out: the folder, new or empty.
        program: whether to write the program.
        program_steps: steps of the program's chain; None: those of the recipe's chains, at most 200.
        license: licence of the model, for its card; None: the card says that none is stated.
        force: whether to replace an exported folder in ``out``. Nothing else is ever replaced.
        device: where the sampler is tuned; None: the recipe's device.
        progress, on_progress: as in `gebm_kit.sample`.

    Raises:
        UsageError: ``out`` is not free; the run is an exported folder; a value is outside its range.
        CheckpointError: the run is damaged.
        RunFailed: the disk is full.
    """
    check_path("out", out)
    for name, flag in (("program", program), ("force", force)):
        check_flag(name, flag)
    check_progress(progress, on_progress)
    folder = Path(os.path.abspath(user_path(out, what="out")))
    if program_steps is not None:
        require_whole("program_steps", program_steps, 1, MOST_PROGRAM_STEPS)
    _check_licence(license)
    subject = load_run(run) if isinstance(run, str | Path) else run
    if not isinstance(subject, Run):
        raise UsageError(
            f"a run or its path is needed, got {type(run).__name__}",
            hint="gk.fit(base, energy, data, out=DIR) makes a run of modules of your own.",
        )
    if subject.exported is not None:
        raise UsageError(f"{subject.path} is an exported folder already", hint="Copy it, or export the run itself.")
    check_target(folder, force=force)
    with progress_shown(progress, on_progress) as report:
        kernel = tune_kernel(subject, steps=program_steps, device=device or subject.recipe.device, on_progress=report)
    made, why = _program(subject, kernel) if program else (None, "")
    return _written(subject, folder, kernel, made, why, license, force)


def _check_licence(licence: str | None) -> None:
    if licence is None:
        return
    if (
        not isinstance(licence, str)
        or not licence.strip()
        or not licence.isprintable()
        or len(licence) > LONGEST_LICENCE
    ):
        raise UsageError(
            f"license must be one line of text, such as mit or cc-by-4.0, got {shown(licence)}",
            hint="https://huggingface.co/docs/hub/repositories-licenses lists names that the hub knows.",
        )


def _program(run: Run, kernel: TunedKernel) -> tuple[MadeProgram | None, str]:
    """Return the program, or None and why it can't be made, of which a warning tells."""
    try:
        return make_program(run.model, kernel.sampler, kernel.inverse_temperature, kernel.steps), ""
    except GebmKitError as error:
        warn(f"no program is written: {error.message}. Everything else of the folder is.")
        return None, error.message


def _written(
    run: Run,
    folder: Path,
    kernel: TunedKernel,
    made: MadeProgram | None,
    why: str,
    licence: str | None,
    force: bool,
) -> Exported:
    recipe, paths = shared_recipe(run.recipe)
    config = config_of(run, kernel, paths)
    evaluation = _evaluation(run)
    files = {WEIGHTS: weights_of(run, kernel), RECIPE: as_yaml(recipe)} | small_pictures(run.figures)
    pictures = [name for name in files if name.endswith(".png")]
    if evaluation is not None:
        files[EVALUATION] = as_json(evaluation)
    facts = None
    if made is not None:
        facts = program_facts(made, config)
        files |= {PROGRAM: made.content, PROGRAM_FACTS: as_json(facts)}
    for key, cls in config["objects"].items():
        warn(f"the folder can't rebuild the {key}, an object of {cls}: gk.load needs it again, as {key}=...")
    with new_folder(folder, force=force) as place:
        keep_sources(place, run.model.base, run.model.energy)
        for part in (SOURCE_FOLDER, SCORER_FOLDER):
            rename_copies(place / part, paths)
        card = CardFacts(config, recipe, evaluation, facts, why, pictures, licence)
        files[CARD] = model_card(card).encode()
        config["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        write_files(place, {**files, CONFIG: as_json(config)})
        sizes = {
            str(file.relative_to(place)): file.stat().st_size for file in sorted(place.rglob("*")) if file.is_file()
        }
    return Exported(folder, sizes, config["sampler"], facts, why)


def _evaluation(run: Run) -> dict[str, Any] | None:
    """Return the run's evaluation without paths of this machine; None if it is of another checkpoint, or there is none."""
    found, checkpoint = run.evaluation, run.checkpoint.path.name
    if found is None:
        return None
    of = found.get("checkpoint")
    if of is not None and of != checkpoint:
        warn(f"the evaluation of {run.path} is of checkpoint {of}, not of {checkpoint}: it is left out")
        return None
    told: dict[str, Any] = without_paths(found)
    told.pop("checkpoint", None)  # the folder holds one, which config.json names
    return told


def load(
    place: str | Path,
    *,
    program: bool = False,
    base: Any = None,
    energy: Any = None,
    data: Any = None,
    valid: Any = None,
    test: Any = None,
) -> Run:
    """Open a folder that `export` wrote, here or on a hub, as a run to draw from.

    Only safetensors, JSON and YAML are read. Nothing is unpickled, and no program is opened.

        >>> run = gk.load("hub://OWNER/NAME")  # doctest: +SKIP
        >>> gk.sample(run, num_samples=64, seed=0).x  # doctest: +SKIP

    Args:
        place: the folder, or ``hub://OWNER/NAME``, perhaps with ``@REVISION``.
        program: whether ``program.pt2`` is fetched from the hub too, to ``run.path``. It is not opened.
        base, energy, data, valid, test: objects that the run was trained on, as in `gebm_kit.load_run`.

    Raises:
        CheckpointError: the folder was not written by `export`, is damaged, or is of a later version.
        PluginError: a plugin is missing; the message names it.
        DataError: the hub has no such repository, or can't be reached.
        UsageError: ``place`` is not a place; objects are missing.
    """
    check_path("place", place)
    check_flag("program", program)
    folder = fetched(place, program=program) if isinstance(place, str) and is_place(place) else user_path(place)
    if not is_exported(folder):
        what = f"{place} holds" if is_place(place) else f"{folder} is"
        lacking = "does not exist" if not os.path.lexists(folder) else "is not one that gebm-kit export wrote"
        raise CheckpointError(
            f"{what} no exported folder" if is_place(place) else f"{folder} {lacking}",
            hint="`gebm-kit export RUN DIR` writes one; gk.load_run opens a run directory.",
        )
    run = load_run(folder, base=base, energy=energy, data=data, valid=valid, test=test)
    _ = run.recipe  # missing plugins and a damaged recipe are said now
    return run


def push(folder: str | Path, repository: str, *, program: bool = False, private: bool | None = None) -> dict[str, Any]:
    """Push a folder that `export` wrote to a hub; returns ``repository``, ``url`` and ``files``.

    Only weights (safetensors), JSON, YAML, PNG and the model card are pushed, and only files that the export wrote.

        >>> gk.push("digits-gebm", "OWNER/NAME", private=True)["url"]  # doctest: +SKIP

    Args:
        folder: the folder.
        repository: ``OWNER/NAME``, perhaps with ``@BRANCH``, or an address with a scheme; it is made if needed.
        program: whether ``program.pt2`` is pushed too. It is code to whoever loads it.
        private: whether a new repository is private; None: the hub's default.

    Raises:
        CheckpointError: the folder was not written by `export`, or is damaged.
        UsageError: ``repository`` is not one; nobody is logged in; a program is asked for, and there is none.
        PluginError: the plugin behind the hub is missing.
        RunFailed: the hub can't be reached.
    """
    check_path("the folder", folder)
    if not isinstance(repository, str):
        raise UsageError(f"repository must be text such as OWNER/NAME, got {shown(repository)}")
    for name, flag in (("program", program), ("private", bool(private))):
        check_flag(name, flag)
    path, place = user_path(folder, what="the folder"), place_of(repository)
    run = load_run(path) if is_exported(path) and not _objects(path) else None
    if run is None and not is_exported(path):
        raise CheckpointError(
            f"{path} is not a folder that gebm-kit export wrote", hint="`gebm-kit export RUN DIR` writes one."
        )
    files = _files_to_push(path, program)
    hub = hub_of(place.scheme)
    url = hub.push(path, place.repository, files, private=private, revision=place.revision)
    return {"repository": place.repository, "url": url, "files": files}


def _objects(path: Path) -> Mapping[str, Any]:
    from gebm_kit.engine.run_directory.run_files import read_config

    found = read_config(path).get("objects")
    return found if isinstance(found, dict) else {}


def _files_to_push(path: Path, program: bool) -> list[str]:
    """Return the names of the files that pass, verified.

    Raises:
        CheckpointError: one is missing or was changed since the export.
        UsageError: the program is asked for, and there is none.
    """
    from gebm_kit.core.reading import read_file
    from gebm_kit.engine.run_directory.run_files import read_config

    known = dict(read_config(path)["files"])
    if program and PROGRAM not in known:
        raise UsageError(f"{path} has no {PROGRAM} to push", hint="`gebm-kit export` says why when it writes none.")
    wanted = [name for name in known if name != PROGRAM or program]
    for name in wanted:
        content = read_file(path / name, error=CheckpointError, follow=False)
        if name not in (CARD, EVALUATION) and hashlib.sha256(content).hexdigest() != known[name]:
            raise CheckpointError(f"{path / name} was changed since the export", hint="Export the run again.")
    parts = [
        str(file.relative_to(path))
        for part in (SOURCE_FOLDER, SCORER_FOLDER)
        for file in sorted((path / part).rglob("*"))
        if file.is_file() and not file.is_symlink()
    ]
    code = [name for name in parts if name.removesuffix(".sha256").endswith(CODE)]
    if code:
        warn(
            f"{code[0]} is a program, which is not pushed: the folder can't be loaded from the hub, except as {PROGRAM}"
        )
    wanted += [name for name in parts if name not in code and name.endswith((".safetensors", ".json", ".sha256"))]
    others = sorted(f.name for f in path.iterdir() if f.name not in (*known, CONFIG, SOURCE_FOLDER, SCORER_FOLDER))
    if others:
        warn(
            f"not pushed, as the export did not write them: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"
        )
    return [*wanted, CONFIG]


def draws_from_noise(run: Run | str | Path, noise: Tensor, labels: Tensor | None = None) -> Tensor:
    """Compute the draws that an exported folder's program makes of rows of noise, by gebm-kit's own sampler.

    Args:
        run: a run from `load`, or the path of its folder.
        noise: standard normal numbers, (B, W), with W as ``program.json`` says.
        labels: class of each row, (B,), for a model with classes.

    Returns:
        Draws, (B, *D), as the model sees data.

    Raises:
        UsageError: the run is not an exported folder; noise or labels have another shape.
    """
    subject = load(run) if isinstance(run, str | Path) else run
    if not isinstance(subject, Run) or subject.exported is None:
        raise UsageError("a run from gk.load is needed: an exported folder keeps the tuned sampler, and others do not")
    kernel, beta, steps = exported_kernel(subject)
    model = subject.model
    given = None if model.num_classes is None else torch.zeros(1, dtype=torch.int64)
    plan = plan_noise(
        kernel,
        lambda chains: TracedPotential(model, beta, None if given is None else given.expand(chains)),
        torch.empty(1, model.latent_dim, dtype=model.dtype),
    )
    width = plan.width(steps)
    if not isinstance(noise, Tensor) or noise.ndim != 2 or noise.shape[1] != width:
        found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise DataError(f"noise must have shape (N, {width}), got {found}")
    return draws_on_noise(model, kernel, beta, plan, noise.to(model.dtype), steps, labels)
