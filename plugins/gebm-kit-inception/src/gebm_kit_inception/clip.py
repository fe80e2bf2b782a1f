"""The image embeddings of CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit_inception.images import OnBytes, PublishedNetwork
from gebm_kit_inception.weights import Published, another_network, torch_fidelity_needed

Model = Literal[
    "vit-l-14-336px", "vit-l-14", "vit-b-16", "vit-b-32", "rn50", "rn101", "rn50x4", "rn50x16", "rn50x64"
]  # fmt: skip

FILES: dict[Model, tuple[str, str, str]] = {
    "vit-l-14-336px": (
        "ViT-L-14-336px", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "891 MiB"
    ),
    "vit-l-14": ("ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "890 MiB"),
    "vit-b-16": ("ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "335 MiB"),
    "vit-b-32": ("ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "338 MiB"),
    "rn50": ("RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "244 MiB"),
    "rn101": ("RN101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", "278 MiB"),
    "rn50x4": ("RN50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", "402 MiB"),
    "rn50x16": ("RN50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", "630 MiB"),
    "rn50x64": ("RN50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", "1.3 GiB"),
}  # fmt: skip
"""Name, SHA-256 and approximate size of each published file, ``NAME.pt``; OpenAI's addresses contain the SHA-256."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Means and standard deviations of the channels with which CLIP was trained."""


class Clip(PublishedNetwork):
    """``f(x)``: the image embedding of CLIP, not normalised, by torch-fidelity's network (768 numbers for ViT-L/14).

    Images are rounded to bytes, grey images are repeated to three channels, and all are resized (bilinear, without
    anti-aliasing, at TensorFlow 1's pixel positions) to the network's side and scaled by CLIP's own mean and standard
    deviation, as torch-fidelity does. The code published with CMMD resizes by bicubic interpolation instead. The two agree
    on images that have the network's side already; otherwise compare values with the same ``resize`` in their protocol.

    The weights file is not part of this package, and nothing is downloaded: put OpenAI's file into the kit's cache folder
    (``GEBM_KIT_CACHE``), or name it as ``weights``. The cache folders of torch and of OpenAI's package are searched too. The
    file's SHA-256 is verified before the file is opened. It is a TorchScript archive, from which only tensors are read: its
    code is not run. A file of the same tensors by `torch.save` serves as well.

    Attributes:
        checksum: SHA-256 of the weights file.

    Args:
        weights: the file; null: the standard one in a cache folder. Relative paths start at the current directory.
        sha256: checksum that the file must have; null: that of the model's standard file. For your own weights give theirs.
        block_size: images that pass through the network at a time.
        model: which standard file; ``vit-l-14-336px`` is that of published CMMDs. Sizes are read from the file.

    References:
        Learning Transferable Visual Models From Natural Language Supervision. A. Radford et al., ICML 2021.
        https://arxiv.org/abs/2103.00020
        Rethinking FID: Towards a Better Evaluation Metric for Image Generation. S. Jayasumana et al., CVPR 2024.
        https://arxiv.org/abs/2401.09603
    """

    def __init__(
        self,
        weights: str | None = None,
        sha256: str | None = None,
        block_size: Annotated[int, Range(1, None)] = 64,
        model: Model = "vit-l-14-336px",
        *,
        directory: Annotated[Path | None, Injected] = None,
    ) -> None:
        check_arguments(self, block_size=block_size, model=model)
        self.model = model
        super().__init__(published(model), weights, sha256, block_size, directory)

    def build(self, state: dict[str, Tensor], path: Path) -> tuple[nn.Module, int]:
        """Build torch-fidelity's network, whose sizes are those of the tensors."""
        with torch_fidelity_needed(self.name):
            from torch_fidelity.feature_extractor_clip import build_model
        try:
            visual: Any = build_model(dict(state), torch.float32).visual
            side = int(visual.input_resolution)
        except Exception as error:  # a missing tensor fails in many ways
            raise another_network(error, path, self.name) from error
        return OnBytes(visual, side, MEAN, STD, self.name), side


def published(model: Model) -> Published:
    """Return a model's standard file, under OpenAI's name and under torch-fidelity's."""
    name, sha256, size = FILES[model]
    return Published(
        "clip",
        f"CLIP's image network {name}",
        "values with them are not comparable with those of the standard file",
        sha256,
        (f"{name}.pt", f"clip-{model}-{sha256}.pt"),
        f"https://openaipublic.azureedge.net/clip/models/{sha256}/{name}.pt",
        size,
        (Path("~/.cache/clip").expanduser(),),
    )
