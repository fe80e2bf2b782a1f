"""The features on which FID is published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit_inception.images import PublishedNetwork, as_bytes
from gebm_kit_inception.weights import INCEPTION, STANDARD_SHA256, inception_network

__all__ = ["Inception", "as_bytes"]

SIDE = 299
"""Side of the images that the network works on."""


class Inception(PublishedNetwork):
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
        super().__init__(INCEPTION, weights, sha256, block_size, directory)

    def build(self, state: dict[str, Tensor], path: Path) -> tuple[nn.Module, int]:
        """Build torch-fidelity's port."""
        return _Pooled(inception_network(state, path)), SIDE

    def logits(self, features: Tensor) -> Tensor:
        """Return logits without the bias: (N, 2048) -> (N, 1008)."""
        weight: Tensor = self._network.get_parameter("extractor.fc.weight")
        return features @ weight.to(features).T


class _Pooled(nn.Module):
    """The first output of torch-fidelity's network, the pooled features."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x: Tensor) -> Tensor:
        (features,) = self.extractor(x)
        return torch.as_tensor(features)
