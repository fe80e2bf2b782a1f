"""What a file or folder that was given as a generator or a scorer is, told from names and first bytes; nothing is loaded."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gebm_kit.core.errors import DataError, GebmKitError, UsageError
from gebm_kit.core.reading import read_json_file

Kind = Literal["weights", "torchscript", "export"]

CONVERT_HINT = (
    "Write the weights with `safetensors.torch.save_file(module.state_dict(), 'generator.safetensors')` and name "
    "the network in base.architecture, or export the network: `torch.jit.script(module.eval()).save('generator.pt')`."
)
"""Hint for files that are not a generator."""

STATE_DICT_HINT = (
    "In Python: `safetensors.torch.save_file(torch.load({name!r}, weights_only=True), 'generator.safetensors')`; then give "
    "that file, and name the network in base.architecture."
)
"""Hint for a pickled state dict."""

MAX_CONFIG = 2**22
"""Largest configuration of a folder that is read, in bytes."""

PEEK_BYTES = 2**20
"""Bytes of a pickle whose names are looked at."""

AUTOENCODER = "AutoencoderKL"
"""The class of diffusers that the base diffusers-vae reads."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a file is to be, as messages call it.

    Attributes:
        noun: its name, such as ``generator``.
        wanted: kinds of files that can be one, in words.
        hint: how to turn another file into one.
        code, codes: one row of its input, and several.
        owner: what is read from it, a ``base`` or an ``energy``.
        point: name of the input in Python.
        alone: how to export a program that takes one input.
    """

    noun: str
    wanted: str
    hint: str
    code: str
    codes: str
    owner: str
    point: str
    alone: str


GENERATOR = Role(
    noun="generator",
    wanted="a .safetensors file, a TorchScript or a torch.export program",
    hint=CONVERT_HINT,
    code="the latent codes",
    codes="codes",
    owner="a base",
    point="z",
    alone="Export a module that takes only z and fills in the other inputs (the class, the noise).",
)
"""A generator, which maps latent codes to data."""

SCORER = Role(
    noun="scorer",
    wanted="a TorchScript or a torch.export program",
    hint="Export the scorer: `torch.jit.script(module.eval()).save('scorer.pt')`, or torch.export.save with a free batch "
    "dimension.",
    code="the data",
    codes="rows",
    owner="an energy",
    point="x",
    alone="Export a module that takes only x and fills in the other inputs (the prompt, the target).",
)
"""A scorer, which maps data to a number, or to logits, for each row."""

FORMATS = (
    (b"\x89HDF", "a file of Keras or HDF5"),
    (b"\x93NUMPY", "a file of arrays (npy)"),
    (b"GGUF", "a language model (GGUF)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
)
"""First bytes of other formats, with what they are."""

SUFFIXES = {".onnx": "an ONNX model", ".pb": "a TensorFlow graph", ".tflite": "a TensorFlow Lite model"}
"""Suffixes of formats that have no first bytes of their own."""

TENSOR_NAMES = frozenset(
    {"OrderedDict", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_tensor", "Size", "device"}
)
"""Names that the pickle of a state dict asks for, besides kinds of storage."""


def kind_of(path: Path, content: bytes, role: Role = GENERATOR) -> Kind:
    """Tell what a file holds from its name, its first bytes and the names in the archive, without loading anything.

    Args:
        path: the file's path.
        content: its bytes.
        role: what it is to be, for messages.

    Raises:
        DataError: the file is neither safetensors nor a program; the message says what it is.
    """
    if _is_safetensors(content):
        return "weights"
    if not content.startswith(b"PK"):
        if path.suffix == ".safetensors":
            return "weights"  # a damaged one, which safetensors will say
        raise _other_error(path, content, role)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            inside = {name.partition("/")[2] for name in names} | set(names)
            if "serialized_exported_program.json" in inside or any(name.startswith("models/") for name in inside):
                return "export"
            if any(name.startswith("code/") for name in inside):
                return "torchscript"
            pickled = next((name for name in names if name == "data.pkl" or name.endswith("/data.pkl")), None)
            start = b"" if pickled is None else archive.open(pickled).read(PEEK_BYTES)
    except Exception as error:  # zipfile raises many types for damaged archives
        raise DataError(
            f"{path} is not a {role.noun}: it must be {role.wanted}, but it is not an archive that torch wrote ({error})",
            hint=role.hint,
        ) from error
    if pickled is not None:
        raise _pickle_error(path, start, "a pickle of torch.save", role)
    if any("aotinductor" in name for name in names):
        what = f"a compiled package (AOTInductor), which has no gradient with respect to {role.point}"
        raise DataError(f"{path} is {what}", hint="Save the exported program itself: torch.export.save(program, path).")
    if any(name.endswith(".npy") for name in names):
        raise DataError(f"{path} is a file of arrays (npz), not a {role.noun}", hint=role.hint)
    raise DataError(f"{path} is an archive, but neither a TorchScript nor a torch.export program", hint=role.hint)


def _is_safetensors(content: bytes) -> bool:
    size = int.from_bytes(content[:8], "little")
    return len(content) > 9 and content[8:9] == b"{" and size <= len(content) - 8


def _other_error(path: Path, content: bytes, role: Role) -> DataError:
    """Return the error for a file that is not an archive."""
    if content[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
        return _pickle_error(path, content[:PEEK_BYTES], "a pickle", role)
    what = next((name for start, name in FORMATS if content.startswith(start)), SUFFIXES.get(path.suffix.lower(), ""))
    known = f"it is {what}" if what else "it is not an archive that torch wrote"
    return DataError(
        f"{path} is not a {role.noun}: it must be {role.wanted}, but {known}",
        hint=role.hint,
    )


def _pickle_error(path: Path, start: bytes, what: str, role: Role) -> DataError:
    """Return the error for a pickle, which says whether it holds weights or a whole module. Nothing is unpickled."""
    names: list[str] = []
    words: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(start):
            if code.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif code.name == "STACK_GLOBAL":
                names.append(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    except Exception:  # the start of a long pickle, or a damaged one
        pass
    others = [n for n in names if n.rpartition(".")[2] not in TENSOR_NAMES and not n.endswith("Storage")]
    if names and not others:
        hint = STATE_DICT_HINT.format(name=path.name) if role is GENERATOR else role.hint
        return DataError(f"{path} is {what}, which is never loaded; it holds weights alone (a state_dict)", hint=hint)
    module = next(
        (name for name in others if not name.startswith(("torch._utils", "numpy", "builtins", "__builtin__"))), ""
    )
    holds = f"; it holds objects such as {module[:80]}" if module else ""
    return DataError(f"{path} is {what}, which is never loaded{holds}", hint=role.hint)


# --- folders ---------------------------------------------------------------------------------------------------------


def folder_error(folder: Path, given: str) -> GebmKitError:
    """Return the error for a folder in place of a generator's file: what it is, and which component reads it.

    Args:
        folder: the folder.
        given: its path as the user wrote it, for the words to write instead.
    """
    node = f"base='{{name: diffusers-vae, path: {json.dumps(given)}%s}}'"
    reads = "The base diffusers-vae of the plugin gebm-kit-hf reads it"
    config, index = _config(folder / "config.json"), _config(folder / "model_index.json")
    kind = str(config.get("_class_name") or "")[:80]
    if kind == AUTOENCODER:
        text = f"{folder} is the folder of a diffusers autoencoder ({kind}), but the base pretrained reads a file"
        return UsageError(text, hint=f"{reads}: {node % ''}.")
    if index:
        one_step = (
            f" If it makes an image in one step, as SD-Turbo does: base='{{name: diffusers-pipeline, path: "
            f"{json.dumps(given)}, prompt: ...}}'."
        )
        pipeline = f"{folder} is the folder of a whole diffusers pipeline ({str(index.get('_class_name'))[:80]})"
        parts = [
            p.parent.name for p in sorted(folder.glob("*/config.json")) if _config(p).get("_class_name") == AUTOENCODER
        ]
        if parts:
            text = f"{pipeline}; only its autoencoder maps a code to an image in one step, and pretrained reads a file"
            return UsageError(text, hint=f"{reads}: {node % f', subfolder: {parts[0]}'}.{one_step}")
        text = f"{pipeline}, which needs many steps for one image; a base needs one"
        return UsageError(text, hint=CONVERT_HINT + one_step)
    if kind:
        other = "autoencoder" if "Autoencoder" in kind or kind.startswith("VQ") else "network"
        text = f"{folder} is the folder of a diffusers {other} ({kind}); of these the kit reads only {AUTOENCODER}"
        return UsageError(
            text, hint="Export the decoder as a program: `torch.jit.trace(decoder.eval(), z).save(path)`."
        )
    if "model_type" in config or "architectures" in config:
        kind = str(config.get("model_type") or config.get("architectures"))[:80]
        return UsageError(
            f"{folder} is the folder of a transformers model ({kind}), not a generator", hint=CONVERT_HINT
        )
    if (folder / "resolved.yaml").is_file() and (folder / "checkpoints").is_dir():
        weights = sorted(folder.glob("checkpoints/*/model.safetensors"))
        hint = "To train another energy on its base: train.init_from with train.part=energy"
        if weights:
            hint += f"; or give {weights[-1]}, with base.prefix=base. and the run's base as base.architecture"
        return UsageError(f"{folder} is a run of gebm-kit, but a generator's file is needed", hint=f"{hint}.")
    if (folder / "saved_model.pb").is_file():
        return UsageError(f"{folder} is a TensorFlow SavedModel, which is not read", hint=CONVERT_HINT)
    files = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt", ".pt2", ".pth", ".ts"))
    hint = f"Give one of its files: {', '.join(files[:5])}." if files else "Give the file inside it."
    return DataError(f"{folder} is a folder, but a generator's file is needed", hint=hint)


def _config(file: Path) -> dict[str, Any]:
    """Return the content of a configuration; {} if there is none that can be read."""
    try:
        found = read_json_file(file, limit=MAX_CONFIG)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}
