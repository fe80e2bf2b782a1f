"""What a stopped sampling needs to resume, as safetensors with JSON in their metadata; nothing is pickled.

The changes of warm-up to the sampler are saved, and for each block of chains its states, its generator and its records.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.packing import Record


# --- samplers --------------------------------------------------------------------------------------------------------
def changes(sampler: Sampler, original: Sampler) -> tuple[dict[str, Tensor], Record]:
    """Find the attributes that tuning changed from ``original`` to ``sampler``: tensors by name, and plain data.

    Raises:
        UsageError: an attribute has a type that can't be saved.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _changed(sampler, original, "", tensors)


def with_changes(original: Sampler, tensors: Mapping[str, Tensor], record: Record, device: torch.device) -> Sampler:
    """Return a copy of ``original`` with the changes that `changes` found.

    Raises:
        CheckpointError: a change would replace a method.
    """
    twin = copy.copy(original)
    for name, value in record.items():
        if name.startswith("__") or callable(getattr(type(original), name, None)):
            raise CheckpointError(f"the saved state of the sampling is damaged: it changes {name!r} of the sampler")
        setattr(twin, name, _decoded(value, getattr(original, name, None), tensors, device))
    return twin


def parameters(sampler: Sampler) -> Record:
    """Return all attributes of a sampler as plain data, to compare two requests; a tensor becomes its sha256.

    An object that plain data can't express becomes the name of its type.
    """
    return {name: _summary(value) for name, value in sorted(vars(sampler).items())}


def _changed(sampler: Sampler, original: Sampler, prefix: str, tensors: dict[str, Tensor]) -> Record:
    before = vars(original)
    return {
        name: _encoded(value, before.get(name), prefix + name, tensors)
        for name, value in vars(sampler).items()
        if name not in before or value is not before[name]
    }


def _encoded(value: Any, before: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if type(value) is Tensor:
        tensors[name] = value
        return {"tensor": [name, value.device.type]}
    if type(value) in (list, tuple):
        items = [_encoded(item, None, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _encoded(item, None, f"{name}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, Sampler) and type(before) is type(value):
        return {"sampler": _changed(value, before, f"{name}.", tensors)}
    raise UsageError(
        f"the sampler's attribute {name!r} is of type {type(value).__name__} after warm-up, which can't be saved to "
        "resume from",
        hint="Keep numbers, strings, tensors, and lists and dicts of them there, or write the draws to one file.",
    )


def _decoded(value: Any, before: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float.fromhex(content)
    if kind == "tensor":
        name, kind = content
        return tensors[name].to(device if kind == device.type else kind)
    if kind == "dict":
        return {key: _decoded(item, None, tensors, device) for key, item in content.items()}
    if kind == "sampler":
        return with_changes(before, tensors, content, device)
    items = [_decoded(item, None, tensors, device) for item in content]
    return tuple(items) if kind == "tuple" else items


def _summary(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Tensor):
        return digest([("", value)])
    if isinstance(value, list | tuple):
        return [_summary(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _summary(item) for key, item in value.items()}
    if isinstance(value, Sampler):
        return {"type": type(value).__name__, **parameters(value)}
    return type(value).__name__


# --- models and states -----------------------------------------------------------------------------------------------
def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Compute the sha256 of tensors' names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def model_digest(model: GEBM) -> str:
    """Compute the sha256 of the weights, buffers and modules of base and energy (the modules' classes,
    not their code)."""
    classes = [f"{name} {type(module).__qualname__}" for name, module in model.named_modules()]
    tensors = [(name, tensor) for name, tensor in model.state_dict().items() if name != "log_partition"]
    return hashlib.sha256("\n".join([*classes, digest(tensors)]).encode()).hexdigest()


def state_tensors(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a kernel's state (a NamedTuple) by field."""
    return dict(zip(state._fields, state, strict=True))


def restored_state(example: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Build a state of the type of ``example``, on its device, from tensors by field.

    Raises:
        CheckpointError: a field is missing, or has another shape or type.
    """
    fields = {}
    for name, like in state_tensors(example).items():
        found = tensors.get(name)
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            raise CheckpointError(f"the saved state does not fit the sampler: field {name!r}")
        fields[name] = found.to(like.device)
    return type(example)(**fields)


@contextmanager
def reading_state() -> Iterator[None]:
    """Turn what reading a damaged saved state raises inside the block into an error for the user.

    Raises:
        CheckpointError: see above.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"the saved state of the sampling is damaged: {type(error).__name__}: {error}",
            hint="Remove the directory of these draws, and sample again.",
        ) from error


def differences(before: Record, now: Record, prefix: str = "") -> list[str]:
    """List the differences between two requests, one text each: ``seed was 0, now 1``."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {_short(old)}, now {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
