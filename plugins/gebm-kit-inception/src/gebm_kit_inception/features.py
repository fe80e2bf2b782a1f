"""The features on which FID is published."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.interfaces import Dataset, FeatureMap
from gebm_kit_inception.weights import STANDARD_SHA256, checked, found, network, state_of

RESIZE = "bilinear to 299x299 as in TensorFlow 1"
"""How images are resized, in the words of the protocol; FID values depend on it."""


class Inception(FeatureMap):
    """``f(x)``: the 2048 pooled features of the Inception network of 2015-12-05, in torch-fidelity's port.

    Images are rounded to bytes, grey images are repeated to three channels, and all are resized as in the original
    (bilinear, without anti-aliasing, at TensorFlow 1's pixel positions) and scaled to [-1, 1]. The class probabilities for
    the Inception Score come from the 1,008 logits without bias, as in published scores.

    The weights file (91 MiB) is not part of this package, and nothing is downloaded: put the file into the kit's cache
    folder (``GEBM_KIT_CACHE``), or name it as ``weights``. torch's own cache folder, to which torch-fidelity downloads it,
    is searched too. The file's SHA-256 is verified before the file is opened, and the file is read with
    ``weights_only=True``, which runs no code.

    Attributes:
        checksum: SHA-256 of the weights file, ``6726825d...`` for the standard one.

    Args:
        weights: the file; null: the standard one in a cache folder. Relative paths start at the current directory.
        sha256: checksum that the file must have; for your own weights give theirs. Values with them are not standard FIDs,
            and the checksum in the protocol says so.
        block_size: images that pass through the network at a time.

    References:
        GANs Trained by a Two Time-Scale Update Rule. M. Heusel et al., NeurIPS 2017. https://arxiv.org/abs/1706.08500
        High-fidelity performance metrics for generative models in PyTorch. A. Obukhov et al., 2020.
        https://doi.org/10.5281/zenodo.3786539
    """

    def __init__(
        self,
        weights: str | None = None,
        sha256: str = STANDARD_SHA256,
        block_size: Annotated[int, Range(1, None)] = 64,
        *,
        directory: Annotated[Path | None, Injected] = None,
    ) -> None:
        check_arguments(self, block_size=block_size)
        if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise UsageError(f"features 'inception': sha256 must be 64 hexadecimal digits, got {sha256!r}")
        self.weights = None if weights is None else (directory or Path.cwd()) / Path(weights).expanduser()
        self.sha256, self.block_size, self.checksum, self.resize = sha256, block_size, "", RESIZE

    def check(self, dataset: Dataset) -> None:
        """Raise unless the data are images of 1 or 3 channels with a value range, and torch-fidelity and the weights exist.

        Raises:
            UsageError: the data are something else.
            PluginError: torch-fidelity is not installed.
            DataError: there is no weights file, or it has another checksum.
        """
        shape = tuple(dataset.data_shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UsageError(
                f"features 'inception' need images of 1 or 3 channels (C, H, W), and these data have shape {shape}",
                hint="Use features: classifier (data with labels) or pixels.",
            )
        if dataset.value_range is None:
            raise UsageError("features 'inception' need images with a value range, and these data are unbounded")
        if importlib.util.find_spec("torch_fidelity") is None:
            raise PluginError(
                "features 'inception' need the package torch-fidelity, which is not installed",
                hint="Install it with `pip install torch-fidelity`.",
            )
        checked(found(self.weights), self.sha256)

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        """Load the network; nothing is trained.

        Raises:
            UsageError, PluginError, DataError: as `check`, or the file holds other weights.
        """
        self.check(dataset)
        assert dataset.value_range is not None
        path = found(self.weights)
        self._network: Any = network(state_of(checked(path, self.sha256), path), path).to(device)
        self._device = device
        self._low, self._high = dataset.value_range
        self.checksum = self.sha256.lower()
        self.resize = RESIZE if dataset.data_shape[0] == 3 else f"grey to RGB, {RESIZE}"

    def __call__(self, x: Tensor) -> Tensor:
        """Return features of images in the dataset's range: (N, C, H, W) -> (N, 2048) float32, on the device of ``x``."""
        parts = [self._features(part) for part in x.detach().split(self.block_size)]
        return torch.cat(parts)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits without the bias: (N, 2048) -> (N, 1008)."""
        weight: Tensor = self._network.fc.weight
        return features @ weight.to(features).T

    def _features(self, x: Tensor) -> Tensor:
        images = x.to(self._device, torch.float32)
        # with TensorFloat-32 the features would agree with the published ones to only three digits
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            (features,) = self._network(as_bytes(images, self._low, self._high))
        # values that are not finite have no byte; their features are NaN, so that metrics refuse such draws
        finite = torch.isfinite(images.flatten(1)).all(1, keepdim=True)
        return torch.where(finite, features, torch.nan).to(x.device)


def as_bytes(x: Tensor, low: float, high: float) -> Tensor:
    """Round images in [low, high] to RGB bytes, clipping values outside; (N, 1 or 3, H, W) -> (N, 3, H, W) uint8."""
    scaled = (x - low) * (255.0 / (high - low))
    rounded = torch.nan_to_num(scaled).round().clamp(0, 255).to(torch.uint8)
    return rounded.expand(-1, 3, -1, -1) if x.shape[1] == 1 else rounded
