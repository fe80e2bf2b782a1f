"""Reading networks of diffusers and transformers from a folder, or from a repository on the Hugging Face hub.

Only weights in safetensors are read, and only by classes that the caller names: no pickle is opened, and no code that comes
with a model is run.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gebm_kit.core import programs
from gebm_kit.core.errors import DataError, PluginError, UsageError
from gebm_kit.core.reading import read_json_file

CONFIG_FILE = "config.json"

MAX_CONFIG = 2**22
"""Largest configuration that is read, in bytes; those of published models have a kilobyte."""

MAX_SIZE, MAX_BLOCKS = 2**16, 64
"""Largest size of a layer or an image, and most blocks or layers of a block, in a configuration; published models have
at most 1,280 channels and 4 blocks."""


def imported(name: str, base: str, extra: str) -> Any:
    """Import a library.

    Raises:
        PluginError: it is not installed.
    """
    import importlib

    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise PluginError(
            f"the base {base} needs the package {name}: {error}",
            hint=f"Install it with `pip install 'gebm-kit-hf[{extra}]'`.",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the libraries log, warn about and print as progress while they load, inside the block."""
    bars = [
        bar for bar in map(_bars_of, ("transformers", "diffusers")) if bar is not None and bar.is_progress_bar_enabled()
    ]
    for bar in bars:
        bar.disable_progress_bar()
    try:
        with programs.quiet(logging.ERROR):
            yield
    finally:
        for bar in bars:
            bar.enable_progress_bar()


def _bars_of(library: str) -> Any:
    """Return the part of a library that is in charge of its progress bars; None as long as it is not imported."""
    return sys.modules.get(f"{library}.utils.logging")


def said(error: Exception) -> str:
    """Return an error of a library on one line."""
    return " ".join(str(error).split())[:300]


def require_folder(folder: Path, file: str, base: str) -> None:
    """Check that a folder exists and holds ``file``.

    Raises:
        DataError: it does not.
    """
    if folder.is_file():
        raise DataError(
            f"{folder} is a file, but the base {base} reads a folder with {file} and safetensors",
            hint="Give the folder that the file is in; for a generator in one file use the base pretrained.",
        )
    if (folder / file).is_file():
        return
    inside = sorted(path.parent.name for path in folder.glob(f"*/{file}")) if folder.is_dir() else []
    problem = f"holds no {file}" if folder.is_dir() else "does not exist"
    hint = f"Set base.subfolder to one of {', '.join(inside)}." if inside else "Set base.path, or base.hub."
    raise DataError(f"the folder {folder} {problem}", hint=hint)


def checked_config(file: Path, classes: Sequence[str], base: str, key: str = "_class_name") -> dict[str, Any]:
    """Return the configuration in a file once its class and sizes are checked.

    Raises:
        DataError: it is damaged, or has sizes beyond any network's.
        UsageError: it describes another class.
    """
    config = read_json_file(file, limit=MAX_CONFIG)
    if not isinstance(config, dict):
        raise DataError(f"{file} is not a configuration: it holds a {type(config).__name__}")
    name = config.get(key)
    names = name if isinstance(name, list) else [name]
    if len(names) != 1 or names[0] not in classes:
        told = " and ".join(str(word)[:80] for word in names)
        raise UsageError(f"{file} describes a {told}, but the base {base} reads only {', '.join(classes)}")
    for word, value in config.items():
        sizes = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]
        if len(sizes) > MAX_BLOCKS or any(n > MAX_SIZE for n in sizes):
            raise DataError(f"{file} has {word} = {str(value)[:80]}; sizes above {MAX_SIZE:,} are not read")
    for word in ("layers_per_block", "num_hidden_layers", "transformer_layers_per_block"):
        value = config.get(word)
        for layers in value if isinstance(value, list) else [value]:
            if isinstance(layers, int) and layers > MAX_BLOCKS:
                raise DataError(f"{file} has {word} = {layers}; at most {MAX_BLOCKS} are read")
    return config


def check_numbers(make: Callable[[], nn.Module], folder: Path, what: str) -> None:
    """Raise DataError if a configuration asks for more numbers than the weights hold, before memory is allocated."""
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    try:
        with quiet(), torch.device("meta"):
            numbers = sum(p.numel() for p in make().parameters())
    except Exception as error:  # the libraries raise many types
        raise DataError(f"{folder / CONFIG_FILE} describes no {what}: {said(error)}") from error
    if held and numbers > held:  # at least one byte each
        raise DataError(f"{folder / CONFIG_FILE} describes {numbers:,} weights, but the files hold {held:,} bytes")


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """Return the safetensors of a folder, and their index if there are several, in the given variant.

    Raises:
        DataError: there are none; an index names a file elsewhere.
    """
    end = "" if variant is None else f".{variant}"
    found = sorted(folder.glob(f"*{end}.safetensors")) + sorted(folder.glob(f"*{end}-*.safetensors"))
    indices = sorted(folder.glob(f"*.safetensors.index{end}.json"))
    if variant is None:
        found = [file for file in found if "." not in file.name.removesuffix(".safetensors")]
    if found:
        for index in indices:
            names = (read_json_file(index, limit=MAX_CONFIG) or {}).get("weight_map", {})
            if not isinstance(names, dict) or not {str(name) for name in names.values()} <= {f.name for f in found}:
                raise DataError(f"{index} names files that are not beside it")
        return sorted({*found, *indices})
    others = sorted({f.name.split(".")[1] for f in folder.glob("*.*.safetensors")})
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt"), *folder.glob("*.msgpack")])
    hint = ""
    if others:
        hint = f"Set base.variant to {' or '.join(others)}."
    elif pickled:
        hint = f"{pickled[0].name} is a pickle, which is never read: save the model as safetensors."
    wanted = "" if variant is None else f" of variant {variant!r}"
    raise DataError(f"{folder} holds no weights in safetensors{wanted}", hint=hint)


def read_network(make: type[Any], folder: Path, **options: Any) -> Any:
    """Read a network by the library's own ``from_pretrained``, in eval mode.

    Raises:
        DataError: it can't be read, or weights are missing.
    """
    try:
        with quiet():
            found, info = make.from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except Exception as error:  # the libraries raise many types
        pickled = list(folder.glob("*.bin"))
        raise DataError(
            f"{folder} can't be read: {said(error)}",
            hint=f"{pickled[0].name} is a pickle, which is never read: save the model as safetensors."
            if pickled and not list(folder.glob("*.safetensors"))
            else "",
        ) from error
    lacking = sorted(str(name) for name in info.get("missing_keys") or [])
    wrong = sorted(str(name) for name in info.get("mismatched_keys") or [])
    for names, problem in ((lacking, "missing from"), (wrong, "of another shape in")):
        if names:
            count = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
            raise DataError(f"{count} {problem} {folder}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    return found.eval().requires_grad_(False)


def fetched(hub: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download files of a repository and return their folder in the library's cache.

    Raises:
        DataError: the repository does not exist or can't be reached.
    """
    import huggingface_hub

    try:
        with quiet():
            return Path(huggingface_hub.snapshot_download(hub, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the library raises many types
        raise DataError(
            f"{hub!r} can't be fetched from the Hugging Face hub: {said(error)}",
            hint="Check the name and the network (HF_ENDPOINT, HF_HUB_OFFLINE), or set base.path to a copy of it.",
        ) from error
