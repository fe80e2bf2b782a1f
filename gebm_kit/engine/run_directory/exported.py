"""Reading a folder that `gebm_kit.export` wrote: a run to draw from, without its run directory.

Only ``config.json``, ``recipe.yaml``, ``evaluation.json`` and ``model.safetensors`` are read, and files of weights under
``base/`` and ``energy/`` where parts were read from files. Sizes and sums are checked before anything is parsed. A program
in the folder (``program.pt2``) is never opened here.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor

from gebm_kit.core.components import BUILTIN, canonical
from gebm_kit.core.errors import CheckpointError, PluginError, RecipeError, shown
from gebm_kit.core.packing import load_tensors
from gebm_kit.core.plugins import installed
from gebm_kit.core.reading import parse_yaml, read_file, texts_in
from gebm_kit.engine.run_directory.checkpoint import Checkpoint
from gebm_kit.engine.run_directory.run_files import CONFIG, is_exported, read_config

WEIGHTS, RECIPE = "model.safetensors", "recipe.yaml"
"""Names of the files of a folder, besides ``config.json``."""

OF_SAMPLER = "sampler."
"""Prefix of the sampler's tensors among the weights; those of the model have names of their own."""

MAX_RECIPE = 2**20
"""Largest recipe that is read, in bytes."""


HOME = re.compile(r"~[^/\\]*[/\\]")
"""The beginning of a path in a home directory."""


def machine_path(text: str) -> bool:
    """Return whether a text is a path that means something on one machine alone: absolute, at home, or to a parent."""
    if "\n" in text or len(text) > 4000 or not text:
        return False
    if text.startswith("file://") or HOME.match(text):
        return True
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or ".." in PurePosixPath(text).parts


class ExportedFolder:
    """An exported folder, read lazily.

    Attributes:
        path: the folder.
        config: content of ``config.json``, checked.

    Raises:
        CheckpointError: ``config.json`` is missing, damaged, or of a later version of the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)

    @property
    def environment(self) -> dict[str, Any]:
        """What a run keeps in ``env.json``; relative paths start from the folder."""
        return {**self.config["versions"], "directory": str(self.path)}

    @property
    def status(self) -> dict[str, Any]:
        """What a run keeps in ``status.json``."""
        config = self.config
        seconds = config.get("training_seconds")
        return {
            "recipe": config["name"],
            "state": "exported",
            "step": config["step"],
            "seconds": seconds,
            "training_seconds": seconds,
        }

    def recipe(self) -> Path:
        """Return the path of the recipe, once it is known to be whole and the plugins that it needs are there.

        Raises:
            CheckpointError: it is missing or damaged.
            PluginError: a plugin is missing; the message names it.
        """
        content = self._content(RECIPE, MAX_RECIPE).decode("utf-8", "replace")
        tree = parse_yaml(content, name=str(self.path / RECIPE), error=CheckpointError)
        outside = next((text for text in texts_in(tree) if machine_path(text)), None)
        if outside is not None:
            raise CheckpointError(
                f"{self.path / RECIPE} names {shown(outside)}, which is outside the folder",
                hint="No export writes such a path. Give your own data by an override, such as data.path=...",
            )
        self._require_plugins()
        return self.path / RECIPE

    def checkpoint(self) -> Checkpoint:
        """Return what a run keeps in a checkpoint, as far as sampling needs it.

        Raises:
            CheckpointError: the weights are missing or damaged.
        """
        tensors = {name: t for name, t in self._tensors().items() if not name.startswith(OF_SAMPLER)}
        parts: dict[str, dict[str, Tensor]] = {"model": tensors, "ema": {}}
        return Checkpoint(self.path / WEIGHTS, self.config["step"], parts, {"facts": dict(self.config["facts"])})

    def sampler_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the tuned sampler, by name.

        Raises:
            CheckpointError: the weights are missing or damaged.
        """
        found = self._tensors().items()
        return {name.removeprefix(OF_SAMPLER): tensor for name, tensor in found if name.startswith(OF_SAMPLER)}

    def _tensors(self) -> dict[str, Tensor]:
        return load_tensors(self._content(WEIGHTS), self.path / WEIGHTS, CheckpointError)

    def _content(self, name: str, limit: int | None = None) -> bytes:
        content = read_file(self.path / name, limit=limit, error=CheckpointError)
        wanted = self.config["files"].get(name)
        if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
            raise CheckpointError(
                f"{self.path / name} is damaged: its sha256 is not the one in {CONFIG} ({len(content):,} bytes)",
                hint="Fetch or export the folder again. Values of the recipe are changed by overrides, not in the file.",
            )
        return content

    def _require_plugins(self) -> None:
        """Raise PluginError if a component that the recipe names belongs to a plugin that is not here."""
        registry = installed().registry
        for entry in self.config["components"]:
            kind, name, distribution = entry["kind"], entry["name"], entry["distribution"]
            if canonical(distribution) == BUILTIN:
                continue
            try:
                registry.get(kind, name)
            except (PluginError, RecipeError) as error:
                known = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", distribution)  # the hint is a command to copy
                failed = registry.missing_notes.get(canonical(distribution))
                raise PluginError(
                    f"{self.path} needs the {kind} {shown(name)} of the plugin {shown(distribution)}, which is not installed"
                    if failed is None
                    else f"{self.path} needs the {kind} {shown(name)}: {failed}",
                    hint=f"Install it with `pip install {distribution}`." if known and failed is None else "",
                ) from error


def exported_folder(path: Path) -> ExportedFolder | None:
    """Return the folder at ``path`` if it is an exported one, else None.

    Raises:
        CheckpointError: its ``config.json`` is damaged or of a later version of the format.
    """
    return ExportedFolder(path) if is_exported(path) else None
