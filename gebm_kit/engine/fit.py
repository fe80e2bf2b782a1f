"""Training of your own modules on your own arrays, without a recipe file and without a package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gebm_kit.config.check import check
from gebm_kit.config.class_keys import CLASS_KEYS
from gebm_kit.config.in_python import Values, unknown_argument
from gebm_kit.config.schema import SECTIONS, ComponentNode, Recipe
from gebm_kit.config.tree import parse
from gebm_kit.core.arguments import check_flag, check_path, check_words
from gebm_kit.core.attribution import attributed
from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.own_modules import named
from gebm_kit.core.progress import OnProgress, note
from gebm_kit.engine.datasets.given import Source, dataset_of, source_of
from gebm_kit.engine.datasets.open import say_reading
from gebm_kit.engine.process.progress_bar import check_progress
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.engine.train import train
from gebm_kit.engine.training.own_parts import base_facts, energy_facts
from gebm_kit.engine.training.phases import samples_unseen_base

VALUES = (*SECTIONS, "requires", "loggers", "precision", "seed")
"""Values of a recipe that `fit` takes by name; ``seed`` is short for ``train.seed``."""

ARGUMENTS = (
    "loss", "valid", "test", "labels", "reading", "latent_dim", "steps", "sampler", "out", "resume", "device", "overrides",
    "progress", "on_progress",
)  # fmt: skip
"""The other arguments of `fit` besides base, energy and data."""


def fit(
    base: Any,
    energy: Any,
    data: Any,
    *,
    loss: Any = "kale",
    valid: Any = None,
    test: Any = None,
    labels: Any = None,
    reading: Mapping[str, Any] | None = None,
    latent_dim: int | None = None,
    steps: int | None = None,
    sampler: Any = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    overrides: Sequence[str] = (),
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
    **values: Any,
) -> Run:
    """Train a base and an energy on data: your own modules and arrays, registered names, or recipe nodes.

    Your modules are trained in place: afterwards, and whenever ``run.model`` is read, they hold the weights that sampling
    uses and are in eval mode. The run directory is that of `gebm_kit.train`. Its ``resolved.yaml`` names your objects and
    can't rebuild them, so open the run again with ``gk.load_run(path, base=..., energy=...)``.

    >>> generator = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 2))
    >>> critic = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 1))
    >>> run = gk.fit(generator, critic, rows, steps=500)  # doctest: +SKIP
    >>> draws = gk.sample(run)  # doctest: +SKIP

    Args:
        base: maps codes to points, ``(B, latent_dim) -> (B, *D)``: a module, a `Base`, a name or a node. A module may have
            the attributes ``latent_dim``, ``prior``, ``log_prob``, ``encode`` and ``pretraining_loss`` (see `Base`).
        energy: maps points to numbers, low on data, ``(B, *D) -> (B,)`` or ``(B, 1)``: a module, an `Energy`, a name or a
            node.
        data: rows (N, *D) as a tensor, an array or a data frame; a pair (rows, labels); a torch Dataset or DataLoader, or an
            iterable of batches, which are read into memory; a path, a dataset's name, a node, or a Dataset of the kit.
            Columns of a data frame, and of a .csv or .parquet file, are standardised and keep their names. Bytes of images
            are scaled to [-1, 1], and other numbers stay as they are. A note says so.
        loss: a name, a node or a `Loss`.
        valid, test: held-out data of the same kinds; None: parts of ``data``, split at random by a fixed seed.
        labels: the class of each row of ``data``, or the column that holds it. A module whose forward has a second argument
            gets them.
        reading: parameters of the dataset that reads ``data``, for example ``{"standardise": False}`` or
            ``{"layout": "grey"}``: those of ``tabular`` for a data frame and a .csv or .parquet file, of ``arrays`` for
            other rows and files of arrays. Parameters that only ``arrays`` has make it read a table's file.
        latent_dim: size of a code, for a module that does not state it. None: it is found by a trial.
        steps: the recipe's ``train.steps``.
        sampler: a name, a node or a `Sampler`.
        out, resume, device, progress, on_progress: as for `gebm_kit.train`. To resume, give modules of the same shapes and
            the same data.
        overrides: words such as ``train.batch_size=64``.
        values: sections and keys of a recipe: ``train={"batch_size": 64}``, ``optim={"energy": {"lr": 1e-3}}``, ``seed=1``.
            Components in them are names, nodes or objects. What is not given has the default of recipes, but the base is not
            averaged (``ema``) unless ``ema`` or a final phase is asked for: the energy would not know the averaged base.

    Raises:
        UsageError, DataError, RecipeError, PluginError, CheckpointError: the run was not started.
        RunFailed, Interrupted: as for `gebm_kit.train`.
    """
    _check_arguments(base, energy, out, resume, overrides)
    check_progress(progress, on_progress)
    with attributed():
        source = source_of(data, valid, test, labels=labels, reading=_without_class_keys(reading))
        if source.dataset is not None:
            say_reading(source.dataset)
        dataset = dataset_of(source) if isinstance(base, nn.Module) or isinstance(energy, nn.Module) else None
        recipe = _recipe(
            base, energy, source, dataset, latent_dim, overrides,
            {"loss": loss, "sampler": sampler, **_of_train(steps, values), **_class_values(reading)},
        )  # fmt: skip
    where = None if device is None else str(device)
    run = train(recipe, out=out, resume=resume, device=where, progress=progress, on_progress=on_progress)
    if recipe.parts:
        _ = run.model  # the caller's modules get the weights that sampling uses, if the run was finished before, too
    return run


def _check_arguments(base: Any, energy: Any, out: Any, resume: Any, overrides: Any) -> None:
    if out is not None:
        check_path("out", out)
    check_flag("resume", resume)
    check_words("overrides", overrides)
    for kind, part in (("base", base), ("energy", energy)):
        if isinstance(part, type):
            raise UsageError(
                f"the {kind} is the class {part.__name__}, not an object of it", hint=f"Write {part.__name__}(...)."
            )
        if not isinstance(part, nn.Module | str | Mapping | ComponentNode):
            raise UsageError(
                f"the {kind} must be a torch.nn.Module, the name of a {kind} or a node {{name: ...}}; "
                f"got {type(part).__name__}"
            )
    if isinstance(base, nn.Module) and isinstance(energy, nn.Module):
        weights = {id(parameter) for parameter in base.parameters()}
        shared = next((name for name, one in energy.named_parameters() if id(one) in weights), None)
        if base is energy or shared is not None:
            what = "are one module" if base is energy else f"share the weight {shared!r}"
            raise UsageError(
                f"base and energy {what}; each needs weights of its own, which are trained against each other's"
            )


def _without_class_keys(reading: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the parameters of the dataset, without what a recipe says of the classes of any data."""
    return {k: v for k, v in reading.items() if k not in CLASS_KEYS} if isinstance(reading, Mapping) else reading


