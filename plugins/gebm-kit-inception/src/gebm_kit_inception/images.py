"""Feature maps from networks of images with published weights: what they have in common."""

from __future__ import annotations

import importlib.util
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from gebm_kit.core.errors import PluginError, UsageError
from gebm_kit.core.interfaces import Dataset, FeatureMap
from gebm_kit_inception.weights import Published, state_of, torch_fidelity_needed

RESIZE = "bilinear to {0}x{0} as in TensorFlow 1"
"""How images are resized, in the words of the protocol; values of metrics depend on it."""


class PublishedNetwork(FeatureMap):
    """Features of images from a network with published weights.

    Attributes:
        checksum: SHA-256 of the weights file.

    Args:
        published: the standard weights file.
        weights: the file; None: the standard one in a cache folder.
        sha256: checksum that the file must have; None: the standard file's.
        block_size: images that pass through the network at a time.
        directory: where relative paths start; None: the current directory.
    """

    def __init__(
        self, published: Published, weights: str | None, sha256: str | None, block_size: int, directory: Path | None
    ) -> None:
        self._published, self.name = published, published.features
        self.sha256 = published.sha256 if sha256 is None else sha256
        if not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise UsageError(f"features '{self.name}': sha256 must be 64 hexadecimal digits, got {self.sha256!r}")
        self.weights = None if weights is None else (directory or Path.cwd()) / Path(weights).expanduser()
        self.block_size, self.checksum = block_size, ""

    @abstractmethod
    def build(self, state: dict[str, Tensor], path: Path) -> tuple[nn.Module, int]:
        """Build the network from the file's tensors; return it, and the side of the images that it works on.

        Its forward maps bytes (N, 3, H, W) to features (N, F).

        Raises:
            DataError: the weights belong to another network.
            PluginError: torch-fidelity can't be imported.
        """

    def check(self, dataset: Dataset) -> None:
        """Raise unless the data are images of 1 or 3 channels with a value range, and torch-fidelity and the weights exist.

        Raises:
            UsageError: the data are something else.
            PluginError: torch-fidelity is not installed.
            DataError: there is no weights file, or it has another checksum.
        """
        self._check_data(dataset)
        self._published.checked(self._published.find(self.weights), self.sha256)

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        """Load the network; nothing is trained.

        Raises:
            UsageError, PluginError, DataError: as `check`, or the file holds other weights.
        """
        self._check_data(dataset)
        assert dataset.value_range is not None
        path = self._published.find(self.weights)
        state = state_of(self._published.checked(path, self.sha256), path, self.name)
        network, side = self.build(state, path)
        self._network = network.requires_grad_(False).eval().to(device)
        self._device = device
        self._low, self._high = dataset.value_range
        self.checksum = self.sha256.lower()
        resize = RESIZE.format(side)
        self.resize = resize if dataset.data_shape[0] == 3 else f"grey to RGB, {resize}"

    def __call__(self, x: Tensor) -> Tensor:
        """Return features of images in the dataset's range: (N, C, H, W) -> (N, F) float32, on the device of ``x``."""
        return torch.cat([self._features(part) for part in x.detach().split(self.block_size)])

    def _check_data(self, dataset: Dataset) -> None:
        shape = tuple(dataset.data_shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UsageError(
                f"features '{self.name}' need images of 1 or 3 channels (C, H, W), and these data have shape {shape}",
                hint="Use features: classifier (data with labels) or pixels.",
            )
        if dataset.value_range is None:
            raise UsageError(f"features '{self.name}' need images with a value range, and these data are unbounded")
        if importlib.util.find_spec("torch_fidelity") is None:
            raise PluginError(
                f"features '{self.name}' need the package torch-fidelity, which is not installed",
                hint="Install it with `pip install torch-fidelity`.",
            )

    def _features(self, x: Tensor) -> Tensor:
        images = x.to(self._device, torch.float32)
        with torch.no_grad(), single_precision():
            features: Tensor = self._network(as_bytes(images, self._low, self._high))
        # values that are not finite have no byte; their features are NaN, so that metrics refuse such draws
        finite = torch.isfinite(images.flatten(1)).all(1, keepdim=True)
        return torch.where(finite, features, torch.nan).to(x.device)


class OnBytes(nn.Module):
    """A network behind the steps that turn bytes into its input: the resize of TensorFlow 1, and the channels' scale.

    Args:
        network: maps images (N, 3, S, S) to features (N, F).
        side: S.
        mean, std: the channels' means and standard deviations on [0, 1], as the network was trained.
        features: name of the feature map, for messages.

    Raises:
        PluginError: torch-fidelity can't be imported.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, side: int, mean: tuple[float, ...], std: tuple[float, ...], features: str
    ) -> None:
        super().__init__()
        with torch_fidelity_needed(features):
            from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
        self._resized = interpolate_bilinear_2d_like_tensorflow1x
        self.network, self.side = network, side
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of bytes; (N, 3, H, W) -> (N, F)."""
        resized = self._resized(x.float(), size=(self.side, self.side), align_corners=False)
        features: Tensor = self.network((resized - self.mean) / self.std)
        return features


@contextmanager
def single_precision() -> Iterator[None]:
    """Compute in true single precision inside the block.

    With TensorFloat-32 the features would agree with the published ones to only three digits.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def as_bytes(x: Tensor, low: float, high: float) -> Tensor:
    """Round images in [low, high] to RGB bytes, clipping values outside; (N, 1 or 3, H, W) -> (N, 3, H, W) uint8."""
    scaled = (x - low) * (255.0 / (high - low))
    rounded = torch.nan_to_num(scaled).round().clamp(0, 255).to(torch.uint8)
    return rounded.expand(-1, 3, -1, -1) if x.shape[1] == 1 else rounded
