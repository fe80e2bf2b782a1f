"""Features of reference data on disk: they are the same at every evaluation, and costly with large networks.

A file's name is a hash of everything that its features depend on: the rows themselves, byte for byte (and so the dataset,
its part, the preprocessing and their number), the feature map with its checksum and its resize, and the kind of device. The
file holds that key and a checksum; one that does not match is computed anew and replaced, never trusted. A directory that
can't be written only costs the time to compute again.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gebm_kit.core.cache import cache_directory
from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.files import make_directory, write_atomic
from gebm_kit.core.interfaces import FeatureMap

VERSION = 1
"""Raised whenever what is stored changes."""

BLOCK = 1024
"""Rows that are hashed at a time."""


def features_of(name: str, features: FeatureMap, x: Tensor) -> Tensor:
    """``features(x)``, from the cache where it holds them; (N, *D) -> (N, F)."""
    key = _key(name, features, x)
    path = cache_directory() / f"features-{key[:32]}.safetensors"
    found = _load(path, key, len(x))
    if found is None:
        found = features(x)
        _store(path, key, found)
    return found.to(x.device)


def _key(name: str, features: FeatureMap, x: Tensor) -> str:
    facts = {
        "version": VERSION, "features": name, "checksum": features.checksum, "resize": features.resize,
        "shape": list(x.shape), "dtype": str(x.dtype), "device": x.device.type,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for block in x.split(BLOCK):
        digest.update(_bytes(block))
    return digest.hexdigest()


def _load(path: Path, key: str, rows: int) -> Tensor | None:
    """The features stored under ``key``; None when there are none, or when they are damaged (with a warning)."""
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            found: Tensor = archive.get_tensor("features")
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the cached features {path} can't be read ({error}); they are computed again", stacklevel=3)
        return None
    sound = found.ndim == 2 and len(found) == rows and metadata.get("sha256") == _checksum(found)
    if metadata.get("key") != key or not sound:
        warnings.warn(f"the cached features {path} do not match their checksum; they are computed again", stacklevel=3)
        return None
    return found


def _store(path: Path, key: str, features: Tensor) -> None:
    tensor = features.detach().cpu().contiguous()
    try:
        make_directory(path.parent)
        write_atomic(path, save({"features": tensor}, {"key": key, "sha256": _checksum(tensor)}))
    except GebmKitError as error:
        warnings.warn(
            f"features of the reference could not be cached ({error}); they will be computed again next time. "
            "Set GEBM_KIT_CACHE to a directory that can be written.",
            stacklevel=3,
        )


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
