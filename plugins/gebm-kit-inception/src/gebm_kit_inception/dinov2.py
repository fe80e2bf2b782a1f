"""The features of DINOv2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor, nn

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit_inception.images import OnBytes, PublishedNetwork
from gebm_kit_inception.vision_transformer import VisionTransformer
from gebm_kit_inception.weights import Published, another_network

Model = Literal["vit-s-14", "vit-b-14", "vit-l-14", "vit-g-14"]

FILES: dict[Model, tuple[str, str, str]] = {
    "vit-s-14": ("dinov2_vits14", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9", "84 MiB"),
    "vit-b-14": ("dinov2_vitb14", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73", "330 MiB"),
    "vit-l-14": ("dinov2_vitl14", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428", "1.1 GiB"),
    "vit-g-14": ("dinov2_vitg14", "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3", "4.2 GiB"),
}
"""Name, SHA-256 and size of each published file, ``NAME_pretrain.pth``."""

SIDE = 224
"""Side of the images that the network works on, as in torch-fidelity."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's means and standard deviations of the channels, with which DINOv2 was trained."""


class Dinov2(PublishedNetwork):
    """``f(x)``: the normalised class token of DINOv2, as torch-fidelity has it (1024 numbers for ViT-L/14).

    Images are rounded to bytes, grey images are repeated to three channels, and all are resized to 224x224 (bilinear,
    without anti-aliasing, at TensorFlow 1's pixel positions) and scaled by ImageNet's mean and standard deviation, as
    torch-fidelity does. Its extractor downloads the authors' code to build the network, so the network is written out here;
    with the same weights the two agree.

    The weights file is not part of this package, and nothing is downloaded: put the authors' file into the kit's cache
    folder (``GEBM_KIT_CACHE``), or name it as ``weights``. torch's own cache folder is searched too. The file's SHA-256 is
    verified before the file is opened, and the file is read with ``weights_only=True``, which runs no code.

    Attributes:
        checksum: SHA-256 of the weights file.

    Args:
        weights: the file; null: the standard one in a cache folder. Relative paths start at the current directory.
        sha256: checksum that the file must have; null: that of the model's standard file. For your own weights give theirs.
        block_size: images that pass through the network at a time.
        model: which standard file, without registers; ``vit-l-14`` is the one that most evaluations use. Sizes are read from
            the file.

    References:
        DINOv2: Learning Robust Visual Features without Supervision. M. Oquab et al., TMLR 2024.
        https://arxiv.org/abs/2304.07193
        Exposing flaws of generative model evaluation metrics and their unfair treatment of diffusion models.
        G. Stein et al., NeurIPS 2023. https://arxiv.org/abs/2306.04675
    """

    def __init__(
        self,
        weights: str | None = None,
        sha256: str | None = None,
        block_size: Annotated[int, Range(1, None)] = 64,
        model: Model = "vit-l-14",
        *,
        directory: Annotated[Path | None, Injected] = None,
    ) -> None:
        check_arguments(self, block_size=block_size, model=model)
        self.model = model
        super().__init__(published(model), weights, sha256, block_size, directory)

    def build(self, state: dict[str, Tensor], path: Path) -> tuple[nn.Module, int]:
        """Build the network, whose sizes are those of the tensors."""
        try:
            network = VisionTransformer.of(state)
            if SIDE % network.patch:
                raise ValueError(f"patches of {network.patch} pixels don't divide images of {SIDE}")
        except Exception as error:  # a missing tensor fails in many ways
            raise another_network(error, path, self.name) from error
        return OnBytes(network, SIDE, MEAN, STD, self.name), SIDE


def published(model: Model) -> Published:
    """Return a model's standard file."""
    name, sha256, size = FILES[model]
    return Published(
        "dinov2",
        f"DINOv2's network {name}",
        "values with them are not comparable with those of the standard file",
        sha256,
        (f"{name}_pretrain.pth",),
        f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth",
        size,
    )