def _class_values(reading: Mapping[str, Any] | None) -> dict[str, Any]:
    found = {k: v for k, v in reading.items() if k in CLASS_KEYS} if isinstance(reading, Mapping) else {}
    return {"data": found} if found else {}


def _of_train(steps: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of the recipe, with ``steps`` and ``seed`` where a recipe has them."""
    for name, value in values.items():
        if name not in VALUES:
            raise unknown_argument(name, value, [*VALUES, *ARGUMENTS])
    found = {name: value for name, value in values.items() if name != "seed"}
    short = {name: value for name, value in (("steps", steps), ("seed", values.get("seed"))) if value is not None}
    if not short:
        return found
    train_section = found.get("train", {})
    if not isinstance(train_section, Mapping):
        raise UsageError(
            f"train must be a mapping of keys to values, for example {{'steps': 500}}, got {shown(train_section)}"
        )
    for name in short:
        if name in train_section:
            raise UsageError(f"{name} is given twice, as an argument and in train={{{name!r}: ...}}; give one of them")
    return {**found, "train": {**train_section, **short}}


def _recipe(
    base: Any,
    energy: Any,
    source: Source,
    dataset: Dataset | None,
    latent_dim: Any,
    overrides: Sequence[str],
    sections: dict[str, Any],
) -> Recipe:
    """Return the checked recipe, with the caller's objects in place of components."""
    if latent_dim is not None and (not isinstance(latent_dim, int) or isinstance(latent_dim, bool) or latent_dim < 1):
        raise UsageError(f"latent_dim must be a whole number >= 1, got {shown(latent_dim)}")
    values, of_classes = Values(), sections.pop("data", {})
    if source.node is not None:
        values.set("data", {**source.node, **of_classes})
    else:
        values.place("data", source.dataset, **{**(source.facts or {}), "class": source.original}, **of_classes)
    if isinstance(base, nn.Module):
        assert dataset is not None
        values.place("base", base, **base_facts(base, dataset, latent_dim))
    else:
        values.set("base", _with_size(base, latent_dim))
    if isinstance(energy, nn.Module):
        assert dataset is not None
        values.place("energy", energy, **energy_facts(energy, dataset))
    else:
        values.set("energy", energy)
    for name, value in sections.items():
        values.set(name, value)
    _note_precision(values)
    recipe = _checked(values, overrides)
    asked = "ema" in sections or any(word.strip().startswith(("ema.", "ema=")) for word in overrides)
    if asked or not samples_unseen_base(recipe):
        return recipe
    values.set("ema", {"decay": 0.0})
    return _checked(values, overrides)


def _checked(values: Values, overrides: Sequence[str]) -> Recipe:
    tree = parse(values.text, name="fit", overrides=overrides)
    tree.lines = {}  # of a text that the caller never sees
    return check(tree, directory=Path.cwd(), parts=values.parts)


def _with_size(base: Any, latent_dim: int | None) -> Any:
    """Return the name or node of a base with the caller's ``latent_dim`` among its parameters."""
    if latent_dim is None:
        return base
    node = (
        {"name": base} if isinstance(base, str) else base.as_dict() if isinstance(base, ComponentNode) else dict(base)
    )
    if node.get("latent_dim", latent_dim) != latent_dim:
        raise UsageError(f"latent_dim is given twice: {latent_dim}, and {node['latent_dim']} in the node of the base")
    return {**node, "latent_dim": latent_dim}


def _note_precision(values: Values) -> None:
    """Take the precision of modules in double precision; a note says what becomes of others."""
    modules = [part for key, part in values.parts.items() if key in (("base",), ("energy",))]
    types = {weight.dtype for module in modules for weight in module.parameters() if weight.is_floating_point()}
    asked = values.plain.get("precision")
    if asked is None and types == {torch.float64}:
        values.plain["precision"] = "float64"
        note("precision: float64, as the weights of the modules are")
        return
    wanted = torch.float64 if asked == "float64" else torch.float32
    for module in modules:
        if any(weight.is_floating_point() and weight.dtype != wanted for weight in module.parameters()):
            kind = str(wanted).removeprefix("torch.")
            note(
                f"the weights of {named(module)} become {kind}, the precision of the run (precision={asked or 'float32'})"
            )
