"""The folder of an exported run: its files, written as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor

from gebm_kit.config.build import resolved
from gebm_kit.config.schema import COMPONENT_SECTIONS, ComponentNode, Recipe
from gebm_kit.config.supplied import PYTHON_OBJECT
from gebm_kit.core.components import parameters
from gebm_kit.core.errors import GebmKitError, UsageError
from gebm_kit.core.files import make_directory, plain, remove_tree, umask, writing
from gebm_kit.core.plugins import installed
from gebm_kit.core.version import __version__
from gebm_kit.engine.exporting.kernel import TunedKernel
from gebm_kit.engine.exporting.paths import without_paths
from gebm_kit.engine.exporting.program import MadeProgram
from gebm_kit.engine.run_directory.exported import OF_SAMPLER
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.engine.run_directory.run_files import CONFIG, FORMAT, SCHEMA, is_exported

PROGRAM, PROGRAM_FACTS, CARD = "program.pt2", "program.json", "README.md"
"""Names of the program, of what is said about it, and of the model card."""


@contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``folder`` when the block ends without an error.

    Raises:
        UsageError: ``folder`` can't be written.
        RunFailed: the disk is full.
    """
    make_directory(folder.parent)
    with writing(folder):
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    os.chmod(file, 0o666 & ~umask())
            os.chmod(temporary, 0o777 & ~umask())  # mkdtemp makes directories private
            check_target(folder, force=force)
            if os.path.isdir(folder) and os.listdir(folder):
                old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
                os.replace(folder, old)
                try:
                    os.replace(temporary, folder)
                except BaseException:
                    os.replace(old, folder)
                    raise
                remove_tree(old)
            else:
                os.replace(temporary, folder)  # replaces an empty directory
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_target(folder: Path, *, force: bool) -> None:
    """Raise, before anything is computed, if ``folder`` can't become an exported folder.

    Raises:
        UsageError: it is a file or a link, or it is not empty: without ``force``, or holding something else than an export.
    """
    if folder.is_symlink():
        raise UsageError(f"{folder} is a symbolic link", hint="Give the folder that it leads to, or another name.")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; a folder is written", hint="Choose another name.")
    if not os.listdir(folder):
        return
    if not is_exported(folder):
        raise UsageError(
            f"{folder} is not empty, and it is not an exported folder, so it is not replaced",
            hint="Choose another name.",
        )
    if not force:
        raise UsageError(
            f"{folder} is not empty: it holds an exported run", hint="Replace it with --force (force=True)."
        )


def weights_of(run: Run, kernel: TunedKernel) -> bytes:
    """Return the content of ``model.safetensors``: base, energy, log Z, and the kernel's tensors."""
    named: dict[str, Tensor] = dict(run.model.state_dict())
    named |= {f"{OF_SAMPLER}{name}": tensor for name, tensor in kernel.tensors.items()}
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}
    return safetensors.torch.save(apart, {"format": "pt"})


