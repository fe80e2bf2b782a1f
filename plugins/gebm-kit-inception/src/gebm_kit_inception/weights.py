"""The weights file of FID's Inception network: where it is looked for, how it is known, how it is read.

The file is a torch pickle. Its SHA-256 is compared before it is opened, and it is read with ``weights_only=True``, which
makes tensors and refuses everything else; torch-fidelity, which would unpickle whatever a file asks for, never sees it.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from gebm_kit.core.cache import cache_directory
from gebm_kit.core.errors import DataError, PluginError

STANDARD = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the standard file, the network of 2015-12-05 converted from TensorFlow; its name ends in the first digits."""

NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""By which torch-fidelity and pytorch-fid publish it, byte for byte the same."""

ORIGIN = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


def places() -> list[Path]:
    """Where the standard file is looked for: the kit's cache folder, and torch's, into which torch-fidelity downloads it."""
    folders = (cache_directory(), Path(torch.hub.get_dir()) / "checkpoints")
    return [folder / name for folder in folders for name in NAMES]


def found(given: Path | None) -> Path:
    """The weights file: ``given``, else the standard one where it lies.

    Raises:
        DataError: there is none.
    """
    candidates = places() if given is None else [given]
    for path in candidates:
        if path.is_file():
            return path
    hint = (
        f"Download {ORIGIN} (91 MiB) and put it into {cache_directory()}, or name the file: "
        f"'eval.features=[{{name: inception, weights: FILE}}]'. Its SHA-256 is {STANDARD}."
    )
    if given is not None:
        raise DataError(f"features 'inception': there is no weights file {given}", hint=hint)
    raise DataError(
        f"features 'inception' need the weights of FID's Inception network, and {NAMES[0]} is neither in "
        f"{cache_directory()} nor in {places()[-1].parent}",
        hint=hint,
    )


def checked(path: Path, sha256: str) -> bytes:
    """The file's bytes, read once, so that what was checked is what is used.

    Raises:
        DataError: they have another checksum, or can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"features 'inception': {path} can't be read: {error.strerror}") from error
    seen = hashlib.sha256(content).hexdigest()
    if seen != sha256.lower():
        what = "the standard weights of FID" if sha256 == STANDARD else "the weights that the recipe names"
        raise DataError(
            f"features 'inception': {path} ({len(content)} bytes) is damaged or not {what}: its SHA-256 is {seen}, "
            f"expected {sha256}",
            hint="Download it again. For weights of your own give their sha256 too; values on them are no standard FIDs.",
        )
    return content


def state_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a checked file, by name.

    Raises:
        DataError: it holds something else.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile and torch, of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"features 'inception': {path} is no file of weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"features 'inception': {path} holds no weights by name")
    return dict(state)


def network(state: dict[str, Tensor], path: Path) -> nn.Module:
    """torch-fidelity's network with these weights; its ``forward(uint8 (N, 3, H, W))`` gives ``(features (N, 2048),)``.

    Raises:
        DataError: the weights are another network's.
        PluginError: torch-fidelity can't be imported.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except Exception as error:  # a torchvision that does not go with torch fails in many ways
        raise PluginError(
            f"features 'inception' need torch-fidelity, which can't be imported: {type(error).__name__}: {error}",
            hint="torch and torchvision must be releases, and builds (CPU or CUDA), that go together: "
            "reinstall both from the same place.",
        ) from error
    # torch-fidelity unpickles what it is given: it is given what was just read as plain tensors, written anew in memory.
    plain = io.BytesIO()
    torch.save(state, plain)
    plain.seek(0)
    try:
        built: nn.Module = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=plain)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"features 'inception': {path} holds the weights of another network: {reason}") from error
    return built
