"""Weights files of published networks: where they are searched for, how they are verified, how they are read.

The files are torch pickles or TorchScript archives. Their SHA-256 is compared before they are opened, and they are read
with ``weights_only=True``, which makes tensors and refuses everything else. torch-fidelity would unpickle whatever a file
asks for, so it never sees a file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gebm_kit.core.cache import cache_directory
from gebm_kit.core.errors import DataError, PluginError
from gebm_kit_inception.torchscript import is_torchscript, without_code

STANDARD_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of FID's standard file, the network of 2015-12-05 converted from TensorFlow; its name ends in the first digits."""

FILE_NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""Names under which torch-fidelity and pytorch-fid publish FID's file; the two are the same byte for byte."""

DOWNLOAD_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
"""Where the error about FID's missing file says to download it; the kit itself downloads nothing."""


@dataclass(frozen=True, slots=True)
class Published:
    """A weights file that its authors publish.

    Attributes:
        features: name of the feature map, for messages.
        what: the network, in words.
        values: what values with the standard weights are called, in words.
        sha256: SHA-256 of the file, which is verified.
        names: names under which the file is known, the authors' own first.
        url, size: where the file is to be had, and how large it is.
        folders: folders to search besides the kit's cache folder and torch's.
    """

    features: str
    what: str
    values: str
    sha256: str
    names: tuple[str, ...]
    url: str
    size: str
    folders: tuple[Path, ...] = ()

    def places(self) -> list[Path]:
        """Return where to look for the file: the kit's cache folder, torch's, where torch-fidelity puts it, and others."""
        folders = (cache_directory(), Path(torch.hub.get_dir()) / "checkpoints", *self.folders)
        return [folder / name for folder in folders for name in self.names]

    def find(self, given: Path | None) -> Path:
        """Return the path of the weights file: ``given``, else the standard file in the first of `places` that has it.

        Raises:
            DataError: there is no such file.
        """
        candidates = self.places() if given is None else [given]
        for path in candidates:
            if path.is_file():
                return path
        hint = (
            f"Download {self.url} ({self.size}) and put it into {cache_directory()}, or name the file: "
            f"'eval.features=[{{name: {self.features}, weights: FILE}}]'. Its SHA-256 is {self.sha256}."
        )
        if given is not None:
            raise DataError(f"features '{self.features}': there is no weights file {given}", hint=hint)
        parents = [str(parent) for parent in dict.fromkeys(path.parent for path in candidates)]
        raise DataError(
            f"features '{self.features}' need the weights of {self.what}, and {self.names[0]} is neither in "
            f"{' nor in '.join(parents)}",
            hint=hint,
        )

    def checked(self, path: Path, sha256: str) -> bytes:
        """Read a file's bytes and verify their checksum. They are read once, so that what was verified is what is used.

        Raises:
            DataError: the file has another checksum, or can't be read.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"features '{self.features}': {path} can't be read: {error.strerror}") from error
        seen = hashlib.sha256(content).hexdigest()
        if seen != sha256.lower():
            standard = sha256.lower() == self.sha256
            what = f"the standard weights of {self.what}" if standard else "the weights that the recipe names"
            raise DataError(
                f"features '{self.features}': {path} ({len(content)} bytes) is damaged or not {what}: its SHA-256 is "
                f"{seen}, expected {sha256}",
                hint=f"Download it again. For your own weights give their sha256 too; {self.values}.",
            )
        return content


INCEPTION = Published(
    "inception",
    "FID's Inception network",
    "values with them are not standard FIDs",
    STANDARD_SHA256,
    FILE_NAMES,
    DOWNLOAD_URL,
    "91 MiB",
)
"""The standard file of FID."""


def state_of(content: bytes, path: Path, features: str) -> dict[str, Tensor]:
    """Return the tensors of a verified file, by name.

    Raises:
        DataError: the file holds something else.
    """
    try:
        if is_torchscript(content):
            return without_code(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"features '{features}': {path} is not a file of weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"features '{features}': {path} holds no weights by name")
    return dict(state)


@contextmanager
def torch_fidelity_needed(features: str) -> Iterator[None]:
    """Turn whatever prevents the import of torch-fidelity inside the block into a PluginError."""
    try:
        yield
    except Exception as error:  # a torchvision that does not match torch fails in many ways
        raise PluginError(
            f"features '{features}' need torch-fidelity, which can't be imported: {type(error).__name__}: {error}",
            hint="torch and torchvision must be matching releases and matching builds (CPU or CUDA): "
            "reinstall both from the same place.",
        ) from error


def another_network(error: Exception, path: Path, features: str) -> DataError:
    """Return the error about a file whose weights don't fit the network."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"features '{features}': {path} holds the weights of another network: {reason}")


def inception_network(state: dict[str, Tensor], path: Path) -> nn.Module:
    """Build torch-fidelity's network with these weights; its forward maps uint8 (N, 3, H, W) to ``(features (N, 2048),)``.

    Raises:
        DataError: the weights belong to another network.
        PluginError: torch-fidelity can't be imported.
    """
    with torch_fidelity_needed("inception"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    # torch-fidelity unpickles what it gets: it gets only the plain tensors just read, written again to memory.
    plain = io.BytesIO()
    torch.save(state, plain)
    plain.seek(0)
    try:
        built: nn.Module = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=plain)
    except RuntimeError as error:
        raise another_network(error, path, "inception") from error
    return built