def shared_recipe(recipe: Recipe) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the resolved recipe as plain data without paths of this machine, and these paths by their keys."""
    paths: dict[str, str] = {}
    tree = without_paths(resolved(recipe), paths)
    assert isinstance(tree, dict)
    return tree, paths


def config_of(run: Run, kernel: TunedKernel, paths: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of ``config.json``, without the sums of the files."""
    recipe, model, environment = run.recipe, run.model, run.environment
    seconds = run.training_seconds
    node = recipe.final_energy if run.checkpoint.state["facts"].get("final") else None
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": recipe.name,
        "step": run.step,
        "checkpoint": run.checkpoint.path.name,
        "versions": {
            "gebm-kit": __version__,
            "torch": str(torch.__version__),
            "trained with gebm-kit": environment.get("gebm-kit"),
            "trained with torch": environment.get("torch"),
        },
        "components": components_of(recipe),
        "objects": objects_of(recipe),
        "facts": dict(run.checkpoint.state["facts"]),
        "model": {
            "data_shape": list(model.data_shape),
            "latent_dim": model.latent_dim,
            "prior": model.base.prior.name,
            "energy": (node or recipe.energy).name,
            "conditional": model.conditional,
            "parameters": sum(tensor.numel() for tensor in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "sampler": kernel.as_dict(),
        "training_seconds": seconds,
        "paths": dict.fromkeys(paths, "shortened to the last name"),
    }


def components_of(recipe: Recipe) -> list[dict[str, str]]:
    """Return kind, name, distribution and version of every component that the recipe names."""
    found: dict[tuple[str, str], dict[str, str]] = {}

    def visit(kind: str, node: Any) -> None:
        if isinstance(node, list | tuple):
            for item in node:
                visit(kind, item)
        if not isinstance(node, ComponentNode) or node.name == PYTHON_OBJECT:
            return
        registry = installed().registry
        try:
            record = registry.get(kind, node.name)
            schema = parameters(record.load())
        except GebmKitError:  # a plugin that only the evaluation needs, and that is not here any more
            package = registry.packages.get((kind, node.name), "an unknown plugin")
            found[kind, node.name] = {"kind": kind, "name": node.name, "distribution": package, "version": ""}
            return
        found[kind, node.name] = {
            "kind": kind,
            "name": node.name,
            "distribution": record.distribution,
            "version": record.version,
        }
        for name, value in node.parameters.items():
            if name in schema and schema[name].kind is not None:
                visit(str(schema[name].kind), value)

    for section, kind in COMPONENT_SECTIONS.items():
        visit(kind, getattr(recipe, section))
    visit("energy", recipe.final_energy)
    visit("loss", recipe.final_loss)
    visit("penalty", [*recipe.penalties, *recipe.final_penalties])
    visit("metric", list(recipe.eval.metrics))
    visit("logger", list(recipe.loggers))
    return list(found.values())


def objects_of(recipe: Recipe) -> dict[str, str]:
    """Return the classes of Python objects that the run was trained on and that loading needs again, by their keys."""
    nodes = {"base": recipe.base, "energy": recipe.final_energy or recipe.energy}
    return {
        key: str(node.parameters.get("class", "an object")) for key, node in nodes.items() if node.name == PYTHON_OBJECT
    }


def program_facts(made: MadeProgram, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``program.json``."""
    model, plan, sampler = config["model"], made.plan, config["sampler"]
    batch: Any = "batch" if made.rows is None else made.rows
    inputs: list[dict[str, Any]] = [
        {
            "name": "noise",
            "shape": [batch, plan.width(made.steps)],
            "dtype": model["dtype"],
            "values": "independent standard normal numbers",
        }
    ]
    if model["conditional"]:
        inputs.append({"name": "labels", "shape": [batch], "dtype": "int64", "values": "classes from 0"})
    return {
        "schema": SCHEMA,
        "file": PROGRAM,
        "sha256": hashlib.sha256(made.content).hexdigest(),
        "torch": str(torch.__version__),
        "batch": made.rows,
        "inputs": inputs,
        "output": {
            "shape": [batch, *model["data_shape"]],
            "dtype": model["dtype"],
            "value_range": config["facts"].get("value_range"),
        },
        "noise": {
            "start": plan.latent_dim,
            "init": [{"kind": n.kind, "shape": list(n.shape)} for n in plan.init],
            "step": [{"kind": n.kind, "shape": list(n.shape)} for n in plan.step],
            "order": "the starting point, then the numbers of init, then those of each step; rand is Phi of a normal number",
        },
        "sampler": sampler["name"],
        "steps": made.steps,
        "inverse_temperature": sampler["inverse_temperature"],
        "largest_difference": made.difference,
        "units": config["facts"].get("units"),
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into the folder, and ``config.json`` last."""
    for name in sorted(files, key=lambda name: name == CONFIG):
        with open(folder / name, "wb") as stream:
            stream.write(files[name])
            stream.flush()
            os.fsync(stream.fileno())


def as_json(value: Any) -> bytes:
    """Return JSON of plain data; numbers that are not finite become null."""
    return (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode()


def as_yaml(value: Any) -> bytes:
    """Return YAML of plain data."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()
