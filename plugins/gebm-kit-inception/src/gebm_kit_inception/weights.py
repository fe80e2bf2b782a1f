"""The weights file of FID's Inception network: where it is searched for, how it is verified, how it is read.

The file is a torch pickle. Its SHA-256 is compared before it is opened, and it is read with ``weights_only=True``, which
makes tensors and refuses everything else. torch-fidelity would unpickle whatever a file asks for, so it never sees the file.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from gebm_kit.core.cache import cache_directory
from gebm_kit.core.errors import DataError, PluginError

STANDARD_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the standard file, the network of 2015-12-05 converted from TensorFlow; its name ends in the first digits."""

FILE_NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""Names under which torch-fidelity and pytorch-fid publish the file; the two are the same byte for byte."""

DOWNLOAD_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
"""Where the error about a missing file says to download it; the kit itself downloads nothing."""


def places() -> list[Path]:
    """Return where to look for the standard file: the kit's cache folder, and torch's, to which torch-fidelity downloads."""
    folders = (cache_directory(), Path(torch.hub.get_dir()) / "checkpoints")
    return [folder / name for folder in folders for name in FILE_NAMES]


def found(given: Path | None) -> Path:
    """Return the path of the weights file: ``given``, else the standard file in the first of `places` that has it.

    Raises:
        DataError: there is no such file.
    """
    candidates = places() if given is None else [given]
    for path in candidates:
        if path.is_file():
            return path
    hint = (
        f"Download {DOWNLOAD_URL} (91 MiB) and put it into {cache_directory()}, or name the file: "
        f"'eval.features=[{{name: inception, weights: FILE}}]'. Its SHA-256 is {STANDARD_SHA256}."
    )
    if given is not None:
        raise DataError(f"features 'inception': there is no weights file {given}", hint=hint)
    raise DataError(
        f"features 'inception' need the weights of FID's Inception network, and {FILE_NAMES[0]} is neither in "
        f"{cache_directory()} nor in {places()[-1].parent}",
        hint=hint,
    )


def checked(path: Path, sha256: str) -> bytes:
    """Read the file's bytes and verify their checksum. They are read once, so that what was verified is what is used.

    Raises:
        DataError: the file has another checksum, or can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"features 'inception': {path} can't be read: {error.strerror}") from error
    seen = hashlib.sha256(content).hexdigest()
    if seen != sha256.lower():
        what = "the standard weights of FID" if sha256 == STANDARD_SHA256 else "the weights that the recipe names"
        raise DataError(
            f"features 'inception': {path} ({len(content)} bytes) is damaged or not {what}: its SHA-256 is {seen}, "
            f"expected {sha256}",
            hint="Download it again. For your own weights give their sha256 too; values with them are not standard FIDs.",
        )
    return content


def state_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a verified file, by name.

    Raises:
        DataError: the file holds something else.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"features 'inception': {path} is not a file of weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"features 'inception': {path} holds no weights by name")
    return dict(state)


def network(state: dict[str, Tensor], path: Path) -> nn.Module:
    """Build torch-fidelity's network with these weights; its forward maps uint8 (N, 3, H, W) to ``(features (N, 2048),)``.

    Raises:
        DataError: the weights belong to another network.
        PluginError: torch-fidelity can't be imported.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except Exception as error:  # a torchvision that does not match torch fails in many ways
        raise PluginError(
            f"features 'inception' need torch-fidelity, which can't be imported: {type(error).__name__}: {error}",
            hint="torch and torchvision must be matching releases and matching builds (CPU or CUDA): "
            "reinstall both from the same place.",
        ) from error
    # torch-fidelity unpickles what it gets: it gets only the plain tensors just read, written again to memory.
    plain = io.BytesIO()
    torch.save(state, plain)
    plain.seek(0)
    try:
        built: nn.Module = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=plain)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"features 'inception': {path} holds the weights of another network: {reason}") from error
    return built
